"""A small labelled set of face videos to try everything on: synthetic people who attend or do not.

A dozen pseudo-subjects, made from one public-domain portrait, act ten-second clips. What is labelled is
behaviour over time: everybody looks away, looks down, shuts the eyes or leaves the picture now and then; in
an `engaged` clip each such spell is over within `SHORT_S`, in a `distracted` one a spell lasts `LONG_S`. A
single frame therefore cannot tell: the same poses occur in both. Each video is unlike the others in rest
pose, sway, blinks, light and noise.
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
"""How long a spell of an engaged person lasts, seconds."""
LONG_S = (4.0, 7.5)
"""How long the spell of a distracted one lasts, seconds."""
EASE_S = 0.35
"""How long it takes to turn away or back."""

# The split of each subject in turn, so that even a small set has everything on every side.
SPLITS = ("train", "test", "val", "train", "test", "train", "train", "test", "val", "train", "train", "train")
WITH_GLASSES = (0, 4, 6, 8)
"""Some on every side of the split, so that a threshold chosen on validation means something on test."""

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
SPELLS: tuple[Behaviour, ...] = ("look_left", "look_right", "head_down", "eyes_closed", "leaves")


@dataclass(frozen=True)
class DistractionEvent:
    """A stretch of time spent elsewhere."""

    kind: Behaviour
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Script:
    """What one video shows."""

    path: str
    """File name, relative to the set's folder."""
    label: str
    subject: int
    split: str
    behaviour: str
    events: tuple[DistractionEvent, ...]
    duration_s: float
    seed: int
    """Of everything that is not in the script: rest pose, sway, blinks."""


def demo(config: DemoConfig) -> tuple[dict[str, Any], int]:
    """`python -m extract demo`: write the set; gives summary and exit code."""
    make_demo(config.out, clips=config.clips, seed=config.seed)
    return {"out": str(config.out), "clips": config.clips}, 0


def make_demo(out: Path, clips: int = NUM_CLIPS, seed: int = 0, workers: int | None = None) -> Path:
    """Write `clips` videos with `labels.csv`, and `unseen.mp4` with `unseen.csv`; gives labels.csv's path.

    `workers` processes (2 unless given, where there are so many videos). Raises ValueError for no clips, and
    where another file of that name would be overwritten.
    """
    if clips < 1:
        raise ValueError(f"--clips must be at least 1, got {clips}")
    out = Path(out)
    for name, header in HEADERS.items():
        path = out / name
        if path.exists() and not path.read_bytes().startswith(",".join(header).encode()):
            raise ValueError(f"{path} is there and was not written by the demo: choose another folder")
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
    """The scripts of the labelled clips: subjects take turns, and each alternates between the labels."""
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
    """A further person's minute, and its parts as (start_s, end_s, label)."""
    rng = np.random.default_rng([seed, 2])
    parts = [(0.0, 20.0, "engaged"), (20.0, 40.0, "distracted"), (40.0, 60.0, "engaged")]
    events: list[DistractionEvent] = []
    for start_s, end_s, label in parts:
        calm = label == "engaged"
        events += _spells_until(
            end_s - 0.4,
            start_s + (2.5 if calm else 0.3),
            "mixed",  # stays in the picture
            long_s=SHORT_S if calm else (4.5, 6.5),
            rest_s=(2.0, 4.5) if calm else (0.8, 1.4),
            rng=rng,
        )
    return Script("unseen.mp4", "", NUM_SUBJECTS, "", "", tuple(events), 60.0, 1000 * seed + 999), parts


def looks_of(subject: int, seed: int) -> Looks:
    """What a pseudo-subject looks like."""
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
    """The script acted out, one pose a frame."""
    rng = np.random.default_rng([script.seed, 4])
    times = np.arange(round(script.duration_s * FPS)) / FPS
    rests = (("yaw", 0, 5), ("pitch", -2, 3), ("roll", 0, 3), ("x", 0, 7), ("y", 0, 4))
    track = {name: np.full(len(times), rng.normal(mean, spread)) for name, mean, spread in rests}
    for name, size in (("yaw", 3.0), ("pitch", 2.0), ("roll", 1.8), ("x", 2.5), ("y", 1.2)):
        track[name] += size * _sway(times, rng)
    track["closed"], track["gaze"] = np.zeros(len(times)), np.zeros(len(times))
    for event in script.events:
        for name, amount in _elsewhere(event.kind, rng).items():
            share = _share(times, event)
            track[name] += amount * share if name != "closed" else np.maximum(0, amount * share - track[name])
    blink_s = float(rng.uniform(0.5, 3))
    while blink_s < script.duration_s:
        track["closed"] = np.maximum(track["closed"], np.clip(1.6 - np.abs(times - blink_s) / 0.09, 0, 1))
        blink_s += float(rng.uniform(1.8, 5))
    track["glow"] = 1 + 0.04 * _sway(times, rng)
    return [Pose(**{name: float(values[i]) for name, values in track.items()}) for i in range(len(times))]


