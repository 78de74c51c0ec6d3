"""python -m seqmodel calibrate: fit a run's temperature and threshold on data of a new domain.

With another camera, light or group of subjects, a model often still ranks clips well, but its probabilities
shift, so its threshold is wrong. Some of the new subjects are used for the fit, the others for the test. The
network does not change.
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from features.cli import UserError, console, echo, log_error
from features.store.table import groups_of
from seqmodel.commands.evaluation_log import log_test_evaluation
from seqmodel.commands.export import renew_exports
from seqmodel.config import CalibrateArgs
from seqmodel.evaluation.context import EvalContext, every_labelled, folder_of, open_context
from seqmodel.metrics.bootstrap import ENOUGH_SUBJECTS, resample, resample_subjects
from seqmodel.metrics.calibration import Calibration, decide, refit_calibration, require_threshold
from seqmodel.metrics.classification import minority_class
from seqmodel.reporting.text import TITLES, short
from seqmodel.runs.card import Card, load_card
from seqmodel.runs.files import write_json
from seqmodel.runs.predict import predict_rows
from seqmodel.runs.writer import put_calibration

MIN_TEST_SUBJECTS = ENOUGH_SUBJECTS
"""Fewer subjects have no 95 % interval."""
TRIES = 200
"""Random choices of subjects to try, until both parts have clips of every class."""


def _counts(subjects: np.ndarray, fits: np.ndarray) -> dict[str, Any]:
    """Numbers of subjects and clips in the fit and in the test."""
    return {
        "subjects_fit": len(np.unique(subjects[fits])),
        "subjects_test": len(np.unique(subjects[~fits])),
        "clips_fit": int(fits.sum()),
        "clips_test": int((~fits).sum()),
    }


def calibrate(args: CalibrateArgs) -> tuple[dict[str, Any], int]:
    """Handler of the command: returns (summary, exit code).

    The run gets the new calibration unless balanced accuracy on the test subjects is significantly lower.
    Raises UserError if the store cannot be used, has clips of the run, or has too few subjects.
    """
    if not 0 < args.fit_fraction < 1:
        raise UserError(f"--fit-fraction must lie in (0, 1), got {args.fit_fraction}")
    card = load_card(args.run)
    if args.threshold_metric != CalibrateArgs.threshold_metric:
        require_threshold(card.labelling.task)
    context = all_labelled(open_context(args.run, card, args.store, "test"))
    rows, labels, logits = measured_clips(context)
    subjects = groups_of(context.table, rows)
    fits = choose_fit_subjects(subjects, labels, args.fit_fraction, args.seed)
    fitted = refit_calibration(
        card.calibration,
        logits[fits],
        labels[fits],
        card.labelling.task,
        threshold_metric=args.threshold_metric,
        label_names=card.labelling.names,
        groups=subjects[fits],
    )
    card = log_test_evaluation(context, card)
    evaluated = evaluate_both(card, fitted, logits[~fits], labels[~fits], subjects[~fits], args.seed)
    worse = evaluated["difference"]["balanced_accuracy"]
    kept = not (worse["high"] is not None and worse["high"] < 0)
    summary = _counts(subjects, fits) | {"calibration": vars(fitted), "kept": kept, "test": evaluated}
    _print_comparison(card, fitted, evaluated, summary)
    if kept:
        _keep(context, args, card, fitted, summary, subjects[fits])
    folder = folder_of(context)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "calibration.json", summary)
    if not kept:
        log_error(
            "the new calibration has a significantly lower balanced accuracy on the test subjects: the run "
            "keeps its old calibration"
        )
        return summary, 1
    echo(
        f"{args.run} now uses this calibration, also in predict and live. Run evaluate again: it leaves out "
        f"the {summary['subjects_fit']} subjects used for the fit."
    )
    return summary, 0


def _keep(
    context: EvalContext,
    args: CalibrateArgs,
    card: Card,
    fitted: Calibration,
    summary: dict[str, Any],
    fit_subjects: np.ndarray,
) -> None:
    """Save the new calibration in the run, and the clips of the subjects (groups) that it was fitted on."""
    stage = {
        "stage": "calibrate",
        "store": str(context.store.path),
        "time_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "subjects": summary["subjects_fit"],
        "before": vars(card.calibration),
        "command": args.command,
    }
    table, rows = context.table, context.eval_subset.rows
    fitted_rows = rows[np.isin(groups_of(table, rows), fit_subjects)]
    named = zip(table.clip_id[fitted_rows].tolist(), table.subject[fitted_rows].tolist(), strict=True)
    # put_calibration deletes old predictions, which compare would otherwise read.
    fitted_on = [("clip_id", "subject"), *named]
    renew_exports(args.run, put_calibration(args.run, card, fitted, stage, fitted_on=fitted_on))


def all_labelled(context: EvalContext) -> EvalContext:
    """Every labelled clip of another data set, of all its subsets: the run was trained on none of them.

    Raises UserError for the run's own data: its test split must not choose a threshold.
    """
    if not context.is_other_data:
        raise UserError(
            f"{context.store.path} has clips of {context.run}, which is already calibrated on its own "
            "validation clips; calibrate needs a store with clips of the new domain only"
        )
    return every_labelled(context)


def measured_clips(context: EvalContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, labels, logits) of the clips with a prediction.

    Raises UserError if they are all of one class.
    """
    card, rows, labels = context.card, context.eval_subset.rows, context.eval_subset.labels
    extracted = context.table.state[rows] == 1
    rows, labels = rows[extracted], labels[extracted]
    logits, measured = predict_rows(context.run, card, context.store, card.labelling, rows)
    if len(np.unique(labels[measured])) < 2:
        raise UserError(
            f"the {int(measured.sum())} clips of {context.store.path} with a detected face have one class "
            "only: calibration needs two"
        )
    return rows[measured], labels[measured], logits[measured]


