"""Cross-fitting: a model for each fold of people, fitted without them, and their predictions by it.

Everything is fitted inside the fold: feature statistics, principal components, class weights, trees. The
models of all folds are what a run ships, and the out-of-fold predictions choose members, calibration and
threshold. `train`, `tune` and the folds of `evaluate` call this one procedure.

N clips, T frames, K channels of a head's input, O outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from features.cli import UserError
from features.datasets import Samples
from features.labels import Task
from features.splits import grouped_folds
from seqmodel.config import MemberConfig, Metric
from seqmodel.heads.ensemble import Head, to_logits, to_probabilities
from seqmodel.heads.inputs import InputStatistics, StreamInput, fit_input
from seqmodel.heads.recurrent import build_head, num_outputs
from seqmodel.heads.trees import TreesHead, fit_trees
from seqmodel.metrics.classification import score
from seqmodel.training.loop import Epoch, Windows, fit, read_logits, seed_of

NUM_FOLDS = 5
ONE_FOLD_CLIPS, ONE_FOLD_PEOPLE = 3000, 40
"""With more clips and people than these, one fold is enough: the run's validation subset."""
MAX_COMPONENTS = 64
"""Principal components that are computed once for all heads of a fold; a head that reads more has its own."""


@dataclass(frozen=True)
class Objective:
    """What heads learn: the task and the metric that compares them."""

    task: Task
    num_classes: int
    metric: Metric = "auto"


@dataclass(frozen=True)
class FoldFit:
    """The head of one fold."""

    fold: int
    head: Head
    held_out: np.ndarray
    """(n,) indices of the clips of this fold."""
    logits: np.ndarray
    """(n, O) float32 of those clips; NaN without a valid frame in the stream."""
    history: tuple[Epoch, ...]
    """Its epochs; empty for trees."""


@dataclass(frozen=True)
class CrossFit:
    """The heads of all folds, and the out-of-fold logits."""

    config: MemberConfig
    heads: tuple[Head, ...]
    logits: np.ndarray
    """(N, O) float32; NaN for clips that no fold holds out, or without a valid frame."""
    histories: tuple[tuple[Epoch, ...], ...]


class FoldInputs:
    """The clips of a cross-fit and the inputs of its heads, each computed once for all configurations."""

    def __init__(self, samples: Samples, folds: np.ndarray) -> None:
        """folds: (N,) the fold in which each clip is held out, −1 = never. Folds whose training part has a
        class less than all clips are left out.

        Raises UserError if no fold is left, or a stream has no valid frame in some training part.
        """
        classes = len(np.unique(samples.labels))
        possible = [
            number
            for number in np.unique(folds[folds >= 0]).tolist()
            if len(np.unique(samples.labels[folds != number])) == classes
        ]
        self.samples, self.numbers = samples, list(range(len(possible)))
        self.folds = np.full(len(folds), -1, np.int64)
        """(N,) fold of each clip, numbered without gaps; −1 = never held out."""
        for number, given in enumerate(possible):
            self.folds[folds == given] = number
        if classes < 2 or not self.numbers:
            raise UserError(
                "training is not possible: without the people of any one fold, a class has no clip. Add "
                "recordings of more people"
            )
        for stream, valid in samples.valid.items():
            mask = np.asarray(valid)
            seen = mask.sum(axis=1) > 0
            if not all(seen[self.folds != number].any() for number in self.numbers):
                raise UserError(
                    f"without the people of one fold, no clip has a valid frame of {stream}: leave it out "
                    "with --inputs, or extract it for more clips"
                )
        self._known: dict[tuple[str, int, int], tuple[InputStatistics, np.ndarray]] = {}

    def windows(self, fold: int, input_: StreamInput) -> tuple[Windows, Windows]:
        """(training, held-out) clips of a fold as `input_` gives them, after its statistics are set. Training
        clips without a valid frame are left out."""
        stream, width = input_.stream, input_.width
        most = min(max(MAX_COMPONENTS, width), input_.dim - 1) if width < input_.dim else 0
        key = stream, fold, most
        valid = np.asarray(self.samples.valid[stream])
        if key not in self._known:
            train = self.folds != fold
            x = self.samples.x[stream]
            statistics = fit_input(stream, x[np.flatnonzero(train)], valid[train], most)
            widest = StreamInput(stream, input_.dim, most)
            widest.put(statistics)
            self._known[key] = statistics, _transformed(widest, x, valid)
        statistics, z = self._known[key]
        input_.put(statistics)
        z = np.ascontiguousarray(z[..., :width])
        seen = valid.any(axis=1)
        parts = (self.folds != fold) & seen, self.folds == fold
        first, second = (Windows(z[part], valid[part], self.samples.labels[part]) for part in parts)
        return first, second


