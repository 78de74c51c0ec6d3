"""python -m seqmodel calibrate: a run in a new place. Refits temperature and threshold on some people, tests
on the others.

A model that still ranks well in a new place often says the wrong thing there, because light, camera and
people move its probabilities. The network stays as it is.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from features.cli import console, echo, log_error
from features.store.table import groups_of
from seqmodel.commands.export import renew_exports
from seqmodel.config import CalibrateArgs
from seqmodel.evaluation.context import EvalContext, count_opening, every_labelled, folder_of, open_context
from seqmodel.metrics.bootstrap import resample, resample_subjects
from seqmodel.metrics.calibration import Calibration, decide, refit_calibration, require_threshold
from seqmodel.metrics.classification import minority_class
from seqmodel.reporting.text import TITLES, short
from seqmodel.runs.card import CALIBRATORS, Card, load_card, write_csv, write_json
from seqmodel.runs.predict import predict_rows
from seqmodel.runs.writer import put_calibration

TRIES = 200
"""Deals of the people that are looked at for one in which both sides see every class."""


def calibrate(args: CalibrateArgs) -> tuple[dict[str, Any], int]:
    """The door's body: (summary, exit code). The card is changed unless the people left out speak against it.

    Raises ValueError where the store cannot be used, holds the run's own clips, or has too few people.
    """
    if not 0 < args.fit_fraction < 1:
        raise ValueError(f"--fit-fraction must lie in (0, 1), got {args.fit_fraction}")
    card = load_card(args.run)
    if args.threshold_metric != CalibrateArgs.threshold_metric:
        require_threshold(card.labelling.task)
    context = everybody(open_context(args.run, card, args.store, "test"))
    rows, labels, logits = measured_clips(context)
    people = groups_of(context.table, rows)
    fits = deal_people(people, labels, args.fit_fraction, args.seed)
    fitted = refit_calibration(
        card.calibration,
        logits[fits],
        labels[fits],
        card.labelling.task,
        threshold_metric=args.threshold_metric,
        label_names=card.labelling.names,
    )
    card = count_opening(context, card)
    evaluated = evaluate_both(card, fitted, logits[~fits], labels[~fits], people[~fits], args.seed)
    worse = evaluated["difference"]["balanced_accuracy"]
    kept = not (worse["high"] is not None and worse["high"] < 0)
    summary = {
        "people_calibrating": len(np.unique(people[fits])),
        "people_testing": len(np.unique(people[~fits])),
        "clips_calibrating": int(fits.sum()),
        "clips_testing": int((~fits).sum()),
        "calibration": vars(fitted),
        "kept": kept,
        "test": evaluated,
    }
    _say(card, fitted, evaluated, summary)
    if kept:
        _keep(context, args, card, fitted, summary, people[fits])
    folder = folder_of(context)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "calibration.json", summary)
    if not kept:
        log_error("the people left out are served worse by the new calibration: the run keeps its own")
        return summary, 1
    echo(
        f"{args.run} now decides by this calibration; predict and live use it. Run evaluate again: the "
        f"{summary['people_calibrating']} who calibrated do not count there."
    )
    return summary, 0


def _keep(
    context: EvalContext,
    args: CalibrateArgs,
    card: Card,
    fitted: Calibration,
    summary: dict[str, Any],
    calibrators: np.ndarray,
) -> None:
    """Make the run decide by the new calibration, and note the people (groups) that it was fitted on."""
    stage = {
        "stage": "calibrate",
        "store": str(context.store.path),
        "time_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "people": summary["people_calibrating"],
        "before": vars(card.calibration),
        "command": args.command,
    }
    # First: with the clips named and the card unchanged nothing is judged wrongly.
    table, rows = context.table, context.eval_subset.rows
    theirs = rows[np.isin(groups_of(table, rows), calibrators)]
    named = zip(table.clip_id[theirs].tolist(), table.subject[theirs].tolist(), strict=True)
    write_csv(args.run / CALIBRATORS, [("clip_id", "subject"), *named])
    # Decisions kept from before would be compared as if they were the run's.
    calibrated = replace(card, calibration=fitted, stages=(*card.stages, stage))
    renew_exports(args.run, put_calibration(args.run, calibrated))


def everybody(context: EvalContext) -> EvalContext:
    """Every labelled clip of another data set, whatever its own split says: nobody there was trained on.

    Raises ValueError for the run's own data, whose test split would choose what it judges.
    """
    if not context.is_other_data:
        raise ValueError(
            f"{context.store.path} holds clips of {context.run}, whose validation has chosen temperature and "
            "threshold already; calibrate wants a store of the new place alone"
        )
    return every_labelled(context)


def measured_clips(context: EvalContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, labels, logits) of the clips in which something was measured.

    Raises ValueError where they are of one class.
    """
    card, rows, labels = context.card, context.eval_subset.rows, context.eval_subset.labels
    extracted = context.table.state[rows] == 1
    rows, labels = rows[extracted], labels[extracted]
    logits, measured = predict_rows(context.run, card, context.store, card.labelling, rows)
    if len(np.unique(labels[measured])) < 2:
        raise ValueError(
            f"the {int(measured.sum())} clips of {context.store.path} in which something was measured are of "
            "one class: a calibration takes two"
        )
    return rows[measured], labels[measured], logits[measured]