def choose_fit_subjects(subjects: np.ndarray, labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool, true for the clips of the subjects to fit on: a fraction `share` of the subjects, chosen at
    random. Both parts have clips of every class.

    Raises UserError if too few subjects would be left for the test, or no such choice is found.
    """
    names = np.unique(subjects)
    count = max(1, round(share * len(names)))
    if len(names) - count < MIN_TEST_SUBJECTS:
        raise UserError(
            f"of {len(names)} subjects, --fit-fraction {share} leaves {len(names) - count} for the test; "
            f"at least {MIN_TEST_SUBJECTS} are needed to tell better from worse: add subjects, or lower "
            "--fit-fraction"
        )
    rng = np.random.default_rng(seed)
    classes = set(np.unique(labels).tolist())
    for _ in range(TRIES):
        fits = np.isin(subjects, rng.permutation(names)[:count])
        if set(labels[fits].tolist()) == classes == set(labels[~fits].tolist()):
            return fits
    raise UserError(
        f"found no way to divide {len(names)} subjects so that both parts have clips of every class "
        f"(--fit-fraction {share}); change --fit-fraction or add subjects"
    )


def evaluate_both(
    card: Card, fitted: Calibration, logits: np.ndarray, labels: np.ndarray, subjects: np.ndarray, seed: int
) -> dict[str, dict[str, Any]]:
    """Metrics with the run's old calibration (`before`), the new one (`after`), and the paired
    `difference`."""
    names, task = card.labelling.names, card.labelling.task
    resamples = resample_subjects(subjects, 1000, seed)
    minority = minority_class(labels, len(names))
    predicted = [decide(logits, task, calibration) for calibration in (card.calibration, fitted)]
    before, after = (resample(labels, s.probabilities, s.label, resamples, minority) for s in predicted)
    return {
        "before": {name: estimate.as_json() for name, estimate in before.estimates().items()},
        "after": {name: estimate.as_json() for name, estimate in after.estimates().items()},
        "difference": {name: pair.difference.as_json() for name, pair in after.minus(before).items()},
    }


def _print_comparison(
    card: Card, fitted: Calibration, evaluated: dict[str, dict[str, Any]], summary: dict[str, Any]
) -> None:
    from rich.table import Table

    table = Table(
        title=f"{summary['subjects_test']} test subjects ({summary['clips_test']} clips)",
        title_justify="left",
    )
    for name in ("metric", "before", "after", "difference"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name in ("balanced_accuracy", "macro_f1", "accuracy", "auroc", "brier", "ece"):
        d = evaluated["difference"][name]
        difference = f"{short(d['value'])} ({short(d['low'])} to {short(d['high'])})"
        table.add_row(
            TITLES[name][0],
            short(evaluated["before"][name]["value"]),
            short(evaluated["after"][name]["value"]),
            difference,
        )
    console().print(table)
    old = card.calibration
    echo(
        f"temperature {old.temperature:.2f} → {fitted.temperature:.2f}, bias {old.bias:+.2f} → "
        f"{fitted.bias:+.2f}, threshold {old.threshold:.2f} → {fitted.threshold:.2f}"
    )
