"""Extremely randomised trees on window statistics, as a head: fitted by scikit-learn, kept as tensors.

Geurts, Ernst & Wehenkel 2006. A network can hold, average and export them like other heads. B clips, T
frames, K channels of the input, S statistics, C classes, O outputs, V nodes of all trees.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from features.labels import Task
from seqmodel.config import HeadConfig
from seqmodel.heads.inputs import StreamInput
from seqmodel.heads.window_statistics import statistics_of, window_statistics

NUM_TREES, SMALLEST_LEAF = 100, 3
SMOOTHING = 0.01
"""Added to the share of each class, so that a unanimous forest is not certain."""
NODES = ("feature", "left", "right", "roots")
"""Names of the integer tensors."""


class TreesHead(nn.Module):
    """A forest over the window statistics of one stream."""

    feature: Tensor
    left: Tensor
    right: Tensor
    roots: Tensor
    threshold: Tensor
    shares: Tensor
    depth: Tensor

    def __init__(self, config: HeadConfig, stream: str, dim: int, num_outputs: int, task: Task) -> None:
        """dim: D. The forest is empty until `fit_trees` or `load_state_dict` fills it."""
        super().__init__()
        self.config, self.stream, self.num_outputs, self.task = config, stream, num_outputs, task
        self.input = StreamInput(stream, dim, config.components)
        for name in NODES:
            self.register_buffer(name, torch.zeros(0, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(0))
        self.register_buffer("shares", torch.zeros(0, 1))
        self.register_buffer("depth", torch.zeros((), dtype=torch.int32))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Load, with the number of nodes of the stored forest."""
        for name in (*NODES, "threshold", "shares"):
            if prefix + name in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, values: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, O) of windows (B, T, D), any float dtype, with valid (B, T) bool."""
        return self.read(self.input(values, valid), valid)

    def read(self, z: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, O) of windows as the input gives them, (B, T, K)."""
        found = window_statistics(z, valid)
        node = self.roots.long().unsqueeze(0).expand(len(found), -1)
        feature, left, right = self.feature.long(), self.left.long(), self.right.long()
        for _ in range(int(self.depth)):  # a leaf's children are itself
            goes_left = found.gather(1, feature[node]) <= self.threshold[node]
            node = torch.where(goes_left, left[node], right[node])
        p = self.shares[node].mean(dim=1) + SMOOTHING
        p = p / p.sum(dim=1, keepdim=True)
        if self.task == "multiclass":
            return p.log()
        above = p.flip(1).cumsum(dim=1).flip(1)[:, 1:]
        return above.log() - (1 - above).log()


def fit_trees(
    head: TreesHead, z: np.ndarray, valid: np.ndarray, labels: np.ndarray, num_classes: int, seed: int
) -> None:
    """Fit the forest on windows z (N, T, K) float32, valid (N, T) bool, with labels (N,) 0 to C - 1."""
    from sklearn.ensemble import ExtraTreesClassifier

    forest = ExtraTreesClassifier(
        NUM_TREES,
        min_samples_leaf=max(SMALLEST_LEAF, len(labels) // 500),
        class_weight="balanced",
        random_state=seed,
    ).fit(statistics_of(z, valid), labels)
    put_forest(head, forest, num_classes)


def put_forest(head: TreesHead, forest: Any, num_classes: int) -> None:
    """Copy a fitted scikit-learn forest into the head's tensors; `tree_` is public."""
    nodes: dict[str, list[np.ndarray]] = {name: [] for name in (*NODES, "threshold", "shares")}
    first = 0
    for tree in (estimator.tree_ for estimator in forest.estimators_):
        own, is_leaf = np.arange(tree.node_count) + first, tree.children_left < 0
        nodes["roots"].append(np.array([first]))
        nodes["feature"].append(np.where(is_leaf, 0, tree.feature))
        nodes["left"].append(np.where(is_leaf, own, tree.children_left + first))
        nodes["right"].append(np.where(is_leaf, own, tree.children_right + first))
        nodes["threshold"].append(_rounded_down(tree.threshold))
        shares = np.zeros((tree.node_count, num_classes))
        shares[:, forest.classes_] = tree.value[:, 0] / tree.value[:, 0].sum(axis=1, keepdims=True)
        nodes["shares"].append(shares)
        first += tree.node_count
    for name, arrays in nodes.items():
        dtype = np.int32 if name in NODES else np.float32
        setattr(head, name, torch.from_numpy(np.concatenate(arrays).astype(dtype)))
    head.depth.fill_(max(estimator.get_depth() for estimator in forest.estimators_))


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above each float64 threshold: float32 values compare with it alike."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)
