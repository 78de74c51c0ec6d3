"""Evaluation of predictions: metrics with confidence intervals, for a model and its baselines.

Every labelled clip of the split counts. A clip that failed or has no frame with a face counts as predicted
to be the majority class of training. The metrics without such clips are given next to the main ones.

Shapes: N clips, O logits, C classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from features.labels import Task
from seqmodel.metrics.bootstrap import (
    FEW_SUBJECTS,
    BootstrapWeights,
    Estimate,
    PairedDifference,
    few_subjects_text,
    resample,
    resample_subjects,
)
from seqmodel.metrics.classification import calibration_line, minority_class, within_fold_auroc
from seqmodel.metrics.predictions import Predictions

LOWER_IS_BETTER = ("mae", "brier", "ece")


@dataclass(frozen=True)
class Baseline:
    """Predictions of a simple method, to compare the model with."""

    name: str
    title: str
    description: str
    """What it does, in one or two sentences."""
    probabilities: np.ndarray
    """(N, C)."""
    predicted: np.ndarray
    """(N,) int64."""
    is_leak: bool = False
    """True if it uses labels of the evaluated subjects, to show the leakage of a random split."""


@dataclass(frozen=True)
class BaselineComparison:
    """A baseline with its metrics, and the model's differences from it."""

    baseline: Baseline
    estimates: dict[str, Estimate]
    paired: dict[str, PairedDifference]
    """Model minus baseline, by metric."""


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics, baselines and warnings of a model on a split."""

    split: str
    predictions: Predictions
    label_names: tuple[str, ...]
    task: Task
    estimates: dict[str, Estimate]
    """Over every labelled clip."""
    measured_estimates: dict[str, Estimate] | None
    """Without clips that failed or have no face; None if there are no such clips."""
    comparisons: tuple[BaselineComparison, ...]
    resamples: BootstrapWeights
    minority: int
    """The class that average precision is computed for."""
    warnings: tuple[str, ...]
    scope: str = ""
    """What the results are limited to, for headings; '' = new people."""
    is_unseen: bool = False
    """Whether these are test clips of people, and none of them has training clips."""


def evaluate_predictions(
    predictions: Predictions,
    baselines: Iterable[Baseline],
    *,
    split: str,
    label_names: tuple[str, ...],
    task: Task,
    rounds: int = 1000,
    seed: int = 0,
    warnings: Sequence[str] = (),
    scope: str = "",
) -> EvaluationResult:
    """Metrics with 95 % confidence intervals for the model and its baselines.

    All use the same bootstrap samples of subjects. Raises UserError if there is no clip.
    """
    p = predictions
    resamples = resample_subjects(p.subjects, rounds, seed)
    minority = minority_class(p.labels, len(label_names))
    # The distance between classes has a meaning only if they are levels.
    excluded = () if task == "ordinal" else ("qwk", "mae")
    of_model = resample(p.labels, p.probabilities, p.predicted, resamples, minority, excluded)
    comparisons = []
    for baseline in baselines:
        of_baseline = resample(
            p.labels, baseline.probabilities, baseline.predicted, resamples, minority, excluded
        )
        estimates, paired = of_baseline.estimates(), of_model.minus(of_baseline)
        if not np.ptp(baseline.probabilities, axis=0).any():
            # A constant is calibrated where the classes are as frequent as in training, and tells nothing.
            undefined = Estimate(np.nan, np.nan, np.nan)
            estimates["ece"], paired["ece"] = undefined, PairedDifference(undefined, np.nan)
        comparisons.append(BaselineComparison(baseline, estimates, paired))
    estimates = of_model.estimates() | (_without_interval(p) if task == "binary" else {})
    return EvaluationResult(
        split=split,
        predictions=p,
        label_names=label_names,
        task=task,
        estimates=estimates,
        measured_estimates=_measured_alone(p, rounds, seed, minority, excluded),
        comparisons=tuple(comparisons),
        resamples=resamples,
        minority=minority,
        warnings=(*warnings, *_auroc_within_folds(estimates), *_warnings(p, resamples, label_names)),
        scope=scope,
    )


def _measured_alone(
    p: Predictions, rounds: int, seed: int, minority: int, excluded: tuple[str, ...]
) -> dict[str, Estimate] | None:
    """Metrics of the clips with a prediction; None if all or none have one."""
    keep = p.measured
    if keep.all() or not keep.any():
        return None
    again = resample_subjects(p.subjects[keep], rounds, seed)
    alone = resample(p.labels[keep], p.probabilities[keep], p.predicted[keep], again, minority, excluded)
    return alone.estimates()


def _without_interval(p: Predictions) -> dict[str, Estimate]:
    """Calibration slope and intercept of binary predictions, and with folds the AUROC within folds."""
    positive = p.probabilities[:, 1]
    names = ("calibration_slope", "calibration_intercept")
    found = dict(zip(names, calibration_line(p.labels, positive), strict=True))
    if p.fold is not None:
        clips = [np.flatnonzero(p.fold == number) for number in np.unique(p.fold)]
        found["auroc_within_folds"] = within_fold_auroc(p.labels == 1, positive, clips)
    return {name: Estimate(value, np.nan, np.nan) for name, value in found.items()}


def _auroc_within_folds(estimates: dict[str, Estimate]) -> list[str]:
    """The AUROC within folds beside the pooled one, as a sentence, if there are folds."""
    if "auroc_within_folds" not in estimates:
        return []
    return [
        f"AUROC within folds is {estimates['auroc_within_folds'].value:.3f} (mean over folds, weighted by "
        f"pairs of clips); pooled over all folds it is {estimates['auroc'].value:.3f}, which also compares "
        "probabilities of different heads"
    ]


def _warnings(p: Predictions, resamples: BootstrapWeights, label_names: tuple[str, ...]) -> list[str]:
    found = []
    if not resamples.by_subject:
        found.append(
            "no clip has a subject: confidence intervals are by clip and too narrow, "
            "and the same subjects may be in training"
        )
    elif resamples.num_subjects < FEW_SUBJECTS:
        found.append(few_subjects_text(resamples.num_subjects))
    unknown = p.num_unknown if resamples.by_subject else 0
    if unknown:
        found.append(
            f"{unknown} of {len(p)} clips have no subject: each counts as a subject of its own, so "
            "confidence intervals are too narrow, and the same subjects may be in training"
        )
    absent = [name for k, name in enumerate(label_names) if not (p.labels == k).any()]
    if absent:
        found.append(f"no clip of class {', '.join(absent)} in this split: some metrics are undefined")
    missing = int((~p.measured).sum())
    if missing:
        found.append(
            f"{missing} of {len(p)} clips have no prediction (failed, no face, or no trained fold): they "
            "count as predicted to be the majority class"
        )
    return found
