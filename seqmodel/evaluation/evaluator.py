"""From predictions to a judgement: figures with intervals, beside what costs nothing.

Every labelled clip of the split counts. A clip that could not be measured (its extraction failed, or no
frame showed a face) is taken as if the training majority had been said, and the figures without such clips
stand beside the main ones.

Shapes: N clips, O logits, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.labels import Task
from seqmodel.metrics.bootstrap import (
    FEW_SUBJECTS,
    BootstrapWeights,
    Estimate,
    PairedDifference,
    resample,
    resample_subjects,
)
from seqmodel.metrics.classification import minority_class
from seqmodel.metrics.predictions import Predictions

LOWER_IS_BETTER = ("mae", "brier", "ece")


@dataclass(frozen=True)
class Baseline:
    """Something cheap that the model has to beat."""

    name: str
    title: str
    description: str
    """One sentence on what it does."""
    probabilities: np.ndarray
    """(N, C)."""
    predicted: np.ndarray
    """(N,) int64."""
    is_leak: bool = False
    """True where it uses labels that no honest model has, to show what a random split would measure."""


@dataclass(frozen=True)
class BaselineComparison:
    """A yardstick, judged, and the model against it."""

    baseline: Baseline
    estimates: dict[str, Estimate]
    paired: dict[str, PairedDifference]
    """Model minus yardstick, by metric."""


@dataclass(frozen=True)
class EvaluationResult:
    """Everything that is known about a model on a split."""

    split: str
    predictions: Predictions
    label_names: tuple[str, ...]
    task: Task
    estimates: dict[str, Estimate]
    """Over every labelled clip."""
    measured_estimates: dict[str, Estimate] | None
    """Over measured clips alone; None where that is all of them."""
    comparisons: tuple[BaselineComparison, ...]
    resamples: BootstrapWeights
    minority: int
    """The class that average precision is about."""
    warnings: tuple[str, ...]
    is_unseen: bool = False
    """Whether these are test clips, of people none of whom has training clips."""


def evaluate_predictions(
    predictions: Predictions,
    baselines: Sequence[Baseline],
    *,
    split: str,
    label_names: tuple[str, ...],
    task: Task,
    rounds: int = 1000,
    seed: int = 0,
    warnings: Sequence[str] = (),
) -> EvaluationResult:
    """Figures with 95 % intervals by subject for the model and its yardsticks, on the same draws.

    Raises ValueError when there is no clip.
    """
    p = predictions
    resamples = resample_subjects(p.subjects, rounds, seed)
    minority = minority_class(p.labels, len(label_names))
    # Distance between classes has a meaning only where they are levels.
    unwanted = () if task == "ordinal" else ("qwk", "mae")
    ours = resample(p.labels, p.probabilities, p.predicted, resamples, minority, unwanted)
    comparisons = []
    for baseline in baselines:
        theirs = resample(p.labels, baseline.probabilities, baseline.predicted, resamples, minority, unwanted)
        comparisons.append(BaselineComparison(baseline, theirs.estimates(), ours.minus(theirs)))
    keep, alone = p.measured, None
    if keep.any() and not keep.all():
        again = resample_subjects(p.subjects[keep], rounds, seed)
        alone = resample(p.labels[keep], p.probabilities[keep], p.predicted[keep], again, minority, unwanted)
    return EvaluationResult(
        split=split,
        predictions=p,
        label_names=label_names,
        task=task,
        estimates=ours.estimates(),
        measured_estimates=alone.estimates() if alone else None,
        comparisons=tuple(comparisons),
        resamples=resamples,
        minority=minority,
        warnings=(*warnings, *_warnings(p, resamples, label_names)),
    )


def _warnings(p: Predictions, resamples: BootstrapWeights, label_names: tuple[str, ...]) -> list[str]:
    found = []
    if not resamples.by_subject:
        found.append(
            "no subjects are known: intervals are by clip and too narrow, "
            "and the same face may stand in training"
        )
    elif resamples.num_people < FEW_SUBJECTS:
        count = f"{resamples.num_people} subject{'s' if resamples.num_people > 1 else ''}"
        found.append(f"only {count}: intervals from fewer than {FEW_SUBJECTS} people are rough")
    unknown = p.num_unknown if resamples.by_subject else 0
    if unknown:
        found.append(
            f"{unknown} of {len(p)} clips have no subject: each is drawn by itself, which makes intervals "
            "too narrow, and the same face may stand in training"
        )
    absent = [name for k, name in enumerate(label_names) if not (p.labels == k).any()]
    if absent:
        found.append(f"no clip of {', '.join(absent)} in this split: some figures are not defined")
    missing = int((~p.measured).sum())
    if missing:
        found.append(f"{missing} of {len(p)} clips were not measured and count as the training majority")
    return found
