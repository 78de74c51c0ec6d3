"""Permutation importance: how much a metric drops when a group of inputs is shuffled between clips.

Breiman 2001; Fisher, Rudin & Dominici 2019. Each clip gets the values of one group from another clip, all
other inputs stay, and the metric is computed again. The groups are the embedding and, within the geometry,
eyes, brows, mouth, head pose, face position, and other face features. Correlated groups can replace each
other, so a small drop does not mean that a group has no information.

N clips, T frames, D width of a stream.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from features.cli import UserError
from seqmodel.heads.inputs import masked_mean_std
from seqmodel.metrics.calibration import Decision
from seqmodel.metrics.classification import score
from seqmodel.training.loop import to_tensors

Arrays = Mapping[str, np.ndarray]
SHUFFLED_CLIPS = 300
"""Maximum number of clips: each is predicted about thirty-five times."""
SHUFFLES = 5
RESAMPLES_PER_SHUFFLE = 40
"""Bootstrap samples of subjects per shuffle; all of them together give the confidence interval."""

# Prefixes of feature names -> group; a name without a match is in OTHER_FEATURES.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("eyes", ("eye",)),
    ("brows", ("brow",)),
    ("mouth", ("mouth", "jaw")),
    ("head pose", ("yaw", "pitch", "roll", "abs_yaw", "abs_pitch")),
    ("face position", ("x_cm", "y_cm", "z_cm", "depth", "face_size", "centre_")),
)
OTHER_FEATURES = "other face features"


@dataclass(frozen=True)
class ImportanceScore:
    """Permutation importance of one group."""

    group: str
    value: float
    """Drop of the metric, mean over the shuffles; below 0: the metric rose."""
    low: float
    high: float
    """95 % confidence interval over shuffles and subjects."""


def feature_groups(dims: Mapping[str, int], features: Sequence[str]) -> dict[str, tuple[str, list[int]]]:
    """Group -> (stream, columns) for a head's streams; `features` names the geometry's columns."""
    found: dict[str, tuple[str, list[int]]] = {}
    if "embeddings" in dims:
        found["embedding"] = ("embeddings", list(range(dims["embeddings"])))
    if "geometry" in dims:
        if len(features) != dims["geometry"]:
            raise UserError(f"got {dims['geometry']} geometry columns and {len(features)} names")
        for column, name in enumerate(features):
            group = next((g for g, starts in GROUPS if name.startswith(starts)), OTHER_FEATURES)
            found.setdefault(group, ("geometry", []))[1].append(column)
    return found


def subsample_indices(indices: np.ndarray, seed: int, most: int = SHUFFLED_CLIPS) -> np.ndarray:
    """At most `most` of (n,) indices, drawn at random under `seed`, sorted."""
    if len(indices) <= most:
        return indices
    return np.sort(np.random.default_rng(seed).choice(indices, most, replace=False))


def importance(
    predict: Callable[[Arrays, Arrays], Decision],
    x: Arrays,
    valid: Arrays,
    labels: np.ndarray,
    subjects: Sequence[str] | np.ndarray,
    groups: Mapping[str, tuple[str, list[int]]],
    *,
    metric: str,
    seed: int = 0,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> list[ImportanceScore]:
    """How much `metric` drops for each group, largest first.

    `predict` decides, with the run's threshold, for `x[stream]` (N,T,D) and `valid[stream]` (N,T), clip by
    clip. subjects: (N,); a clip with '' is a unit of its own. Frames without a face in the source clip are
    replaced by the mean of all clips. Bootstrap samples with one class only are left out. track: gives the
    groups one by one, and may show the progress.
    """
    rng = np.random.default_rng(seed)
    resamples = _resamples(np.asarray(subjects), SHUFFLES * RESAMPLES_PER_SHUFFLE, rng)
    means = {name: masked_mean_std(values, valid[name])[0] for name, values in x.items()}
    before = predict(x, valid)
    importance_scores = []
    for group in track(list(groups)):
        stream, columns = groups[group]
        drops, spread = [], []
        for shuffle in range(SHUFFLES):
            shuffled = _shuffled(x[stream], valid[stream], columns, means[stream], rng)
            after = predict(dict(x) | {stream: shuffled}, valid)
            drops.append(_drop(metric, labels, before, after, slice(None)))
            first = shuffle * RESAMPLES_PER_SHUFFLE
            for indices in resamples[first : first + RESAMPLES_PER_SHUFFLE]:
                if len(np.unique(labels[indices])) > 1:
                    spread.append(_drop(metric, labels, before, after, indices))
        low, high = np.percentile(spread, (2.5, 97.5)) if spread else (np.nan, np.nan)
        importance_scores.append(ImportanceScore(group, float(np.mean(drops)), float(low), float(high)))
    return sorted(importance_scores, key=lambda item: -item.value)


def _drop(
    metric: str, labels: np.ndarray, before: Decision, after: Decision, indices: np.ndarray | slice
) -> float:
    """How much the metric of these clips drops."""
    first, second = (
        score(metric, labels[indices], found.probabilities[indices], found.label[indices])
        for found in (before, after)
    )
    return first - second


def head_logits(head: Any, x: Arrays, valid: Arrays) -> np.ndarray:
    """(N,O) float32 of an `Ensemble` in eval mode, 256 clips at a time."""
    head.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(next(iter(x.values()))), 256):
            batch = slice(start, start + 256)
            streams = to_tensors({name: values[batch].astype(np.float32) for name, values in x.items()})
            masks = to_tensors({name: mask[batch].astype(bool) for name, mask in valid.items()})
            parts.append(head(streams, masks).float().numpy())
    return np.concatenate(parts)


def _shuffled(
    values: np.ndarray, valid: np.ndarray, columns: list[int], mean: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """`values` (N,T,D) float32 with `columns` taken from other clips; the (D,) mean if the source is not
    valid."""
    source, out = rng.permutation(len(values)), np.array(values, np.float32)
    source_values = out[source][..., columns]
    out[..., columns] = np.where(np.asarray(valid)[source][..., None], source_values, mean[columns])
    return out


def _resamples(subjects: np.ndarray, rounds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Clip indices of each bootstrap sample: subjects are drawn with replacement. A clip without a subject is
    a unit of its own."""
    units = [name or f"clip {number}" for number, name in enumerate(subjects.tolist())]
    names, index = np.unique(units, return_inverse=True)
    if len(names) < 2:
        return [rng.integers(len(subjects), size=len(subjects)) for _ in range(rounds)]
    clips_of = [np.flatnonzero(index == k) for k in range(len(names))]
    return [
        np.concatenate([clips_of[k] for k in rng.integers(len(names), size=len(names))])
        for _ in range(rounds)
    ]