def write_video(script: Script, seed: int, out: Path) -> None:
    """Draw and encode one script as H.264."""
    import av
    import cv2

    rendered = _face(script.subject, seed)
    with av.open(str((out / script.path).absolute()), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "21"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        stream.codec_context.thread_count = 1
        for index, pose in enumerate(poses(script)):
            # Both as BT.601; OpenCV takes a tenth of the time that FFmpeg's scaler does.
            yuv = np.asarray(cv2.cvtColor(draw(rendered, pose, index), cv2.COLOR_RGB2YUV_I420), np.uint8)
            frame = av.VideoFrame.from_ndarray(yuv, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _engaged_events(behaviour: Behaviour, rng: np.random.Generator) -> tuple[DistractionEvent, ...]:
    """Up to three short spells, none near another."""
    if behaviour == "steady":
        return ()
    at_s = float(rng.uniform(0.6, 2.2))
    most = int(rng.integers(1, 4)) if behaviour != "leaves" else 1
    return tuple(_spells_until(CLIP_S - 0.5, at_s, behaviour, SHORT_S, (1.6, 3.2), rng, most))


def _spells_until(
    last_s: float,
    at_s: float,
    behaviour: Behaviour,
    long_s: tuple[float, float],
    rest_s: tuple[float, float],
    rng: np.random.Generator,
    most: float = math.inf,
) -> list[DistractionEvent]:
    """Spells from `at_s` on that are over by `last_s`; how long they and the rests between them last."""
    events: list[DistractionEvent] = []
    while len(events) < most:
        kind = SPELLS[int(rng.integers(4))] if behaviour == "mixed" else behaviour
        spell_s = float(rng.uniform(*long_s))
        if at_s + spell_s > last_s:
            break
        events.append(DistractionEvent(kind, at_s, at_s + spell_s))
        at_s += spell_s + float(rng.uniform(*rest_s))
    return events


def _distracted_events(behaviour: Behaviour, rng: np.random.Generator) -> tuple[DistractionEvent, ...]:
    """One long spell, and sometimes a short one where there is room."""
    long_s = float(rng.uniform(*LONG_S))
    start_s = float(rng.uniform(0.4, CLIP_S - 0.4 - long_s))
    kind = SPELLS[int(rng.integers(4))] if behaviour == "mixed" else behaviour
    events = [DistractionEvent(kind, start_s, start_s + long_s)]
    if behaviour == "mixed" and CLIP_S - events[0].end_s > 2.6:
        again_s = events[0].end_s + 1.2
        events.append(
            DistractionEvent(SPELLS[int(rng.integers(4))], again_s, again_s + float(rng.uniform(0.5, 0.9)))
        )
    return tuple(events)


def _elsewhere(kind: Behaviour, rng: np.random.Generator) -> dict[str, float]:
    """How far from rest a spell of this kind takes each part of the pose."""
    if kind in ("look_left", "look_right"):
        side = -1.0 if kind == "look_left" else 1.0
        return {"yaw": side * float(rng.uniform(24, 40)), "pitch": float(rng.normal(0, 4)), "gaze": side}
    if kind == "head_down":
        return {"pitch": float(rng.uniform(-30, -21)), "yaw": float(rng.normal(0, 5)), "y": -3.0}
    if kind == "eyes_closed":
        return {"closed": 1.0, "pitch": float(rng.uniform(-6, 0)), "roll": float(rng.normal(0, 3))}
    side = float(rng.choice([-1.0, 1.0]))
    return {"x": side * 300.0, "yaw": side * 25.0}


def _share(times: np.ndarray, event: DistractionEvent) -> np.ndarray:
    """How much of a spell is there at each time: 0, a smooth rise, 1, a smooth fall."""
    ease_s = 0.12 if event.kind == "eyes_closed" else EASE_S
    ramp = np.minimum(times - (event.start_s - ease_s / 2), (event.end_s + ease_s / 2) - times) / ease_s
    ramp = np.clip(ramp, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _sway(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The small movements of somebody who sits still: three slow waves, about -1 to 1."""
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
