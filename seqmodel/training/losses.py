"""Losses of training: binary, multi-class and ordinal, with label smoothing, focal loss and class weights.

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
FOCAL_GAMMA = 2.0
"""Lin et al. 2017 found 2 to be the best value, and values near it nearly as good."""


def loss_for(
    task: Task, num_classes: int, config: TrainConfig | None = None, labels: np.ndarray | None = None
) -> Loss:
    """The loss function: from logits (B, O) and labels (B,) int64 to each clip's loss, (B,) float32.

    Binary: BCE with logits. Multi-class: cross-entropy. Ordinal: BCE of each cumulative logit "level > k"
    (CORAL; Cao, Mirjalili & Raschka 2020). With a config: label smoothing, focal loss (Lin et al. 2017) and
    class weights N / (C · n_c) counted from `labels`, with a mean of one over the clips.
    """
    smoothing, focal = (config.label_smoothing, config.loss == "focal") if config else (0.0, False)
    weights = torch.ones(num_classes)
    if config is not None and config.class_weighting and labels is not None:
        counts = np.bincount(labels, minlength=num_classes)
        weights = torch.from_numpy(len(labels) / (max(1, (counts > 0).sum()) * np.maximum(counts, 1))).float()
    levels = torch.arange(num_classes - 1)

    def each(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        if task == "multiclass":
            losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
            if focal:
                right = torch.softmax(logits, dim=1).gather(1, target.unsqueeze(1)).squeeze(1)
                losses = losses * (1 - right) ** FOCAL_GAMMA
        else:
            hard = (target.unsqueeze(1) > levels.to(target.device)).to(logits.dtype)
            soft = hard * (1 - smoothing) + smoothing / 2
            losses = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
            if focal:
                losses = losses * (1 - torch.sigmoid(logits * (2 * hard - 1))) ** FOCAL_GAMMA
            losses = losses.mean(dim=1)
        return losses * weights.to(losses.device)[target]

    return each
