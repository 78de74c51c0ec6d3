"""Statistics of a window, which simple methods read instead of its sequence of frames.

N windows, T frames, D width of a stream.
"""

import numpy as np

NAMES = ("mean", "std", "min", "quartile 1", "median", "quartile 3", "max", "slope", "mean change")
"""Statistics of each column of a stream, in this order; the share of valid frames comes last."""


def window_statistics(x: np.ndarray, valid: np.ndarray, *, at_once: int = 256) -> np.ndarray:
    """(N, 9 D + 1) float32: the statistics NAMES of each column over a window's valid frames, each D columns,
    then the share of valid frames.

    x: (N,T,D). valid: (N,T) bool; values of invalid frames are ignored. The slope is the least-squares change
    per frame, the mean change is the mean absolute difference of neighbouring valid frames; both are 0 with
    fewer than two frames. All statistics of a window without a valid frame are 0. `at_once` windows are in
    memory as float32.
    """
    parts = [
        _statistics(np.asarray(x[i : i + at_once], np.float32), np.asarray(valid[i : i + at_once], bool))
        for i in range(0, len(x), at_once)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, len(NAMES) * x.shape[-1] + 1), np.float32)


def _statistics(x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`window_statistics` of a few windows."""
    keep, count = valid[..., None], valid.sum(axis=1)[:, None].astype(np.float32)
    num = np.maximum(count, 1)
    values = np.where(keep, x, 0)
    mean = values.sum(axis=1) / num
    centred = np.where(keep, x - mean[:, None], 0)
    step = np.arange(x.shape[1], dtype=np.float32)
    steps = np.where(valid, step - (valid * step).sum(axis=1, keepdims=True) / num, 0)[..., None]
    pairs = (valid[:, 1:] & valid[:, :-1])[..., None]
    changes = np.where(pairs, np.abs(np.diff(values, axis=1)), 0).sum(axis=1)
    last = np.where(count > 0, np.inf, 0)[:, None]  # of a window without valid frames, all values are 0
    ordered = np.sort(np.where(keep, x, last), axis=1)
    quantiles = [_quantile(ordered, count, share) for share in (0, 0.25, 0.5, 0.75, 1)]
    found = [
        mean,
        np.sqrt((centred**2).sum(axis=1) / num),
        *quantiles,
        (steps * centred).sum(axis=1) / np.maximum((steps**2).sum(axis=1), 1e-6),
        changes / np.maximum(pairs.sum(axis=1), 1),
    ]
    return np.concatenate([*found, count / x.shape[1]], axis=1).astype(np.float32)


def _quantile(ordered: np.ndarray, count: np.ndarray, share: float) -> np.ndarray:
    """(N,D): quantile of the first `count` (N,1) of the ascending values (N,T,D), as numpy.quantile."""
    place = np.maximum(count - 1, 0) * share
    low = np.floor(place).astype(np.int64)
    first, second = (
        np.take_along_axis(ordered, np.minimum(at, ordered.shape[1] - 1)[..., None], axis=1)[:, 0]
        for at in (low, np.where(place > low, low + 1, low))
    )
    return np.asarray(first + (second - first) * (place - low), np.float32)
