"""What the subjects of the demo do: the events of each video, and the pose in every frame.

The label depends on behaviour over time: in every clip the subject may look away, look down, close the eyes
or leave the picture. In an `engaged` clip such an event lasts `SHORT_S`, in a `distracted` clip one lasts
`LONG_S`. A single frame does not show the label, because the same poses occur in both.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from extract.demo.renderer import Pose

FPS = 20
CLIP_S = 10.0
NUM_SUBJECTS = 16
SHORT_S = (0.5, 1.3)
"""Range of the length of an event in an engaged clip, seconds."""
LONG_S = (4.0, 7.5)
"""Range of the length of the long event in a distracted clip, seconds."""
EASE_S = 0.35
"""Time to turn away or back, seconds."""

# The split of each subject in order, so that even a small set has all labels in every subset.
SPLITS = (
    "train", "test", "val", "train", "test", "train", "test", "val",
    "train", "test", "train", "test", "train", "val", "test", "train",
)  # fmt: skip

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
