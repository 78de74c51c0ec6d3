"""Speed of live on a generated 640 × 480 source of 30 frames a second, each figure beside its target.

python -m tests.bench live. Sessions run as processes of their own through the door's own code, with a view
that counts in place of the window. BENCH_MINUTES (30) is the video pushed through for the memory's growth,
BENCH_SECONDS (20) the length of a session in real time. The machine's load shows in every figure; ratios
are of things measured side by side.
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
"""Once the model is ready, so long is waited before anything but the start is measured."""
NUM_STARTS, START_S = 3, 8.0
"""The best of so many starts, each of so many seconds."""


def main() -> int:
    """Print the tables, or be one of the sessions that they are about."""
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
    """Real faces at 640 × 480 and 30 frames a second, long enough for a session in real time."""
    from tests.support.clips import face_frames, looped, write_video
    from tests.support.media import fetch_real_clips

    frames = face_frames(fetch_real_clips()["pexels"], 300, WIDTH, HEIGHT)
    return write_video(path, looped(frames, round(FPS * (SECONDS + 10))), FPS)


def write_runs(folder: Path) -> dict[str, Path]:
    """A run of one stream, one of both, and the first one exported."""
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


def show(name: str, figure: str, target: str, is_met: bool) -> None:
    """A row: the figure, the target and whether it is met."""
    print(f"  {name:44}{figure:>24}   {target:22}{'' if is_met else 'MISSED'}", flush=True)


# One sampled frame -----------------------------------------------------------------------------------------


def print_latencies(runs: dict[str, Path], video: Path) -> None:
    """From a sampled frame to its decision, beside the seed's way on the same frames."""
    import cv2

    from extract.video.reader import Frame, read_video, sample_at
    from live.inference.model import open_model
    from live.inference.predictor import Predictor

    cv2.setNumThreads(1)
    # Decoding is the camera's work: frames come ready.
    frames = [Frame(f.pts_s, f.rgb()) for f in sample_at(read_video(video), 3)]
    seed_ms, seed_cpu_ms = window_again(next(iter(runs.values())), frames)
    print("one sampled frame")
    show("window re-encoded, eager float32", f"{seed_ms:.0f} ms", "", True)
    for name, run in runs.items():
        median_ms, p99_ms, cpu_ms, passes = latency(Predictor(open_model(run)), frames)
        ratio = seed_ms / median_ms
        print(f" {name}")
        show("predictions/s against re-encoding", f"{ratio:.0f}×", ">= 50×, aim 100×", ratio >= 50)
        show("  the same by processor time", f"{seed_cpu_ms / cpu_ms:.0f}×", "", True)
        show("frame in to decision out, median", f"{median_ms:.2f} ms", "< 10 ms", median_ms < 10)
        show("frame in to decision out, 99th percentile", f"{p99_ms:.2f} ms", "< 33 ms", p99_ms < 33)
        show("CNN passes per sampled frame", f"{passes:.3f}", "exactly 1", passes == 1)


def latency(predictor: "Predictor", frames: "list[Frame]") -> tuple[float, float, float, float]:
    """Over three passes: milliseconds, median and 99th percentile; mean processor time of all threads, which
    a busy machine changes less; encoder passes a frame."""
    found: list[float] = []
    for turn in range(4):
        predictor.reset()
        if turn == 1:  # the first pass warms up
            start, before = time.process_time(), predictor.num_encoded
        predictions = [predictor.push(frame) for frame in frames]
        if turn:
            found += [p.latency_ms for p in predictions if p is not None]
    cpu_ms = (time.process_time() - start) * 1e3 / len(found)
    passes = (predictor.num_encoded - before) / len(found)
    predictor.close()
    return float(np.median(found)), float(np.percentile(found, 99)), cpu_ms, passes


def window_again(run: Path, frames: "list[Frame]") -> tuple[float, float]:
    """The seed's way: detect in the new frame, all 30 crops through the CNN in eager float32, the head.

    Milliseconds: median, and mean processor time of all threads.
    """
    import torch

    from extract.face.cropper import FaceCropper
    from live.inference.model import open_model, torch_head
    from seqmodel.encoders.backbone import encoder_of

    model = open_model(run, backend="torch")
    assert model.card.recipe.pixels is not None
    encoder, head = encoder_of(model.card.recipe.encoder), torch_head(run, model.card)
    cropper = FaceCropper(model.card.recipe.pixels, model.detector_files)
    torch.set_num_threads(os.cpu_count() or 1)  # live gives its head one; the seed's way gets all
    crops = [cropper.crop(frame.rgb()).image for frame in frames[:30]]
    window = torch.from_numpy(np.stack([crop for crop in crops if crop is not None]))
    found, cpu_start = [], 0.0
    for turn in range(6):
        if turn == 1:
            cpu_start = time.process_time()
        start = time.perf_counter()
        cropper.crop(frames[turn].rgb())
        with torch.inference_mode():
            embeddings = encoder(window).numpy()
        head({"embeddings": embeddings}, {"embeddings": np.ones(len(embeddings), bool)})
        found.append(time.perf_counter() - start)
    cpu_ms = (time.process_time() - cpu_start) * 1e3 / 5
    cropper.close()
    return float(np.median(found[1:])) * 1e3, cpu_ms


# Whole sessions --------------------------------------------------------------------------------------------


