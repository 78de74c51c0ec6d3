"""The table of an evaluation on the terminal."""

from pathlib import Path

from features.cli import console, echo, log_warning
from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.reporting.text import TITLES, count, short


def print_estimates(result: EvaluationResult, report: Path) -> None:
    """Print metrics of the model and the baselines, warnings and the report's path to stderr."""
    from rich.table import Table

    table = Table(title=f"{result.split}: {count(len(result.predictions), 'clip')}", title_justify="left")
    for name in ("metric", "model", "95 % interval", *(b.baseline.title for b in result.comparisons)):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, (title, _) in TITLES.items():
        if name in result.estimates:
            estimate = result.estimates[name]
            baselines = [short(b.estimates[name].value) for b in result.comparisons]
            table.add_row(
                title, short(estimate.value), f"{short(estimate.low)} to {short(estimate.high)}", *baselines
            )
    console().print(table)
    for line in result.warnings:
        log_warning(line)
    echo(f"report: {report}")
