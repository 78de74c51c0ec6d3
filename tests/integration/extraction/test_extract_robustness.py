"""Failures during extraction: bad files, kills, full disks, deleted stores and videos."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from extract.__main__ import main
from features.cli import STOPS
from features.maintenance.verify import verify_store
from features.store.store import DONE, FeatureStore
from tests.support.clips import face_frames, looped, write_video
from tests.support.kill_at_write import KillableCommands
from tests.support.stores import has_open, require_equal_stores, rows_written

ROOT = Path(__file__).resolve().parents[3]
QUICK = ("--weights", "random", "--window", "2", "--geometry", "off", "--workers", "1")
FASTSTART = {"movflags": "faststart"}


def truncated(source: Path, target: Path, share: float) -> None:
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])


def only_first_key_frame(source: Path, target: Path) -> None:
    """Keep the index and the first frame, and set the bytes of every later frame to zero."""
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
        spans = [(packet.pos, packet.size) for packet in packets[1:]]
    for start, size in spans:
        content[start : start + size] = bytes(size)
    target.write_bytes(bytes(content))


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for _ in range(30):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            sound.sample_rate = 16000
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def make_bad_files(folder: Path, face: list[np.ndarray]) -> dict[str, str]:
    """Write files that cannot be read; returns name -> text in the failure reason."""
    good = write_video(folder / "good.mp4", face, 10)
    with av.open(str(folder / "front.mp4"), "w", options=FASTSTART) as container:
        with av.open(str(good)) as source:
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    container.mux(packet)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("path,label\n" * 200, encoding="utf-8")
    truncated(good, folder / "cut, index at the end.mp4", 0.6)
    truncated(folder / "front.mp4", folder / "cut, index in front.mp4", 0.6)
    write_audio(folder / "audio.mp4")
    write_video(folder / "one.mp4", face[:1], 10)
    only_first_key_frame(folder / "front.mp4", folder / "key.mp4")
    (folder / "front.mp4").unlink()
    return {
        "zero.mp4": "empty",
        "text.mp4": "not a readable video",
        "cut, index at the end.mp4": "not a readable video",
        "cut, index in front.mp4": "truncated",
        "audio.mp4": "no video",
        "one.mp4": "only one frame between 0.0 and",
        "key.mp4": "truncated",
    }


def make_odd_files(folder: Path, real_clips: dict[str, Path], face: list[np.ndarray]) -> list[str]:
    """Write files that are unusual but readable."""
    upright = [np.ascontiguousarray(np.rot90(frame, -1)) for frame in face]
    write_video(folder / "rotated.mp4", upright, 10, rotation=90)
    uneven = np.cumsum([0.05, 0.2, 0.1] * 10)[: len(face)]
    write_video(folder / "variable.mkv", face[: len(uneven)], 10, times_s=list(uneven))
    odd = [cv2.resize(frame, (177, 133)) for frame in face]
    write_video(folder / "odd size.mp4", odd, 10, pix_fmt="yuv444p")
    write_video(folder / "ten bit.mp4", face, 10, pix_fmt="yuv420p10le")
    write_video(folder / "grey.mp4", face, 10, pix_fmt="gray")
    write_video(folder / "moving.gif", face, 10, codec="gif", pix_fmt="rgb8")
    write_video(folder / "수업 영상 😀 №1.mp4", face, 10)
    large = [cv2.resize(frame, (3840, 2160)) for frame in face[:10]]
    write_video(folder / "4K.mp4", large, 5, options={"preset": "ultrafast"})
    write_video(folder / "slow.mp4", face[:10], 5)
    write_video(folder / "fast.mp4", looped(face, 240), 120, options={"preset": "ultrafast"})
    write_video(folder / "old.avi", face, 10, codec="mpeg4")
    write_video(folder / "motion jpeg.avi", face, 10, codec="mjpeg", pix_fmt="yuvj420p")
    write_video(folder / "web.webm", face, 10, codec="libvpx-vp9", options={"cpu-used": "8"})
    shutil.copy(real_clips["no_face"], folder / "lying header.mp4")
    shutil.copy(real_clips["face_noface"], folder / "hevc.mov")
    return [path.name for path in folder.iterdir()]


def test_bad_files_are_listed_failures_and_odd_ones_are_extracted(
    real_clips: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    face = face_frames(real_clips["carphone"], 20, 176, 144)
    good, bad = tmp_path / "data" / "good", tmp_path / "data" / "bad"
    good.mkdir(parents=True)
    bad.mkdir()
    fine = [*make_odd_files(good, real_clips, face), "good.mp4"]
    reasons = make_bad_files(bad, face)
    argv = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "s.zarr"), *QUICK[:-1], "0"]
    code = main([*argv, "--json"])
    summary = json.loads(capfd.readouterr().out)
    failures = {Path(item["clip_id"].rpartition("#")[0]).name: item["reason"] for item in summary["failures"]}
    assert code == 1
    assert {name: stderr for name, stderr in reasons.items() if stderr not in failures.get(name, "")} == {}, (
        failures
    )
    assert failures.keys() == reasons.keys()
    table = FeatureStore.open(tmp_path / "s.zarr").table()
    done = {Path(table.clip_id[row].rpartition("#")[0]).name for row in np.flatnonzero(table.state == DONE)}
    assert done == set(fine)
    assert not verify_store(FeatureStore.open(tmp_path / "s.zarr"))
    frames = FeatureStore.open(tmp_path / "s.zarr").read_frames()
    without_face = {
        Path(table.clip_id[row].rpartition("#")[0]).name
        for row in np.flatnonzero(table.state == DONE)
        if not (frames[row, :, 5] > 0).any()
    }
    assert without_face <= {"lying header.mp4", "hevc.mov"}


def background(action) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def when_working(store: Path, rows: int, action) -> None:
    """Call `action` with the worker process as soon as this number of rows is written."""
    while True:
        children = [child for child in multiprocessing.active_children() if child.name == "extract-worker"]
        if children and len(list((store / "frames").glob("c.*.0.0"))) >= rows:
            action(children[0])
            return
        time.sleep(0.02)


@pytest.fixture
def long_manifest(real_clips: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with two videos of 8 windows each."""
    face = face_frames(real_clips["carphone"], 40, 176, 144)
    (tmp_path / "data" / "engaged").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4"):
        write_video(
            tmp_path / "data" / "engaged" / name, looped(face, 160), 10, options={"preset": "ultrafast"}
        )
    return tmp_path / "data"


