"""Data sets: batches are the store's rows, in memory or by memory map."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from features.datasets import (
    CropClips,
    RowView,
    Samples,
    labelled_rows,
    load_samples,
    sample_groups,
    select_samples,
)
from features.labels import make_labelling
from features.store.store import FeatureStore, plan
from features.store.table import groups_of
from tests.support.small_store import (
    PIXELS,
    RECIPE,
    WITH_GEOMETRY,
    D,
    G,
    T,
    clips_of,
    row_values,
    write_store,
)

LABELLING = make_labelling(["distracted", "engaged"], labels=["distracted", "engaged"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Twelve clips with both streams and crops."""
    return write_store(tmp_path_factory.mktemp("data") / "s.zarr", 12, crops=True)


def require_equal_samples(one: Samples, other: Samples, indices: np.ndarray) -> None:
    """Require that both give the same batch."""
    for actual, expected in zip(one.batch(indices)[:2], other.batch(indices)[:2], strict=True):
        assert set(actual) == set(expected)
        for name in actual:
            assert actual[name].dtype == expected[name].dtype
            assert np.array_equal(actual[name], expected[name])
    assert np.array_equal(one.batch(indices)[2], other.batch(indices)[2])


def test_batches_are_the_rows(store: FeatureStore) -> None:
    """Streams by name, labels by the labelling."""
    rows = np.array([7, 2, 4])
    samples = load_samples(store, LABELLING, rows, "both")
    x, valid, labels = samples.batch(np.array([2, 0]))
    assert x["embeddings"].shape == (2, T, D)
    assert x["geometry"].shape == (2, T, G)
    assert np.array_equal(x["embeddings"][0], row_values(4)["embeddings"])
    assert np.array_equal(valid["embeddings"][1], row_values(7)["frames"][:, 5] > 0)
    assert labels.tolist() == [1, 1]
    assert samples.labels.tolist() == [1, 0, 1]
    assert samples.clip_ids.tolist() == ["영상/7.mp4#0", "영상/2.mp4#0", "영상/4.mp4#0"]
    assert samples.rows.tolist() == rows.tolist()


def test_memory_map_equals_memory(store: FeatureStore) -> None:
    """Whole arrays, batches and select_samples are equal, and the memory map stays a memory map."""
    rows = np.array([1, 3, 2, 9, 11])
    plain = load_samples(store, LABELLING, rows, "both")
    mapped = load_samples(store, LABELLING, rows, "both", mapped=True)
    view = mapped.x["embeddings"]
    assert isinstance(view, RowView)
    assert isinstance(view.base, np.memmap)
    require_equal_samples(plain, mapped, np.array([4, 0, 2]))
    assert np.array_equal(np.asarray(view), plain.x["embeddings"])
    assert np.array_equal(view[1:3, 2], plain.x["embeddings"][1:3, 2])
    some = np.array([3, 1])
    assert isinstance(select_samples(mapped, some).x["geometry"], RowView)
    require_equal_samples(select_samples(plain, some), select_samples(mapped, some), np.array([1, 0]))


def test_select_samples_takes_indices_or_a_mask(store: FeatureStore) -> None:
    """Both select the same samples."""
    samples = load_samples(store, LABELLING, np.arange(12), "embeddings")
    mask = np.zeros(12, bool)
    mask[[1, 5]] = True
    assert (
        select_samples(samples, mask).rows.tolist()
        == select_samples(samples, np.array([1, 5])).rows.tolist()
        == [1, 5]
    )


