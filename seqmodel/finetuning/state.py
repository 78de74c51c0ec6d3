"""State of a fine-tuning job: epoch results, objective and position; data classes, ready for JSON.

Epochs are ranked by validation score, then by validation loss.
"""

import math
from dataclasses import dataclass, field

from features.labels import Task
from seqmodel.config import TrainConfig
from seqmodel.training.loop import rank_of


@dataclass(frozen=True)
class EpochResult:
    """Losses and metric of one epoch."""

    index: int
    """−1 for the weights before fine-tuning."""
    phase: str
    """`stage 1` (before fine-tuning), `head` (only the head is trained) or `both`."""
    val_score: float
    val_loss: float
    train_loss: float = math.nan
    lr: float = 0.0
    """Learning rate of the head at the last step."""
    seconds: float = 0.0
    frames_per_s: float = 0.0
    """Training frames per second, without validation."""

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key, higher is better: the score, then the negative loss."""
        return rank_of(self.val_score, self.val_loss)


@dataclass(frozen=True)
class Objective:
    """Task, number of classes, metric and loss."""

    task: Task
    num_classes: int
    metric: str
    loss: TrainConfig
    """Class weights of the first stage's loss."""


@dataclass
class TrainState:
    """Position and history of a job: all that is needed to resume, together with the weights."""

    epoch: int = 0
    step: int = 0
    """Finished steps of this epoch."""
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[EpochResult] = field(default_factory=list)
    best: int = -1
    """Index of the best epoch so far."""
