"""What a viewer sees: the picture with the tracked face, and a panel below it that never hides the face.

`draw` is a function of its arguments and keeps no state.

Images are RGB uint8 (H, W, 3).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from live.inference.predictor import NORMAL_S, Prediction
from live.inference.state_machine import State
from live.ui.drawing import (
    FAINT,
    INK,
    PAPER,
    STATE_WORDS,
    TROUGH,
    Colour,
    TimelinePoint,
    colour_of,
    paint_text,
    paint_timeline,
    text_width,
)
from seqmodel.runs.training_stats import level_of

MIN_WIDTH_PX = 640
"""Smaller pictures are enlarged to this width: the panel's text would not fit otherwise."""
TIMELINE_S = 180.0
"""Length of the timeline, seconds."""
KEYS = "q quit  p pause  r record  space mark  c calibrate  x uncalibrate  g signals"
LOCAL_ONLY = "local only, not recording"
RECORDING_COLOUR = (250, 110, 100)
SIGNAL_COLOUR = (120, 190, 240)
BOTH_WAYS = ("gaze", "yaw")
"""Signals from -1 (left edge of the picture) to 1 (right edge); the others are shares."""


@dataclass(frozen=True)
class Status:
    """What the panel tells beside the prediction."""

    fps: float = 0.0
    """Frames shown a second."""
    recording: bool = False
    personal: str = ""
    """Name of the personal calibration in force, or empty."""
    message: str = ""
    """A line for the user, as what the calibration asks for now."""
    state: State | None = None
    """Overrides the prediction's state: `paused` and `camera_lost` have no prediction."""
    shows_signals: bool = False
    """Whether the strongest signals of the geometry are drawn into the picture."""


def draw(
    image: np.ndarray, prediction: Prediction | None, points: Sequence[TimelinePoint], status: Status
) -> np.ndarray:
    """The picture with boxes and the panel below it.

    image: RGB uint8 (H, W, 3). prediction: the last one, None before the first. moments: oldest first.
    Returns a new RGB uint8 array (H + panel, W, 3), enlarged to at least MIN_WIDTH_PX, its sides even as
    video codecs want them.
    """
    scale = max(1.0, MIN_WIDTH_PX / image.shape[1])
    height, width = (round(side * scale / 2) * 2 for side in image.shape[:2])
    size = max(14, round(width / 42))
    panel_px = round(size * 7.6 / 2) * 2
    canvas = np.empty((height + panel_px, width, 3), np.uint8)
    canvas[:height] = image if image.shape[:2] == (height, width) else cv2.resize(image, (width, height))
    canvas[height:] = PAPER
    state = status.state or (prediction.state if prediction else "warming_up")
    colour = colour_of(state, timeline_point(prediction).tone if prediction else 1.0)
    if status.state is None:
        _boxes(canvas[:height], prediction, scale)
        if status.shows_signals and prediction is not None:
            _signals(canvas[:height], prediction.signals, size)
    _headline(canvas[height:], prediction, state, colour, status, size)
    line, pad = height + round(size * 2.5), size // 2
    now_s = points[-1].t_s if points else 0.0
    paint_timeline(
        canvas[line : line + round(size * 2.2), pad : width - pad], points, now_s - TIMELINE_S, now_s
    )
    _footer(canvas, prediction, status, round(size * 0.85), line + round(size * 2.35), pad)
    if status.message:
        _banner(canvas[:height], status.message, size)
    return canvas


def draw_boxes(image: np.ndarray, prediction: Prediction | None) -> np.ndarray:
    """A copy of the picture, RGB uint8 (H, W, 3), with the face boxes of a prediction."""
    picture = image.copy()
    _boxes(picture, prediction, 1.0)
    return picture


def normal_line(prediction: Prediction) -> str:
    """How far the person's normal is learned, in words; empty where the run takes none off."""
    if math.isnan(prediction.normal_s):
        return ""
    if prediction.normal_s >= NORMAL_S:
        return "your normal is learned"
    return f"learning your normal ({prediction.normal_s:.0f} s)"


def filled_line(prediction: Prediction) -> str:
    """How much of the window was seen, in words; empty once all of it was."""
    return f"window {prediction.filled:.0%} full" if prediction.filled < 0.995 else ""


def figure_line(prediction: Prediction) -> str:
    """What the bar shows, in words: the last class's probability of two, an expected level, or the largest
    probability, whose class is said already."""
    level = f"{float(level_of(prediction.p, prediction.task)):.0%}"
    if prediction.task == "binary":
        return f"{prediction.names[-1]} {level}"
    return f"level {level}" if prediction.task == "ordinal" else level


