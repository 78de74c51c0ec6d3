"""python -m seqmodel compare: runs side by side on the test clips that they share.

Only clips that stand on the test side of *every* run are looked at, and all runs are judged with the same
draws of people, so that a difference is of the models and not of the clips. `--gate` is for whoever retrains
monthly: it exits 1 when the last run is worse than the first.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.cli import console, echo, log_error, log_warning
from features.labels import Labelling
from seqmodel.config import METRIC_OF_TASK, CompareArgs, EvaluateArgs
from seqmodel.metrics.bootstrap import (
    FEW_SUBJECTS,
    BootstrapWeights,
    Estimate,
    PairedDifference,
    resample,
    resample_subjects,
)
from seqmodel.metrics.classification import minority_class
from seqmodel.reporting.text import TITLES, short, with_interval
from seqmodel.runs.card import WEIGHTS, Card, load_card, write_json
from seqmodel.runs.predict import PREDICTIONS, read_predictions, write_predictions

GATE_MARGIN = 0.02
"""A fall of more than this fails the gate even where few clips cannot prove it."""
SHOWN = ("auroc", "balanced_accuracy", "macro_f1", "accuracy", "mcc", "qwk", "brier", "ece")


@dataclass(frozen=True)
class Compared:
    """One run on the common clips."""

    run: Path
    estimates: dict[str, Estimate]
    against_first: dict[str, PairedDifference]
    """This run minus the first, by metric; empty for the first."""


def compare(args: CompareArgs) -> tuple[dict[str, Any], int]:
    """The door's body: (summary, exit code). Raises ValueError where runs cannot be compared."""
    if len(args.runs) < 2:
        raise ValueError(f"compare needs two runs or more, got {len(args.runs)}")
    cards = [load_card(run) for run in args.runs]
    _require_same_task(args.runs, cards)
    metric = METRIC_OF_TASK[cards[0].labelling.task] if args.metric == "auto" else args.metric
    tables = [test_rows(run, card) for run, card in zip(args.runs, cards, strict=True)]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    if not common:
        raise ValueError(
            "the runs share no test clip, so nothing can be compared; "
            "train the newer one with --splits-from the older"
        )
    rows = [[table[clip_id] for clip_id in common] for table in tables]
    changed = sum(a["label"] != b["label"] for a, b in zip(rows[0], rows[-1], strict=True))
    if changed:
        log_warning(
            f"{changed} common clips changed their label: those of {args.runs[-1]} count for every run"
        )
    found, resamples = evaluate_runs(args.runs, cards[-1], rows, metric, args.bootstrap_rounds, args.seed)
    passed = gate_passes(found[-1].against_first[metric])
    if resamples.by_subject and resamples.num_people < FEW_SUBJECTS:
        log_warning(f"only {resamples.num_people} people in common: intervals are rough")
    _say(found, len(common), resamples)
    plot = args.runs[-1] / "plots" / "compare.png"
    _draw(found, plot)
    summary = _summary(found, len(common), resamples, metric, passed if args.gate else None, plot)
    write_json(args.runs[-1] / "compare.json", summary)
    if args.gate and not passed:
        moved = with_interval(found[-1].against_first[metric].difference)
        log_error(f"gate: {metric} of {args.runs[-1]} moved by {moved}")
        return summary, 1
    return summary, 0


def test_rows(run: Path, card: Card) -> dict[str, dict[str, str]]:
    """Rows of the run's predictions on its own test split by clip_id; predicted now where they are missing or
    stale."""
    path = run / PREDICTIONS
    stale = not path.is_file() or path.stat().st_mtime < (run / WEIGHTS).stat().st_mtime
    if stale or not any(row["split"] == "test" for row in read_predictions(path)):
        from seqmodel.commands.evaluate import open_and_predict

        echo(f"{run} has no fresh predictions on test: predicting")
        context, predictions = open_and_predict(EvaluateArgs(run=run))
        write_predictions(path, predictions, card.labelling.names, context.split)
    return {row["clip_id"]: row for row in read_predictions(path) if row["split"] == "test"}