def _transformed(input_: StreamInput, x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(N, T, K) float32: `input_` of windows (N, T, D), 256 at a time."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(x), 256):
            values, mask = (torch.from_numpy(np.array(a[start : start + 256])) for a in (x, valid))
            parts.append(input_(values, mask).numpy())
    return np.concatenate(parts)


def new_head(inputs: FoldInputs, config: MemberConfig, objective: Objective, seed: int) -> Head:
    """A head that is not fitted."""
    outputs, dim = (
        num_outputs(objective.task, objective.num_classes),
        inputs.samples.x[config.stream].shape[-1],
    )
    if config.head.kind == "trees":
        return TreesHead(config.head, config.stream, dim, outputs, objective.task)
    return build_head(config.head, config.stream, dim, outputs, seed=seed)


def fit_folds(
    inputs: FoldInputs,
    config: MemberConfig,
    objective: Objective,
    *,
    seed: int,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Iterator[FoldFit]:
    """Fit one head after the other. Head k depends on the clips outside fold k, the config and (seed, k)."""
    task, num_classes = objective.task, objective.num_classes
    for number in inputs.numbers:
        held_out = np.flatnonzero(inputs.folds == number)
        fold_seed, history = seed_of(seed, number), list[Epoch]()
        head = new_head(inputs, config, objective, fold_seed)
        train, other = inputs.windows(number, head.input)
        if isinstance(head, TreesHead):
            fit_trees(head, train.z, train.valid, train.labels, num_classes, fold_seed)
        else:
            head.fit_statistics(train.z, train.valid)
            of = {"task": task, "num_classes": num_classes, "metric": objective.metric}
            for epoch in fit(head, train, other, config.train, **of, seed=fold_seed, device=device):  # type: ignore[arg-type]
                on_epoch(epoch)
                history.append(epoch)
            head.to("cpu")
        logits = read_logits(head, other)
        logits[~other.valid.any(axis=1)] = np.nan
        yield FoldFit(number, head, held_out, logits, tuple(history))


def cross_fit(
    inputs: FoldInputs,
    config: MemberConfig,
    objective: Objective,
    *,
    seed: int,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> CrossFit:
    """The heads of all folds of a configuration, and their out-of-fold logits."""
    fits = fit_folds(inputs, config, objective, seed=seed, device=device, on_epoch=on_epoch)
    return combined(list(fits), inputs, config, objective)


def combined(
    fits: Sequence[FoldFit], inputs: FoldInputs, config: MemberConfig, objective: Objective
) -> CrossFit:
    """The fits of all folds as one."""
    logits = np.full(
        (len(inputs.samples), num_outputs(objective.task, objective.num_classes)), np.nan, np.float32
    )
    for each in fits:
        logits[each.held_out] = each.logits
    return CrossFit(config, tuple(e.head for e in fits), logits, tuple(e.history for e in fits))


def average_logits(logits: Sequence[np.ndarray], task: Task) -> np.ndarray:
    """(N, O) logits of the mean probability of members' logits (N, O), as in `Ensemble`; NaN if all are."""
    stacked = np.stack([to_probabilities(torch.from_numpy(each), task).numpy() for each in logits])
    known = ~np.isnan(stacked[..., :1])
    total, count = np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return to_logits(torch.from_numpy(total / count), task).numpy()


def fold_score(p: np.ndarray, labels: np.ndarray, folds: np.ndarray, metric: str) -> float:
    """Mean of the metric over the folds that have a prediction for clips of two classes; over all clips
    together if there is no such fold. Pairs of clips of different folds, whose models differ, do not count.

    p: (N, C), NaN without a prediction.
    """
    scores = np.array(scores_by_fold(p, labels, folds, metric))
    known = ~np.isnan(p[:, 0]) & (folds >= 0)
    if np.isfinite(scores).any():
        return float(np.nanmean(scores))
    return float(score(metric, labels[known], p[known])) if known.any() else float("nan")


def scores_by_fold(p: np.ndarray, labels: np.ndarray, folds: np.ndarray, metric: str) -> tuple[float, ...]:
    """The metric of each fold from 0 on; NaN for one without predictions of two classes. As `fold_score`."""

    def of(part: np.ndarray) -> float:
        several = len(np.unique(labels[part])) > 1
        return float(score(metric, labels[part], p[part])) if several else float("nan")

    known = ~np.isnan(p[:, 0])
    return tuple(of(known & (folds == number)) for number in range(folds.max(initial=-1) + 1))


def assign_folds(
    labels: np.ndarray, groups: np.ndarray, seed: int, is_first: np.ndarray | None = None
) -> np.ndarray:
    """(N,) fold in which each clip is held out, by group, stratified. is_first: (N,) bool, clips of fold 0,
    the run's validation subset. In a large data set only fold 0 is held out; −1 for the others."""
    num_first = 0 if is_first is None else 1
    folds = np.full(len(labels), -1) if is_first is None else np.where(is_first, 0, -1)
    rest = np.flatnonzero(folds < 0)
    k = min(NUM_FOLDS - num_first, len(np.unique(groups[rest])))
    is_large = len(labels) > ONE_FOLD_CLIPS and len(np.unique(groups)) > ONE_FOLD_PEOPLE
    if is_large and num_first:
        return folds
    parts = grouped_folds(labels[rest], groups[rest], k, seed) if k > 1 else [(rest, np.arange(len(rest)))]
    for number, (_, held_out) in enumerate(parts[:1] if is_large else parts, start=num_first):
        folds[rest[held_out]] = number
    return folds
