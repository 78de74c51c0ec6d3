"""An evaluation on the terminal."""

from pathlib import Path

from features.cli import console, echo, log_warning
from seqmodel.evaluation.evaluator import Judgement
from seqmodel.reporting.text import TITLES, short


def say_figures(judgement: Judgement, report: Path) -> None:
    """The main figures beside the yardsticks, as a table on stderr."""
    from rich.table import Table

    table = Table(title=f"{judgement.split}: {len(judgement.predictions)} clips", title_justify="left")
    for name in ("figure", "model", "95 % interval", *(b.yardstick.title for b in judgement.beside)):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name, (title, _) in TITLES.items():
        if name in judgement.figures:
            f = judgement.figures[name]
            others = [short(b.figures[name].value) for b in judgement.beside]
            table.add_row(title, short(f.value), f"{short(f.low)} to {short(f.high)}", *others)
    console().print(table)
    for line in judgement.warnings:
        log_warning(line)
    echo(f"report: {report}")
