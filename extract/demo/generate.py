"""The demo data set: a small labelled set of synthetic face videos, engaged or distracted.

Twelve synthetic subjects are made from one public-domain portrait and shown in ten-second clips. The label
depends on behaviour over time: in every clip the subject may look away, look down, close the eyes or leave
the picture. In an `engaged` clip such an event lasts `SHORT_S`, in a `distracted` clip one lasts `LONG_S`. A
single frame does not show the label, because the same poses occur in both. Videos differ in rest pose, sway,
blinks, light and noise.
"""

import colorsys
import contextlib
import csv
import math
import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from extract.config import NUM_CLIPS, DemoConfig
from extract.demo.renderer import HEIGHT, WIDTH, Looks, Pose, RenderedFace, draw, make_face
from features.cli import progress

FPS = 20
CLIP_S = 10.0
NUM_SUBJECTS = 12
SHORT_S = (0.5, 1.3)
"""Range of the length of an event in an engaged clip, seconds."""
LONG_S = (4.0, 7.5)
"""Range of the length of the long event in a distracted clip, seconds."""
EASE_S = 0.35
"""Time to turn away or back, seconds."""

# The split of each subject in order, so that even a small set has all labels in every subset.
SPLITS = ("train", "test", "val", "train", "test", "train", "train", "test", "val", "train", "train", "train")
WITH_GLASSES = (0, 4, 6, 8)
"""Subjects with glasses: some in every subset, so that a threshold from validation is useful on test."""

HEADERS = {
    "labels.csv": ("path", "label", "subject", "split", "behaviour", "glasses"),
    "unseen.csv": ("start_s", "end_s", "label"),
}

Behaviour = Literal["look_left", "look_right", "head_down", "eyes_closed", "leaves", "mixed", "steady"]
ENGAGED: tuple[Behaviour, ...] = (
    "look_left", "look_right", "head_down", "eyes_closed", "mixed", "leaves", "steady",
)  # fmt: skip
DISTRACTED: tuple[Behaviour, ...] = (
    "look_right", "eyes_closed", "look_left", "mixed", "head_down", "mixed", "leaves",
)  # fmt: skip
EVENT_KINDS: tuple[Behaviour, ...] = ("look_left", "look_right", "head_down", "eyes_closed", "leaves")


@dataclass(frozen=True)
class DistractionEvent:
    """A time span in which the subject does not attend."""

    kind: Behaviour
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Script:
    """The content of one video."""

    path: str
    """File name, relative to the set's folder."""
    label: str
    subject: int
    split: str
    behaviour: str
    events: tuple[DistractionEvent, ...]
    duration_s: float
    seed: int
    """Random seed of what is not in the script: rest pose, sway, blinks."""


def demo(config: DemoConfig) -> tuple[dict[str, Any], int]:
    """`python -m extract demo`: write the data set; returns (summary, exit code)."""
    make_demo(config.out, clips=config.clips, seed=config.seed)
    return {"out": str(config.out), "clips": config.clips}, 0


def make_demo(out: Path, clips: int = NUM_CLIPS, seed: int = 0, workers: int | None = None) -> Path:
    """Write `clips` videos with `labels.csv`, and `unseen.mp4` with `unseen.csv`; returns labels.csv's path.

    workers: number of processes (default 2, if there are enough videos). Raises ValueError for `clips` below
    1, and if a file of that name exists that the demo has not written.
    """
    if clips < 1:
        raise ValueError(f"--clips must be at least 1, got {clips}")
    out = Path(out)
    for name, header in HEADERS.items():
        path = out / name
        if path.exists() and not path.read_bytes().startswith(",".join(header).encode()):
            raise ValueError(f"{path} exists and was not written by the demo: choose another folder")
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
            pool = multiprocessing.get_context("spawn").Pool(workers, initializer=_one_thread)
            done = stack.enter_context(pool).imap_unordered(_write_job, jobs, chunksize=4)
        for _ in done:
            bar.advance(task)
    glasses = ["yes" if looks_of(s.subject, seed).glasses else "no" for s in scripts]
    labels = [
        (s.path, s.label, f"p{s.subject:02d}", s.split, s.behaviour, worn)
        for s, worn in zip(scripts, glasses, strict=True)
    ]
    for name, rows in (("labels.csv", labels), ("unseen.csv", parts)):
        with (out / name).open("w", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADERS[name], *rows])
    return out / "labels.csv"


