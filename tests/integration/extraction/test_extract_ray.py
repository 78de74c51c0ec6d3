"""Extraction on a local Ray cluster of two workers: one is killed, one video kills its workers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from extract.__main__ import main
from extract.config import ExtractConfig
from extract.executors.ray_executor import run_jobs_on_ray
from extract.pipeline.planning import make_extractor_config, resolved
from extract.pipeline.types import Job, Window
from features.maintenance.verify import verify_store
from features.manifest import Clip
from features.store.store import FeatureStore, plan
from tests.support.clips import face_frames, looped, write_video
from tests.support.stores import (
    has_open,
    require_equal_stores,
)

pytest.importorskip("ray", reason="pip install '.[ray]'")
ROOT = Path(__file__).resolve().parents[3]


def actor_pids() -> list[int]:
    """Process ids of the Ray actors of this test."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::Worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_ray_equals_local_workers_after_a_killed_actor(real_clips: dict[str, Path], tmp_path: Path) -> None:
    face = face_frames(real_clips["carphone"], 40, 176, 144)
    (tmp_path / "data" / "engaged").mkdir(parents=True)
    for index in range(8):
        video = tmp_path / "data" / "engaged" / f"{index}.mp4"
        write_video(video, looped(face[index:], 60), 10, options={"preset": "ultrafast"})
    argv = ["--data", str(tmp_path / "data"), "--weights", "random", "--window", "2", "--geometry", "off"]
    command = [sys.executable, "-m", "extract", *argv, "--workers", "2", "--json", "--out"]
    ray_store = tmp_path / "ray.zarr"
    process = subprocess.Popen(
        [*command, str(ray_store), "--engine", "ray"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    before = set(actor_pids())
    working: list[int] = []
    while not working:  # an actor on its first video
        assert process.poll() is None
        time.sleep(0.005)
        new = [pid for pid in actor_pids() if pid not in before]
        working = [pid for pid in new if any(has_open(pid, f"{index}.mp4") for index in range(8))]
    os.kill(working[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert json.loads(out)["done"] == 24
    assert main([*argv, "--workers", "1", "--out", str(tmp_path / "local.zarr")]) == 0
    require_equal_stores(ray_store, tmp_path / "local.zarr")


def test_video_that_kills_its_actor_is_a_listed_failure(
    real_clips: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each actor that opens it is killed; other videos are extracted. A video that hangs fails too."""
    face = looped(face_frames(real_clips["carphone"], 40, 176, 144), 240)
    (tmp_path / "data" / "engaged").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "hangs.mp4", "poison.mp4"):
        video = tmp_path / "data" / "engaged" / name
        frames = face[:40] if len(video.stem) == 1 else face  # long ones are caught while they are open
        write_video(video, frames, 10, options={"preset": "ultrafast"})
    store = tmp_path / "s.zarr"
    argv = ["--data", str(tmp_path / "data"), "--weights", "random", "--window", "2", "--geometry", "off"]
    argv += ["--workers", "2", "--json", "--engine", "ray", "--time-limit", "15"]
    is_over = threading.Event()

    def strike() -> None:
        while not is_over.wait(0.002):
            for pid in actor_pids():
                if has_open(pid, "poison.mp4"):
                    os.kill(pid, signal.SIGKILL)
                elif has_open(pid, "hangs.mp4"):
                    os.kill(pid, signal.SIGSTOP)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("extract.executors.ray_executor.HANG_GRACE_S", 1.0)
        code = main([*argv, "--out", str(store)])
    is_over.set()
    thread.join()
    out, shown = capfd.readouterr()
    summary = json.loads(out)
    assert code == 1, shown
    assert summary["done"] + summary["failed"] == 28
    assert summary["done"] >= 4
    reasons = {Path(item["clip_id"].rpartition("#")[0]).name: item["reason"] for item in summary["failures"]}
    assert reasons == {
        "poison.mp4": "the worker process died on this video",
        "hangs.mp4": "stuck for more than 15 s",
    }
    assert not verify_store(FeatureStore.open(store))


class Unlucky(type(Path())):
    """A video whose extraction raises MemoryError."""

    def __str__(self) -> str:
        raise MemoryError("no room for this picture")


def test_exception_in_one_video_fails_only_that_video(real_clips: dict[str, Path], tmp_path: Path) -> None:
    """After a second try, as with local workers."""
    video = write_video(tmp_path / "good.mp4", face_frames(real_clips["carphone"], 20, 176, 144), 10)
    config = ExtractConfig(tmp_path, str(tmp_path / "s.zarr"), weights="random", window=2.0, geometry="off")
    extractor_config, numerics = make_extractor_config(config)
    clips = [Clip("unlucky.mp4#0", video, 0.0, 2.0), Clip("good.mp4#0", video, 0.0, 2.0)]
    store = plan(config.out, clips, extractor_config.recipe, numerics=numerics)
    jobs = [Job(Unlucky(video), (Window(0, 0.0, 2.0),)), Job(video, (Window(1, 0.0, 2.0),))]
    events_seen = [
        event for event in run_jobs_on_ray(jobs, extractor_config, config.out, 1) if event.row is not None
    ]
    assert sorted((event.row, event.reason) for event in events_seen) == [
        (0, "MemoryError: no room for this picture"),
        (1, ""),
    ]
    assert store.table().failure.tolist() == ["MemoryError: no room for this picture", ""]


def test_actors_are_given_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors run in another folder. Addresses and names of weights do not change."""
    monkeypatch.chdir(tmp_path)
    Path("own.tflite").touch()
    config = ExtractConfig(Path("data"), "out/s.zarr", detector="own.tflite")
    found = resolved(config)
    assert (found.data, found.out) == (tmp_path / "data", str(tmp_path / "out" / "s.zarr"))
    assert (found.detector, found.weights) == (str(tmp_path / "own.tflite"), "imagenet")
