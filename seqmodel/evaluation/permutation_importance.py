"""What a run looks at: how far it falls when a group of its inputs is shuffled between clips.

Permutation importance (Breiman 2001; Fisher, Rudin & Dominici 2019): each clip gets a group's values from
another clip, everything else stays, and the metric is measured again. Groups are the embedding and, within
the geometry, eyes, brows, mouth, the rest of the face, head pose and place. Groups that carry the same
news cover for each other, so a small fall does not mean that a group holds nothing.

N clips, T frames, D width of a stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seqmodel.heads.recurrent import masked_mean_std
from seqmodel.metrics.classification import score
from seqmodel.training.loop import to_tensors

Arrays = Mapping[str, np.ndarray]
SHUFFLED_CLIPS = 300
"""Clips that are enough: each is read some seventy times."""
SHUFFLES = 10
DRAWS = 20
"""Samples of people for each shuffle; together they make the interval."""

# First letters of a feature's name -> its group; what matches none is the rest of the face.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("eyes", ("eye",)),
    ("brows", ("brow",)),
    ("mouth", ("mouth", "jaw")),
    ("head pose", ("yaw", "pitch", "roll", "abs_yaw", "abs_pitch")),
    ("place", ("x_cm", "y_cm", "z_cm", "depth", "face_size", "centre_")),
)
REST = "rest of the face"


@dataclass(frozen=True)
class ImportanceScore:
    """What shuffling one group costs."""

    group: str
    value: float
    """Fall of the metric, mean over the shuffles; below 0 it rose."""
    low: float
    high: float
    """95 % interval over shuffles and people."""


def feature_groups(dims: Mapping[str, int], features: Sequence[str]) -> dict[str, tuple[str, list[int]]]:
    """Group -> (stream, columns) for a head's streams; `features` names the geometry's columns."""
    found: dict[str, tuple[str, list[int]]] = {}
    if "embeddings" in dims:
        found["embedding"] = ("embeddings", list(range(dims["embeddings"])))
    if "geometry" in dims:
        if len(features) != dims["geometry"]:
            raise ValueError(f"{dims['geometry']} geometry columns, {len(features)} names")
        for column, name in enumerate(features):
            group = next((g for g, starts in GROUPS if name.startswith(starts)), REST)
            found.setdefault(group, ("geometry", []))[1].append(column)
    return found


def some_places(places: np.ndarray, seed: int, most: int = SHUFFLED_CLIPS) -> np.ndarray:
    """At most so many of (n,) places, drawn under `seed`, in order."""
    if len(places) <= most:
        return places
    return np.sort(np.random.default_rng(seed).choice(places, most, replace=False))


def importance(
    answer: Callable[[Arrays, Arrays], np.ndarray],
    x: Arrays,
    valid: Arrays,
    labels: np.ndarray,
    subjects: Sequence[str] | np.ndarray,
    groups: Mapping[str, tuple[str, list[int]]],
    *,
    metric: str,
    seed: int = 0,
) -> list[ImportanceScore]:
    """How far `metric` falls for each group, largest first.

    `answer` gives probabilities (N,C) for `x[stream]` (N,T,D) and `valid[stream]` (N,T), clip by clip. Where
    the clip that lends its values saw no face, the mean of all clips stands in. Resamples of people that
    hold one class only are left out.
    """
    rng = np.random.default_rng(seed)
    resamples = _resamples(np.asarray(subjects), SHUFFLES * DRAWS, rng)
    means = {name: masked_mean_std(values, valid[name])[0] for name, values in x.items()}
    before = answer(x, valid)
    importance_scores = []
    for group, (stream, columns) in groups.items():
        drops, spread = [], []
        for shuffle in range(SHUFFLES):
            lent = _shuffled(x[stream], valid[stream], columns, means[stream], rng)
            after = answer(dict(x) | {stream: lent}, valid)
            drops.append(score(metric, labels, before) - score(metric, labels, after))
            for places in resamples[shuffle * DRAWS : (shuffle + 1) * DRAWS]:
                if len(np.unique(labels[places])) > 1:
                    here = score(metric, labels[places], before[places])
                    spread.append(here - score(metric, labels[places], after[places]))
        low, high = np.percentile(spread, (2.5, 97.5)) if spread else (np.nan, np.nan)
        importance_scores.append(ImportanceScore(group, float(np.mean(drops)), float(low), float(high)))
    return sorted(importance_scores, key=lambda item: -item.value)


def head_logits(head: Any, x: Arrays, valid: Arrays) -> np.ndarray:
    """(N,O) float32 of an `LstmHead` in eval mode, 256 clips at a time."""
    head.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(next(iter(x.values()))), 256):
            piece = slice(start, start + 256)
            streams = to_tensors({name: values[piece].astype(np.float32) for name, values in x.items()})
            masks = to_tensors({name: mask[piece].astype(bool) for name, mask in valid.items()})
            parts.append(head(streams, masks).float().numpy())
    return np.concatenate(parts)


def _shuffled(
    values: np.ndarray, valid: np.ndarray, columns: list[int], mean: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """`values` (N,T,D) float32 with `columns` lent between clips, the (D,) mean where the lender's are not
    valid."""
    lender, out = rng.permutation(len(values)), np.array(values, np.float32)
    lent = out[lender][..., columns]
    out[..., columns] = np.where(np.asarray(valid)[lender][..., None], lent, mean[columns])
    return out


def _resamples(subjects: np.ndarray, rounds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Places of the clips of people drawn with replacement; of clips, where people are not known."""
    names, index = np.unique(subjects, return_inverse=True)
    if len(names) < 2:
        return [rng.integers(len(subjects), size=len(subjects)) for _ in range(rounds)]
    clips_of = [np.flatnonzero(index == k) for k in range(len(names))]
    return [
        np.concatenate([clips_of[k] for k in rng.integers(len(names), size=len(names))])
        for _ in range(rounds)
    ]
