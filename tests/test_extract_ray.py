"""The same jobs on a local Ray cluster of two workers, one of them killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extract.__main__ import main
from tests.clips import face_frames, looped, write_video
from tests.test_extract_robust import ROOT, everything, rows_written

pytest.importorskip("ray", reason="pip install '.[ray]'")


def actor_pids() -> list[int]:
    """Processes that call themselves Ray's actors of ours."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::Worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_ray_gives_what_local_workers_give_though_one_is_killed(
    real_clips: dict[str, Path], tmp_path: Path
) -> None:
    face = face_frames(real_clips["carphone"], 40, 176, 144)
    (tmp_path / "data" / "engaged").mkdir(parents=True)
    for index in range(8):
        video = tmp_path / "data" / "engaged" / f"{index}.mp4"
        write_video(video, looped(face[index:], 60), 10, options={"preset": "ultrafast"})
    words = ["--data", str(tmp_path / "data"), "--weights", "random", "--window", "2", "--geometry", "off"]
    command = [sys.executable, "-m", "extract", *words, "--workers", "2", "--json", "--out"]
    ray_store = tmp_path / "ray.zarr"
    process = subprocess.Popen(
        [*command, str(ray_store), "--engine", "ray"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    before = set(actor_pids())
    while len(rows_written(ray_store)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    ours = [pid for pid in actor_pids() if pid not in before] or actor_pids()
    os.kill(ours[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert json.loads(out)["done"] == 24
    assert main([*words, "--workers", "1", "--out", str(tmp_path / "local.zarr")]) == 0
    assert everything(ray_store) == everything(tmp_path / "local.zarr")
