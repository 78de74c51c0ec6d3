"""A person's own normal: what is subtracted from the geometry stream, because faces differ at rest.

`window` subtracts each clip's own mean; `subject` the mean over every valid frame that the store holds
of that person, labels unseen. A clip of nobody known falls back to its window. Training, evaluation and
the webcam all call `subtract_mean`; live learns the person's mean as it goes.

N clips, T frames, G geometry features.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from features.datasets import Samples
    from features.store.store import FeatureStore

STREAM: Literal["geometry"] = "geometry"


def with_centering(samples: "Samples", center: str, store: "FeatureStore") -> "Samples":
    """The samples with every person's normal taken off the geometry stream, (N, T, G) float32 in memory.

    Samples without that stream, and `none`, come back as they are.
    """
    if center == "none" or STREAM not in samples.x:
        return samples
    x, valid = np.asarray(samples.x[STREAM], np.float32), np.asarray(samples.valid[STREAM])
    means = subject_means(store) if center == "subject" else {}
    out = np.stack(
        [
            subtract_mean(values, mask, means.get(str(who)))
            for values, mask, who in zip(x, valid, samples.subjects, strict=True)
        ]
    )
    return dataclasses.replace(samples, x=dict(samples.x) | {STREAM: out})


def subtract_mean(
    values: np.ndarray, valid: np.ndarray, subject_mean: np.ndarray | None = None
) -> np.ndarray:
    """One window (T, G) float32 without its normal, 0 where not valid (T,).

    rest: (G,) the person's mean, where it is known; otherwise the mean of the window's own valid frames.
    """
    if not valid.any():
        return np.zeros_like(values, dtype=np.float32)
    normal = np.asarray(values, np.float32)[valid].mean(axis=0) if subject_mean is None else subject_mean
    return np.where(valid[:, None], values - normal, 0.0).astype(np.float32)


def subject_means(store: "FeatureStore") -> Mapping[str, np.ndarray]:
    """(G,) float32 mean over all valid frames of each known person, by subject; no label is looked at."""
    table = store.table()
    means: dict[str, np.ndarray] = {}
    for who in filter(None, np.unique(table.subject[table.state == 1]).tolist()):
        x, valid = store.read_stream(STREAM, np.flatnonzero((table.subject == who) & (table.state == 1)))
        if valid.any():
            means[str(who)] = np.asarray(x, np.float32)[valid].mean(axis=0)
    return means
