"""How far an end-to-end training job has come, and what is asked of it: plain data, ready for JSON.

An epoch is judged by its validation score, then by its loss.
"""

import math
from dataclasses import dataclass, field

from features.labels import Task
from seqmodel.config import TrainConfig
from seqmodel.training.loop import rank_of


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to."""

    index: int
    """−1 for what came in, before any step."""
    phase: str
    """`stage 1`, `warm` (the head alone) or `both`."""
    val_score: float
    val_loss: float
    train_loss: float = math.nan
    lr: float = 0.0
    """Of the head, at the last step."""
    seconds: float = 0.0
    frames_per_s: float = 0.0
    """Trained frames, without validation."""

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: the score, then the loss."""
        return rank_of(self.val_score, self.val_loss)


@dataclass(frozen=True)
class Objective:
    """What is asked of the labels."""

    task: Task
    num_classes: int
    metric: str
    loss: TrainConfig
    """Weights, smoothing and kind of the first stage's loss."""


@dataclass
class TrainState:
    """How far a job has come; all that is needed to go on, beside the weights."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[EpochResult] = field(default_factory=list)
    best: int = -1
    """Index of the best epoch so far."""
