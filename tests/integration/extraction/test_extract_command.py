"""`python -m extract` from a manifest to a store: resume, shards, corrections, failures, summary."""

import csv
import json
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from extract.__main__ import main
from extract.config import ExtractConfig
from extract.datasets.index import DatasetIndex
from extract.dry_run import _to_time
from extract.pipeline.planning import make_extractor_config
from extract.summary import print_index
from features.maintenance.verify import verify_store
from features.manifest import Clip, Manifest
from features.recipe import CROP_SQUARE, OWN_SQUARE
from features.store.data_statement import FILE, TEMPLATE, DataStatement
from features.store.store import FeatureStore
from seqmodel.encoders import model_files
from seqmodel.encoders.engine import resolve_precision
from tests.support.clips import face_frames, looped, write_video

QUICK = ("--weights", "random", "--window", "1", "--geometry", "off", "--workers", "0")
"""Small windows, no second stream, no worker process: what these tests look at does not depend on them."""


@pytest.fixture(scope="module")
def videos(real_clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six small videos of two subjects, 2 s each, and one of 5 s."""
    folder = tmp_path_factory.mktemp("videos")
    for subject, name in (("ann", "carphone"), ("bob", "single")):
        frames = face_frames(real_clips[name], 60, 176, 144)
        for index in range(3):
            write_video(folder / f"{subject} {index}.mp4", looped(frames[index * 9 :], 20), 10)
    write_video(folder / "긴 영상.mp4", looped(frames, 50), 10)
    return folder


def write_manifest(path: Path, videos: Path, extra: tuple[tuple[str, ...], ...] = ()) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "subject", "split"])
        for index, video in enumerate(sorted(videos.glob("*.mp4"))):
            split = "test" if video.name.startswith("bob") else "train"
            writer.writerow([video, ("engaged", "distracted")[index % 2], video.name[:3], split])
        writer.writerows(extra)
    return path


def extract(capfd: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict, str]:
    """(exit code, summary, stderr) of `python -m extract`."""
    code = main([str(word) for word in argv] + ["--json"])
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else {}, err


def content(path: Path) -> dict[str, np.ndarray]:
    """Every clip's embeddings and frames by clip id."""
    store = FeatureStore.open(path)
    x, _ = store.read_stream("embeddings")
    frames = store.read_frames()
    return {str(name): np.concatenate([x[i], frames[i]], 1) for i, name in enumerate(store.table().clip_id)}


def assert_same_content(a: Path, b: Path) -> None:
    """Clip ids differ with the folder of the manifest; rows, in manifest order, must be equal."""
    actual, expected = content(a), content(b)
    assert len(actual) == len(expected)
    for (clip_id, x), y in zip(actual.items(), expected.values(), strict=True):
        assert np.array_equal(x, y, equal_nan=True), clip_id


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store extracted in one run, in this process."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = write_manifest(folder / "labels.csv", videos)
    assert main(["--data", str(manifest), "--out", str(folder / "whole.zarr"), *QUICK]) == 0
    return folder / "whole.zarr"


def test_summary_of_an_extraction(videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = write_manifest(tmp_path / "labels.csv", videos)
    code, summary, shown = extract(capfd, "--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert code == 0, shown
    assert {"clips": 17, "videos": 7, "done": 17, "skipped": 0, "failed": 0}.items() <= summary.items()
    assert summary["face_rate"] > 0.9
    assert summary["clips_per_s"] > 0
    assert {"decode", "face", "encode", "write"} <= summary["stage_s"].keys()
    for message in ("extracted now", "frames with a face", "time by stage", "python -m tune --store"):
        assert message in shown
    code, summary, shown = extract(capfd, "--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert code == 0, shown
    assert {"done": 0, "skipped": 17, "failed": 0}.items() <= summary.items()
    assert summary["face_rate"] > 0.9
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert not verify_store(store)
    assert "backend" in store.numerics


def test_statement_beside_the_manifest_reaches_the_store(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few, store = tmp_path / "few", tmp_path / "s.zarr"
    few.mkdir()
    shutil.copy2(videos / "ann 0.mp4", few)
    argv = ("--data", write_manifest(tmp_path / "labels.csv", few), "--out", store, *QUICK)
    file = tmp_path / FILE
    assert extract(capfd, *argv, "--dry-run")[0] == 0
    assert not file.exists(), "a dry run writes nothing"
    code, _, shown = extract(capfd, *argv)
    assert code == 0
    assert f"wrote {file}: state there where the data come from" in shown.replace("\n", " ")
    assert FeatureStore.open(store).data_statement == DataStatement()
    assert file.read_text(encoding="utf-8") == TEMPLATE
    stated = "name = 'few'\nsynthetic = false\nnum_raters = 3\n"
    file.write_text(stated, encoding="utf-8")
    code, _, shown = extract(capfd, *argv)
    assert code == 0
    assert "wrote" not in shown
    assert file.read_text(encoding="utf-8") == stated, "a statement is never replaced"
    statement = DataStatement(name="few", synthetic=False, num_raters=3)
    assert FeatureStore.open(store).data_statement == statement
    file.write_text("licenze = 'MIT'", encoding="utf-8")
    code, summary, shown = extract(capfd, *argv)
    assert (code, summary) == (2, {})
    assert "unknown field licenze" in shown


def test_a_folder_of_classes_works(videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index, video in enumerate(sorted(videos.glob("ann*.mp4"))):
        target = tmp_path / "data" / ("집중", "산만")[index % 2] / video.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, target)
    code, summary, shown = extract(capfd, "--data", tmp_path / "data", "--out", tmp_path / "s.zarr", *QUICK)
    assert code == 0, shown
    assert summary["done"] == 6
    assert sorted(FeatureStore.open(tmp_path / "s.zarr").label_names["label"]) == ["산만", "집중"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_worker_processes_equal_this_process(
    workers: str, videos: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(tmp_path / "labels.csv", videos)
    argv = [*QUICK[:-1], workers]
    code, _, shown = extract(capfd, "--data", manifest, "--out", tmp_path / "s.zarr", *argv)
    assert code == 0, shown
    assert_same_content(tmp_path / "s.zarr", whole)


def test_broken_video_is_a_listed_failure_and_the_others_are_extracted(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """After it is fixed, the same command extracts this video only."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video")
    extra = ((str(broken), "engaged", "eve", "train"), ("nowhere.mp4", "engaged", "eve", "train"))
    manifest = write_manifest(tmp_path / "labels.csv", videos, extra)
    code, summary, shown = extract(capfd, "--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert code == 1
    assert {"done": 17, "failed": 1}.items() <= summary.items()
    assert "not a readable video" in summary["failures"][0]["reason"]
    assert "broken.mp4" in shown
    assert summary["problems"][0]["where"] == "line 10"
    code, summary, shown = extract(capfd, "--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert code == 1
    assert {"done": 0, "skipped": 17, "failed": 1}.items() <= summary.items()
    shutil.copy(videos / "ann 0.mp4", broken)
    code, summary, shown = extract(capfd, "--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert {"done": 2, "skipped": 17, "failed": 0}.items() <= summary.items()


def test_retry_failed_extracts_only_failed_clips(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(tmp_path / "labels.csv", videos)
    argv = ("--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    code, summary, shown = extract(capfd, *argv, "--time-limit", "0.000001")
    assert code == 1
    assert summary["failed"] == 17
    assert "stopped after" in summary["failures"][0]["reason"]
    code, summary, shown = extract(capfd, *argv)
    assert {"done": 0, "failed": 17}.items() <= summary.items()
    code, summary, shown = extract(capfd, *argv, "--retry-failed")
    assert code == 0, shown
    assert {"done": 17, "failed": 0}.items() <= summary.items()


def test_shards_fill_one_store_as_a_single_run_does(
    videos: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(tmp_path / "labels.csv", videos)
    done = []
    for shard in ("0/2", "1/2"):
        argv = ("--data", manifest, "--out", tmp_path / "s.zarr", "--shard", shard, *QUICK)
        code, summary, shown = extract(capfd, *argv)
        assert code == 0, shown
        done.append(summary["done"])
    assert sum(done) == 17
    assert min(done) > 0
    assert_same_content(tmp_path / "s.zarr", whole)


def test_a_grown_and_corrected_manifest_extracts_only_what_is_new(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("ann 0.mp4", "ann 1.mp4"):
        shutil.copy2(videos / name, few / name)
    manifest = write_manifest(tmp_path / "labels.csv", few)
    argv = ("--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert extract(capfd, *argv)[1]["done"] == 4
    (few / "ann 0.mp4").unlink()
    shutil.copy2(videos / "bob 0.mp4", few / "bob 0.mp4")
    text = write_manifest(manifest, few).read_text(encoding="utf-8")
    manifest.write_text(text.replace("ann 1.mp4,engaged", "ann 1.mp4,asleep"), encoding="utf-8")
    code, summary, shown = extract(capfd, *argv)
    assert code == 0, shown
    assert {"done": 2, "skipped": 2, "corrected": 2}.items() <= summary.items()
    assert len(summary["not_in_manifest"]) == 2
    assert "no longer in the manifest" in shown


def test_parts_are_added_to_a_store_without_other_changes(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Crops, then geometry: the files of the embeddings do not change, and new embeddings are compared with
    them."""
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy2(videos / "ann 0.mp4", few / "ann 0.mp4")
    manifest = write_manifest(tmp_path / "labels.csv", few)
    argv = ["--data", manifest, "--out", tmp_path / "s.zarr", *QUICK]
    assert extract(capfd, *argv)[1]["done"] == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr" / "embeddings").iterdir()}
    code, summary, shown = extract(capfd, *argv, "--crops", "jpeg")
    assert code == 0, shown
    assert summary["done"] == 2
    geometry = [word if word != "off" else "on" for word in argv]
    code, summary, shown = extract(capfd, *geometry, "--crops", "jpeg")
    assert code == 0, shown
    assert summary["done"] == 2
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.streams == ("embeddings", "geometry")
    assert all(store.read_crops(0)[:3])
    chunks = {path: time for path, time in before.items() if path.name.startswith("c.")}
    assert chunks == {path: path.stat().st_mtime_ns for path in chunks}
    assert not verify_store(store)


def test_crops_of_other_faces_are_not_added(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The stored embeddings are those of another video: the row fails and does not change."""
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy2(videos / "ann 0.mp4", few / "ann 0.mp4")
    manifest = write_manifest(tmp_path / "labels.csv", few)
    argv = ("--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    extract(capfd, *argv)
    store = FeatureStore.open(tmp_path / "s.zarr", "r+")
    frames, (x, _) = store.read_frames(), store.read_stream("embeddings")
    store.write_row(0, embeddings=np.roll(x[0], 100, axis=1), frames=frames[0])
    frames[1, :, 1:5] += 40
    store.write_row(1, embeddings=x[1], frames=frames[1])
    code, summary, _ = extract(capfd, *argv, "--crops", "jpeg")
    assert code == 1
    assert "the new embeddings differ from the stored ones" in summary["failures"][0]["reason"]
    assert "the detected faces differ from those" in summary["failures"][1]["reason"]


def test_failure_of_a_part_that_is_not_requested_is_ignored(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Adding crops failed in one clip: without crops nothing is listed, and --retry-failed deletes that
    failure."""
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy2(videos / "ann 0.mp4", few / "ann 0.mp4")
    manifest = write_manifest(tmp_path / "labels.csv", few)
    argv = ("--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert extract(capfd, *argv, "--crops", "jpeg")[1]["done"] == 2
    (tmp_path / "s.zarr" / "crops" / "c.0.0").unlink()
    FeatureStore.open(tmp_path / "s.zarr", "r+").write_failure(0, "other faces")
    code, summary, _ = extract(capfd, *argv, "--crops", "jpeg")
    assert code == 1
    assert {"done": 0, "skipped": 1, "failed": 1}.items() <= summary.items()
    code, summary, shown = extract(capfd, *argv)
    assert code == 0, shown
    assert {"done": 0, "skipped": 2, "failed": 0, "failures": []}.items() <= summary.items()
    assert "other faces" not in shown
    code, summary, _ = extract(capfd, *argv, "--retry-failed")
    assert {"done": 0, "skipped": 2, "failed": 0}.items() <= summary.items()
    assert FeatureStore.open(tmp_path / "s.zarr").table().failure.tolist() == ["", ""]
    code, summary, _ = extract(capfd, *argv, "--crops", "jpeg")
    assert {"done": 1, "skipped": 1, "failed": 0}.items() <= summary.items()


def test_changed_videos_are_extracted_again_with_a_warning(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy2(videos / "ann 0.mp4", few / "ann 0.mp4")
    manifest = write_manifest(tmp_path / "labels.csv", few)
    argv = ("--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert "extracted again" not in extract(capfd, *argv)[2]
    shutil.copy2(videos / "bob 0.mp4", few / "ann 0.mp4")
    code, summary, shown = extract(capfd, *argv)
    assert code == 0, shown
    assert (summary["changed"], summary["done"]) == (2, 2)
    assert (
        "2 clips are extracted again, because their video's size or time or their end time has changed"
        in shown
    )


def test_missing_video_keeps_its_extracted_rows(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only its missing parts fail; when the video is back, --retry-failed extracts them."""
    few = tmp_path / "few"
    few.mkdir()
    video = Path(shutil.copy2(videos / "ann 0.mp4", few / "ann 0.mp4"))
    manifest = write_manifest(tmp_path / "labels.csv", few)
    argv = ("--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert extract(capfd, *argv)[1]["done"] == 2
    status, content = video.stat(), video.read_bytes()
    video.write_bytes(bytes(len(content)))  # unreadable, of the same size and time
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, summary, shown = extract(capfd, *argv)
    assert code == 0, shown
    assert {"skipped": 2, "failed": 0}.items() <= summary.items()
    code, summary, _ = extract(capfd, *argv, "--crops", "jpeg")
    assert code == 1
    assert {"skipped": 0, "failed": 2}.items() <= summary.items()
    video.write_bytes(content)
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, summary, _ = extract(capfd, *argv, "--crops", "jpeg", "--retry-failed")
    assert code == 0
    assert {"done": 2, "failed": 0}.items() <= summary.items()


def test_auto_precision_is_the_precision_of_the_store(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A store started in float32 and continued without --precision equals one made in float32."""
    manifest = write_manifest(tmp_path / "labels.csv", videos)
    argv = ("--data", manifest, *QUICK)
    resumed, whole = tmp_path / "resumed.zarr", tmp_path / "whole.zarr"
    assert extract(capfd, *argv, "--out", resumed, "--precision", "f32", "--shard", "0/2")[0] == 0
    code, _, shown = extract(capfd, *argv, "--out", resumed)
    assert code == 0
    assert "(cpu, f32)" in shown
    assert "the store was written with" not in shown
    assert extract(capfd, *argv, "--out", whole, "--precision", "f32")[0] == 0
    assert_same_content(resumed, whole)
    assert FeatureStore.open(resumed).other_numerics == []


def test_check_prints_the_precision_that_auto_means(capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["check", "--cameras", "0", "--json"])
    out, shown = capfd.readouterr()
    found, expected = json.loads(out), resolve_precision("auto")
    assert code == bool(found["missing"]), shown
    assert found["bf16"] == (expected == "bf16")
    assert ("yes: --precision auto uses it" if expected == "bf16" else "no: --precision auto is f32") in shown


def test_other_numerics_are_compared_with_the_store(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Recorded, not refused; a warning has the difference of the embeddings."""
    manifest = write_manifest(tmp_path / "labels.csv", videos)
    argv = ("--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert extract(capfd, *argv, "--shard", "0/2", "--precision", "f32")[0] == 0
    code, _, shown = extract(capfd, *argv, "--precision", "f32", "--backend", "torch")
    assert code == 0, shown
    assert "backend openvino before, torch now" in shown
    assert "lowest cosine between stored and new embeddings is 1.0000" in shown
    assert [numerics["backend"] for numerics in FeatureStore.open(tmp_path / "s.zarr").other_numerics] == [
        "torch"
    ]


def test_dry_run_counts_what_would_be_extracted(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts new and changed files, missing parts, and failed clips with --retry-failed, of this shard."""
    few = tmp_path / "few"
    few.mkdir()
    for index in range(3):
        shutil.copy2(videos / f"ann {index}.mp4", few / f"ann {index}.mp4")
    (few / "broken.mp4").write_bytes(b"no video")
    manifest = write_manifest(tmp_path / "labels.csv", few)
    argv = ["--data", manifest, "--out", tmp_path / "s.zarr", *QUICK]

    def dry_run(*more: str) -> tuple[int, int]:
        summary = extract(capfd, *argv, "--dry-run", *more)[1]
        return summary["to_extract"], summary["files"]

    assert dry_run() == (6, 12)
    monkeypatch.setattr("extract.dry_run._to_time", lambda clips: [])  # the numbers do not depend on it
    monkeypatch.setattr("extract.dry_run.open_extractor", lambda config: SimpleNamespace(close=lambda: None))
    assert dry_run("--shard", "0/2") == (4, 8)
    assert dry_run("--crops", "jpeg") == (6, 18)
    extract(capfd, *argv)
    assert dry_run() == (0, 0)
    assert dry_run("--crops", "jpeg") == (6, 6)
    os.utime(few / "ann 1.mp4", (0, 0))
    assert dry_run() == (2, 4)
    assert dry_run("--shard", "0/2") == (0, 0)
    store = FeatureStore.open(tmp_path / "s.zarr", "r+")
    (tmp_path / "s.zarr" / "frames" / "c.0.0.0").unlink()
    store.write_failure(0, "given up")
    assert dry_run() == (2, 4)
    assert dry_run("--retry-failed") == (3, 6)


def test_dry_run_times_early_windows(tmp_path: Path) -> None:
    """For a late window all frames before it are decoded; a full run decodes them once for all windows."""
    clips = [
        Clip(f"{video}#{start}", Path(video), start, start + 10) for video in "abcd" for start in range(9)
    ]
    timed = _to_time(clips)
    assert len({clip.path for clip in timed}) == 3
    assert {clip.start_s for clip in timed} == {0}
    assert [clip.start_s for clip in _to_time(clips[5:9])] == [5, 6, 7]


def test_a_sample_is_verified_with_its_geometry_and_under_its_recipe(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy2(videos / "ann 0.mp4", few / "ann 0.mp4")
    manifest = write_manifest(tmp_path / "labels.csv", few)
    argv = ["--data", manifest, "--out", tmp_path / "s.zarr", *QUICK, "--geometry", "on"]
    assert extract(capfd, *argv)[0] == 0
    code, summary, shown = extract(capfd, *argv, "--verify-sample", "5")
    assert code == 0, shown
    assert {"compared": 2, "identical": 2, "worst_geometry": 0.0}.items() <= summary.items()
    store = FeatureStore.open(tmp_path / "s.zarr", "r+")
    geometry, _ = store.read_stream("geometry")
    geometry[1, 0, 9] += 0.3
    store.write_row(1, geometry=geometry[1])
    code, summary, shown = extract(capfd, *argv, "--verify-sample", "5")
    assert code == 1
    assert "geometry differs (eyeBlinkLeft by 0.3" in summary["differing"][0]["reason"]
    code, _, shown = extract(capfd, *argv, "--verify-sample", "5", "--encoder", "efficientnet_lite0")
    assert code == 2
    assert "encoder.dim: 1280 vs 960" in shown
    assert "Traceback" not in shown


def test_printed_next_command_can_be_pasted(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A path with spaces is one argument. If many videos are unpaired, the message names the option that
    lists all."""
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy2(videos / "ann 0.mp4", few / "ann 0.mp4")
    manifest = write_manifest(tmp_path / "labels.csv", few)
    store = tmp_path / "my own store.zarr"
    code, summary, shown = extract(capfd, "--data", manifest, "--out", store, *QUICK)
    assert code == 0, shown
    argv = shlex.split(summary["next"])
    assert argv[:5] == ["python", "-m", "tune", "--store", str(store)]
    assert argv[5:] == ["--out", "runs/my own store"]
    print_index(DatasetIndex(Manifest((), (), few), "daisee", tuple(f"{index}.avi" for index in range(9))))
    assert "9 videos without a label: 0.avi, 1.avi, 2.avi, 3.avi, 4.avi, … (--json lists all)" in (
        capfd.readouterr().err
    )


def test_failed_finalize_is_a_warning(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are written by then: a warning, and the summary."""
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy2(videos / "ann 0.mp4", few / "ann 0.mp4")
    manifest = write_manifest(tmp_path / "labels.csv", few)

    def fail(store: FeatureStore, wait_s: float = 0) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FeatureStore, "finalize", fail)
    code, summary, shown = extract(capfd, "--data", manifest, "--out", tmp_path / "s.zarr", *QUICK)
    assert code == 0
    assert summary["done"] == 2
    assert (
        "Read-only file system; all rows are written, and the next extraction into this store cleans up"
        in shown
    )


@pytest.fixture
def landmarker_only(landmarker_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with the landmarker and no detector, on a machine without network."""

    def fail(asset: model_files.Asset) -> bytes:
        raise OSError("no network")

    kept = tmp_path / "cache" / "models" / landmarker_path.name
    kept.parent.mkdir(parents=True)
    shutil.copy(landmarker_path, kept)
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_files, "_from_address", fail)
    monkeypatch.setattr(model_files, "_from_wheel", fail)


def square_of(detector: Path, folder: Path) -> str:
    """The recipe's rule for the landmarker's square, for an extraction with this detector file."""
    config = ExtractConfig(
        folder, str(folder / "s.zarr"), weights="random", detector=str(detector), backend="torch"
    )
    recipe = make_extractor_config(config)[0].recipe
    assert recipe.geometry is not None
    return recipe.geometry.square


@pytest.mark.usefixtures("landmarker_only")
def test_custom_detector_needs_no_other_detector(tmp_path: Path) -> None:
    (tmp_path / "mine.tflite").write_bytes(b"another detector")
    assert square_of(tmp_path / "mine.tflite", tmp_path) == OWN_SQUARE


@pytest.mark.usefixtures("landmarker_only")
def test_short_detector_is_recognised_by_its_hash(detector_path: Path, tmp_path: Path) -> None:
    shutil.copy(detector_path, tmp_path / "mine.tflite")
    assert square_of(tmp_path / "mine.tflite", tmp_path) == CROP_SQUARE


def test_another_recipe_is_refused_by_name(
    videos: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(tmp_path / "labels.csv", videos)
    for more in ((), ("--dry-run",)):
        code, _, shown = extract(capfd, "--data", manifest, "--out", whole, *QUICK, "--fps", "5", *more)
        assert code == 2
        assert "pixels.fps" in shown
        assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--shard", "2/2"), "--shard"),
        (("--weights", "nowhere.pth"), "nowhere.pth"),
        (("--detector", "nowhere.tflite"), "nowhere.tflite"),
        (("--workers", "-1"), "--workers"),
        (("--window", "0"), "--window must be a number above 0, got 0.0"),
        (("--window", "-1"), "--window must be a number above 0, got -1.0"),
        (("--window", "inf"), "--window must be a number above 0, got inf"),
        (("--fps", "nan"), "--fps must be a number above 0, got nan"),
        (("--fps", "inf"), "--fps must be a number above 0, got inf"),
        (("--fps", "1e9"), "100,000"),
        (("--verify-sample", "-3"), "--verify-sample must be at least 0"),
        (("--verify-sample", "3", "--dry-run"), "--dry-run and --verify-sample cannot be combined"),
        (("--device", "quantum"), "--device must be auto, cpu or cuda, got 'quantum'"),
        (("--fps", "0"), "--fps must be a number above 0, got 0.0"),
        (("--time-limit", "nan"), "--time-limit must be above 0, got nan"),
    ],
)
def test_wrong_options_are_one_line(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    manifest = write_manifest(tmp_path / "labels.csv", videos)
    try:
        code = main(["--data", str(manifest), "--out", str(tmp_path / "s.zarr"), *QUICK, *argv])
    except SystemExit as stop:
        code = stop.code
    shown = capfd.readouterr().err
    assert code == 2
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "s.zarr").exists()