def evaluate_runs(
    runs: tuple[Path, ...],
    card: Card,
    rows: list[list[dict[str, str]]],
    metric: str,
    rounds: int,
    seed: int,
) -> tuple[list[Compared], BootstrapWeights]:
    """Figures of every run on the common clips, with the last run's labels and one set of draws; `metric` is
    among them whatever the task."""
    names = list(card.labelling.names)
    labels = np.array([names.index(row["label"]) for row in rows[-1]])
    resamples = resample_subjects([row["subject"] for row in rows[-1]], rounds, seed)
    minority = minority_class(labels, len(names))
    unwanted = set() if card.labelling.task == "ordinal" else {"qwk", "mae"} - {metric}
    sampled = []
    for table in rows:
        p = np.array([[float(row[f"p_{name}"]) for name in names] for row in table])
        # Six written digits do not quite sum to one.
        p /= p.sum(axis=1, keepdims=True)
        predicted = np.array([names.index(row["decision"]) for row in table])
        sampled.append(resample(labels, p, predicted, resamples, minority, unwanted))
    first = sampled[0]
    return [
        Compared(run, each.estimates(), {} if each is first else each.minus(first))
        for run, each in zip(runs, sampled, strict=True)
    ], resamples


def gate_passes(pair: PairedDifference) -> bool:
    """No worse: the difference's interval is not wholly below zero and it fell by GATE_MARGIN at most."""
    # A difference that is not defined is no pass; an interval that is not defined speaks against nothing.
    return pair.difference.value >= -GATE_MARGIN and not pair.difference.high < 0


def _require_same_task(runs: tuple[Path, ...], cards: list[Card]) -> None:
    ours = cards[0].labelling
    for run, card in zip(runs[1:], cards[1:], strict=True):
        theirs = card.labelling
        if (ours.names, ours.task) != (theirs.names, theirs.task):
            raise ValueError(
                f"{runs[0]} answers {list(ours.names)} ({ours.task}), {run} answers {list(theirs.names)} "
                f"({theirs.task}): they cannot be compared"
            )
        # A label that only one of them knows is that of clips that they do not share.
        before, after = _class_of_label(ours), _class_of_label(theirs)
        moved = any(before[label] != after[label] for label in before.keys() & after.keys())
        if ours.column != theirs.column or moved:
            raise ValueError(
                f"{runs[0]} answers {_in_words(ours)}, {run} answers {_in_words(theirs)}: "
                "they cannot be compared"
            )


def _class_of_label(labelling: Labelling) -> dict[str, str]:
    """Class of each label of the column."""
    return {
        label: name for name, own in zip(labelling.names, labelling.sources, strict=True) for label in own
    }


def _in_words(labelling: Labelling) -> str:
    classes = zip(labelling.names, labelling.sources, strict=True)
    told = (f"{name} = {'+'.join(own)}" for name, own in classes)
    return f"{', '.join(told)} of column {labelling.column!r}"


def _say(found: list[Compared], num_common: int, resamples: BootstrapWeights) -> None:
    from rich.table import Table

    crowd = f" of {resamples.num_people} people" if resamples.by_subject else ""
    crowd += (
        " and of nobody known"
        if resamples.by_subject and resamples.num_people < resamples.num_subjects
        else ""
    )
    table = Table(title=f"{num_common} common test clips{crowd}", title_justify="left")
    table.add_column("figure")
    for item in found:
        table.add_column(str(item.run), justify="right")
    for name in SHOWN:
        if name not in found[0].estimates:
            continue
        cells = []
        for item in found:
            moved = ""
            if item.against_first:
                d = item.against_first[name].difference
                sign = "+" if d.value >= 0 else "−"
                moved = f"\n{sign}{short(abs(d.value))} ({short(d.low)} to {short(d.high)})"
            cells.append(with_interval(item.estimates[name]) + moved)
        table.add_row(TITLES[name][0], *cells)
    console().print(table)


def _draw(found: list[Compared], path: Path) -> None:
    from seqmodel.reporting.plots_analysis import compare_plot
    from seqmodel.reporting.style import save

    names = [name for name in SHOWN[:6] if name in found[0].estimates]
    estimates = [[item.estimates[name] for name in names] for item in found]
    save(
        compare_plot([item.run.name for item in found], [TITLES[name][0] for name in names], estimates), path
    )


def _summary(
    found: list[Compared],
    num_common: int,
    resamples: BootstrapWeights,
    metric: str,
    passed: bool | None,
    plot: Path,
) -> dict[str, Any]:
    return {
        "common_clips": num_common,
        "people": resamples.num_people if resamples.by_subject else None,
        "metric": metric,
        "gate_passed": passed,
        "runs": [
            {
                "run": str(item.run),
                "metrics": {name: estimate.as_json() for name, estimate in item.estimates.items()},
                "against_first": {
                    name: pair.difference.as_json()
                    | {"p_value": pair.p_value if math.isfinite(pair.p_value) else None}
                    for name, pair in item.against_first.items()
                },
            }
            for item in found
        ],
        "plot": str(plot),
    }
