"""The store: rows are read back as written, nothing is lost, and damage is found."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from extract import run
from extract.__main__ import main as extract
from features.files import this_process
from features.labels import make_labelling
from features.maintenance.relabel import relabel
from features.maintenance.verify import verify_store
from features.manifest import Clip
from features.recipe import EncoderId
from features.store import erasure, location, lock, planner
from features.store.location import existing_group, location_of, sweep
from features.store.lock import planner_lock
from features.store.packed import packed_folders
from features.store.store import FeatureStore, delete, plan
from tests.support.clips import face_frames, looped, write_video
from tests.support.kill_at_write import KillableCommands
from tests.support.small_store import (
    PIXELS,
    RECIPE,
    WITH_GEOMETRY,
    D,
    G,
    T,
    clips_of,
    crops_of,
    fill_row,
    row_values,
    write_store,
)
from tests.support.stores import all_files, require_equal_stores

ROOT = Path(__file__).resolve().parents[3]
WRITER = "tests.support.small_store"


def test_rows_read_back_equal(tmp_path: Path) -> None:
    """Embeddings bit for bit; x is 0 and invalid where there was no face; geometry has its own validity."""
    store = write_store(tmp_path / "가 나.zarr", crops=True)
    x, valid = store.read_stream("embeddings")
    geometry, geometry_valid = store.read_stream("geometry", np.array([5, 2]))
    assert x.shape == (12, T, D)
    assert x.dtype == np.float16
    for row in range(12):
        wanted = row_values(row)
        assert np.array_equal(valid[row], wanted["frames"][:, 5] > 0)
        assert np.array_equal(x[row], wanted["embeddings"])
        assert np.array_equal(store.read_frames(np.array([row]))[0], wanted["frames"], equal_nan=True)
        assert store.read_crops(row) == crops_of(row)
    assert np.array_equal(geometry[0], np.nan_to_num(row_values(5)["geometry"]))
    assert np.array_equal(geometry_valid[1], np.isfinite(row_values(2)["geometry"]).all(1))
    assert verify_store(store) == []


def test_table_equals_the_clips(tmp_path: Path) -> None:
    """Texts, labels by name, slices, states."""
    table = write_store(tmp_path / "s.zarr").table()
    clips = clips_of(12)
    assert table.clip_id.tolist() == [clip.clip_id for clip in clips]
    assert table.source[3] == "영상/3.mp4"
    assert table.subject.tolist() == [clip.subject for clip in clips]
    names = np.array(table.label_names["label"])
    assert names[table.labels["label"]].tolist() == [clip.labels["label"] for clip in clips]
    assert table.label_names["level"] == ["0", "1", "2"]
    assert table.slices["camera"].tolist() == [clip.slices["camera"] for clip in clips]
    assert (table.state == 1).all()
    assert table.labels["label"].dtype == np.int16


def test_zarr_reads_the_store_without_this_package(tmp_path: Path) -> None:
    """The layout of the docstring, read with zarr only."""
    write_store(tmp_path / "s.zarr")
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    for name, dtype in {
        "embeddings": "float16",
        "frames": "float32",
        "geometry": "float32",
        "state": "uint8",
    }.items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert array.dtype == dtype
        assert array.shape[0] == 12
    state = group["state"]
    assert isinstance(state, zarr.Array)
    assert (np.asarray(state[:]) == 1).all()
    assert group["labels/label"].dtype == "int16"  # type: ignore[union-attr]


def test_direct_chunks_are_the_bytes_that_zarr_writes(tmp_path: Path) -> None:
    """Each also reads the bytes of the other."""
    store = write_store(tmp_path / "direct.zarr", 3, crops=True)
    by_zarr = plan(
        tmp_path / "zarr.zarr", clips_of(3), WITH_GEOMETRY, numerics={"backend": "test"}, crops=True
    )
    by_zarr.rows.is_direct = False
    for row in range(3):
        fill_row(by_zarr, row, crops=True)
    by_zarr.finalize()
    require_equal_stores(tmp_path / "direct.zarr", tmp_path / "zarr.zarr")
    store.rows.is_direct = False
    assert np.array_equal(store.read_stream("embeddings")[0], by_zarr.read_stream("embeddings")[0])
    assert store.read_crops(1) == crops_of(1) == FeatureStore.open(tmp_path / "zarr.zarr").read_crops(1)


def test_short_rows_are_padded_and_invalid(tmp_path: Path) -> None:
    """Two frames of six: the other four are not valid."""
    store = plan(tmp_path / "s.zarr", clips_of(1), RECIPE, numerics={})
    values = row_values(0, 2)
    store.write_row(0, embeddings=values["embeddings"], frames=values["frames"])
    x, valid = store.read_stream("embeddings")
    assert valid[0].tolist() == [True, True, False, False, False, False]
    assert (x[0, 2:] == 0).all()
    assert np.isnan(store.read_frames()[0, 2:, 0]).all()


def test_each_part_has_its_own_state(tmp_path: Path) -> None:
    """Geometry and crops can be added to a store that has embeddings."""
    path = tmp_path / "s.zarr"
    write_store(path, 3, geometry=False)
    store = plan(path, clips_of(3), WITH_GEOMETRY, numerics={"backend": "test"}, crops=True)
    assert store.missing("embeddings").tolist() == []
    assert store.missing("geometry").tolist() == [0, 1, 2]
    store.write_row(1, geometry=np.full((T, G), np.nan, np.float32))
    store.write_row(2, crops=[b""] * T)
    assert store.missing("geometry").tolist() == [0, 2]
    assert store.missing("crops").tolist() == [0, 1]
    assert FeatureStore.open(path).recipe == WITH_GEOMETRY


def test_row_without_any_face_is_done(tmp_path: Path) -> None:
    """A clip without a face is a valid result, not a missing one."""
    store = plan(tmp_path / "s.zarr", clips_of(1), WITH_GEOMETRY, numerics={}, crops=True)
    nan = np.full((T, 6), np.nan, np.float32)
    nan[:, 5] = 0
    store.write_row(
        0,
        embeddings=np.zeros((T, D), np.float16),
        frames=nan,
        geometry=np.full((T, G), np.nan, np.float32),
        crops=[b""] * T,
    )
    assert [store.missing(part).tolist() for part in ("embeddings", "geometry", "crops")] == [[], [], []]
    assert not store.read_stream("embeddings")[1].any()
    assert verify_store(store) == []


def test_failures_are_kept_with_their_reason(tmp_path: Path) -> None:
    """Failed rows are listed and not missing; the failure is deleted when the row is written later."""
    store = plan(tmp_path / "s.zarr", clips_of(3), RECIPE, numerics={})
    store.write_failure(1, "영상이 열리지 않음")
    assert store.missing("embeddings").tolist() == [0, 2]
    assert store.table().state.tolist() == [0, 2, 0]
    assert store.table().failure[1] == "영상이 열리지 않음"
    fill_row(store, 1, geometry=False)
    assert store.table().state.tolist() == [0, 1, 0]


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    """It does not make the other rows wider."""
    store = plan(tmp_path / "s.zarr", clips_of(3), RECIPE, numerics={})
    store.write_failure(1, "x" * 8000)
    store.write_failure(2, "y" * 500)
    reasons = FeatureStore.open(store.path).table().failure
    assert reasons.tolist() == ["", "x" * 499 + "…", "y" * 500]
    assert reasons.nbytes == 3 * 8


def test_no_more_than_four_files_a_clip(tmp_path: Path) -> None:
    """Embeddings, frames, geometry and crops; states need no files, and there are no further folders."""
    path = tmp_path / "s.zarr"
    few = write_store(path, 4, crops=True)
    before = len(all_files(path))
    store = plan(path, clips_of(24), WITH_GEOMETRY, numerics={"backend": "test"}, crops=True)
    for row in range(4, 24):
        fill_row(store, row, crops=True)
    store.finalize()
    assert few.num_clips == 4
    assert len(all_files(path)) - before == 4 * 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.zeros((T, D + 1), np.float16)}, r"embeddings has shape \(6, 9\)"),
        ({"embeddings": np.zeros((T + 1, D), np.float16), "frames": np.zeros((T + 1, 6))}, "at most"),
        ({"frames": np.zeros((T - 1, 6), np.float32)}, "6 embeddings for 5 frames"),
        ({"frames": None}, "must be given together"),
        ({"embeddings": np.full((T, D), np.inf, np.float16)}, "not finite"),
        ({"crops": [b"x"] * (T + 1)}, "crops has 7 frames"),
    ],
)
def test_rows_of_another_shape_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """The row stays pending."""
    store = plan(tmp_path / "s.zarr", clips_of(1), RECIPE, numerics={}, crops=True)
    values = row_values(0)
    given = {"embeddings": values["embeddings"], "frames": values["frames"], **change}
    with pytest.raises(ValueError, match=message):
        store.write_row(0, **given)  # type: ignore[arg-type]
    assert store.missing("embeddings").tolist() == [0]


def test_another_recipe_is_refused_by_field(tmp_path: Path) -> None:
    """Every field that differs is named; numerics are recorded, not compared."""
    path = tmp_path / "s.zarr"
    write_store(path)
    other = replace(RECIPE, pixels=replace(PIXELS, margin=0.5), encoder=EncoderId("x", "", "12" * 32, D))
    with pytest.raises(ValueError, match=r"pixels\.margin: 0\.25 vs 0\.5; encoder\.name"):
        plan(path, clips_of(12), other, numerics={})
    store = plan(path, clips_of(12), RECIPE, numerics={"backend": "another"})
    assert store.numerics == {"backend": "test"}
    assert store.other_numerics == [{"backend": "another"}]


def test_a_grown_and_corrected_manifest_moves_no_row(tmp_path: Path) -> None:
    """Labels, subjects and splits follow the manifest; new clips are missing; removed ones are listed."""
    path = tmp_path / "s.zarr"
    write_store(path, 6)
    before = FeatureStore.open(path).read_stream("embeddings")[0]
    clips = clips_of(9)
    clips[2] = replace(clips[2], subject="다른 사람", split="test", labels={"label": "sleepy", "level": ""})
    del clips[4]
    store = plan(path, list(reversed(clips)), WITH_GEOMETRY, numerics={"backend": "test"})
    assert store.changes.new == tuple(clip.clip_id for clip in reversed(clips_of(9)[6:]))
    assert store.changes.corrected == (clips[2].clip_id,)
    assert store.changes.not_in_manifest == ("영상/4.mp4#0",)
    assert store.changes.changed == ()
    assert store.missing("embeddings").tolist() == [6, 7, 8]
    table = store.table()
    assert table.label_names["label"] == ["distracted", "engaged", "sleepy"]
    assert table.labels["label"].tolist()[:5] == [0, 0, 2, 0, -1]
    assert (table.subject[2], table.split[2], table.labels["level"][2]) == ("다른 사람", "test", -1)
    assert np.array_equal(store.read_stream("embeddings", np.arange(6))[0], before)
    again = plan(path, clips_of(9), WITH_GEOMETRY, numerics={"backend": "test"})
    assert again.changes.not_in_manifest == ()
    assert again.table().labels["label"][4] == 1
    assert verify_store(again) == []


def test_limited_listing_does_not_change_other_clips(tmp_path: Path) -> None:
    """With `--limit`, the clips are not the whole manifest."""
    path = tmp_path / "s.zarr"
    write_store(path, 6)
    store = plan(path, clips_of(2), WITH_GEOMETRY, numerics={"backend": "test"}, listing_complete=False)
    assert store.changes.not_in_manifest == ()
    assert (store.table().labels["label"] >= 0).all()


def test_planning_again_without_changes_writes_nothing(tmp_path: Path) -> None:
    """Byte for byte the same store."""
    path = tmp_path / "s.zarr"
    write_store(path, 6)
    before = all_files(path)
    plan(path, clips_of(6), WITH_GEOMETRY, numerics={"backend": "test"})
    assert all_files(path) == before


def test_a_changed_file_is_extracted_again(tmp_path: Path) -> None:
    """By size or time; a file that cannot be read now does not count as changed."""
    for index in range(3):
        (tmp_path / f"{index}.mp4").write_bytes(b"x" * index)
    path, clips = tmp_path / "s.zarr", clips_of(3, tmp_path)
    store = plan(path, clips, WITH_GEOMETRY, numerics={})
    for row in range(3):
        fill_row(store, row)
    stamp = (tmp_path / "1.mp4").stat().st_mtime
    os.utime(tmp_path / "1.mp4", (stamp + 10, stamp + 10))
    (tmp_path / "2.mp4").unlink()
    store = plan(path, clips, WITH_GEOMETRY, numerics={})
    assert store.changes.changed == (clips[1].clip_id,)
    assert store.missing("embeddings").tolist() == [1]
    assert store.missing("geometry").tolist() == [1]
    assert np.isnan(np.asarray(store.array("embeddings")[1], np.float32)).all()


def test_a_copy_on_a_disk_with_coarse_times_is_the_same_file(tmp_path: Path) -> None:
    """FAT and exFAT round times to two seconds, so the file counts as unchanged and nothing is written."""
    for index in range(3):
        (tmp_path / f"{index}.mp4").write_bytes(b"x" * index)
    path, clips = tmp_path / "s.zarr", clips_of(3, tmp_path)
    plan(path, clips, RECIPE, numerics={})
    before = all_files(path)
    stamps = [(tmp_path / f"{index}.mp4").stat().st_mtime_ns for index in range(3)]
    for index, shift_ns in enumerate((1_999_999_999, -2_000_000_000, 0)):
        os.utime(tmp_path / f"{index}.mp4", ns=(0, stamps[index] + shift_ns))
    assert plan(path, clips, RECIPE, numerics={}).changes.changed == ()
    assert all_files(path) == before
    os.utime(tmp_path / "0.mp4", ns=(0, stamps[0] + 2_000_000_001))
    (tmp_path / "1.mp4").write_bytes(b"other")
    os.utime(tmp_path / "1.mp4", ns=(0, stamps[1]))
    assert plan(path, clips, RECIPE, numerics={}).changes.changed == (clips[0].clip_id, clips[1].clip_id)


def test_a_corrected_end_is_extracted_again(tmp_path: Path) -> None:
    """By more than half a sampled frame, a sixth of a second here. An unknown end corrects nothing."""
    path = tmp_path / "s.zarr"
    fingerprint = write_store(path, 4).fingerprint()
    ends = (2.0, 1.0, 2.1, None)
    clips = [replace(clip, end_s=end_s) for clip, end_s in zip(clips_of(4), ends, strict=True)]
    assert FeatureStore.open(path).changed(clips) == {clips[1].clip_id}
    store = plan(path, clips, WITH_GEOMETRY, numerics={"backend": "test"})
    assert store.changes.changed == (clips[1].clip_id,)
    assert store.missing("embeddings").tolist() == [1]
    assert store.table().end_s.tolist() == [2.0, 1.0, 2.1, 2.0]
    fill_row(store, 1)
    store.finalize()
    assert store.fingerprint() != fingerprint
    before = all_files(path)
    assert plan(path, clips, WITH_GEOMETRY, numerics={"backend": "test"}).changes.changed == ()
    assert all_files(path) == before


def test_extraction_corrects_end_times_and_keeps_unreadable_videos(
    real_clips: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a video of 2 s, a clip of 2.3 s ends at 2 s. Files may be missing for some time, and videos
    unreadable."""
    frames = looped(face_frames(real_clips["single"], 10, 176, 144), 20)
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", frames, 10)
    argv = ["--data", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "s.zarr"), "--json"]
    argv += ["--weights", "random", "--geometry", "off", "--window", "1.2", "--fps", "5", "--workers", "0"]

    def extract_lines(*lines: str) -> tuple[dict[str, Any], str]:
        (tmp_path / "labels.csv").write_text("\n".join(["path,label,end_s", *lines]), encoding="utf-8")
        extract(argv)
        out, shown = capsys.readouterr()
        return json.loads(out), shown

    def labels() -> list[int]:
        return FeatureStore.open(tmp_path / "s.zarr").table().labels["label"].tolist()

    assert extract_lines("a.mp4,x,", "b.mp4,y,2.3", "c.mp4,x,")[0]["done"] == 6
    before = labels()
    summary, shown = extract_lines("a.mp4,x,", "b_.mp4,y,2.3")
    assert (summary["done"], summary["not_in_manifest"]) == (0, [])
    assert "4 clips of the store are not in" in shown
    assert labels() == before
    with monkeypatch.context() as patch:  # labels of a known format, whose videos are missing
        read = run.read_dataset
        patch.setattr(run, "read_dataset", lambda *a: replace(read(*a), unpaired_labels=("b.mp4",)))
        assert extract_lines("a.mp4,x,", "c.mp4,x,")[0]["not_in_manifest"] == []
    with monkeypatch.context() as patch:
        patch.setattr("extract.pipeline.planning.probe", lambda path: int("no video"))
        summary, _ = extract_lines("a.mp4,x,", "b.mp4,y,2.3", "c.mp4,x,")
    assert (summary["changed"], summary["failed"], labels()) == (0, 0, before)
    files = all_files(tmp_path / "s.zarr")
    assert extract_lines("a.mp4,x,", "b.mp4,y,3", "c.mp4,x,")[0]["changed"] == 0
    assert all_files(tmp_path / "s.zarr") == files
    summary, _ = extract_lines("a.mp4,x,0.6", "b.mp4,y,3", "c.mp4,x,")
    assert (summary["changed"], summary["done"], len(summary["not_in_manifest"])) == (1, 1, 1)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert (store.read_frames()[..., 0] < 0.6).sum(1)[0] == 3
    assert np.isfinite(store.read_frames()[0, :, 0]).sum() == 3
    assert store.table().end_s.tolist() == [0.6, 2.0, 1.2, 2.0, 1.2, 2.0]
    assert verify_store(store) == []