def print_session(name: str, run: Path, video: Path) -> None:
    """Start, display, processor and memory of sessions in real time, and growth over a long one."""
    ready_s = 1.5 if (run / "export.json").is_file() else 3.0
    starts = [measured("window", run, video, START_S) for _ in range(NUM_STARTS - 1)]
    seen = measured("window", run, video, SECONDS)
    unseen = measured("headless", run, video, SECONDS)
    long = measured("long", run, video, MINUTES * 60)
    first_s, full_s = (min(s[key] for s in (*starts, seen)) for key in ("first_s", "ready_s"))
    print(f"session: {name}")
    show("start to first displayed frame", f"{first_s:.2f} s", "< 1.5 s", first_s < 1.5)
    show("start to ready model", f"{full_s:.2f} s", f"< {ready_s} s", full_s < ready_s)
    fps, age_ms = seen["fps"], seen["age_ms"]
    show("display loop while predicting", f"{fps:.1f} fps", ">= 30 fps", fps > 29.5)
    show("oldest frame shown", f"{age_ms:.0f} ms", "<= 100 ms", age_ms <= 100)
    for what, found in (("no window", unseen), ("overlay drawn", seen)):
        cpu = found["cpu"]
        show(f"processor, {what}, decoding included", f"{cpu:.0%} of a core", "< 35 %", cpu < 0.35)
    peak = max(found["peak_mb"] for found in (seen, unseen))
    show("resident memory at most", f"{peak:.0f} MB", "< 700 MB", peak < 700)
    growth = f"{long['growth_mb']:+.1f} MB"
    show(f"its growth over {MINUTES:g} minutes of video", growth, "< 10 MB", long["growth_mb"] < 10)
    passes = f"{long['encoded'] / long['rows']:.3f} of {long['rows']} frames"
    show("CNN passes per sampled frame", passes, "exactly 1", long["encoded"] == long["rows"])


def measured(how: str, run: Path, video: Path, seconds: float) -> dict[str, Any]:
    """What a session in a process of its own measured of itself."""
    words = ["--run", str(run), "--video", str(video), "--realtime", "--seconds", str(seconds), "--json"]
    if how != "window":
        words.append("--headless")
    with tempfile.TemporaryDirectory() as folder:
        words += ["--log", str(Path(folder) / "log.csv")]
        command = [sys.executable, "-m", "tests.bench.live", "session", how, str(time.time()), *words]
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


def session(how: str, spawned: float, words: list[str]) -> int:
    """Run the door with a probe for its view; prints what the probe saw after the door's own summary."""
    from live import app
    from live.__main__ import main as cli

    probe = Probe(spawned, shows=how == "window")
    open_source, control_class = app.open_source, app.Control

    def open_probed(camera: int, video: str | None, realtime: bool) -> Any:
        if how == "long":
            from live.sources.base import FileSource

            assert video is not None
            probe.source = FileSource(repeated(video))
        else:
            probe.source = open_source(camera, video, realtime)
        return probe.source

    def make_control(*given: Any, **named: Any) -> Any:
        probe.control = control_class(*given, **named)
        return probe.control

    named: Any = app
    named.open_source, named.Control = open_probed, make_control
    named.window_problem = str
    named._open_view = lambda config, session: probe
    code = cli(words)
    print(json.dumps(probe.figures()))
    return code


def repeated(video: str) -> "Iterator[Frame]":
    """The frames of a video, decoded once, over and over in growing times."""
    from extract.video.reader import Frame, read_video

    frames = [frame.rgb() for frame in read_video(video)][: FPS * 5]
    number = 0
    while True:
        yield Frame(number / FPS, frames[number % len(frames)])
        number += 1


class Probe:
    """A view that is looked at by nobody and takes the time."""

    shows_overlay = True

    def __init__(self, spawned: float, *, shows: bool) -> None:
        self.is_watched = shows
        self.source: Any = None
        self.control: Any = None
        self._spawned = spawned
        self._first_s = self._ready_s = 0.0
        self._ready_at = self._from = self._cpu_from = 0.0
        self._watched_s = self._cpu_s = 0.0
        self._num_shown, self._age_s, self._last_s = 0, 0.0, -1.0
        self._mb: list[tuple[float, float]] = []

    def show(self, picture: np.ndarray) -> None:
        """Count a picture of a new frame, and how old that frame is by now."""
        import cv2

        cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)  # a window's share of the work
        self._first_s = self._first_s or time.time() - self._spawned
        if self.source.last_s != self._last_s and self._from:
            self._num_shown += 1
            self._age_s = max(self._age_s, self.source.now_s() - self.source.last_s)
        self._last_s = self.source.last_s

    def keys(self) -> str:
        """None; asked in every round, which is when the clock and the memory are looked at."""
        now = time.monotonic()
        if self.control.predictor is not None and not self._ready_at:
            self._ready_at, self._ready_s = now, time.time() - self._spawned
        if self._ready_at and not self._from and now - self._ready_at > SETTLE_S:
            self._from, self._cpu_from = now, sum(os.times()[:2])
        if self.source.last_s - (self._mb[-1][0] if self._mb else 0.0) >= 60:
            self._mb.append((self.source.last_s, resident_mb("VmRSS")))
        return ""

    def close(self) -> None:
        """The session is over; the report that follows is no part of it."""
        self._watched_s = max(time.monotonic() - self._from, 1e-3)
        self._cpu_s = sum(os.times()[:2]) - self._cpu_from

    def figures(self) -> dict[str, float]:
        """What was seen; growth from the second minute of video on, when everything has been used once."""
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
    """VmRSS, the memory now, or VmHWM, the most so far, of this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


if __name__ == "__main__":
    sys.exit(main())