def deal_people(people: np.ndarray, labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool, true for the clips of the people who calibrate: about `share` of them, both sides seeing
    every class.

    Raises ValueError when no deal of the people does.
    """
    names = np.unique(people)
    if len(names) < 2:
        raise ValueError(
            f"calibration needs two people or more, to fit on some and test on others; got {len(names)}"
        )
    count = int(np.clip(round(share * len(names)), 1, len(names) - 1))
    rng = np.random.default_rng(seed)
    classes = set(np.unique(labels).tolist())
    for _ in range(TRIES):
        fits = np.isin(people, rng.permutation(names)[:count])
        if set(labels[fits].tolist()) == classes == set(labels[~fits].tolist()):
            return fits
    raise ValueError(
        f"{len(names)} people cannot be dealt so that those who calibrate and those who test both show "
        f"every class (share {share})"
    )


def evaluate_both(
    card: Card, fitted: Calibration, logits: np.ndarray, labels: np.ndarray, people: np.ndarray, seed: int
) -> dict[str, dict[str, Any]]:
    """Figures of the run's own calibration (`before`), the new one (`after`) and the paired `difference`."""
    names, task = card.labelling.names, card.labelling.task
    resamples = resample_subjects(people, 1000, seed)
    minority = minority_class(labels, len(names))
    predicted = [decide(logits, task, calibration) for calibration in (card.calibration, fitted)]
    before, after = (resample(labels, s.probabilities, s.label, resamples, minority) for s in predicted)
    return {
        "before": {name: estimate.as_json() for name, estimate in before.estimates().items()},
        "after": {name: estimate.as_json() for name, estimate in after.estimates().items()},
        "difference": {name: pair.difference.as_json() for name, pair in after.minus(before).items()},
    }


def _say(
    card: Card, fitted: Calibration, evaluated: dict[str, dict[str, Any]], summary: dict[str, Any]
) -> None:
    from rich.table import Table

    table = Table(
        title=f"{summary['people_testing']} people left out ({summary['clips_testing']} clips)",
        title_justify="left",
    )
    for name in ("figure", "before", "after", "difference"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name in ("balanced_accuracy", "macro_f1", "accuracy", "auroc", "brier", "ece"):
        d = evaluated["difference"][name]
        moved = f"{short(d['value'])} ({short(d['low'])} to {short(d['high'])})"
        table.add_row(
            TITLES[name][0],
            short(evaluated["before"][name]["value"]),
            short(evaluated["after"][name]["value"]),
            moved,
        )
    console().print(table)
    old = card.calibration
    echo(
        f"temperature {old.temperature:.2f} → {fitted.temperature:.2f}, "
        f"bias {old.bias:+.2f} → {fitted.bias:+.2f}, "
        f"threshold {old.threshold:.2f} → {fitted.threshold:.2f}"
    )
