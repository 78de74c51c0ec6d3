"""live/predict.py: files in batch through the camera's own predictor."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from extract.video import read_video
from live.__main__ import main
from live.log import read_log
from live.model import open_model
from live.predict import find_videos, unique_names
from live.predictor import Predictor
from seqmodel.run import load_card, save_card
from tests.small_run import write_run


def test_a_folder_is_predicted_as_the_camera_would(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each log holds what pushing the video's frames gives, whatever was predicted before; a broken file is
    listed, and exit is 1."""
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
    words = ["predict", "--run", str(run), "--out", str(tmp_path / "out"), str(folder), "--json"]
    assert main(words) == 1
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
        assert [row.p for row in found] == [tuple(round(v, 6) for v in p.p) for p in wanted]
        assert (tmp_path / "out" / name).with_suffix(".png").is_file()
    assert not list((tmp_path / "out").glob("*.partial"))


def test_the_same_command_does_only_the_rest(
    real_clips: dict[str, Path], detector_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is done stays; a changed video, a lost log or another way of deciding is done anew."""
    run, out, folder = write_run(tmp_path / "run", detector_path), tmp_path / "out", tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(real_clips["carphone"].read_bytes())
    words = ["predict", "--run", str(run), "--out", str(out), str(folder), "--json"]

    def already() -> int:
        assert main(words) == 0
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


def test_names_never_meet(tmp_path: Path) -> None:
    """Two videos of one name, in another case, or named like the table get files of their own."""
    videos = [tmp_path / name for name in ("a.mp4", "b/A.mp4", "b/a.mov", "predictions.mp4")]
    assert list(unique_names(videos).values()) == ["a", "A-2", "a-3", "predictions-2"]


def test_a_missing_place_is_named(tmp_path: Path) -> None:
    """And a folder without videos is no video."""
    with pytest.raises(ValueError, match="no such file or folder"):
        find_videos([tmp_path / "none"])
    assert find_videos([tmp_path]) == []