def test_relabelling_changes_no_end(tmp_path: Path) -> None:
    """A line of a manifest may end at any time: rows are its windows."""
    path = tmp_path / "s.zarr"
    write_store(path, 2)
    relabel(path, [replace(clip, end_s=0.5, labels={"label": "sleepy"}) for clip in clips_of(2)])
    store = FeatureStore.open(path)
    assert store.table().end_s.tolist() == [2.0, 2.0]
    assert store.missing("embeddings").tolist() == []


def test_label_column_stays_one_when_it_gets_too_many_values(tmp_path: Path) -> None:
    """The store has it as a label column, although the manifest alone would make it a slice. Other columns
    stay slices."""
    path = tmp_path / "s.zarr"
    plan(path, clips_of(3), RECIPE, numerics={})
    grown = [
        replace(clip, labels={"label": "engaged"}, slices={"level": str(7 + row), "camera": "앞"})
        for row, clip in enumerate(clips_of(4))
    ]
    for again in (
        lambda: plan(path, grown, RECIPE, numerics={}),
        lambda: relabel(path, [replace(clip, slices=clip.slices | {"level": "0"}) for clip in grown]),
    ):
        again()
        table = FeatureStore.open(path).table()
        names = np.array(table.label_names["level"])
        assert names[table.labels["level"]].tolist() == table.slices["level"].tolist()
    assert table.slices["level"].tolist() == ["0"] * 4
    assert table.labels.keys() == {"label", "level"}


