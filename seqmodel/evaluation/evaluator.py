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
    Draws,
    Figure,
    Paired,
    draw_subjects,
    resample,
)
from seqmodel.metrics.classification import minority_class
from seqmodel.metrics.predictions import Predictions

LOWER_IS_BETTER = ("mae", "brier", "ece")


@dataclass(frozen=True)
class Yardstick:
    """Something cheap that the model has to beat."""

    name: str
    title: str
    how: str
    """One sentence on what it does."""
    probabilities: np.ndarray
    """(N, C)."""
    said: np.ndarray
    """(N,) int64."""
    is_leak: bool = False
    """True where it uses labels that no honest model has, to show what a random split would measure."""


@dataclass(frozen=True)
class Beside:
    """A yardstick, judged, and the model against it."""

    yardstick: Yardstick
    figures: dict[str, Figure]
    paired: dict[str, Paired]
    """Model minus yardstick, by metric."""


@dataclass(frozen=True)
class Judgement:
    """Everything that is known about a model on a split."""

    split: str
    predictions: Predictions
    label_names: tuple[str, ...]
    task: Task
    figures: dict[str, Figure]
    """Over every labelled clip."""
    measured_figures: dict[str, Figure] | None
    """Over measured clips alone; None where that is all of them."""
    beside: tuple[Beside, ...]
    draws: Draws
    minority: int
    """The class that average precision is about."""
    warnings: tuple[str, ...]
    is_unseen: bool = False
    """Whether these are test clips, of people none of whom has training clips."""


def judge(
    predictions: Predictions,
    yardsticks: Sequence[Yardstick],
    *,
    split: str,
    label_names: tuple[str, ...],
    task: Task,
    rounds: int = 1000,
    seed: int = 0,
    warnings: Sequence[str] = (),
) -> Judgement:
    """Figures with 95 % intervals by subject for the model and its yardsticks, on the same draws.

    Raises ValueError when there is no clip.
    """
    p = predictions
    draws = draw_subjects(p.subjects, rounds, seed)
    minority = minority_class(p.labels, len(label_names))
    # Distance between classes has a meaning only where they are levels.
    unwanted = () if task == "ordinal" else ("qwk", "mae")
    ours = resample(p.labels, p.probabilities, p.said, draws, minority, unwanted)
    beside = []
    for yardstick in yardsticks:
        theirs = resample(p.labels, yardstick.probabilities, yardstick.said, draws, minority, unwanted)
        beside.append(Beside(yardstick, theirs.figures(), ours.minus(theirs)))
    keep, alone = p.measured, None
    if keep.any() and not keep.all():
        again = draw_subjects(p.subjects[keep], rounds, seed)
        alone = resample(p.labels[keep], p.probabilities[keep], p.said[keep], again, minority, unwanted)
    return Judgement(
        split=split,
        predictions=p,
        label_names=label_names,
        task=task,
        figures=ours.figures(),
        measured_figures=alone.figures() if alone else None,
        beside=tuple(beside),
        draws=draws,
        minority=minority,
        warnings=(*warnings, *_warnings(p, draws, label_names)),
    )


def _warnings(p: Predictions, draws: Draws, label_names: tuple[str, ...]) -> list[str]:
    found = []
    if not draws.by_subject:
        found.append(
            "no subjects are known: intervals are by clip and too narrow, "
            "and the same face may stand in training"
        )
    elif draws.num_people < FEW_SUBJECTS:
        count = f"{draws.num_people} subject{'s' if draws.num_people > 1 else ''}"
        found.append(f"only {count}: intervals from fewer than {FEW_SUBJECTS} people are rough")
    unknown = p.num_unknown if draws.by_subject else 0
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
