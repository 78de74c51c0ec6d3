"""Tests of live/batch.py: prediction of video files with the live predictor."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.video.reader import read_video
from features.manifest import NOT_UTF8
from live.__main__ import main
from live.batch import find_videos, read_table, unique_names
from live.inference.model import open_model
from live.inference.predictor import Predictor
from live.output.log_reader import read_log
from seqmodel.runs.card import load_card, save_card
from tests.support.clips import face_frames, looped, write_video
from tests.support.small_run import write_run


def test_predict_of_a_folder_gives_the_same_as_the_camera(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each log has the predictions of pushing the video's frames, whatever was predicted before; a broken
    file is listed, and the exit code is 1."""
    run = write_run(tmp_path / "run", detector_path)
    folder = tmp_path / "영상"
    (folder / "again").mkdir(parents=True)
    for name, clip in (
        ("carphone.mp4", "carphone"),
        ("again/carphone.mp4", "carphone"),
        ("other.mp4", "single"),
    ):
        (folder / name).write_bytes(real_clips[clip].read_bytes())
    (folder / "broken.mp4").write_bytes(b"no video")
    argv = ["predict", "--run", str(run), "--out", str(tmp_path / "out"), str(folder), "--json"]
    assert main(argv) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["done"] == 3
    assert [Path(f["video"]).name for f in summary["failed"]] == ["broken.mp4"]
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["log"] for row in rows} == {"carphone.csv", "carphone-2.csv", "other.csv"}
    predictor = Predictor(open_model(run))
    wanted = [p for frame in read_video(real_clips["carphone"]) if (p := predictor.push(frame)) is not None]
    predictor.close()
    for name in ("carphone.csv", "carphone-2.csv"):
        found = read_log(tmp_path / "out" / name)[1]
        assert [row.t_s for row in found] == [round(p.t_s, 4) for p in wanted]
        assert {row.time for row in found} == {None}, "the time of processing is not that of the video"
        assert [row.p for row in found] == [tuple(round(v, 6) for v in p.p) for p in wanted]
        assert (tmp_path / "out" / name).with_suffix(".png").is_file()
    assert not list((tmp_path / "out").glob("*.partial"))