def run(data: Path, store: Path, capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict, str]:
    code = main(["--data", str(data), "--out", str(store), *QUICK, "--json", *argv])
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else {}, err


def test_video_over_its_time_limit_is_a_listed_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Thirty thousand frames in two seconds: the time limit stops it, with the reason."""
    (tmp_path / "data" / "engaged").mkdir(parents=True)
    tiny = [np.full((16, 16, 3), value, np.uint8) for value in range(50)]
    path = tmp_path / "data" / "engaged" / "endless.mp4"
    write_video(path, looped(tiny, 30000), 15000, options={"preset": "ultrafast"})
    code, summary, _ = run(tmp_path / "data", tmp_path / "s.zarr", capfd, "--time-limit", "0.3")
    assert code == 1
    assert "stopped after" in summary["failures"][0]["reason"]


def test_a_worker_that_dies_once_loses_nothing(
    long_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    thread = background(lambda: when_working(tmp_path / "s.zarr", 3, lambda worker: worker.kill()))
    code, summary, _ = run(long_manifest, tmp_path / "s.zarr", capfd)
    thread.join(1)
    assert not thread.is_alive()
    assert code == 0, summary
    assert summary["done"] == 16


def test_a_video_that_kills_two_workers_is_a_listed_failure(
    long_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def kill_twice() -> None:
        when_working(tmp_path / "s.zarr", 3, lambda worker: worker.kill())
        when_working(tmp_path / "s.zarr", 13, lambda worker: worker.kill())

    background(kill_twice)
    code, summary, _ = run(long_manifest, tmp_path / "s.zarr", capfd)
    assert code == 1
    assert summary["done"] + summary["failed"] == 16
    assert 0 < summary["failed"] <= 3
    assert {item["reason"] for item in summary["failures"]} == {
        "the worker process was killed by SIGKILL on this video"
    }
    code, summary, _ = run(long_manifest, tmp_path / "s.zarr", capfd, "--retry-failed")
    assert code == 0


def test_videos_that_kill_their_workers_do_not_end_the_run(
    real_clips: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three such videos in a row, each tried twice: all are listed as failures, though more workers die than
    the limit of deaths without a result."""
    monkeypatch.setattr("extract.executors.pool.MAX_DEATHS_IN_A_ROW", 4)
    face = looped(face_frames(real_clips["carphone"], 40, 176, 144), 240)
    folder = tmp_path / "data" / "engaged"
    folder.mkdir(parents=True)
    video = write_video(folder / "good.mp4", face, 10, options={"preset": "ultrafast"})
    for index in range(3):
        shutil.copy(video, folder / f"poison {index}.mp4")
    is_over = threading.Event()

    def strike() -> None:
        while not is_over.wait(0.002):
            for child in multiprocessing.active_children():
                if child.name == "extract-worker" and child.pid and has_open(child.pid, "poison"):
                    child.kill()

    thread = background(strike)
    code, summary, stderr = run(tmp_path / "data", tmp_path / "s.zarr", capfd, "--window", "24")
    is_over.set()
    thread.join()
    assert code == 1, stderr
    assert {"done": 1, "failed": 3}.items() <= summary.items()
    assert {item["reason"] for item in summary["failures"]} == {
        "the worker process was killed by SIGKILL on this video"
    }