def test_relabelling_needs_no_videos_and_labels_all_windows(tmp_path: Path) -> None:
    """One line for a video corrects all its windows."""
    path = tmp_path / "s.zarr"
    first = replace(clips_of(1)[0], clip_id="a.mp4#0", end_s=2.0)
    second = replace(first, clip_id="a.mp4#2000", start_s=2.0, end_s=4.0)
    other = replace(first, clip_id="b.mp4#0")
    plan(path, [first, second, other], RECIPE, numerics={})
    line = Clip("a.mp4#0", Path("a.mp4"), subject="새 사람", labels={"label": "sleepy"})
    strange = Clip("c.mp4#0", Path("c.mp4"), labels={"label": "sleepy"})
    done = relabel(path, [line, strange])
    table = FeatureStore.open(path).table()
    assert done.corrected == ("a.mp4#0", "a.mp4#2000")
    assert done.unnamed == ("b.mp4#0",)
    assert done.unknown == ("c.mp4#0",)
    assert table.subject.tolist() == ["새 사람", "새 사람", "p0"]
    assert [table.label_names["label"][code] for code in table.labels["label"]] == [
        "sleepy",
        "sleepy",
        "distracted",
    ]
    assert table.labels["level"].tolist() == [0, 0, 0]  # a manifest without the column changes nothing
    assert table.start_s.tolist() == [0, 2, 0]