def timeline_point(prediction: Prediction, mark: str = "") -> TimelinePoint:
    """A prediction's place on the timeline."""
    tone = prediction.names.index(prediction.label) / (len(prediction.names) - 1) if prediction.label else 1.0
    known = prediction.state in ("ok", "unsure")
    level = float(level_of(prediction.p, prediction.task)) if known else float("nan")
    return TimelinePoint(prediction.t_s, prediction.state, level, tone, mark)


def headline(prediction: Prediction | None, state: State) -> str:
    """What is said now, in a word or two."""
    if prediction is None or state in ("paused", "camera_lost", "no_face"):
        return STATE_WORDS[state]
    if state == "warming_up":
        return f"{STATE_WORDS[state]} {prediction.filled:.0%}"
    return prediction.label if state == "ok" else STATE_WORDS[state]


def _boxes(image: np.ndarray, prediction: Prediction | None, scale: float) -> None:
    if prediction is None:
        return
    for box in prediction.others:
        _box(image, box, scale, FAINT, 1)
    if prediction.box is not None:
        _box(image, prediction.box, scale, colour_of(prediction.state, timeline_point(prediction).tone), 2)


def _box(image: np.ndarray, box: Sequence[float], scale: float, colour: Colour, thick: int) -> None:
    x0, y0, x1, y1 = (round(side * scale) for side in box)
    # Dark below, colour above: one of the two stands out on any background.
    cv2.rectangle(image, (x0, y0), (x1, y1), (0, 0, 0), thick + 2)
    cv2.rectangle(image, (x0, y0), (x1, y1), colour, thick)


def _headline(
    panel: np.ndarray, prediction: Prediction | None, state: State, colour: Colour, status: Status, size: int
) -> None:
    """State, probability or level as a bar, and whether anything is recorded."""
    width, pad = panel.shape[1], size // 2
    top = pad + 2
    panel[:3] = colour
    cv2.circle(panel, (pad + size // 2, top + size * 3 // 4), size // 2 - 1, colour, -1, cv2.LINE_AA)
    place = (pad + size + size // 2, top)
    end = paint_text(panel, headline(prediction, state), place, round(size * 1.15), INK)
    kept, ink = ("● recording", RECORDING_COLOUR) if status.recording else (LOCAL_ONLY, FAINT)
    paint_text(panel, kept, (width - pad, top), size, ink, "right")
    if prediction is None or state not in ("ok", "unsure"):
        return
    level = float(level_of(prediction.p, prediction.task))
    figure = figure_line(prediction)
    left = max(end + size, round(width * 0.24))
    right = width - 2 * size - text_width(LOCAL_ONLY, size) - text_width(figure, size)
    if right - left >= 2 * size:  # else no room beside long names
        y0, y1 = top + size // 3, top + round(size * 1.25)
        panel[y0:y1, left:right] = TROUGH
        panel[y0:y1, left : left + round((right - left) * level)] = colour
        paint_text(panel, figure, (right + size // 2, top), size, INK)


def _footer(
    canvas: np.ndarray, prediction: Prediction | None, status: Status, size: int, top: int, pad: int
) -> None:
    """Rates and shares, and the keys below them."""
    facts = [f"{status.fps:.0f} fps"]
    if prediction is not None:
        facts += [f"{prediction.latency_ms:.0f} ms", f"face {prediction.coverage:.0%} of the window"]
        facts += [line for line in (filled_line(prediction), normal_line(prediction)) if line]
    if status.personal:
        facts.append(f"personal: {status.personal}")
    if prediction is not None and prediction.others:
        facts.append("following the same face as before, else the largest")  # last: it may leave the picture
    paint_text(canvas, "   ".join(facts), (pad, top), size, FAINT)
    paint_text(canvas, KEYS, (pad, top + round(size * 1.4)), size, FAINT)


def _signals(image: np.ndarray, signals: Mapping[str, float], size: int) -> None:
    """A gauge a signal at the picture's lower left: from the left edge for shares, from the middle for what
    goes both ways."""
    width, line = size * 7, round(size * 1.5)
    top, left = image.shape[0] - line * len(signals), size * 6
    image[top:, : left + width + size] //= 4
    for name, value in signals.items():
        paint_text(image, name, (size // 2, top), size, INK)
        y0, y1 = top + size // 3, top + size
        image[y0:y1, left : left + width] = TROUGH
        both_ways = name in BOTH_WAYS
        start = left + width // 2 if both_ways else left
        end = start + round((width // 2 if both_ways else width) * min(1.0, max(-1.0, value)))
        image[y0:y1, min(start, end) : max(start, end, start + 2)] = SIGNAL_COLOUR
        top += line


def _banner(image: np.ndarray, message: str, size: int) -> None:
    height = round(size * 2.2)
    image[:height] = image[:height] // 4
    paint_text(image, message, (image.shape[1] // 2, size // 3), round(size * 1.1), INK, "centre")
