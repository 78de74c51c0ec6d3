"""Centering of the geometry stream (--center): subtracts a mean, because neutral faces differ between
subjects.

`window` subtracts the mean of each clip; `subject` subtracts the mean over all valid frames of that subject
in the store, without using labels. A clip without a subject uses the mean of its window. Training, evaluation
and the webcam all call `subtract_mean`; live updates the subject's mean during a session.

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
    """The samples with a centered geometry stream, (N, T, G) float32 in memory.

    Samples without that stream, and with center `none`, are returned unchanged.
    """
    if center == "none" or STREAM not in samples.x:
        return samples
    x, valid = np.asarray(samples.x[STREAM], np.float32), np.asarray(samples.valid[STREAM])
    means = subject_means(store) if center == "subject" else {}
    out = np.stack(
        [
            subtract_mean(values, mask, means.get(str(subject)))
            for values, mask, subject in zip(x, valid, samples.subjects, strict=True)
        ]
    )
    return dataclasses.replace(samples, x=dict(samples.x) | {STREAM: out})


def subtract_mean(
    values: np.ndarray, valid: np.ndarray, subject_mean: np.ndarray | None = None
) -> np.ndarray:
    """One window (T, G) float32 minus a mean; 0 in frames that are not valid (T,).

    subject_mean: (G,) mean of the subject; None = the mean of the window's valid frames.
    """
    if not valid.any():
        return np.zeros_like(values, dtype=np.float32)
    mean = np.asarray(values, np.float32)[valid].mean(axis=0) if subject_mean is None else subject_mean
    return np.where(valid[:, None], values - mean, 0.0).astype(np.float32)


def subject_means(store: "FeatureStore") -> Mapping[str, np.ndarray]:
    """Subject -> (G,) float32 mean over all its valid frames; labels are not used."""
    table = store.table()
    means: dict[str, np.ndarray] = {}
    for subject in filter(None, np.unique(table.subject[table.state == 1]).tolist()):
        rows = np.flatnonzero((table.subject == subject) & (table.state == 1))
        x, valid = store.read_stream(STREAM, rows)
        if valid.any():
            means[str(subject)] = np.asarray(x, np.float32)[valid].mean(axis=0)
    return means