def test_columns_missing_in_the_manifest_do_not_change(tmp_path: Path) -> None:
    """Subjects, splits, folds and labels, by relabelling and by planning again."""
    path = tmp_path / "s.zarr"
    clips = [replace(clip, split="test", fold="2") for clip in clips_of(4)]
    plan(path, clips, RECIPE, numerics={})
    bare = [replace(clip, subject="", split="", fold="", slices={}) for clip in clips]
    bare[1] = replace(bare[1], labels={"label": "sleepy", "level": "1"})
    assert relabel(path, bare).corrected == (clips[1].clip_id,)
    new = Clip("new.mp4#0", Path("new.mp4"), labels={"label": "sleepy"})
    store = plan(path, [*bare, new], RECIPE, numerics={})
    assert store.changes.corrected == ()
    table = store.table()
    assert table.subject.tolist() == ["p0", "p1", "p2", "p3", ""]
    assert table.split.tolist() == ["test"] * 4 + [""]
    assert table.fold.tolist() == ["2"] * 4 + [""]
    assert table.slices["camera"].tolist() == ["앞", "옆", "앞", "옆", ""]


def test_blank_cells_of_a_filled_column_are_corrections_too(tmp_path: Path) -> None:
    """If a manifest has a subject column, an empty cell means that the subject is unknown."""
    path = tmp_path / "s.zarr"
    clips = [replace(clip, split="train") for clip in clips_of(3)]
    plan(path, clips, RECIPE, numerics={})
    message = [
        replace(clip, subject=subject, split="")
        for clip, subject in zip(clips, ("p0", "", "p9"), strict=True)
    ]
    new = replace(clips_of(4)[3], subject="p4")
    store = plan(path, [*message, new], RECIPE, numerics={})
    assert store.changes.corrected == (clips[1].clip_id, clips[2].clip_id)
    assert store.table().subject.tolist() == ["p0", "", "p9", "p4"]
    assert store.table().split.tolist() == ["train"] * 3 + [""]


def test_odd_column_names_are_kept(tmp_path: Path) -> None:
    """Names that are not valid file names."""
    columns = ["a/b", "..", "con:fusion", "NUL", "x" * 300, "집중 정도"]
    clip = replace(clips_of(1)[0], labels=dict.fromkeys(columns, "1"), slices=dict.fromkeys(columns, "값"))
    table = plan(tmp_path / "s.zarr", [clip], RECIPE, numerics={}).table()
    assert set(table.labels) == set(columns)
    assert {str(values[0]) for values in table.slices.values()} == {"값"}


def test_duplicate_clip_ids_are_refused(tmp_path: Path) -> None:
    """The error names them."""
    with pytest.raises(ValueError, match=r"duplicate clips .*: 영상/0\.mp4#0"):
        plan(tmp_path / "s.zarr", clips_of(1) * 2, RECIPE, numerics={})


