"""UMAP of the clips' mean embeddings: two coordinates per clip. Optional: it compiles for twenty seconds.

Shapes: N clips, T frames, D embedding.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from features.cli import log_warning
from features.store.store import FeatureStore
from seqmodel.evaluation.permutation_importance import subsample_indices

MOST_CLIPS = 3000
"""More clips take minutes and do not make the plot clearer."""
FEWEST_CLIPS = 12


def mean_embeddings(x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(N, D) float32 means over valid frames of (N, T, D); zeros for a clip without any."""
    weights = valid.astype(np.float32)
    total = np.einsum("ntd,nt->nd", x.astype(np.float32), weights)
    return total / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)


@dataclass(frozen=True)
class UmapJob:
    """A UMAP that is computed in another process."""

    indices: np.ndarray
    """Indices of the projected clips among the requested ones, (N,) int64."""
    coordinates: Future[np.ndarray]


@contextmanager
def umap_in_background(
    store: FeatureStore, rows: np.ndarray, coverage: np.ndarray, seed: int
) -> Iterator[UmapJob | None]:
    """Compute the UMAP of these rows of a store in another process.

    `coverage` is each row's share of frames with a face. Gives None, with a warning, where fewer than
    FEWEST_CLIPS rows have a face.
    """
    indices = np.flatnonzero(coverage > 0)
    if len(indices) < FEWEST_CLIPS:
        log_warning(
            f"no UMAP: it needs at least {FEWEST_CLIPS} clips with a face, the subset has {len(indices)}"
        )
        yield None
        return
    indices = subsample_indices(indices, seed, MOST_CLIPS)
    features = mean_embeddings(*store.read_stream(store.streams[0], rows[indices]))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield UmapJob(indices, pool.submit(umap_coordinates, features, seed))


def umap_coordinates(features: np.ndarray, seed: int) -> np.ndarray:
    """(N, 2) float32 coordinates of (N, D) features, standardised first; N >= FEWEST_CLIPS.

    The same seed gives the same coordinates.
    """
    std = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(std > 1e-6, std, 1.0)
    with warnings.catch_warnings():
        # UMAP warns that a seed means one thread; numba and scikit-learn warn of their own deprecations.
        warnings.simplefilter("ignore")
        from umap import UMAP

        reducer = UMAP(n_neighbors=min(15, len(features) - 1), min_dist=0.15, random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(standard), np.float32)
