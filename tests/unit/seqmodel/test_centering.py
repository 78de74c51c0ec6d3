"""Centering of geometry by window and by subject."""

from pathlib import Path

import numpy as np
import pytest

from features.datasets import load_samples
from features.labels import make_labelling
from seqmodel.heads.centering import subject_means, subtract_mean, with_centering
from tests.support.small_store import fill_row, write_store


def test_centered_window_has_mean_zero_and_keeps_masks() -> None:
    rng = np.random.default_rng(0)
    values, valid = rng.normal(5, 1, (8, 3)).astype(np.float32), np.array([True] * 5 + [False] * 3)
    values[~valid] = np.nan
    out = subtract_mean(values, valid)
    np.testing.assert_allclose(out[valid].mean(axis=0), 0, atol=1e-6)
    assert (out[~valid] == 0).all()
    assert (subtract_mean(values, np.zeros(8, bool)) == 0).all()


def test_subject_centering_removes_a_constant_offset() -> None:
    rng = np.random.default_rng(0)
    values, valid = rng.normal(size=(8, 3)).astype(np.float32), np.ones(8, bool)
    habit, subject_mean = np.array([3.0, -2.0, 0.5], np.float32), values.mean(axis=0)
    np.testing.assert_allclose(
        subtract_mean(values + habit, valid, subject_mean + habit),
        subtract_mean(values, valid, subject_mean),
        atol=1e-6,
    )


@pytest.mark.parametrize("baseline", ["none", "window", "subject"])
def test_samples_are_centered_as_requested(tmp_path: Path, baseline: str) -> None:
    store = write_store(tmp_path / "s.zarr")
    for row in range(store.num_clips):
        fill_row(store, row)
    table = store.table()
    column = next(iter(table.labels))
    rows = np.arange(store.num_clips)
    samples = load_samples(store, make_labelling(table.label_names[column], column=column), rows, "both")
    out = with_centering(samples, baseline, store)
    assert out.x["embeddings"] is samples.x["embeddings"]
    raw, valid = np.asarray(samples.x["geometry"], np.float32), samples.valid["geometry"]
    for subject, subject_mean in subject_means(store).items():
        own = table.subject == subject
        expected = {
            "none": raw[own][valid[own]],
            "subject": raw[own][valid[own]] - subject_mean,
            "window": np.concatenate(
                [raw[i][valid[i]] - raw[i][valid[i]].mean(axis=0) for i in np.flatnonzero(own)]
            ),
        }[baseline]
        np.testing.assert_allclose(out.x["geometry"][own][valid[own]], expected, atol=1e-5)
