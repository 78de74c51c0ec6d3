"""Statistics of windows: equal to NumPy's on the valid frames, whatever the other frames hold."""

import numpy as np
import pytest

from seqmodel.heads.window_statistics import NAMES, num_statistics, statistics_of


@pytest.mark.parametrize("share_valid", [1.0, 0.6, 0.1, 0.0])
@pytest.mark.parametrize("steps", [1, 2, 15])
@pytest.mark.parametrize("filler", [0.0, 1e9, np.nan])
def test_statistics_are_those_of_the_valid_frames(share_valid: float, steps: int, filler: float) -> None:
    rng = np.random.default_rng([steps, int(10 * share_valid)])
    x = rng.normal(3, 2, (300, steps, 4)).astype(np.float32)
    valid = rng.random((300, steps)) < share_valid
    found = statistics_of(np.where(valid[..., None], x, np.float32(filler)), valid)
    assert found.shape == (300, num_statistics(4))
    np.testing.assert_allclose(found[:, -1], valid.mean(axis=1), rtol=1e-6)
    for window, mask, statistics in zip(x, valid, found, strict=True):
        seen = window[mask].astype(np.float64)
        if not len(seen):
            assert np.abs(statistics).max() <= 1e-6
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
    empty = statistics_of(np.zeros((0, 30, 3), np.float16), np.zeros((0, 30), bool))
    assert empty.shape == (0, num_statistics(3))