def test_a_worker_that_hangs_is_replaced(
    long_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.executors.pool.HANG_GRACE_S", 1.0)
    stop = lambda worker: os.kill(worker.pid, signal.SIGSTOP)  # noqa: E731
    background(lambda: when_working(tmp_path / "s.zarr", 2, stop))
    code, summary, _ = run(long_manifest, tmp_path / "s.zarr", capfd, "--time-limit", "4")
    assert code == 1
    assert summary["failed"] > 0
    assert "stuck for more than" in summary["failures"][0]["reason"]
    assert summary["done"] >= 8


def test_two_shards_at_once_equal_a_single_run(real_clips: dict[str, Path], tmp_path: Path) -> None:
    """Two processes of an array job plan and fill one store: every file is equal."""
    face = face_frames(real_clips["carphone"], 40, 176, 144)
    (tmp_path / "data" / "engaged").mkdir(parents=True)
    for index in range(6):
        video = tmp_path / "data" / "engaged" / f"{index}.mp4"
        write_video(video, looped(face[index:], 40), 10, options={"preset": "ultrafast"})
    command = [sys.executable, "-m", "extract", "--data", str(tmp_path / "data"), *QUICK]
    command += ["--geometry", "on", "--crops", "jpeg", "--out"]
    both = tmp_path / "both.zarr"
    shards = [
        subprocess.Popen([*command, str(both), "--shard", f"{shard}/2"], cwd=ROOT, stderr=subprocess.PIPE)
        for shard in (0, 1)
    ]
    for shard in shards:
        _, stderr = shard.communicate(timeout=300)
        assert shard.returncode == 0, stderr.decode()
    assert main([*command[3:], str(tmp_path / "one.zarr")]) == 0
    require_equal_stores(both, tmp_path / "one.zarr")


def write_videos(folder: Path, face: list[np.ndarray], count: int) -> Path:
    """A data set of short videos, one window each."""
    (folder / "engaged").mkdir(parents=True)
    for index in range(count):
        video = folder / "engaged" / f"{index:02}.mp4"
        write_video(video, looped(face[index % 20 :], 24), 6, options={"preset": "ultrafast"})
    return folder


def test_twenty_kills_change_nothing(real_clips: dict[str, Path], tmp_path: Path) -> None:
    """`kill -9` at chosen writes, while rows are planned and while they are filled; then the same command
    again: the store, geometry and crops included, equals one made in a single run, file by file."""
    data = write_videos(tmp_path / "data", face_frames(real_clips["carphone"], 40, 176, 144), 24)
    argv = ["--data", str(data), "--weights", "random", "--window", "2", "--crops", "jpeg", "--workers"]
    killed, whole = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    draw, rows = random.Random(0), []
    with KillableCommands() as killable:
        for kill in range(20):
            write = draw.randrange(1, 40) if kill < 6 else draw.randrange(1, 12)
            command = [*argv, "0", "--out", str(killed)]
            assert killable.run("extract.__main__", killed, (write, command)) == [-signal.SIGKILL]
            rows.append(len(rows_written(killed)))
    assert len(set(rows)) > 5, rows
    assert main([*argv, "2", "--out", str(killed)]) == 0
    assert main([*argv, "0", "--out", str(whole)]) == 0
    require_equal_stores(killed, whole)


@pytest.mark.parametrize("target", ["the parent", "the whole group"])
def test_killed_command_with_two_workers_can_be_continued(
    real_clips: dict[str, Path], tmp_path: Path, target: str
) -> None:
    data = write_videos(tmp_path / "data", face_frames(real_clips["carphone"], 40, 176, 144), 16)
    argv = ["--data", str(data), "--weights", "random", "--window", "2", "--geometry", "off", "--workers"]
    killed, whole = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    command = [sys.executable, "-m", "extract", *argv, "2", "--out", str(killed)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    while not rows_written(killed):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL) if target == "the whole group" else process.kill()
    process.wait()
    assert is_gone(process.pid), "the workers did not end with their parent"
    assert main([*argv, "1", "--out", str(killed)]) == 0
    assert main([*argv, "0", "--out", str(whole)]) == 0
    require_equal_stores(killed, whole)


def is_gone(group: int) -> bool:
    """Whether all processes of a group end within a minute; a process that loads a model reacts later."""
    for _ in range(3000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("stop", [signal.SIGINT, *STOPS])
def test_interruption_keeps_finished_clips(long_manifest: Path, tmp_path: Path, stop: signal.Signals) -> None:
    """Ctrl-C, SLURM's SIGTERM, a closed terminal (to the whole group): one line, no traceback, no process
    left."""
    store = tmp_path / "s.zarr"
    command = [sys.executable, "-m", "extract", "--data", str(long_manifest), "--out", str(store), *QUICK]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    while len(rows_written(store)) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished clips are saved" in stderr
    assert "Traceback" not in stderr
    assert is_gone(process.pid)
    done = len(rows_written(store))
    assert 3 <= done < 16
    assert not verify_store(FeatureStore.open(store))


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    except OSError:
        return []
    return [int(word) for word in text.split()]


def is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for workers in /proc")
@pytest.mark.parametrize("wait_s", [0.0, 0.3])
def test_ctrl_c_during_worker_start_is_one_line(long_manifest: Path, tmp_path: Path, wait_s: float) -> None:
    """A worker that is still importing modules cannot handle Ctrl-C."""
    command = [
        sys.executable,
        "-m",
        "extract",
        "--data",
        str(long_manifest),
        "--out",
        str(tmp_path / "s.zarr"),
    ]
    process = subprocess.Popen(
        [*command, *QUICK],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    while not any(is_worker(child) for child in children(process.pid)):
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(wait_s)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished clips are saved" in stderr
    assert "Traceback" not in stderr
    assert is_gone(process.pid)


def test_store_deleted_during_extraction_is_a_one_line_error(
    long_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"

    def delete() -> None:
        while store.exists():
            shutil.rmtree(store, ignore_errors=True)

    background(lambda: when_working(store, 3, lambda worker: delete()))
    code, summary, stderr = run(long_manifest, store, capfd)
    assert code == 2
    assert summary == {}
    assert f"error: the store cannot be written: {store}" in stderr
    assert "Traceback" not in stderr
    assert run(long_manifest, store, capfd)[0] == 0


def test_video_removed_during_extraction_is_a_listed_failure(
    long_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, video = tmp_path / "s.zarr", long_manifest / "engaged" / "b.mp4"
    kept = shutil.copy2(video, tmp_path / "kept.mp4")
    background(lambda: when_working(store, 3, lambda worker: video.unlink()))
    code, summary, _ = run(long_manifest, store, capfd)
    assert code == 1
    assert (summary["done"], summary["failed"]) == (8, 8)
    assert {item["reason"] for item in summary["failures"]} == {"no such file"}
    shutil.copy2(kept, video)
    code, summary, _ = run(long_manifest, store, capfd, "--retry-failed")
    assert code == 0
    assert {"done": 8, "skipped": 8, "failed": 0}.items() <= summary.items()


def test_video_replaced_during_extraction_is_extracted_by_the_next_run(
    long_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, video = tmp_path / "s.zarr", long_manifest / "engaged" / "b.mp4"
    longer = tmp_path / "longer.mp4"
    longer.write_bytes(video.read_bytes() + bytes(100))
    background(lambda: when_working(store, 3, lambda worker: longer.replace(video)))
    code, summary, _ = run(long_manifest, store, capfd)
    assert code == 1
    assert (summary["done"], summary["failed"]) == (8, 8)
    assert "changed since planning" in summary["failures"][0]["reason"]
    code, summary, _ = run(long_manifest, store, capfd)
    assert code == 0
    assert {"done": 8, "skipped": 8, "failed": 0, "changed": 8}.items() <= summary.items()


def test_full_and_read_only_disks_are_one_line_errors(long_manifest: Path, tmp_path: Path) -> None:
    """On a file system of 200 kB: one line; with more space the same command finishes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    argv = [sys.executable, "-m", "extract", "--data", long_manifest, "--out", disk / "s.zarr", *QUICK]
    command = " ".join(f"'{word}'" for word in argv)
    script = f"""
        mount -t tmpfs -o size=200k none '{disk}' || exit 99
        {command} --crops jpeg; echo "full: $?"
        mount -o remount,size=50m,ro '{disk}'
        {command} --crops jpeg; echo "read-only: $?"
        mount -o remount,size=50m,rw '{disk}'
        {command} --crops jpeg; echo "free: $?"
        '{sys.executable}' -m features verify '{disk / "s.zarr"}'; echo "verify: $?"
        ls '{disk}/s.zarr/frames' | grep -c '^c\\.'
        find '{disk}' -name '*.partial' | wc -l
    """
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("file systems cannot be mounted on this machine")
    assert done.stdout.split("\n")[:6] == ["full: 2", "read-only: 2", "free: 0", "verify: 0", "16", "0"], done
    assert "the store cannot be written: [Errno 28] No space left" in done.stderr
    assert "Read-only" in done.stderr
    assert "Traceback" not in done.stderr