def test_paths_without_a_store_are_refused(tmp_path: Path) -> None:
    """Nothing is written into other folders."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"not a store and not empty \(it has chapter\.tex\)"):
        plan(tmp_path / "thesis", clips_of(1), RECIPE, numerics={})
    with pytest.raises(ValueError, match="is a file"):
        plan(tmp_path / "file", clips_of(1), RECIPE, numerics={})
    with pytest.raises(ValueError, match="no store at"):
        FeatureStore.open(tmp_path / "nowhere")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(ValueError, match="not a feature store of this version"):
        FeatureStore.open(tmp_path / "other.zarr")
    with pytest.raises(ValueError, match="not a feature store of this version"):
        delete(tmp_path / "other.zarr")
    with pytest.raises(ValueError, match="not a feature store of this version"):
        plan(tmp_path / "other.zarr", clips_of(1), RECIPE, numerics={})
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_writing_into_a_deleted_store_is_an_error(tmp_path: Path) -> None:
    """No folders without a zarr.json are left."""
    path = tmp_path / "s.zarr"
    store = plan(path, clips_of(2), RECIPE, numerics={})
    shutil.rmtree(path)
    with pytest.raises(ValueError, match="was deleted while rows were being written"):
        fill_row(store, 0, geometry=False)
    assert not path.exists()


def test_delete_removes_the_store_or_one_subject(tmp_path: Path) -> None:
    """No file has data of the subject; other rows do not move; the packed copy is deleted too."""
    path = tmp_path / "s.zarr"
    store = write_store(path, 12, crops=True)
    store.pack()
    kept, _ = store.read_stream("embeddings")
    assert delete(path, "p1") == 3
    store = FeatureStore.open(path)
    table = store.table()
    gone = np.array([1, 5, 9])
    assert table.clip_id[gone].tolist() == ["", "", ""]
    assert "p1" not in table.subject.tolist()
    assert (table.labels["label"][gone] == -1).all()
    x, valid = store.read_stream("embeddings")
    assert not valid[gone].any()
    others = np.setdiff1d(np.arange(12), gone)
    assert np.array_equal(x[others], kept[others])
    assert store.missing("embeddings").tolist() == []
    assert verify_store(store) == []
    assert not (path / "packed").exists()
    subject = row_values(5)["embeddings"].tobytes()[:8]
    assert not any(subject in content for content in all_files(path).values())
    with pytest.raises(ValueError, match="no subject 'p1'"):
        delete(path, "p1")
    plan(path, clips_of(12), WITH_GEOMETRY, numerics={"backend": "test"})
    assert FeatureStore.open(path).num_clips == 15
    delete(path)
    assert not path.exists()


@pytest.mark.parametrize("tidied_by", ["settle", "plan", "delete"])
def test_rows_written_after_a_deletion_are_found_and_cleared(tmp_path: Path, tidied_by: str) -> None:
    """verify lists them; the next planner deletes them and the packed copies."""
    path = tmp_path / "s.zarr"
    worker = write_store(path, 8, crops=True)
    delete(path, "p1")
    fill_row(worker, 1, crops=True)
    worker.write_failure(5, "late")
    assert FeatureStore.open(path).pack()
    reasons = {item.clip_id: item.reason for item in verify_store(FeatureStore.open(path))}
    assert reasons.keys() == {"row 1", "row 5"}
    assert "written after its subject was deleted" in reasons["row 1"]
    if tidied_by == "settle":
        worker.finalize()
    elif tidied_by == "plan":
        plan(path, clips_of(1), WITH_GEOMETRY, numerics={"backend": "test"}, listing_complete=False)
    else:
        with pytest.raises(ValueError, match="no subject 'p1'"):
            delete(path, "p1")
    store = FeatureStore.open(path)
    assert verify_store(store) == []
    assert np.flatnonzero(~store.present("crops")).tolist() == [1, 5]
    subject = row_values(1)["embeddings"].tobytes()[:8]
    assert not any(subject in content for content in all_files(path).values())


def test_video_named_deleted_is_not_a_deleted_row(tmp_path: Path) -> None:
    """Its row is planned again like any other."""
    clip = replace(clips_of(1)[0], clip_id="deleted#0")
    store = plan(tmp_path / "s.zarr", [clip], RECIPE, numerics={})
    fill_row(store, 0, geometry=False)
    store.finalize()
    assert store.missing("embeddings").tolist() == []
    assert verify_store(store) == []


def test_deletion_waits_for_a_planner_and_includes_its_new_rows(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    write_store(path, 4)
    location = location_of(path)
    deleted: list[int] = []
    with planner_lock(location):
        thread = threading.Thread(target=lambda: deleted.append(delete(path, "p1")))
        thread.start()
        time.sleep(0.3)
        group = existing_group(location, read_only=False)
        planner.write_rows(group, location, clips_of(8), WITH_GEOMETRY, has_crops=False, listing="whole")
    thread.join()
    assert deleted == [2]
    assert FeatureStore.open(path).table().subject.tolist() == ["p0", "", "p2", "p3"] * 2


def test_deleting_blanks_label_names_that_only_the_subject_had(tmp_path: Path) -> None:
    """Others keep their codes; a blank name is not a class; a name that returns gets a new code."""
    path = tmp_path / "s.zarr"
    clips = [
        replace(
            clip, labels=clip.labels | {"name": f"Ms {clip.subject}"}, slices={"name": f"Ms {clip.subject}"}
        )
        for clip in clips_of(12)
    ]
    plan(path, clips, RECIPE, numerics={})
    delete(path, "p1")
    assert not any(b"Ms p1" in content for content in all_files(path).values())
    table = FeatureStore.open(path).table()
    assert table.label_names["name"] == ["Ms p0", "", "Ms p2", "Ms p3"]
    assert table.label_names["label"] == ["distracted", "engaged"]
    assert table.labels["name"].tolist() == [0, -1, 2, 3] * 3
    names = table.label_names["name"]
    unused = [name for code, name in enumerate(names) if code not in table.labels["name"]]
    assert make_labelling(names, column="name", unused=unused).names == ("Ms p0", "Ms p2", "Ms p3")
    table = plan(path, clips, RECIPE, numerics={}).table()
    assert table.label_names["name"] == ["Ms p0", "", "Ms p2", "Ms p3", "Ms p1"]
    assert table.labels["name"].tolist() == [0, -1, 2, 3] * 3 + [4] * 3


def test_deleting_blanks_rows_that_a_killed_planner_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rows that were never counted; also for a subject without other rows."""
    path = tmp_path / "s.zarr"
    plan(path, clips_of(4), RECIPE, numerics={})
    more = [
        replace(
            clip,
            clip_id=f"Ms {clip.subject}/{row}.mp4#0",
            subject=f"Ms {clip.subject}",
            split="test",
            labels={"name": f"Ms {clip.subject}"},
            slices={"name": f"Ms {clip.subject}"},
        )
        for row, clip in enumerate(clips_of(8))
    ]
    with monkeypatch.context() as patch:
        patch.setattr(planner, "commit", lambda *a: int("killed"))
        with pytest.raises(ValueError, match="killed"):
            plan(path, [*clips_of(4), *more], RECIPE, numerics={})
    assert any(b"Ms p3" in content for content in all_files(path).values())
    assert delete(path, "p1") == 1
    assert not any(b"Ms p" in content for content in all_files(path).values())
    plan(path, [*clips_of(4), *more], RECIPE, numerics={})
    assert FeatureStore.open(path).table().subject.tolist()[-1] == "Ms p3"


