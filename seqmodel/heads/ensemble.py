"""The ensemble that a run ships: members, each with one head per fold; the logits of their mean probability.

A member reads one stream. A clip without any valid frame in a stream gets its prediction from the members of
the other stream. B clips, T frames, D width of a stream, C classes, O outputs, M members, K folds.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from features.labels import Task
from seqmodel.config import MemberConfig
from seqmodel.heads.recurrent import RecurrentHead, num_outputs
from seqmodel.heads.trees import TreesHead

Head = RecurrentHead | TreesHead
SMALLEST = 1e-6
"""Probabilities are at least this, so that logits are finite."""


class Ensemble(nn.Module):
    """Members with equal weights; heads of one member with equal weights."""

    def __init__(self, members: Sequence[Sequence[Head]], task: Task) -> None:
        """members: the heads of each member, one for each fold."""
        super().__init__()
        self.member = nn.ModuleList([nn.ModuleDict({"fold": nn.ModuleList(heads)}) for heads in members])
        self.task = task
        first = [heads[0] for heads in members]
        dims = {head.stream: head.input.dim for head in first}
        # Sorted, so that the order of members does not change the order of an export's inputs.
        self.dims = {name: dims[name] for name in sorted(dims)}
        self.num_outputs = first[0].num_outputs
        self.num_folds = len(members[0])

    def heads(self, member: int) -> list[Head]:
        """The heads of a member, one for each fold."""
        return list(self.member[member]["fold"])  # type: ignore[index]

    def spread(self, stream: str) -> Tensor:
        """(D,) standard deviations of a stream's training features, of the first head that reads it."""
        first = (self.heads(index)[0] for index in range(len(self.member)))
        return next(head.input.std for head in first if head.stream == stream)

    def of_fold(self, fold: int) -> "Ensemble":
        """The members' heads of one fold, the same objects: what has not seen the people of that fold."""
        return Ensemble([[self.heads(index)[fold]] for index in range(len(self.member))], self.task)

    def forward(self, x: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, O) of the mean probability. x: (B, T, D) by stream; valid: (B, T) bool by stream. A
        missing stream counts as not valid in all frames."""
        total, weight = torch.zeros(()), torch.zeros(())
        some = next(iter(valid.values()))
        any_valid = torch.stack([valid[name].any(dim=1) for name in self.dims if name in valid]).any(dim=0)
        for index in range(len(self.member)):
            heads = self.heads(index)
            stream = heads[0].stream
            mask = valid[stream].bool() if stream in valid else torch.zeros_like(some, dtype=torch.bool)
            values = x[stream] if stream in x else some.new_zeros(*some.shape, self.dims[stream]).float()
            # A member counts where its stream is valid, and all count where none is.
            counts = (mask.any(dim=1) | ~any_valid).float().unsqueeze(1)
            for head in heads:
                total = total + to_probabilities(head(values, mask).float(), self.task) * counts
                weight = weight + counts
        return to_logits(total / weight, self.task)


def build_ensemble(
    configs: Sequence[MemberConfig], dims: Mapping[str, int], task: Task, num_classes: int, num_folds: int
) -> Ensemble:
    """An ensemble with arbitrary weights, into which stored weights are loaded."""
    outputs = num_outputs(task, num_classes)

    def empty(config: MemberConfig) -> Head:
        given = config.head, config.stream, dims[config.stream], outputs
        return TreesHead(*given, task) if config.head.kind == "trees" else RecurrentHead(*given)

    return Ensemble([[empty(config) for _ in range(num_folds)] for config in configs], task)


def to_probabilities(logits: Tensor, task: Task) -> Tensor:
    """(B, O) probabilities that are averaged: of the classes, or of reaching each level."""
    return torch.softmax(logits, dim=1) if task == "multiclass" else torch.sigmoid(logits)


def to_logits(p: Tensor, task: Task) -> Tensor:
    """(B, O) logits of averaged probabilities, the inverse of `to_probabilities`."""
    p = p.clamp(SMALLEST, 1 - SMALLEST)
    return p.log() if task == "multiclass" else p.log() - (1 - p).log()
