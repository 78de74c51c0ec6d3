"""python -m seqmodel compare: metrics of runs, and their differences, on the test clips that they share.

Only clips in the test subset of *every* run count, and all runs are evaluated with the same bootstrap samples
of subjects. So a difference comes from the models and not from the clips. `--gate` is for regular retraining:
it exits with code 1 if the last run is worse than the first.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.cli import UserError, console, echo, log_error, log_warning
from features.labels import Labelling
from seqmodel.config import METRIC_OF_TASK, CompareArgs, EvaluateArgs
from seqmodel.metrics.bootstrap import (
    FEW_SUBJECTS,
    BootstrapWeights,
    Estimate,
    PairedDifference,
    few_subjects_text,
    resample,
    resample_subjects,
)
from seqmodel.metrics.classification import minority_class
from seqmodel.reporting.text import TITLES, short, with_interval
from seqmodel.runs.card import Card, load_card
from seqmodel.runs.files import WEIGHTS, write_json
from seqmodel.runs.predict import PREDICTIONS, read_predictions, write_predictions
from seqmodel.runs.writer import card_lock

GATE_MARGIN = 0.02
"""A drop of more than this fails the gate, even if it is not significant."""
SHOWN = ("auroc", "balanced_accuracy", "macro_f1", "accuracy", "mcc", "qwk", "brier", "ece")


@dataclass(frozen=True)
class RunMetrics:
    """Metrics of one run on the shared clips."""

    run: Path
    estimates: dict[str, Estimate]
    difference_from_first: dict[str, PairedDifference]
    """This run minus the first, by metric; empty for the first."""


def compare(args: CompareArgs) -> tuple[dict[str, Any], int]:
    """Handler of the command: returns (summary, exit code). Raises UserError if the runs cannot be
    compared."""
    if len(args.runs) < 2:
        raise UserError(f"compare needs two runs or more, got {len(args.runs)}")
    cards = [load_card(run) for run in args.runs]
    _require_same_task(args.runs, cards)
    metric = METRIC_OF_TASK[cards[0].labelling.task] if args.metric == "auto" else args.metric
    tables = [test_rows(run, card) for run, card in zip(args.runs, cards, strict=True)]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    if not shared:
        raise UserError(
            "the runs share no test clip and cannot be compared; train the newer run with --splits-from and "
            "the path of the older run"
        )
    rows = [[table[clip_id] for clip_id in shared] for table in tables]
    changed = sum(a["label"] != b["label"] for a, b in zip(rows[0], rows[-1], strict=True))
    if changed:
        log_warning(
            f"{changed} shared clips have different labels in the runs: the labels of {args.runs[-1]} are "
            "used for all runs"
        )
    found, resamples = evaluate_runs(args.runs, cards[-1], rows, metric, args.bootstrap_rounds, args.seed)
    passed = gate_passes(found[-1].difference_from_first[metric])
    if resamples.by_subject and resamples.num_subjects < FEW_SUBJECTS:
        log_warning(few_subjects_text(resamples.num_subjects))
    for notice in dict.fromkeys(card.data_statement.synthetic_notice for card in cards):
        if notice:
            log_warning(notice)
    _print_comparison(found, len(shared), resamples)
    plot = args.runs[-1] / "plots" / "compare.png"
    _draw(found, plot)
    summary = _summary(found, len(shared), resamples, metric, passed if args.gate else None, plot)
    write_json(args.runs[-1] / "compare.json", summary)
    if args.gate and not passed:
        difference = with_interval(found[-1].difference_from_first[metric].difference)
        log_error(f"gate failed: {metric} of {args.runs[-1]} minus that of {args.runs[0]} is {difference}")
        return summary, 1
    return summary, 0


def test_rows(run: Path, card: Card) -> dict[str, dict[str, str]]:
    """Rows of the run's predictions on its own test subset by clip_id; predicts if they are missing or older
    than the weights. Of a run without test subset, the predictions of its folds.

    Raises UserError if those are missing or older than the weights.
    """
    path, split = run / PREDICTIONS, f"folds-{card.design.folds}" if card.design.folds else "test"
    stale = not path.is_file() or path.stat().st_mtime < (run / WEIGHTS).stat().st_mtime
    if stale or not any(row["split"] == split for row in read_predictions(path)):
        if card.design.folds:
            raise UserError(f"{run} has no current predictions of its folds: evaluate it first")
        from seqmodel.commands.evaluate import open_and_predict

        echo(f"{run} has no current predictions on test: predicting now")
        context, predictions = open_and_predict(EvaluateArgs(run=run))
        with card_lock(run):
            write_predictions(path, predictions, card.labelling.names, context.split)
    return {row["clip_id"]: row for row in read_predictions(path) if row["split"] == split}


def evaluate_runs(
    runs: tuple[Path, ...],
    card: Card,
    rows: list[list[dict[str, str]]],
    metric: str,
    rounds: int,
    seed: int,
) -> tuple[list[RunMetrics], BootstrapWeights]:
    """Metrics of every run on the shared clips, with the labels of the last run and the same bootstrap
    samples; they include `metric` for every task."""
    names = list(card.labelling.names)
    labels = np.array([names.index(row["label"]) for row in rows[-1]])
    resamples = resample_subjects([row["subject"] for row in rows[-1]], rounds, seed)
    minority = minority_class(labels, len(names))
    unwanted = set() if card.labelling.task == "ordinal" else {"qwk", "mae"} - {metric}
    sampled = []
    for table in rows:
        p = np.array([[float(row[f"p_{name}"]) for name in names] for row in table])
        # Probabilities are written with six digits and do not sum to exactly one.
        p /= p.sum(axis=1, keepdims=True)
        predicted = np.array([names.index(row["decision"]) for row in table])
        sampled.append(resample(labels, p, predicted, resamples, minority, unwanted))
    first = sampled[0]
    return [
        RunMetrics(run, each.estimates(), {} if each is first else each.minus(first))
        for run, each in zip(runs, sampled, strict=True)
    ], resamples


def gate_passes(pair: PairedDifference) -> bool:
    """Whether the run is not worse: no significant drop, and a drop of GATE_MARGIN at most."""
    # An undefined difference fails; an undefined interval alone does not.
    return pair.difference.value >= -GATE_MARGIN and not pair.difference.high < 0


def _require_same_task(runs: tuple[Path, ...], cards: list[Card]) -> None:
    first = cards[0].labelling
    for run, card in zip(runs[1:], cards[1:], strict=True):
        other = card.labelling
        if (first.names, first.task) != (other.names, other.task):
            raise UserError(
                f"{runs[0]} predicts {list(first.names)} ({first.task}), {run} predicts {list(other.names)} "
                f"({other.task}): they cannot be compared"
            )
        # A label that only one of them has occurs only in clips that they do not share.
        first_classes, other_classes = _class_of_label(first), _class_of_label(other)
        moved = any(
            first_classes[label] != other_classes[label]
            for label in first_classes.keys() & other_classes.keys()
        )
        if first.column != other.column or moved:
            raise UserError(
                f"{runs[0]} predicts {_describe(first)}, {run} predicts {_describe(other)}: they cannot be "
                "compared"
            )


def _class_of_label(labelling: Labelling) -> dict[str, str]:
    """Label of the column -> class."""
    return {
        label: name
        for name, sources in zip(labelling.names, labelling.sources, strict=True)
        for label in sources
    }


def _describe(labelling: Labelling) -> str:
    classes = zip(labelling.names, labelling.sources, strict=True)
    texts = (f"{name} = {'+'.join(sources)}" for name, sources in classes)
    return f"{', '.join(texts)} of column {labelling.column!r}"


def _print_comparison(found: list[RunMetrics], num_shared: int, resamples: BootstrapWeights) -> None:
    from rich.table import Table

    subjects = f", {resamples.num_subjects} subjects" if resamples.by_subject else ""
    if resamples.by_subject and resamples.num_subjects < resamples.num_units:
        subjects += " and clips without a subject"
    table = Table(title=f"{num_shared} shared test clips{subjects}", title_justify="left")
    table.add_column("metric")
    for item in found:
        table.add_column(str(item.run), justify="right")
    for name in SHOWN:
        if name not in found[0].estimates:
            continue
        cells = []
        for item in found:
            difference = ""
            if item.difference_from_first:
                d = item.difference_from_first[name].difference
                sign = "+" if d.value >= 0 else "−"
                difference = f"\n{sign}{short(abs(d.value))} ({short(d.low)} to {short(d.high)})"
            cells.append(with_interval(item.estimates[name]) + difference)
        table.add_row(TITLES[name][0], *cells)
    console().print(table)


def _draw(found: list[RunMetrics], path: Path) -> None:
    from seqmodel.reporting.plots_analysis import compare_plot
    from seqmodel.reporting.style import save

    names = [name for name in SHOWN[:6] if name in found[0].estimates]
    estimates = [[item.estimates[name] for name in names] for item in found]
    save(
        compare_plot([item.run.name for item in found], [TITLES[name][0] for name in names], estimates), path
    )


def _summary(
    found: list[RunMetrics],
    num_shared: int,
    resamples: BootstrapWeights,
    metric: str,
    passed: bool | None,
    plot: Path,
) -> dict[str, Any]:
    return {
        "shared_clips": num_shared,
        "subjects": resamples.num_subjects if resamples.by_subject else None,
        "metric": metric,
        "gate_passed": passed,
        "runs": [
            {
                "run": str(item.run),
                "metrics": {name: estimate.as_json() for name, estimate in item.estimates.items()},
                "difference_from_first": {
                    name: pair.difference.as_json()
                    | {"p_value": pair.p_value if math.isfinite(pair.p_value) else None}
                    for name, pair in item.difference_from_first.items()
                },
            }
            for item in found
        ],
        "plot": str(plot),
    }
