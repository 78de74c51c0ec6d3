"""Losses of training: binary, multi-class and ordinal, with class weights.

B clips, C classes, O outputs of the network.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from features.labels import Task
from seqmodel.config import TrainConfig

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_for(
    task: Task, num_classes: int, config: TrainConfig | None = None, labels: np.ndarray | None = None
) -> Loss:
    """The loss function: from logits (B, O) and labels (B,) int64 to each clip's loss, (B,) float32.

    Binary: BCE with logits. Multi-class: cross-entropy. Ordinal: BCE of each cumulative logit "level > k"
    (CORAL; Cao, Mirjalili & Raschka 2020). With a config: class weights N / (C · n_c) counted from `labels`,
    with a mean of one over the clips.
    """
    weights = torch.ones(num_classes)
    if config is not None and config.class_weighting and labels is not None:
        counts = np.bincount(labels, minlength=num_classes)
        weights = torch.from_numpy(len(labels) / (max(1, (counts > 0).sum()) * np.maximum(counts, 1))).float()
    levels = torch.arange(num_classes - 1)

    def each(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        if task == "multiclass":
            losses = F.cross_entropy(logits, target, reduction="none")
        else:
            above = (target.unsqueeze(1) > levels.to(target.device)).to(logits.dtype)
            losses = F.binary_cross_entropy_with_logits(logits, above, reduction="none").mean(dim=1)
        return losses * weights.to(losses.device)[target]

    return each
