"""Speed and memory of live on a 640 × 480 video at 30 fps; each value is printed with its target.

python -m tests.bench live. Each session runs `python -m live`'s own code in a process of its own; a view that
counts frames replaces the window. BENCH_SECONDS (20) is the length of a session in real time, BENCH_MINUTES
(30) the length of the video for memory growth. Other load on the machine changes all values; ratios compare
values of the same run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from extract.video.reader import Frame
    from live.inference.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
FPS, WIDTH, HEIGHT = 30, 640, 480
SECONDS = float(os.environ.get("BENCH_SECONDS", "20"))
MINUTES = float(os.environ.get("BENCH_MINUTES", "30"))
SETTLE_S = 3.0
"""Seconds between the ready model and the first measurement other than the start."""
NUM_STARTS, START_S = 3, 8.0
"""The start times are the best of NUM_STARTS sessions of START_S seconds each."""


def main() -> int:
    """Print the tables; with the argument `session`, run one of the measured sessions."""
    if sys.argv[1:2] == ["session"]:
        return session(sys.argv[2], float(sys.argv[3]), sys.argv[4:])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        video, runs = write_source(folder / "source.mp4"), write_runs(folder)
        print_latencies(runs, video)
        for name, run in runs.items():
            print_session(name, run, video)
    return 0


def write_source(path: Path) -> Path:
    """Write real faces at 640 × 480 and 30 fps, long enough for a session in real time."""
    from tests.support.clips import face_frames, looped, write_video
    from tests.support.media import fetch_real_clips

    frames = face_frames(fetch_real_clips()["pexels"], 300, WIDTH, HEIGHT)
    return write_video(path, looped(frames, round(FPS * (SECONDS + 10))), FPS)


def write_runs(folder: Path) -> dict[str, Path]:
    """Write a run of one stream, a run of both streams, and an export of the first."""
    from seqmodel.commands.export import export
    from seqmodel.config import ExportArgs
    from seqmodel.encoders.model_files import detector_file, landmarker_file
    from tests.support.small_run import write_run

    one = write_run(folder / "one", detector_file("short"))
    both = write_run(
        folder / "both",
        detector_file("short"),
        landmarker=landmarker_file(),
        inputs=("embeddings", "geometry"),
    )
    export(ExportArgs(one, out=folder / "bundle"))
    return {"embeddings": one, "both streams": both, "exported, no torch": folder / "bundle"}


def show(name: str, value: str, target: str, is_met: bool) -> None:
    """Print a row: the value, the target, and MISSED if the target is not met."""
    print(f"  {name:44}{value:>24}   {target:22}{'' if is_met else 'MISSED'}", flush=True)


# One sampled frame -----------------------------------------------------------------------------------------


def print_latencies(runs: dict[str, Path], video: Path) -> None:
    """Print the time from a sampled frame to its prediction, next to that of the seed project."""
    import cv2

    from extract.video.reader import Frame, read_video, sample_at
    from live.inference.model import open_model
    from live.inference.predictor import Predictor

    cv2.setNumThreads(1)
    # Without decoding, which is the camera's work.
    frames = [Frame(f.pts_s, f.rgb()) for f in sample_at(read_video(video), 3)]
    seed_ms, seed_cpu_ms = reencode_window(next(iter(runs.values())), frames)
    print("one sampled frame")
    show("seed project: window re-encoded, float32", f"{seed_ms:.0f} ms", "", True)
    for name, run in runs.items():
        median_ms, p99_ms, cpu_ms, passes = latency(Predictor(open_model(run)), frames)
        ratio = seed_ms / median_ms
        print(f" {name}")
        show("predictions/s relative to re-encoding", f"{ratio:.0f}×", ">= 50×, aim 100×", ratio >= 50)
        show("  the same in processor time", f"{seed_cpu_ms / cpu_ms:.0f}×", "", True)
        show("frame to prediction, median", f"{median_ms:.2f} ms", "< 10 ms", median_ms < 10)
        show("frame to prediction, 99th percentile", f"{p99_ms:.2f} ms", "< 33 ms", p99_ms < 33)
        show("CNN passes per sampled frame", f"{passes:.3f}", "exactly 1", passes == 1)


def latency(predictor: "Predictor", frames: "list[Frame]") -> tuple[float, float, float, float]:
    """Milliseconds over three passes: median, 99th percentile, mean processor time of all threads (which
    depends less on other load); and encoder passes per frame."""
    found: list[float] = []
    for index in range(4):
        predictor.reset()
        if index == 1:  # the first pass warms up
            start, before = time.process_time(), predictor.num_encoded
        predictions = [predictor.push(frame) for frame in frames]
        if index:
            found += [p.latency_ms for p in predictions if p is not None]
    cpu_ms = (time.process_time() - start) * 1e3 / len(found)
    passes = (predictor.num_encoded - before) / len(found)
    predictor.close()
    return float(np.median(found)), float(np.percentile(found, 99)), cpu_ms, passes


def reencode_window(run: Path, frames: "list[Frame]") -> tuple[float, float]:
    """Time the seed project's method: detect in the new frame, encode all 30 crops in float32, run the head.

    Returns milliseconds: median, and mean processor time of all threads.
    """
    import torch

    from extract.face.cropper import FaceCropper
    from live.inference.model import open_model, torch_head
    from seqmodel.encoders.backbone import encoder_of

    model = open_model(run, backend="torch")
    assert model.card.recipe.pixels is not None
    encoder, head = encoder_of(model.card.recipe.encoder), torch_head(run, model.card)
    cropper = FaceCropper(model.card.recipe.pixels, model.detector_files)
    torch.set_num_threads(os.cpu_count() or 1)  # live uses one for the head; this gets all
    crops = [cropper.crop(frame.rgb()).image for frame in frames[:30]]
    window = torch.from_numpy(np.stack([crop for crop in crops if crop is not None]))
    found, cpu_start = [], 0.0
    for index in range(6):
        if index == 1:
            cpu_start = time.process_time()
        start = time.perf_counter()
        cropper.crop(frames[index].rgb())
        with torch.inference_mode():
            embeddings = encoder(window).numpy()
        head({"embeddings": embeddings}, {"embeddings": np.ones(len(embeddings), bool)})
        found.append(time.perf_counter() - start)
    cpu_ms = (time.process_time() - cpu_start) * 1e3 / 5
    cropper.close()
    return float(np.median(found[1:])) * 1e3, cpu_ms


# Whole sessions --------------------------------------------------------------------------------------------


def print_session(name: str, run: Path, video: Path) -> None:
    """Print start, display, processor and memory of sessions in real time, and growth over a long video."""
    ready_s = 1.5 if (run / "export.json").is_file() else 3.0
    starts = [run_session("window", run, video, START_S) for _ in range(NUM_STARTS - 1)]
    shown = run_session("window", run, video, SECONDS)
    headless = run_session("headless", run, video, SECONDS)
    long = run_session("long", run, video, MINUTES * 60)
    first_s, full_s = (min(s[key] for s in (*starts, shown)) for key in ("first_s", "ready_s"))
    print(f"session: {name}")
    show("start to first displayed frame", f"{first_s:.2f} s", "< 1.5 s", first_s < 1.5)
    show("start to ready model", f"{full_s:.2f} s", f"< {ready_s} s", full_s < ready_s)
    fps, age_ms = shown["fps"], shown["age_ms"]
    show("display rate while predicting", f"{fps:.1f} fps", ">= 30 fps", fps > 29.5)
    show("oldest frame shown", f"{age_ms:.0f} ms", "<= 100 ms", age_ms <= 100)
    for what, found in (("no window", headless), ("overlay drawn", shown)):
        cpu = found["cpu"]
        show(f"processor, {what}, with decoding", f"{cpu:.0%} of a core", "< 35 %", cpu < 0.35)
    peak = max(found["peak_mb"] for found in (shown, headless))
    show("maximum resident memory", f"{peak:.0f} MB", "< 700 MB", peak < 700)
    growth = f"{long['growth_mb']:+.1f} MB"
    show(f"memory growth over {MINUTES:g} minutes of video", growth, "< 10 MB", long["growth_mb"] < 10)
    passes = f"{long['encoded'] / long['rows']:.3f} of {long['rows']} frames"
    show("CNN passes per sampled frame", passes, "exactly 1", long["encoded"] == long["rows"])


def run_session(mode: str, run: Path, video: Path, seconds: float) -> dict[str, Any]:
    """The JSON summary and the measurements of a session in its own process."""
    argv = ["--run", str(run), "--video", str(video), "--realtime", "--seconds", str(seconds), "--json"]
    if mode != "window":
        argv.append("--headless")
    with tempfile.TemporaryDirectory() as folder:
        argv += ["--log", str(Path(folder) / "log.csv")]
        command = [sys.executable, "-m", "tests.bench.live", "session", mode, str(time.time()), *argv]
        done = subprocess.run(
            command,
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
    summary, own = map(json.loads, done.stdout.splitlines())
    return summary | own


def session(mode: str, spawned_s: float, argv: list[str]) -> int:
    """Run live with a probe as its view; print the probe's measurements after live's own summary."""
    from live import app
    from live.__main__ import main as cli

    probe = Probe(spawned_s, shows=mode == "window")
    open_source, control_class = app.open_source, app.Control

    def open_probed(camera: int, video: str | None, realtime: bool) -> Any:
        if mode == "long":
            from live.sources.base import FileSource

            assert video is not None
            probe.source = FileSource(repeated(video))
        else:
            probe.source = open_source(camera, video, realtime)
        return probe.source

    def make_control(*args: Any, **kwargs: Any) -> Any:
        probe.control = control_class(*args, **kwargs)
        return probe.control

    patched: Any = app
    patched.open_source, patched.Control = open_probed, make_control
    patched.window_problem = str
    patched._open_view = lambda config, session: probe
    code = cli(argv)
    print(json.dumps(probe.measurements()))
    return code


def repeated(video: str) -> "Iterator[Frame]":
    """The first five seconds of a video, decoded once and repeated with growing times."""
    from extract.video.reader import Frame, read_video

    frames = [frame.rgb() for frame in read_video(video)][: FPS * 5]
    number = 0
    while True:
        yield Frame(number / FPS, frames[number % len(frames)])
        number += 1


class Probe:
    """A view that shows nothing and measures time and memory."""

    shows_overlay = True

    def __init__(self, spawned_s: float, *, shows: bool) -> None:
        self.is_watched = shows
        self.source: Any = None
        self.control: Any = None
        self._spawned_s = spawned_s
        self._first_s = self._ready_s = 0.0
        self._ready_at = self._from = self._cpu_from = 0.0
        self._watched_s = self._cpu_s = 0.0
        self._num_shown, self._age_s, self._last_s = 0, 0.0, -1.0
        self._mb: list[tuple[float, float]] = []

    def show(self, picture: np.ndarray) -> None:
        """Count a picture of a new frame, and measure the age of that frame."""
        import cv2

        cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)  # a real window does this too
        self._first_s = self._first_s or time.time() - self._spawned_s
        if self.source.last_s != self._last_s and self._from:
            self._num_shown += 1
            self._age_s = max(self._age_s, self.source.now_s() - self.source.last_s)
        self._last_s = self.source.last_s

    def keys(self) -> str:
        """No keys. Live calls this in every loop, so time and memory are measured here."""
        now = time.monotonic()
        if self.control.predictor is not None and not self._ready_at:
            self._ready_at, self._ready_s = now, time.time() - self._spawned_s
        if self._ready_at and not self._from and now - self._ready_at > SETTLE_S:
            self._from, self._cpu_from = now, sum(os.times()[:2])
        if self.source.last_s - (self._mb[-1][0] if self._mb else 0.0) >= 60:
            self._mb.append((self.source.last_s, resident_mb("VmRSS")))
        return ""

    def close(self) -> None:
        """End the measurement; the session report that follows is not measured."""
        self._watched_s = max(time.monotonic() - self._from, 1e-3)
        self._cpu_s = sum(os.times()[:2]) - self._cpu_from

    def measurements(self) -> dict[str, float]:
        """The measurements. Memory growth counts from minute two of the video, when all code has run once."""
        settled = [mb for at_s, mb in self._mb if at_s >= 120] or [0.0]
        return {
            "first_s": self._first_s,
            "ready_s": self._ready_s,
            "fps": self._num_shown / self._watched_s,
            "age_ms": self._age_s * 1e3,
            "cpu": self._cpu_s / self._watched_s,
            "peak_mb": resident_mb("VmHWM"),
            "growth_mb": settled[-1] - settled[0],
        }


def resident_mb(name: str) -> float:
    """Megabytes of this process: VmRSS (now) or VmHWM (maximum so far). Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


if __name__ == "__main__":
    sys.exit(main())