def test_same_command_predicts_only_missing_videos(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished videos are skipped; a changed video, a missing log or another calibration is predicted
    again."""
    run, out, folder = write_run(tmp_path / "run", detector_path), tmp_path / "out", tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(real_clips["carphone"].read_bytes())
    argv = ["predict", "--run", str(run), "--out", str(out), str(folder), "--json"]

    def already() -> int:
        assert main(argv) == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary["done"] == 2
        return int(summary["already"])

    assert already() == 0
    table, log = (out / "predictions.csv").read_bytes(), (out / "a.csv").stat().st_mtime_ns
    assert already() == 2
    assert ((out / "predictions.csv").read_bytes(), (out / "a.csv").stat().st_mtime_ns) == (table, log)
    (out / "b.csv").unlink()
    assert already() == 1
    (folder / "b.mp4").write_bytes(real_clips["single"].read_bytes())
    assert already() == 1
    card = load_card(run)
    save_card(run, replace(card, calibration=replace(card.calibration, threshold=0.7)))
    assert already() == 0


def test_each_video_has_a_label_a_reason_or_a_failure(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A truncated video fails as in extract, although its first half could be predicted."""
    run, out, folder = write_run(tmp_path / "run", detector_path), tmp_path / "out", tmp_path / "videos"
    folder.mkdir()
    (folder / "carphone.mp4").write_bytes(real_clips["carphone"].read_bytes())
    faces = face_frames(real_clips["carphone"], 60, 176, 144)
    write_video(folder / "whole.mp4", looped(faces, 120), 10)
    write_video(folder / "no_face.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 120, 10)
    cut = write_video(folder / "cut.avi", faces, 10, codec="mpeg4")
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    assert main(["predict", "--run", str(run), "--out", str(out), str(folder), "--json"]) == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert [Path(item["video"]).name for item in summary["failed"]] == ["cut.avi"]
    assert summary["failed"][0]["reason"].startswith("truncated: the video ends at ")
    rows = {Path(name).name: row for name, row in read_table(out / "predictions.csv").items()}
    label = rows["whole.mp4"]["label"]
    assert (label in ("distracted", "engaged"), rows["whole.mp4"]["reason"]) == (True, "")
    for name, reason in (("no_face.mp4", "no face in "), ("carphone.mp4", "too short: ")):
        assert rows[name]["label"] == ""
        assert rows[name]["reason"].startswith(reason)
    assert summary["labels"] == {label: 1, "no label": 2}
    assert f"3 of 4 videos predicted: 1 {label}, 2 no label; table:" in " ".join(captured.err.split())


def test_predict_does_not_replace_other_files(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the videos' folder, labels and a picture are not overwritten, the table has the log names, and the
    same command again does nothing."""
    run, folder = write_run(tmp_path / "run", detector_path), tmp_path / "videos"
    folder.mkdir()
    for name in ("own.mp4", "seen.mp4"):
        (folder / name).write_bytes(real_clips["single"].read_bytes())
    hand = {folder / "own.csv": b"path,label\nown.mp4,engaged\n", folder / "seen.png": b"a picture"}
    for path, content in hand.items():
        path.write_bytes(content)
    argv = ["predict", "--run", str(run), "--out", str(folder), str(folder), "--json"]
    for already in (0, 2):
        assert main(argv) == 0
        assert json.loads(capsys.readouterr().out)["already"] == already
        assert {path: path.read_bytes() for path in hand} == hand
        assert {row["log"] for row in read_table(folder / "predictions.csv").values()} == {
            "own-2.csv",
            "seen-2.csv",
        }
    assert len(list(folder.iterdir())) == 2 + 2 + 2 * 2 + 1


def test_another_call_adds_to_the_table(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path
) -> None:
    """Videos of one name from two folders, one call each, have two rows and two logs; also by a run with
    other classes, and where a video can no longer be read."""
    run, out = write_run(tmp_path / "run", detector_path), tmp_path / "out"
    videos = [tmp_path / folder / "video.mp4" for folder in ("monday", "tuesday", "wednesday")]
    for video, clip in zip(videos, ("single", "carphone", "single"), strict=True):
        video.parent.mkdir()
        video.write_bytes(real_clips[clip].read_bytes())
    other = write_run(tmp_path / "other", detector_path, names=("asleep", "awake"))
    for video, made_with in zip(videos, (run, run, other), strict=True):
        kept = {path: path.read_bytes() for path in out.glob("video*")}
        assert main(["predict", "--run", str(made_with), "--out", str(out), str(video)]) == 0
        assert kept.items() <= {path: path.read_bytes() for path in out.glob("video*")}.items()
    rows = read_table(out / "predictions.csv")
    assert {video: row["log"] for video, row in rows.items()} == {
        str(videos[0]): "video.csv",
        str(videos[1]): "video-2.csv",
        str(videos[2]): "video-3.csv",
    }
    assert [bool(row["share_engaged"]) for row in rows.values()] == [True, True, False]
    assert [bool(row["share_awake"]) for row in rows.values()] == [False, False, True]
    videos[1].write_bytes(b"no video any more")
    assert main(["predict", "--run", str(run), "--out", str(out), str(videos[1])]) == 1
    assert {name: row["log"] for name, row in read_table(out / "predictions.csv").items()} == {
        name: row["log"] for name, row in rows.items()
    }


def test_predictions_table_of_another_command_is_refused(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example predictions.csv of evaluate: one line, exit code 2, and the file is unchanged."""
    run = write_run(tmp_path / "run", detector_path)
    evaluated = (
        "clip_id,subject,split,label,p_distracted,p_engaged,decision\na#0,s1,test,engaged,0.2,0.8,engaged\n"
    )
    (run / "predictions.csv").write_text(evaluated, encoding="utf-8")
    assert main(["predict", "--run", str(run), "--out", str(run), str(real_clips["single"])]) == 2
    assert "was not written by live predict" in capsys.readouterr().err
    assert (run / "predictions.csv").read_text(encoding="utf-8") == evaluated
    assert not (run / "single.csv").exists()


def test_broken_link_does_not_stop_the_other_videos(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A given broken link is a listed failure; in a folder, broken links and hidden files are left out. A
    linked folder gives the same video."""
    run, folder = write_run(tmp_path / "run", detector_path), tmp_path / "videos"
    (folder / ".cache").mkdir(parents=True)
    for name in ("b.mp4", ".cache/c.mp4", "._b.mp4"):
        (folder / name).write_bytes(real_clips["single"].read_bytes())
    link = folder / "a.mp4"
    try:
        link.symlink_to(tmp_path / "unplugged" / "a.mp4")
    except OSError:
        pytest.skip("no links here")
    (tmp_path / "linked").symlink_to(folder)
    found = find_videos([folder])
    assert found == find_videos([tmp_path / "linked", folder]) == ([folder / "b.mp4"], [])
    assert find_videos([tmp_path / "linked" / "a.mp4"]) == ([link], [])
    (folder / "elsewhere").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "d.mp4").touch()
    assert find_videos([folder])[0] == [folder / "b.mp4", tmp_path / "disk" / "d.mp4"], "as extract does"
    (folder / "elsewhere").unlink()
    argv = ["predict", "--run", str(run), "--out", str(tmp_path / "out"), "--json"]
    assert main([*argv, str(link), str(folder)]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["done"] == 1
    assert summary["failed"] == [{"video": str(link), "reason": "No such file or directory"}]


def test_video_given_by_different_paths_is_predicted_once(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`webcam.mp4` of two folders, given by relative paths, has two rows and two logs; absolute paths or
    paths via another folder are the same videos."""
    run, out = write_run(tmp_path / "run", detector_path), tmp_path / "out"
    videos = [tmp_path / folder / "webcam.mp4" for folder in ("p01", "p02")]
    for video, clip in zip(videos, ("single", "carphone"), strict=True):
        video.parent.mkdir()
        video.write_bytes(real_clips[clip].read_bytes())
        kept = {path: path.read_bytes() for path in out.glob("webcam*")}
        monkeypatch.chdir(video.parent)
        assert main(["predict", "--run", str(run), "--out", "../out", "webcam.mp4"]) == 0
        assert kept.items() <= {path: path.read_bytes() for path in out.glob("webcam*")}.items()
    table = (out / "predictions.csv").read_bytes()
    assert {name: row["log"] for name, row in read_table(out / "predictions.csv").items()} == {
        str(videos[0]): "webcam.csv",
        str(videos[1]): "webcam-2.csv",
    }
    names = ["webcam.mp4", str(videos[1]), "../p02/webcam.mp4", "../p01/webcam.mp4"]
    assert find_videos([Path(name) for name in names]) == ([videos[1], videos[0]], [])
    kept = {path: path.stat().st_mtime_ns for path in out.glob("webcam*")}
    assert main(["predict", "--run", str(run), "--out", "../out", *names]) == 0
    assert (out / "predictions.csv").read_bytes() == table
    assert {path: path.stat().st_mtime_ns for path in out.glob("webcam*")} == kept


def test_output_names_are_unique(tmp_path: Path) -> None:
    """Videos with one name, in another case, or named like the table or an existing file get their own names;
    a video in the table keeps its name, also without its files."""
    for name in ("B.csv", "b-2.PNG"):
        (tmp_path / name).touch()
    videos = [tmp_path / name for name in ("a.mp4", "b/A.mp4", "b/a.mov", "predictions.mp4", "b.mp4")]
    assert list(unique_names(videos, tmp_path, {}).values()) == ["a", "A-2", "a-3", "predictions-2", "b-3"]
    rows = {str(videos[2]): {"log": "a.csv"}, str(videos[4]): {"log": "B.csv"}, "earlier": {"log": "a-2.csv"}}
    assert list(unique_names(videos, tmp_path, rows).values()) == ["a-3", "A-4", "a", "predictions-2", "B"]


def test_second_process_in_one_folder_is_refused(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line while the first process runs; after it was killed, the next one works and the lock file is
    removed."""
    run, out = write_run(tmp_path / "run", detector_path), tmp_path / "out"
    out.mkdir()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom live.batch import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(600)\n"
    )
    argv = ["predict", "--run", str(run), "--out", str(out), str(real_clips["single"])]
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"in"
        assert main(argv) == 2
        assert "another `live predict` process is writing to this folder" in " ".join(
            capsys.readouterr().err.split()
        )
        assert not (out / "predictions.csv").exists()
        other.kill()
    assert main(argv) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "predictions.csv",
        "single_face.csv",
        "single_face.png",
    ]


def test_long_name_is_cut_and_does_not_stop_the_others(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name of the maximum length: its files get a shorter unique name of complete characters."""
    run, folder, out = write_run(tmp_path / "run", detector_path), tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    for last in "ab":
        (folder / f"{'가' * 83}{last}.mp4").write_bytes(real_clips["single"].read_bytes())
    (folder / "z.mp4").write_bytes(real_clips["single"].read_bytes())
    argv = ["predict", "--run", str(run), "--out", str(out), "--json", str(folder)]
    for already in (0, 3):
        assert main(argv) == 0
        assert json.loads(capsys.readouterr().out)["already"] == already
    assert {path.stem for path in out.glob("*.png")} == {"가" * 73, "가" * 73 + "-2", "z"}
    assert main(["report", *map(str, out.glob("*.csv"))]) == 0


def test_log_that_cannot_be_written_is_a_listed_failure(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listed with the reason, exit code 1; the others are predicted."""
    run, out = write_run(tmp_path / "run", detector_path), tmp_path / "out"
    (out / "single_face.csv.partial").mkdir(parents=True)
    argv = ["predict", "--run", str(run), "--out", str(out), "--json"]
    assert main([*argv, str(real_clips["single"]), str(real_clips["carphone"])]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["done"] == 1
    assert [failure["video"] for failure in summary["failed"]] == [str(real_clips["single"])]
    assert "single_face.csv.partial" in summary["failed"][0]["reason"]


def test_missing_path_is_named(tmp_path: Path) -> None:
    """A folder without videos gives no video."""
    with pytest.raises(ValueError, match="no such file or folder"):
        find_videos([tmp_path / "none"])
    assert find_videos([tmp_path]) == ([], [])


def test_name_that_is_not_utf8_is_a_listed_failure(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = write_run(tmp_path / "run", detector_path), tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(real_clips["single"].read_bytes())
    try:
        (folder / os.fsdecode(b"caf\xe9.mp4")).write_bytes(real_clips["single"].read_bytes())
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    assert main(["predict", "--run", str(run), "--out", str(tmp_path / "out"), "--json", str(folder)]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["videos"], summary["done"]) == (2, 1)
    assert summary["failed"] == [{"video": f"{folder}/caf\\udce9.mp4", "reason": NOT_UTF8}]
