"""What a model predicts for the clips of a split, row for row.

Shapes: N clips, O logits, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from features.labels import Task
from seqmodel.metrics.calibration import Calibration, decide


@dataclass(frozen=True)
class Predictions:
    """What a model says about the N clips of a split; row for row."""

    clip_ids: np.ndarray
    """(N,) str."""
    subjects: np.ndarray
    """(N,) str, '' where unknown."""
    labels: np.ndarray
    """(N,) int64, none of them -1."""
    logits: np.ndarray
    """(N, O) float32, NaN rows where nothing was measured."""
    probabilities: np.ndarray
    """(N, C) float64, calibrated; the training shares where nothing was measured."""
    predicted: np.ndarray
    """(N,) int64."""
    unsure: np.ndarray
    """(N,) bool, inside the abstain band."""
    reasons: np.ndarray
    """(N,) str, why a clip was not measured; '' where it was."""
    coverage: np.ndarray
    """(N,) float, share of frames with a face."""
    slices: dict[str, np.ndarray] = field(default_factory=dict)
    """Further columns, (N,) str each."""

    @property
    def measured(self) -> np.ndarray:
        """(N,) bool."""
        return self.reasons == ""

    @property
    def num_unknown(self) -> int:
        """Clips whose subject is not known."""
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
    """Decide every measured clip; the others get the (C,) training shares and their largest class."""
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
