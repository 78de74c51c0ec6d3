"""Statistics of windows: equal to NumPy's on the valid frames, whatever the other frames hold."""

import numpy as np
import pytest

from features.window_statistics import NAMES, window_statistics


@pytest.mark.parametrize("share_valid", [1.0, 0.6, 0.1])
def test_statistics_are_those_of_the_valid_frames(share_valid: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (12, 15, 4)).astype(np.float32)
    valid = rng.random((12, 15)) < share_valid
    found = window_statistics(np.where(valid[..., None], x, 1e9), valid, at_once=5)
    assert found.shape == (12, len(NAMES) * 4 + 1)
    np.testing.assert_allclose(found[:, -1], valid.mean(axis=1), rtol=1e-6)
    for window, mask, statistics in zip(x, valid, found, strict=True):
        seen = window[mask].astype(np.float64)
        if not len(seen):
            assert not statistics.any()
            continue
        neighbours = mask[1:] & mask[:-1]
        changes = np.abs(np.diff(window, axis=0))[neighbours]
        expected = [
            seen.mean(axis=0),
            seen.std(axis=0),
            *np.quantile(seen, (0, 0.25, 0.5, 0.75, 1), axis=0),
            np.polyfit(np.flatnonzero(mask), seen, 1)[0] if len(seen) > 1 else np.zeros(4),
            changes.mean(axis=0) if len(changes) else np.zeros(4),
        ]
        np.testing.assert_allclose(statistics[:-1].reshape(len(NAMES), 4), expected, rtol=1e-4, atol=1e-4)


def test_no_windows_give_no_rows() -> None:
    empty = window_statistics(np.zeros((0, 30, 3), np.float16), np.zeros((0, 30), bool))
    assert empty.shape == (0, len(NAMES) * 3 + 1)
