"""The demo data set: a small labelled set of synthetic face videos, engaged or distracted.

Sixteen made-up people, with ten clips of ten seconds each, are made from one public-domain portrait: seven to
train, three to validate, six to test. What they do in a clip, and so its label, is in
extract/demo/scripts.py. Videos differ in rest pose, sway, blinks, light
and noise.
"""

import colorsys
import contextlib
import csv
import multiprocessing
import signal
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from extract.config import NUM_CLIPS, DemoConfig
from extract.demo.renderer import HEIGHT, WIDTH, Looks, RenderedFace, draw, make_face
from extract.demo.scripts import FPS, Script, clip_scripts, poses, unseen_script
from features.cli import STOPS, UserError, progress
from features.files import signals_held

WITH_GLASSES = (0, 4, 7, 8, 14)
"""Subjects with glasses: some in every subset, so that a threshold from validation is useful on test."""

STATEMENT = """\
# Written by extract demo.
name = "brainbuddy demo"
version = "2"
licence = "the portrait (NASA) is in the public domain"
synthetic = true
labelled = "engaged or distracted, per clip of ten seconds: a distracted clip has an event of 4 s or more"
raters = "labels by construction"
recruitment = "made from one portrait"
consent = "not needed: the portrait is public"
camera = "rendered, 320 x 240 pixels, 20 frames/s"
language = "none: the videos have no sound"
"""
"""The set's `dataset.toml`."""
HEADERS = {
    "labels.csv": ("path", "label", "subject", "split", "behaviour", "glasses"),
    "unseen.csv": ("start_s", "end_s", "label"),
}


def demo(config: DemoConfig) -> tuple[dict[str, Any], int]:
    """`python -m extract demo`: write the data set; returns (summary, exit code)."""
    make_demo(config.out, clips=config.clips, seed=config.seed)
    return {"out": str(config.out), "clips": config.clips}, 0


def make_demo(out: Path, clips: int = NUM_CLIPS, seed: int = 0, workers: int | None = None) -> Path:
    """Write `clips` videos with `labels.csv` and `dataset.toml`, and `unseen.mp4` with `unseen.csv`; returns
    labels.csv's path.

    workers: number of processes (default 2, if there are enough videos). Raises UserError for `clips` below
    1, and if a file of that name exists that the demo has not written.
    """
    if clips < 1:
        raise UserError(f"--clips must be at least 1, got {clips}")
    out = Path(out)
    starts = {"dataset.toml": STATEMENT.split("\n")[0]} | {
        name: ",".join(header) for name, header in HEADERS.items()
    }
    for name, start in starts.items():
        path = out / name
        if path.exists() and not path.read_bytes().startswith(start.encode()):
            raise UserError(f"{path} exists and was not written by the demo: choose another folder")
    for name in starts:  # of earlier videos, which are replaced now
        (out / name).unlink(missing_ok=True)
    (out / "clips").mkdir(parents=True, exist_ok=True)
    scripts = clip_scripts(clips, seed)
    unseen, parts = unseen_script(seed)
    jobs = sorted([(script, seed, out) for script in [*scripts, unseen]], key=lambda job: job[0].subject)
    workers = min(2 if workers is None else workers, max(1, len(jobs) // 8))
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress("videos"))
        task = bar.add_task("writing demo videos", total=len(jobs))
        done: Iterable[None] = map(_write_job, jobs)
        if workers > 1:
            # SIGTERM ends the processes of a pool.
            with signals_held(signal.SIGINT, *(number for number in STOPS if number != signal.SIGTERM)):
                pool = multiprocessing.get_context("spawn").Pool(workers, initializer=_start)
            done = stack.enter_context(pool).imap_unordered(_write_job, jobs, chunksize=4)
        for _ in done:
            bar.advance(task)
    glasses = ["yes" if looks_of(s.subject, seed).glasses else "no" for s in scripts]
    labels = [
        (s.path, s.label, f"p{s.subject:02d}", s.split, s.behaviour, has_glasses)
        for s, has_glasses in zip(scripts, glasses, strict=True)
    ]
    (out / "dataset.toml").write_text(STATEMENT, encoding="utf-8", newline="\n")
    for name, rows in (("labels.csv", labels), ("unseen.csv", parts)):
        with (out / name).open("w", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADERS[name], *rows])
    return out / "labels.csv"


def looks_of(subject: int, seed: int) -> Looks:
    """The appearance of a synthetic subject."""
    rng = np.random.default_rng([seed, 3, subject])

    def colour(saturation: float, low: float, high: float) -> tuple[int, int, int]:
        rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, saturation), rng.uniform(low, high))
        return (int(255 * rgb[0]), int(255 * rgb[1]), int(255 * rgb[2]))

    tan = float(rng.uniform(0, 1)) ** 1.3
    dark, red = float(rng.uniform(0.25, 1.15)), float(rng.uniform(0.92, 1.12))
    return Looks(
        mirror=bool(rng.random() < 0.5),
        skin=(1.02 - 0.40 * tan, 1.0 - 0.50 * tan, 1.0 - 0.56 * tan),
        hair=(dark * red, dark, dark * float(rng.uniform(0.85, 1.25))),
        cloth=colour(0.8, 0.2, 0.85),
        wall=colour(0.35, 0.3, 0.9),
        light=(float(rng.uniform(-0.8, 0.8)), float(rng.uniform(-0.5, 0.5))),
        gamma=float(rng.uniform(0.8, 1.25)),
        width=float(rng.uniform(0.92, 1.08)),
        jaw=float(rng.uniform(0.9, 1.1)),
        nose=float(rng.uniform(0.85, 1.2)),
        eyes=float(rng.uniform(0.92, 1.15)),
        smile=float(rng.uniform(-1.0, 0.3)),
        glasses=subject in WITH_GLASSES,
        zoom=float(rng.uniform(0.88, 1.08)),
        seed=int(rng.integers(1 << 30)),
    )


def write_video(script: Script, seed: int, out: Path) -> None:
    """Draw one script and encode it as H.264."""
    import av
    import cv2

    rendered = _face(script.subject, seed)
    with av.open(str((out / script.path).absolute()), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "21"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        stream.codec_context.thread_count = 1
        for index, pose in enumerate(poses(script)):
            # OpenCV and FFmpeg both convert with BT.601; OpenCV takes a tenth of the time.
            yuv = np.asarray(cv2.cvtColor(draw(rendered, pose, index), cv2.COLOR_RGB2YUV_I420), np.uint8)
            frame = av.VideoFrame.from_ndarray(yuv, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@lru_cache(maxsize=1)
def _face(subject: int, seed: int) -> RenderedFace:
    return make_face(looks_of(subject, seed))


def _start() -> None:
    """Initialise a process of the pool; Ctrl-C reaches it too, but the parent ends it."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _write_job(job: tuple[Script, int, Path]) -> None:
    write_video(*job)
