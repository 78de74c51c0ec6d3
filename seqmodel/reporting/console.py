"""The table of an evaluation on the terminal."""

from pathlib import Path

from features.cli import console, echo, log_warning
from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.reporting.text import TITLES, count, short, shown_baselines, subject_values, too_few_subjects


def print_estimates(result: EvaluationResult, report: Path, synthetic_notice: str = "") -> None:
    """Print metrics of the model, the majority class, the best baseline and the leakage check, then warnings
    and the report's path, to stderr. A notice that the data are synthetic comes first."""
    from rich.table import Table

    if synthetic_notice:
        log_warning(synthetic_notice)
    shown = shown_baselines(result)
    title = f"{result.split}: {count(len(result.predictions), 'clip')}"
    table = Table(title=f"{title}; {result.scope}" if result.scope else title, title_justify="left")
    for name in (
        "metric",
        "model",
        "each subject" if too_few_subjects(result) else "95 % interval",
        *(b.baseline.title for b in shown),
    ):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, (title, _) in TITLES.items():
        if name in result.estimates:
            estimate = result.estimates[name]
            baselines = [short(b.estimates[name].value) for b in shown]
            spread = f"{short(estimate.low)} to {short(estimate.high)}"
            if too_few_subjects(result):
                spread = ", ".join(short(value, 2) for _, value in subject_values(result, name)) or "–"
            table.add_row(title, short(estimate.value), spread, *baselines)
    console().print(table)
    for line in result.warnings:
        log_warning(line)
    echo(f"report: {report}")