def test_copy_packed_during_a_deletion_is_deleted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.zarr"
    write_store(path, 8)
    clear = erasure.clear_rows

    def pack_first(*arguments: Any) -> None:
        FeatureStore.open(path).pack()
        clear(*arguments)

    monkeypatch.setattr(erasure, "clear_rows", pack_first)
    delete(path, "p1")
    subject = row_values(1)["embeddings"].tobytes()[:8]
    assert not any(subject in content for content in all_files(path).values())


def test_deleting_a_subject_deletes_partial_files(tmp_path: Path) -> None:
    """Of any age; a running writer of another subject writes its own again."""
    path = tmp_path / "s.zarr"
    write_store(path, 4, crops=True)
    (path / "crops" / "c.1.0.0123.partial").write_bytes(b"half a face")
    delete(path, "p1")
    assert not list(path.rglob("*.partial"))


def test_interrupted_deletion_of_a_subject_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of its writes."""
    rewrite, kills = erasure._rewrite, 0
    while True:
        path, left = tmp_path / f"{kills}.zarr", [kills]

        def die_later(*arguments: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            rewrite(*arguments)

        plan(path, clips_of(4), RECIPE, numerics={})
        monkeypatch.setattr(erasure, "_rewrite", die_later)
        try:
            delete(path, "p1")
        except KeyboardInterrupt:
            monkeypatch.undo()
            assert delete(path, "p1") == 1
        else:
            break
        assert not any(b"p1" in content for content in all_files(path).values())
        kills += 1
    assert kills > 10


def test_plan_interrupted_between_label_names_and_codes_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.zarr"
    plan(path, clips_of(4), RECIPE, numerics={})
    more = [replace(clip, labels=clip.labels | {"mood": "good"}) for clip in clips_of(4)]
    write = planner.write_column

    def die_at_the_codes(group: zarr.Group, name: str, values: np.ndarray) -> None:
        if name == "labels/mood":
            raise KeyboardInterrupt
        write(group, name, values)

    monkeypatch.setattr(planner, "write_column", die_at_the_codes)
    with pytest.raises(KeyboardInterrupt):
        plan(path, more, RECIPE, numerics={})
    monkeypatch.undo()
    assert plan(path, more, RECIPE, numerics={}).table().labels["mood"].tolist() == [0] * 4


def test_interrupted_deletion_of_the_store_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While any file is left, the store can be deleted again."""
    path = tmp_path / "s.zarr"
    write_store(path, 4)
    parts = [item for item in path.iterdir() if item.is_dir()]
    remove = shutil.rmtree
    for _ in parts:
        calls: list[Path] = []

        def remove_one(folder: Path, calls: list[Path] = calls) -> None:
            if calls:
                raise KeyboardInterrupt
            calls.append(folder)
            remove(folder)

        monkeypatch.setattr(shutil, "rmtree", remove_one)
        with pytest.raises(KeyboardInterrupt):
            delete(path)
        monkeypatch.undo()
    assert [item.name for item in path.iterdir()] == ["zarr.json"]
    assert delete(path) == 4
    assert not path.exists()


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_link_to_a_store_is_not_deleted(tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", 2)
    (tmp_path / "link.zarr").symlink_to(tmp_path / "s.zarr")
    with pytest.raises(ValueError, match=r"is a link: delete the store that it points to, .*s\.zarr"):
        delete(tmp_path / "link.zarr")
    assert verify_store(FeatureStore.open(tmp_path / "s.zarr")) == []


def test_packed_copy_is_equal_fresh_and_disposable(tmp_path: Path) -> None:
    """The arrays are equal; a row written later makes the copy outdated; a broken copy is not used."""
    path = tmp_path / "s.zarr"
    store = write_store(path, 12)
    plain = [store.read_stream(name) for name in ("embeddings", "geometry")]
    frames = store.read_frames()
    assert store.pack()
    assert not store.pack()
    assert store.mapped_stream("embeddings") is not None
    for (x, valid), name in zip(plain, ("embeddings", "geometry"), strict=True):
        packed_x, packed_valid = store.read_stream(name)  # type: ignore[arg-type]
        assert np.array_equal(x, packed_x)
        assert np.array_equal(valid, packed_valid)
        assert packed_x.flags.writeable
    assert np.array_equal(frames, store.read_frames(), equal_nan=True)
    again = plan(path, clips_of(13), WITH_GEOMETRY, numerics={"backend": "test"})
    assert again.mapped_stream("embeddings") is None
    fill_row(again, 12)
    assert again.pack()
    assert len(again.read_stream("embeddings")[0]) == 13
    copies = sorted(packed_folders(location_of(path))[0].iterdir())
    assert len(copies) == 3
    (copies[0] / "x.npy").write_bytes(b"\x93NUMPY")
    assert np.array_equal(again.read_stream("embeddings", np.arange(12))[0], plain[0][0])


def test_a_store_that_cannot_be_written_packs_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example a shared store; here a file blocks the path of the packed copy."""
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "s.zarr"
    store = write_store(path, 4)
    (path / "packed").touch()
    plain, _ = store.read_stream("embeddings")
    assert store.pack()
    mapped = store.mapped_stream("embeddings")
    assert mapped is not None
    assert np.array_equal(mapped[0], plain)
    assert not store.pack()
    (path / "packed").unlink()
    delete(path)
    assert not list((tmp_path / "cache").rglob("x.npy"))


def test_packed_copy_in_the_cache_depends_on_the_location_not_its_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So deletion of a subject with another spelling of the path deletes that copy too."""
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_store("s.zarr", 4)
    Path("s.zarr", "packed").touch()
    assert FeatureStore.open("s.zarr").pack()
    assert list((tmp_path / "cache").rglob("x.npy"))
    assert delete(tmp_path / "s.zarr", "p1") == 1
    assert not list((tmp_path / "cache").rglob("x.npy"))


def test_packing_can_be_killed(tmp_path: Path) -> None:
    """An incomplete copy is never read and is deleted later."""
    path = tmp_path / "s.zarr"
    store = write_store(path, 12)
    half = path / "packed" / "embeddings.0123.partial"
    half.mkdir(parents=True)
    (half / "x.npy").write_bytes(b"half")
    os.utime(half, (0, 0))
    assert store.mapped_stream("embeddings") is None
    assert store.pack()
    assert not half.exists()


PACKER = """
import sys, time
from features.store.packed import write_packed
from features.store.store import FeatureStore
store = FeatureStore.open(sys.argv[1])

def blocks():
    for block in store._packing_blocks("embeddings"):
        yield block
        print("half", flush=True)
        time.sleep(100)

write_packed(store.location, "embeddings", "0123", (12, 6, 8), store.array("embeddings").dtype, blocks)
"""


def test_planning_works_during_packing_and_after_a_killed_packing(tmp_path: Path) -> None:
    """An incomplete copy is a folder in the place where a sweep deletes files."""
    path = tmp_path / "s.zarr"
    write_store(path, 12)
    packer = subprocess.Popen([sys.executable, "-c", PACKER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert packer.stdout is not None
    packer.stdout.readline()
    (half,) = (path / "packed").iterdir()
    os.utime(half, (0, 0))  # packing a large store takes longer than writing a chunk
    assert plan(path, clips_of(13), WITH_GEOMETRY, numerics={"backend": "test"}).changes.new
    packer.kill()
    packer.communicate()
    assert half.is_dir()
    store = plan(path, clips_of(14), WITH_GEOMETRY, numerics={"backend": "test"})
    store.finalize()
    assert store.pack()
    assert not half.exists()
    assert verify_store(store) == []


@pytest.mark.slow
def test_verify_finds_any_flipped_byte(tmp_path: Path) -> None:
    """One byte of one file, for every kind of file; the other files can still be read."""
    path = tmp_path / "s.zarr"
    store = write_store(path, 3, crops=True)
    store.write_failure(1, "late")
    store.finalize()
    FeatureStore.open(path).pack()
    generator = np.random.default_rng(0)
    assert verify_store(FeatureStore.open(path)) == []
    kinds: dict[tuple[str, str], str] = {}
    for name in sorted(all_files(path)):
        kinds.setdefault((str(Path(name).parent), Path(name).suffix), name)
    assert len(kinds) > 30
    for name in kinds.values():
        content = (path / name).read_bytes()
        broken = bytearray(content)
        broken[generator.integers(len(broken))] ^= 1 << int(generator.integers(8))
        status = (path / name).stat()
        (path / name).write_bytes(broken)
        os.utime(path / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        try:
            found = verify_store(FeatureStore.open(path))
        except ValueError:
            found = ["cannot be opened"]  # type: ignore[list-item]
        assert found, name
        (path / name).write_bytes(content)
        os.utime(path / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert verify_store(FeatureStore.open(path)) == []


def test_damaged_chunk_error_names_the_chunk(tmp_path: Path) -> None:
    """The error is a clear sentence, not an internal error of zarr."""
    path = tmp_path / "s.zarr"
    store = write_store(path, 2)
    chunk = path / "embeddings" / "c.1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-5] + b"later")
    with pytest.raises(ValueError, match=r"embeddings cannot be read .*run python -m features verify"):
        store.read_stream("embeddings")


def test_fingerprint_depends_on_content_not_location(tmp_path: Path) -> None:
    """A copy has the same one; a correction gives another one."""
    write_store(tmp_path / "a.zarr")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    first, copy = (FeatureStore.open(tmp_path / name).fingerprint() for name in ("a.zarr", "b.zarr"))
    assert first == copy
    clips = clips_of(12)
    clips[0] = replace(clips[0], subject="x")
    store = plan(tmp_path / "b.zarr", clips, WITH_GEOMETRY, numerics={"backend": "test"})
    assert store.fingerprint() != first


def test_every_evaluation_on_test_is_logged(tmp_path: Path) -> None:
    """Also by two processes that opened the store before either wrote."""
    path = tmp_path / "s.zarr"
    write_store(path, 2)
    one, two = FeatureStore.open(path), FeatureStore.open(path)
    assert one.record_test_evaluation("runs/a") == 1
    assert two.record_test_evaluation("runs/b") == 2
    assert [entry["run"] for entry in FeatureStore.open(path).test_evaluations] == ["runs/a", "runs/b"]
    assert verify_store(FeatureStore.open(path)) == []


def test_one_planner_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner waits for a running planner, and not for an ended one."""
    path = tmp_path / "s.zarr"
    write_store(path, 2)
    location = location_of(path)
    with planner_lock(location), pytest.raises(ValueError, match=f"process {os.getpid()} on"):
        with planner_lock(location, wait_s=0.2):
            pass
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    holder = this_process() | {"pid": int(done.stdout), "time": time.time()}
    (path / "planner.lock.50").write_text(json.dumps(holder), encoding="utf-8")
    with planner_lock(location, wait_s=0.2):
        pass
    # The same process id, but another process: the start time differs.
    holder |= {"pid": os.getpid(), "started": 1.0}
    (path / "planner.lock.60").write_text(json.dumps(holder), encoding="utf-8")
    with planner_lock(location, wait_s=0.2):
        pass
    # A lock of another machine counts for two minutes if it is not renewed.
    holder |= {"host": "elsewhere"}
    (path / "planner.lock.70").write_text(json.dumps(holder), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"on elsewhere\); if that process no longer runs, delete planner\.lock\.70 in"
    ):
        with planner_lock(location, wait_s=0.2):
            pass
    monkeypatch.setattr(lock, "LOCK_STALE_S", 0.2)
    with planner_lock(location):
        pass
    assert [(file.name, file.read_bytes()) for file in path.glob("planner.lock*")] == [
        ("planner.lock.71", lock.RELEASED)
    ]


@pytest.mark.parametrize("renews", [True, False])
def test_planner_waits_while_another_one_renews_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renews: bool
) -> None:
    """For any time. A planner that does not renew its lock counts as ended, and its end does not delete the
    next lock."""
    path = tmp_path / "s.zarr"
    write_store(path, 2)
    location = location_of(path)
    monkeypatch.setattr(lock, "LOCK_STALE_S", 0.5)
    monkeypatch.setattr(lock, "RENEW_S", 0.05 if renews else 100.0)
    order: list[str] = []
    has_it, may_end = threading.Event(), threading.Event()

    def plan_slowly() -> None:
        with planner_lock(location):
            has_it.set()
            may_end.wait(1.5)
            order.append("slow one done")

    thread = threading.Thread(target=plan_slowly)
    thread.start()
    has_it.wait()
    with planner_lock(location):
        order.append("next one began")
        may_end.set()
        thread.join()
        assert lock.RELEASED not in [file.read_bytes() for file in path.glob("planner.lock*")]
    assert order == (["slow one done", "next one began"] if renews else ["next one began", "slow one done"])
    assert [file.read_bytes() for file in path.glob("planner.lock*")] == [lock.RELEASED]


def test_partial_files_are_deleted_and_a_slow_writer_writes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that deletes the file of a running writer loses no data."""
    path = tmp_path / "s.zarr"
    store = plan(path, clips_of(40), RECIPE, numerics={})
    orphan = path / "embeddings" / "c.1.0.0123.partial"
    orphan.write_bytes(b"half")
    os.utime(orphan, (0, 0))
    assert sweep(location_of(path)) == 1
    monkeypatch.setattr(location, "PARTIAL_AGE_S", -1.0)  # now every partial file counts as old
    stop = threading.Event()

    def sweep_on() -> None:
        while not stop.is_set():
            sweep(location_of(path))

    thread = threading.Thread(target=sweep_on)
    thread.start()
    try:
        for row in range(40):
            fill_row(store, row, geometry=False)
    finally:
        stop.set()
        thread.join()
    assert store.missing("embeddings").tolist() == []
    assert verify_store(store) == []


def test_two_processes_at_once_equal_one(tmp_path: Path) -> None:
    """Both plan and both write their shard; the store equals that of one process, byte for byte."""
    write_store(tmp_path / "one.zarr", 60, crops=True)
    path = tmp_path / "two.zarr"
    with KillableCommands() as killable:
        codes = killable.run(
            "tests.support.small_store", path, *((0, [str(path), shard, "60"]) for shard in "01")
        )
    assert codes == [0, 0]
    require_equal_stores(tmp_path / "two.zarr", tmp_path / "one.zarr")


def test_store_that_another_process_begins_meanwhile_is_no_strange_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process writes its first files between the look for a store and the listing of the folder."""
    path, listing = tmp_path / "s.zarr", Path.iterdir

    def other_begins(folder: Path) -> Iterator[Path]:
        monkeypatch.setattr(Path, "iterdir", listing)
        plan(path, clips_of(4), RECIPE, numerics={})
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", other_begins)
    assert plan(path, clips_of(4), RECIPE, numerics={}).num_clips == 4


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_kill_at_any_write_loses_nothing(tmp_path: Path) -> None:
    """Two writers at once, each killed at a write, twenty times, also while planning; then the same command
    again. The store equals the uninterrupted one, byte for byte, without extra files."""
    count, path = 160, tmp_path / "killed.zarr"
    write_store(tmp_path / "one.zarr", count, crops=True)
    generator = np.random.default_rng(0)
    died = 0

    def argv_of(shard: int) -> list[str]:
        return [str(path), str(shard), str(count)]

    with KillableCommands() as killable:
        for trial in range(20):
            numbers = generator.integers(1, 12 if trial % 2 else 40, 2).tolist()
            codes = killable.run(
                "tests.support.small_store", path, *((n, argv_of(i)) for i, n in enumerate(numbers))
            )
            assert set(codes) <= {0, -9}
            died += codes.count(-9)
        assert died >= 20
        for leftover in path.rglob("*.partial"):  # as if they had been killed some seconds ago
            os.utime(leftover, (0, 0))
        assert killable.run(WRITER, path, *((0, argv_of(shard)) for shard in (0, 1))) == [
            0,
            0,
        ]
    require_equal_stores(path, tmp_path / "one.zarr")
    assert verify_store(FeatureStore.open(path)) == []
