"""What a question warns of before anything is learned, and the clips it loads."""

import dataclasses
import errno
from pathlib import Path

import numpy as np
import pytest

from features.store import FeatureStore, plan
from seqmodel.config import LabelArgs
from seqmodel.question import load_sides, put_question, seen_fingerprint

from .small_store import WITH_GEOMETRY, clips_of, fill_row, write_store

LABELS = LabelArgs(labels="distracted,engaged")


def test_a_stream_that_is_half_there_is_warned_about(tmp_path: Path) -> None:
    """As where extract was stopped before the geometry of all clips was measured."""
    store = plan(tmp_path / "s.zarr", clips_of(64), WITH_GEOMETRY, numerics={})
    for row in range(64):
        fill_row(store, row, geometry=row % 2 == 0)
    (text,) = put_question(store.path, LABELS).split.warnings
    assert "32 of 64 labelled clips have no geometry yet" in text
    assert not put_question(store.path, LABELS, "embeddings").split.warnings
    for row in range(1, 64, 2):
        fill_row(store, row)
    assert not put_question(store.path, LABELS).split.warnings


def test_without_room_for_a_packed_copy_the_same_clips_are_read_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    question = put_question(write_store(tmp_path / "s.zarr", 64).path, LABELS)
    with monkeypatch.context() as patch:
        patch.setattr("features.packed._write", full)
        read = load_sides(question)
    assert "no room for a packed copy" in capsys.readouterr().err
    mapped = load_sides(question)
    assert "no room" not in capsys.readouterr().err
    for ours, theirs in zip(read, mapped, strict=True):
        for name in ("embeddings", "geometry"):
            assert np.array_equal(np.asarray(ours.x[name]), np.asarray(theirs.x[name]))
            assert np.array_equal(np.asarray(ours.valid[name]), np.asarray(theirs.valid[name]))


def test_a_study_knows_its_clips_by_what_it_sees_of_them(tmp_path: Path) -> None:
    """Crops, slices and other columns change nothing about it; a label and a person do."""
    store = write_store(tmp_path / "s.zarr", 64)

    def seen() -> str:
        return seen_fingerprint(put_question(store.path, LABELS))

    row = int(put_question(store.path, LABELS).split.train[0])

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
