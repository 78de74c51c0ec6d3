"""Learning tasks: warnings before training, and the clips that are loaded."""

import dataclasses
import errno
from pathlib import Path

import numpy as np
import pytest

from features.maintenance.import_external import read_sequences, write_external
from features.store.store import FeatureStore, plan
from seqmodel.config import LabelArgs
from seqmodel.training.task import build_task, data_fingerprint, learning_clips, load_learning
from tests.support.small_store import WITH_GEOMETRY, clips_of, fill_row, write_store

LABELS = LabelArgs(labels="distracted,engaged")


def test_partly_extracted_geometry_gives_a_warning(tmp_path: Path) -> None:
    """For example if extract was stopped before it measured the geometry of all clips."""
    store = plan(tmp_path / "s.zarr", clips_of(64), WITH_GEOMETRY, numerics={})
    for row in range(64):
        fill_row(store, row, geometry=row % 2 == 0)
    (text,) = build_task(store.path, LABELS).split.warnings
    assert "32 of 64 labelled clips have no geometry yet" in text
    assert not build_task(store.path, LABELS, "embeddings").split.warnings
    for row in range(1, 64, 2):
        fill_row(store, row)
    assert not build_task(store.path, LABELS).split.warnings


def test_training_without_valid_frames_is_rejected(tmp_path: Path) -> None:
    """For example if no video of the training subjects has a face. An existing run is not changed."""
    x, y = np.full((40, 10, 5), np.nan, np.float32), np.arange(40) % 2
    np.savez(tmp_path / "x.npz", x=x, y=y, subject=np.array([f"p{i % 10}" for i in range(40)]))
    write_external(tmp_path / "s.zarr", read_sequences(tmp_path / "x.npz"), "nothing")
    with pytest.raises(ValueError, match=r"none of the .* training clips .* has a valid frame"):
        load_learning(build_task(tmp_path / "s.zarr", LabelArgs()))


def test_levels_added_later_are_ordered_by_value(tmp_path: Path) -> None:
    """The store appends the rare level at the end; for an ordinal task it is the lowest."""
    path, clips = tmp_path / "s.zarr", clips_of(64)
    levels = [str(1 + index // 4 % 3) for index in range(64)]
    first = [
        dataclasses.replace(clip, labels={"level": level}) for clip, level in zip(clips, levels, strict=True)
    ]
    plan(path, first[:32], WITH_GEOMETRY, numerics={})
    rare = [
        dataclasses.replace(clip, labels={"level": "0"}) if index >= 48 else clip
        for index, clip in enumerate(first)
    ]
    store = plan(path, rare, WITH_GEOMETRY, numerics={})
    for row in range(64):
        fill_row(store, row)
    assert store.label_names["level"] == ["1", "2", "3", "0"]
    learning_task = build_task(path, LabelArgs(label="level", task="ordinal"))
    assert learning_task.labelling.names == ("0", "1", "2", "3")


def test_a_corrected_typo_leaves_no_empty_class(tmp_path: Path) -> None:
    """The store keeps the name; it makes no class unless --labels lists it."""
    path, clips = tmp_path / "s.zarr", clips_of(64)
    typo = dataclasses.replace(clips[0], labels={"label": "enagged", "level": "0"})
    plan(path, [typo, *clips[1:]], WITH_GEOMETRY, numerics={})
    store = plan(path, clips, WITH_GEOMETRY, numerics={})
    for row in range(64):
        fill_row(store, row)
    assert "enagged" in store.label_names["label"]
    assert build_task(path, LabelArgs()).labelling.names == ("distracted", "engaged")
    with pytest.raises(ValueError, match="no clip of class 'enagged'"):
        build_task(path, LabelArgs(labels="enagged,engaged"))


def test_full_disk_for_the_packed_copy_warns_and_reads_the_same_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    learning_task = build_task(write_store(tmp_path / "s.zarr", 64).path, LABELS)
    with monkeypatch.context() as patch:
        patch.setattr("features.store.packed._write", full)
        read = load_learning(learning_task)
    assert "no disk space for a packed copy" in capsys.readouterr().err
    mapped = load_learning(learning_task)
    assert "packed copy" not in capsys.readouterr().err
    assert read.rows.tolist() == mapped.rows.tolist() == learning_clips(learning_task, 0).rows.tolist()
    for name in ("embeddings", "geometry"):
        assert np.array_equal(np.asarray(read.x[name]), np.asarray(mapped.x[name]))
        assert np.array_equal(np.asarray(read.valid[name]), np.asarray(mapped.valid[name]))


def test_fingerprint_changes_only_with_data_that_the_search_reads(tmp_path: Path) -> None:
    """Crops, slices and other label columns do not change it; a label and a subject do."""
    store = write_store(tmp_path / "s.zarr", 64)

    def seen() -> str:
        return data_fingerprint(build_task(store.path, LABELS))

    row = int(build_task(store.path, LABELS).split.train[0])

    def corrected(**changes: object) -> None:
        clips = clips_of(64)
        clips[row] = dataclasses.replace(clips[row], **changes)  # type: ignore[arg-type]
        plan(store.path, clips, WITH_GEOMETRY, numerics={}, crops=True)

    before, labels = seen(), clips_of(64)[row].labels
    corrected(slices={"camera": "위"}, labels=dict(labels) | {"level": "9"})
    fill_row(FeatureStore.open(store.path, "r+"), row, crops=True)
    assert seen() == before
    corrected(subject="p9")
    assert seen() != before
    corrected(labels=dict(labels) | {"label": LABELS.labels.split(",")[labels["label"] == "distracted"]})
    assert seen() != before
    corrected()
    assert seen() == before