def test_sample_groups_equal_the_groups_of_the_store(tmp_path: Path) -> None:
    """The group is the subject, even if only another window of the video has it. Without a subject, or with
    several, it is the video with all its windows."""
    subject_ids = ["a", "", "", "", "b", "a", "", "c", "d"]
    clips = [
        dataclasses.replace(clip, clip_id=f"영상#/{place // 2}.mp4#{place % 2 * 2000}", subject=subject)
        for place, (clip, subject) in enumerate(zip(clips_of(9), subject_ids, strict=True))
    ]
    clips[8] = dataclasses.replace(clips[8], clip_id="영상#/3.mp4#4000")
    store = plan(tmp_path / "s.zarr", clips, RECIPE, numerics={})
    groups = sample_groups(load_samples(store, LABELLING, np.arange(9)))
    assert groups.tolist() == [
        "subject a",
        "subject a",
        "video 영상#/1.mp4",
        "video 영상#/1.mp4",
        "subject b",
        "subject a",
        "video 영상#/3.mp4",
        "subject c",
        "subject d",
    ]
    assert groups.tolist() == groups_of(store.table(), np.arange(9)).tolist()
    assert groups_of(store.table(), np.array([1, 6])).tolist() == ["subject a", "video 영상#/3.mp4"]


def test_crops_are_decoded_rgb_and_zero_without_a_face(store: FeatureStore) -> None:
    """JPEG at q95 is near the picture that was stored, in RGB."""
    clips = CropClips(store, LABELLING, np.array([3, 8]))
    x, valid, labels = clips.batch(np.array([1]))
    side = PIXELS.crop_px
    assert x["crops"].shape == (1, T, side, side, 3)
    assert x["crops"].dtype == np.uint8
    assert (x["crops"][0, 3] == 0).all()
    assert valid["crops"][0].tolist() == [True, True, True, False, True, True]
    bgr = np.random.default_rng(8).integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    error = np.abs(x["crops"][0, 0].astype(int) - bgr[..., ::-1])
    assert error.mean() < 12  # hard edges of colour; with swapped channels it is above 60
    assert labels.tolist() == [0]
    assert len(clips) == 2


def test_unlabelled_failed_and_unlisted_clips_are_left_out(tmp_path: Path) -> None:
    """`with_failed` keeps the failed ones, so that metrics count them."""
    clips = clips_of(6)
    clips[0].labels["label"] = ""
    store = plan(tmp_path / "s.zarr", clips, RECIPE, numerics={})
    for row in (0, 1, 2, 3):
        values = row_values(row)
        store.write_row(row, embeddings=values["embeddings"], frames=values["frames"])
    store.write_failure(4, "broken")
    rows, labels = labelled_rows(store.table(), LABELLING)
    assert rows.tolist() == [1, 2, 3]
    assert labels.tolist() == [0, 0, 0]
    assert labelled_rows(store.table(), LABELLING, with_failed=True)[0].tolist() == [1, 2, 3, 4]
    failed = load_samples(store, LABELLING, np.array([4]), "embeddings")
    assert not failed.valid["embeddings"].any()
    assert (failed.x["embeddings"] == 0).all()
    store = plan(tmp_path / "s.zarr", clips[:3], RECIPE, numerics={})
    assert labelled_rows(store.table(), LABELLING)[0].tolist() == [1, 2]


def test_missing_streams_and_columns_are_named(tmp_path: Path) -> None:
    """Streams, label columns, crops."""
    store = write_store(tmp_path / "s.zarr", 2, geometry=False)
    with pytest.raises(ValueError, match=r"has no geometry, only embeddings: .* extract with --geometry on"):
        load_samples(store, LABELLING, np.arange(2), "both")
    with pytest.raises(ValueError, match="no label column 'mood'; it has: label, level"):
        load_samples(store, make_labelling(["a", "b"], column="mood"), np.arange(2), "embeddings")
    with pytest.raises(ValueError, match="no label column 'mood'"):
        labelled_rows(store.table(), make_labelling(["a", "b"], column="mood"))
    with pytest.raises(ValueError, match="has no crops: extract again with --crops jpeg"):
        CropClips(store, LABELLING, np.arange(2))


def test_damaged_crop_error_names_the_clip(tmp_path: Path) -> None:
    """The error has the clip id."""
    store = plan(tmp_path / "s.zarr", clips_of(1), WITH_GEOMETRY, numerics={}, crops=True)
    values = row_values(0)
    store.write_row(0, embeddings=values["embeddings"], frames=values["frames"], crops=[b"not a jpeg"])
    with pytest.raises(ValueError, match=r"crop 0 of 영상/0\.mp4#0 has shape None, expected"):
        CropClips(store, LABELLING, np.arange(1)).batch(np.array([0]))