def clip_scripts(clips: int, seed: int) -> list[Script]:
    """The scripts of the labelled clips: subjects take turns, and each subject alternates between labels."""
    scripts = []
    for index in range(clips):
        subject, turn = index % NUM_SUBJECTS, index // NUM_SUBJECTS
        engaged = (subject + turn) % 2 == 0
        kinds = ENGAGED if engaged else DISTRACTED
        behaviour = kinds[(turn // 2 + subject // 2) % len(kinds)]
        rng = np.random.default_rng([seed, 1, index])
        scripts.append(
            Script(
                path=f"clips/p{subject:02d}_{turn:02d}.mp4",
                label="engaged" if engaged else "distracted",
                subject=subject,
                split=SPLITS[subject],
                behaviour=behaviour,
                events=_engaged_events(behaviour, rng) if engaged else _distracted_events(behaviour, rng),
                duration_s=CLIP_S,
                seed=1000 * seed + index,
            )
        )
    return scripts


def unseen_script(seed: int) -> tuple[Script, list[tuple[float, float, str]]]:
    """(script of a one-minute video of a subject that is not in the clips, its (start_s, end_s, label))."""
    rng = np.random.default_rng([seed, 2])
    parts = [(0.0, 20.0, "engaged"), (20.0, 40.0, "distracted"), (40.0, 60.0, "engaged")]
    events: list[DistractionEvent] = []
    for start_s, end_s, label in parts:
        calm = label == "engaged"
        events += _events_until(
            end_s - 0.4,
            start_s + (2.5 if calm else 0.3),
            "mixed",  # the subject stays in the picture
            long_s=SHORT_S if calm else (4.5, 6.5),
            rest_s=(2.0, 4.5) if calm else (0.8, 1.4),
            rng=rng,
        )
    return Script("unseen.mp4", "", NUM_SUBJECTS, "", "", tuple(events), 60.0, 1000 * seed + 999), parts


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


def poses(script: Script) -> list[Pose]:
    """The poses of a script, one per frame."""
    rng = np.random.default_rng([script.seed, 4])
    times = np.arange(round(script.duration_s * FPS)) / FPS
    rests = (("yaw", 0, 5), ("pitch", -2, 3), ("roll", 0, 3), ("x", 0, 7), ("y", 0, 4))
    track = {name: np.full(len(times), rng.normal(mean, spread)) for name, mean, spread in rests}
    for name, size in (("yaw", 3.0), ("pitch", 2.0), ("roll", 1.8), ("x", 2.5), ("y", 1.2)):
        track[name] += size * _sway(times, rng)
    track["closed"], track["gaze"] = np.zeros(len(times)), np.zeros(len(times))
    for event in script.events:
        for name, amount in _pose_change(event.kind, rng).items():
            weight = _weight(times, event)
            change = amount * weight
            track[name] += change if name != "closed" else np.maximum(0, change - track[name])
    blink_s = float(rng.uniform(0.5, 3))
    while blink_s < script.duration_s:
        track["closed"] = np.maximum(track["closed"], np.clip(1.6 - np.abs(times - blink_s) / 0.09, 0, 1))
        blink_s += float(rng.uniform(1.8, 5))
    track["glow"] = 1 + 0.04 * _sway(times, rng)
    return [Pose(**{name: float(values[i]) for name, values in track.items()}) for i in range(len(times))]


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


def _engaged_events(behaviour: Behaviour, rng: np.random.Generator) -> tuple[DistractionEvent, ...]:
    """Up to three short events with pauses between them."""
    if behaviour == "steady":
        return ()
    at_s = float(rng.uniform(0.6, 2.2))
    most = int(rng.integers(1, 4)) if behaviour != "leaves" else 1
    return tuple(_events_until(CLIP_S - 0.5, at_s, behaviour, SHORT_S, (1.6, 3.2), rng, most))


def _events_until(
    last_s: float,
    at_s: float,
    behaviour: Behaviour,
    long_s: tuple[float, float],
    rest_s: tuple[float, float],
    rng: np.random.Generator,
    most: float = math.inf,
) -> list[DistractionEvent]:
    """Events from `at_s` on that end before `last_s`. long_s, rest_s: ranges of the lengths of events and of
    the pauses between them, seconds."""
    events: list[DistractionEvent] = []
    while len(events) < most:
        kind = EVENT_KINDS[int(rng.integers(4))] if behaviour == "mixed" else behaviour
        event_s = float(rng.uniform(*long_s))
        if at_s + event_s > last_s:
            break
        events.append(DistractionEvent(kind, at_s, at_s + event_s))
        at_s += event_s + float(rng.uniform(*rest_s))
    return events


def _distracted_events(behaviour: Behaviour, rng: np.random.Generator) -> tuple[DistractionEvent, ...]:
    """One long event, and sometimes a short one if there is time."""
    long_s = float(rng.uniform(*LONG_S))
    start_s = float(rng.uniform(0.4, CLIP_S - 0.4 - long_s))
    kind = EVENT_KINDS[int(rng.integers(4))] if behaviour == "mixed" else behaviour
    events = [DistractionEvent(kind, start_s, start_s + long_s)]
    if behaviour == "mixed" and CLIP_S - events[0].end_s > 2.6:
        again_s = events[0].end_s + 1.2
        events.append(
            DistractionEvent(
                EVENT_KINDS[int(rng.integers(4))], again_s, again_s + float(rng.uniform(0.5, 0.9))
            )
        )
    return tuple(events)


def _pose_change(kind: Behaviour, rng: np.random.Generator) -> dict[str, float]:
    """Change of each pose parameter from rest in an event of this kind."""
    if kind in ("look_left", "look_right"):
        side = -1.0 if kind == "look_left" else 1.0
        return {"yaw": side * float(rng.uniform(24, 40)), "pitch": float(rng.normal(0, 4)), "gaze": side}
    if kind == "head_down":
        return {"pitch": float(rng.uniform(-30, -21)), "yaw": float(rng.normal(0, 5)), "y": -3.0}
    if kind == "eyes_closed":
        return {"closed": 1.0, "pitch": float(rng.uniform(-6, 0)), "roll": float(rng.normal(0, 3))}
    side = float(rng.choice([-1.0, 1.0]))
    return {"x": side * 300.0, "yaw": side * 25.0}


def _weight(times: np.ndarray, event: DistractionEvent) -> np.ndarray:
    """Weight of an event at each time, 0 to 1, with a smooth rise and fall."""
    ease_s = 0.12 if event.kind == "eyes_closed" else EASE_S
    ramp = np.minimum(times - (event.start_s - ease_s / 2), (event.end_s + ease_s / 2) - times) / ease_s
    ramp = np.clip(ramp, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _sway(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Small head movements of a subject that sits still: the sum of three slow waves, about -1 to 1."""
    total = np.zeros(len(times))
    for period_s in (7.0, 3.1, 1.3):
        phase, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.2)
        total += 0.45 * period_s**0.5 / 2 * np.sin(2 * math.pi * times / (period_s * stretch) + phase)
    return total


@lru_cache(maxsize=1)
def _face(subject: int, seed: int) -> RenderedFace:
    return make_face(looks_of(subject, seed))


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _write_job(job: tuple[Script, int, Path]) -> None:
    write_video(*job)
