"""The demo set: faces are detected, labels follow event lengths, subjects are disjoint, seeds repeat."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from extract.__main__ import main
from extract.config import NUM_CLIPS, ExtractConfig
from extract.demo.generate import looks_of, make_demo, write_video
from extract.demo.scripts import (
    CLIP_S,
    DISTRACTED,
    EASE_S,
    ENGAGED,
    FPS,
    LONG_S,
    SHORT_S,
    Script,
    clip_scripts,
    poses,
    unseen_script,
)
from extract.face.cropper import FaceCropper
from extract.video.reader import probe, read_video, sample_at
from features.recipe import Pixels
from features.store.data_statement import read_statement
from seqmodel.encoders.model_files import sha256_of

ROOT = Path(__file__).resolve().parents[3]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_of_the_demo_lists_all_clips(tiny_demo: Path) -> None:
    rows = rows_of(tiny_demo)
    assert len(rows) == 16
    assert {row["label"] for row in rows} == {"engaged", "distracted"}
    for row in rows[:3]:
        info = probe(tiny_demo / row["path"])
        assert (info.width, info.height, info.fps) == (320, 240, FPS)
        assert info.duration_s == pytest.approx(CLIP_S, abs=0.05)
    assert probe(tiny_demo / "unseen.mp4").duration_s == pytest.approx(60, abs=0.1)
    with (tiny_demo / "unseen.csv").open(encoding="utf-8", newline="") as file:
        parts = list(csv.DictReader(file))
    assert parts[0]["start_s"] == "0.0"
    assert parts[-1]["end_s"] == "60.0"
    assert {part["label"] for part in parts} == {"engaged", "distracted"}


@pytest.mark.slow
def test_detector_finds_the_rendered_faces(tiny_demo: Path, detector_path: Path) -> None:
    cropper = FaceCropper(Pixels((sha256_of(detector_path),)), (detector_path,))
    found = num_expected = 0
    for script in [*clip_scripts(16, 0), unseen_script(0)[0]]:
        times = np.arange(round(script.duration_s * FPS)) / FPS
        expected = np.ones(len(times), bool)
        for event in script.events:
            if event.kind == "leaves":
                expected &= (times < event.start_s - EASE_S) | (times > event.end_s + EASE_S)
        cropper.reset()
        for frame in sample_at(read_video(tiny_demo / script.path), 3.0):
            if expected[min(round(frame.pts_s * FPS), len(expected) - 1)]:
                num_expected += 1
                found += cropper.crop(frame.rgb()).score > 0
    cropper.close()
    assert num_expected > 500
    assert found / num_expected >= 0.95


def test_default_set_has_disjoint_subjects_and_both_labels_in_each_subset() -> None:
    scripts = clip_scripts(NUM_CLIPS, 0)
    sides: dict[int, set[str]] = {}
    for script in scripts:
        sides.setdefault(script.subject, set()).add(script.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert unseen_script(0)[0].subject not in sides
    counts = Counter((script.split, script.label) for script in scripts)
    people = Counter(splits.copy().pop() for splits in sides.values())
    assert people == {"train": 7, "val": 3, "test": 6}
    assert set(Counter(script.subject for script in scripts).values()) == {10}
    for split in ("train", "val", "test"):
        assert counts[split, "engaged"] == counts[split, "distracted"]
    assert {s.behaviour for s in scripts if s.label == "engaged"} == set(ENGAGED)
    assert {s.behaviour for s in scripts if s.label == "distracted"} == set(DISTRACTED)


def test_small_set_has_both_labels_and_glasses_in_each_subset(tiny_demo: Path) -> None:
    rows = rows_of(tiny_demo)
    assert {(row["split"], row["label"]) for row in rows} == {
        (split, label) for split in ("train", "val", "test") for label in ("engaged", "distracted")
    }
    assert {row["split"] for row in rows if row["glasses"] == "yes"} == {"train", "val", "test"}


def test_demo_states_that_it_is_synthetic(tiny_demo: Path) -> None:
    statement = read_statement(tiny_demo)
    assert statement.synthetic_notice == "SYNTHETIC DATA: made from one portrait, labels by construction"


def test_labels_depend_on_the_length_of_events() -> None:
    for script in clip_scripts(NUM_CLIPS, 0):
        longest = max((event.end_s - event.start_s for event in script.events), default=0.0)
        if script.label == "engaged":
            assert longest <= SHORT_S[1]
        else:
            assert LONG_S[0] <= longest <= LONG_S[1]
        assert all(0 <= event.start_s < event.end_s <= CLIP_S + 0.4 for event in script.events)
        starts = [event.start_s for event in script.events]
        ends = [event.end_s for event in script.events]
        assert all(end < start for end, start in zip(ends, starts[1:], strict=False))


def test_single_frames_do_not_show_the_label() -> None:
    # Each pose of a distracted event also occurs in engaged clips: in half of them or more.
    turned = [
        any(abs(pose.yaw) > 20 for pose in poses(script))
        for script in clip_scripts(NUM_CLIPS, 0)
        if script.label == "engaged" and script.behaviour in ("look_left", "look_right", "mixed")
    ]
    assert np.mean(turned) > 0.5
    facing = [
        np.mean([abs(pose.yaw) < 15 and pose.closed < 0.5 for pose in poses(script)])
        for script in clip_scripts(NUM_CLIPS, 0)
        if script.label == "distracted"
    ]
    assert np.median(facing) > 0.2


def test_unseen_video_matches_its_csv_in_every_window() -> None:
    script, parts = unseen_script(0)
    for start_s, end_s, label in parts:
        for at_s in np.arange(start_s, end_s - CLIP_S + 0.01, 1.0):
            inside = [
                min(event.end_s, at_s + CLIP_S) - max(event.start_s, at_s)
                for event in script.events
                if event.end_s > at_s and event.start_s < at_s + CLIP_S
            ]
            longest = max(inside, default=0.0)
            assert longest <= SHORT_S[1] if label == "engaged" else longest >= 2.8


def test_the_same_seed_gives_the_same_video(tmp_path: Path) -> None:
    script = clip_scripts(1, 3)[0]
    for name in ("one", "two"):
        (tmp_path / name / "clips").mkdir(parents=True)
        write_video(script, 3, tmp_path / name)
    assert (tmp_path / "one" / script.path).read_bytes() == (tmp_path / "two" / script.path).read_bytes()
    assert looks_of(0, 3) != looks_of(0, 4)


def test_demo_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--clips must be at least 1, got 0"):
        make_demo(tmp_path, clips=0)


@pytest.mark.parametrize("name", ["labels.csv", "unseen.csv", "dataset.toml"])
def test_labels_csv_of_the_user_is_not_overwritten(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """A folder of videos often has a labels.csv; one written by the demo is replaced."""
    (tmp_path / name).write_text("path,label\nmine.mp4,engaged\n", encoding="utf-8")
    assert main(["demo", "--out", str(tmp_path), "--clips", "1"]) == 2
    assert f"{name} exists and was not written by the demo" in capfd.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == [name]
    assert "mine.mp4" in (tmp_path / name).read_text(encoding="utf-8")


def test_the_demo_can_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extract.demo.generate.write_video", lambda script, seed, out: None)
    make_demo(tmp_path, clips=2, workers=1)
    make_demo(tmp_path, clips=3, workers=1)
    assert len(rows_of(tmp_path)) == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for imported modules in /proc")
def test_ctrl_c_prints_no_traceback_of_the_processes(tmp_path: Path) -> None:
    """While they still import modules."""
    command = [sys.executable, "-m", "extract", "demo", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    children = psutil.Process(process.pid).children
    while not any("numpy" in part.path for child in children() for part in child.memory_maps()):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_an_interrupted_demo_has_no_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Labels of an earlier demo do not fit the videos that were already replaced."""
    monkeypatch.setattr("extract.demo.generate.write_video", lambda script, seed, out: None)
    argv = ["demo", "--out", str(tmp_path), "--clips", "2"]
    assert main(argv) == 0
    drawn: list[int] = []

    def interrupted(script: Script, seed: int, out: Path) -> None:
        drawn.append(seed)
        if len(drawn) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("extract.demo.generate.write_video", interrupted)
    assert main([*argv, "--seed", "1"]) == 130
    assert "the same command writes all videos again" in capfd.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["clips"]
    assert main([*argv, "--seed", "1"]) == 0
    assert drawn == [1, 1, 1, 1, 1]
    assert len(rows_of(tmp_path)) == 2


@pytest.mark.parametrize(
    ("option", "is_saved"), [((), True), (("--dry-run",), False), (("--verify-sample", "1"), False)]
)
def test_an_interrupted_extraction_says_what_is_saved(
    option: tuple[str, ...],
    is_saved: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def interrupted(config: ExtractConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("extract.run.extract_all", interrupted)
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "s.zarr"), *option]) == 130
    assert ("finished clips are saved" in capfd.readouterr().err) == is_saved
