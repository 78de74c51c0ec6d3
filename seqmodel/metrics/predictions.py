"""Predictions of a model for the clips of a split.

Shapes: N clips, O logits, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from features.labels import Task
from seqmodel.metrics.calibration import Calibration, decide


@dataclass(frozen=True)
class Predictions:
    """Labels and predictions of the N clips of a split."""

    clip_ids: np.ndarray
    """(N,) str."""
    subjects: np.ndarray
    """(N,) str, '' where unknown."""
    labels: np.ndarray
    """(N,) int64, none of them -1."""
    logits: np.ndarray
    """(N, O) float32, NaN for clips without a prediction."""
    probabilities: np.ndarray
    """(N, C) float64, calibrated; the class frequencies of training for clips without a prediction."""
    predicted: np.ndarray
    """(N,) int64."""
    unsure: np.ndarray
    """(N,) bool, inside the abstain band."""
    reasons: np.ndarray
    """(N,) str, why a clip has no prediction (failed, no face); '' if it has one."""
    coverage: np.ndarray
    """(N,) float, fraction of frames with a face."""
    slices: dict[str, np.ndarray] = field(default_factory=dict)
    """Further columns, (N,) str each."""
    fold: np.ndarray | None = None
    """(N,) int64, number of the fold that held the clip out, from 1; None without folds."""

    @property
    def measured(self) -> np.ndarray:
        """(N,) bool, which clips have a prediction: extracted, with a face in some frame."""
        return self.reasons == ""

    @property
    def num_unknown(self) -> int:
        """Number of clips without a subject."""
        return int((self.subjects == "").sum())

    def __len__(self) -> int:
        return len(self.labels)


def make_predictions(
    *,
    clip_ids: np.ndarray,
    subjects: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    reasons: np.ndarray,
    coverage: np.ndarray,
    slices: Mapping[str, np.ndarray],
    task: Task,
    calibration: Calibration,
    training_class_frequencies: np.ndarray,
) -> Predictions:
    """Predictions from logits; clips with a reason get the (C,) class frequencies of training and its
    majority class."""
    measured = reasons == ""
    probabilities = np.tile(training_class_frequencies, (len(labels), 1)).astype(np.float64)
    predicted = np.full(len(labels), int(training_class_frequencies.argmax()), np.int64)
    unsure = np.zeros(len(labels), bool)
    if measured.any():
        decision = decide(logits[measured], task, calibration)
        probabilities[measured], predicted[measured] = decision.probabilities, decision.label
        unsure[measured] = decision.unsure
    return Predictions(
        clip_ids, subjects, labels, logits, probabilities, predicted, unsure, reasons, coverage, dict(slices)
    )
