"""An evaluation on the terminal."""

from pathlib import Path

from features.cli import console, echo, log_warning
from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.reporting.text import TITLES, short


def print_estimates(result: EvaluationResult, report: Path) -> None:
    """The main figures beside the yardsticks, as a table on stderr."""
    from rich.table import Table

    table = Table(title=f"{result.split}: {len(result.predictions)} clips", title_justify="left")
    for name in ("metric", "model", "95 % interval", *(b.baseline.title for b in result.comparisons)):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name, (title, _) in TITLES.items():
        if name in result.estimates:
            f = result.estimates[name]
            others = [short(b.estimates[name].value) for b in result.comparisons]
            table.add_row(title, short(f.value), f"{short(f.low)} to {short(f.high)}", *others)
    console().print(table)
    for line in result.warnings:
        log_warning(line)
    echo(f"report: {report}")
