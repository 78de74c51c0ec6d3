"""Nearly equal clips of different subjects or videos, for example one video copied under another name.

Two clips are nearly equal if the cosine of their whole windows is high. Clips of different people are far
from that, so such clips are copies, re-encoded copies, or one subject under two names. In two subsets of a
split they would make the metrics too optimistic.

N clips, T frames, D features.
"""

from collections.abc import Callable

import numpy as np

from features.store.store import FeatureStore, Stream
from features.store.table import ClipTable, groups_of

MIN_COSINE, COPY_COSINE = 0.9, 0.97
"""Minimum cosine of two windows of standardised embeddings to be named, and to be copies for certain.
Measured: different people .86 at most (generated faces, random weights), copies 1.0, real videos encoded
again .92 to .94 (a face of 50 pixels .75)."""
OTHER_COSINE = 0.995
"""The same for imported features and for geometry, of which single frames of different people reach .986."""
MIN_VALUES = 100
"""Windows with fewer numbers (valid frames times features) are not compared: they may be alike by chance."""
NUM_PROJECTED = 256
"""Windows are first compared by a random projection, whose 1 - cosine has a relative error of about 9 %."""
SLACK = 1.5
"""Pairs whose projection has up to this multiple of the allowed 1 - cosine are compared exactly."""
_BLOCK = 512


def near_duplicates(
    store: FeatureStore, rows: np.ndarray, min_cosine: float = MIN_COSINE
) -> list[tuple[int, int]]:
    """Pairs of these rows (ascending) that are nearly equal, though they belong to different groups.

    rows: extracted rows. min_cosine: for embeddings. The groups are those of `groups_of`: a clip's subject,
    or else its video.
    """
    table = store.table()
    stream = store.streams[0]
    is_embedding = stream == "embeddings" and store.recipe.pixels is not None
    limit = min_cosine if is_embedding else OTHER_COSINE
    mean, std = _statistics(store, stream, rows)
    scale = 1 / np.maximum(std, 1e-6)

    def windows(part: np.ndarray) -> np.ndarray:
        """(n, T, D) float32 standardised windows, 0 for invalid frames and for windows of few values."""
        stored, valid = store.read_stream(stream, part)
        x = stored.astype(np.float32)
        x -= mean
        x *= scale
        x[~valid] = 0
        x[valid.sum(axis=1) * x.shape[2] < MIN_VALUES] = 0
        return x

    projected = _projected(windows, rows, store.num_frames, len(mean))
    groups = groups_of(table, rows)
    pairs = []
    for first in range(0, len(rows), _BLOCK):
        near = projected[first : first + _BLOCK] @ projected[first:].T > 1 - SLACK * (1 - limit)
        near &= groups[first : first + _BLOCK, None] != groups[None, first:]
        for i, j in np.argwhere(np.triu(near, 1)):
            a, b = windows(rows[[first + i, first + j]]).reshape(2, -1)
            if a @ b > limit * np.linalg.norm(a) * np.linalg.norm(b):
                pairs.append((int(rows[first + i]), int(rows[first + j])))
    return pairs


def duplicate_lines(store: FeatureStore) -> list[str]:
    """One line for each pair of nearly equal clips among the extracted clips of the manifest."""
    table = store.table()
    pairs = near_duplicates(store, np.flatnonzero(store.listed() & (table.state == 1)))
    return [f"{name_of(table, a)} and {name_of(table, b)}" for a, b in pairs]


def name_of(table: ClipTable, row: int) -> str:
    """A clip's id, with its subject and split if it has them."""
    marks = [str(mark) for mark in (table.subject[row], table.split[row]) if mark]
    return f"{table.clip_id[row]}" + (f" ({', '.join(marks)})" if marks else "")


def _statistics(store: FeatureStore, stream: Stream, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) float32 of the valid frames of about _BLOCK rows, evenly spaced."""
    x, valid = store.read_stream(stream, rows[:: max(1, len(rows) // _BLOCK)])
    seen = x[valid].astype(np.float32)
    if not len(seen):
        return np.zeros(x.shape[2], np.float32), np.ones(x.shape[2], np.float32)
    return seen.mean(axis=0), seen.std(axis=0)


def _projected(
    windows: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, num_frames: int, width: int
) -> np.ndarray:
    """(n, NUM_PROJECTED) float32 random projections of unit length; 0 for a window that is 0.

    One matrix projects every frame, and random signs combine the frames, so that the matrix stays small.
    """
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(width, NUM_PROJECTED)).astype(np.float32)
    signs = rng.choice(np.array([-1, 1], np.float32), (num_frames, NUM_PROJECTED))
    parts = [
        np.einsum("ntk,tk->nk", windows(rows[first : first + _BLOCK]) @ matrix, signs)
        for first in range(0, len(rows), _BLOCK)
    ]
    found = np.concatenate(parts) if parts else np.zeros((0, NUM_PROJECTED), np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
