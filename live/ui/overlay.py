"""The overlay: the picture with face boxes, and a panel below it that never hides the face.

`draw` keeps no state.

Images are RGB uint8 (H, W, 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from live.inference.predictor import Prediction
from live.inference.state_machine import State
from live.ui.drawing import FAINT, INK, PAPER, STATE_TEXTS, TRACK, Colour, colour_of, paint_text, text_width
from live.ui.timeline import TimelinePoint, paint_timeline
from seqmodel.runs.training_stats import level_of

MIN_WIDTH_PX = 640
"""Smaller pictures are enlarged to this width, so that the panel's text fits."""
TIMELINE_S = 180.0
"""Length of the timeline, seconds."""
KEYS = "q quit  p pause  r record  space mark  c calibrate  x uncalibrate  g signals"
RECORDING_TEXTS = ("local only, not recording", "● recording")
"""Not recording, recording."""
RECORDING_COLOUR = (250, 110, 100)
SIGNAL_COLOUR = (120, 190, 240)
BOTH_WAYS = ("gaze", "yaw")
"""Signals from -1 (left edge of the picture) to 1 (right edge); the others are shares."""


@dataclass(frozen=True)
class Status:
    """Contents of the panel other than the prediction."""

    fps: float = 0.0
    """Displayed frames per second."""
    recording: bool = False
    personal: str = ""
    """Subject of the active personal calibration, or empty."""
    message: str = ""
    """A message for the user, for example a calibration instruction."""
    state: State | None = None
    """`paused` or `camera_lost`, which replace the state of the prediction; else None."""
    shows_signals: bool = False
    """Whether the strongest geometry signals are drawn into the picture."""
    notice: str = ""
    """A last line of the panel, for example that the model learned synthetic data."""


def draw(
    image: np.ndarray, prediction: Prediction | None, points: Sequence[TimelinePoint], status: Status
) -> np.ndarray:
    """The picture with boxes and the panel below it.

    image: RGB uint8 (H, W, 3). prediction: the last one, None before the first. points: oldest first.
    Returns a new RGB uint8 array (H + panel, W, 3), at least MIN_WIDTH_PX wide, with even width and height
    for video codecs.
    """
    scale = max(1.0, MIN_WIDTH_PX / image.shape[1])
    height, width = (round(length * scale / 2) * 2 for length in image.shape[:2])
    size = max(14, round(width / 42))
    panel_px = round(size * (8.9 if status.notice else 7.6) / 2) * 2
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


def filled_text(prediction: Prediction) -> str:
    """Filled share of the window; empty when the window is full."""
    return f"window {prediction.filled:.0%} full" if prediction.filled < 0.995 else ""


def value_text(prediction: Prediction) -> str:
    """The value of the bar: the last class's probability (binary), the expected level (ordinal) or the
    largest probability (multiclass)."""
    level = f"{float(level_of(prediction.p, prediction.task)):.0%}"
    if prediction.task == "binary":
        return f"{prediction.names[-1]} {level}"
    return f"level {level}" if prediction.task == "ordinal" else level


def timeline_point(prediction: Prediction, mark: str = "") -> TimelinePoint:
    """The point of a prediction on the timeline."""
    tone = prediction.names.index(prediction.label) / (len(prediction.names) - 1) if prediction.label else 1.0
    known = prediction.state in ("ok", "unsure")
    level = float(level_of(prediction.p, prediction.task)) if known else float("nan")
    return TimelinePoint(prediction.t_s, prediction.state, level, tone, mark)


def headline(prediction: Prediction | None, state: State) -> str:
    """The displayed class or state."""
    if prediction is None or state in ("paused", "camera_lost", "no_face"):
        return STATE_TEXTS[state]
    if state == "warming_up":
        return f"{STATE_TEXTS[state]} {prediction.filled:.0%}"
    return prediction.label if state == "ok" else STATE_TEXTS[state]


def _boxes(image: np.ndarray, prediction: Prediction | None, scale: float) -> None:
    if prediction is None:
        return
    for box in prediction.others:
        _box(image, box, scale, FAINT, 1)
    if prediction.box is not None:
        _box(image, prediction.box, scale, colour_of(prediction.state, timeline_point(prediction).tone), 2)


def _box(image: np.ndarray, box: Sequence[float], scale: float, colour: Colour, thick: int) -> None:
    x0, y0, x1, y1 = (round(edge * scale) for edge in box)
    # A dark line under the coloured one: visible on any background.
    cv2.rectangle(image, (x0, y0), (x1, y1), (0, 0, 0), thick + 2)
    cv2.rectangle(image, (x0, y0), (x1, y1), colour, thick)


def _headline(
    panel: np.ndarray, prediction: Prediction | None, state: State, colour: Colour, status: Status, size: int
) -> None:
    """Draw the state, the probability or level as a bar, and whether the session is recorded."""
    width, pad = panel.shape[1], size // 2
    top = pad + 2
    panel[:3] = colour
    cv2.circle(panel, (pad + size // 2, top + size * 3 // 4), size // 2 - 1, colour, -1, cv2.LINE_AA)
    position = (pad + size + size // 2, top)
    end = paint_text(panel, headline(prediction, state), position, round(size * 1.15), INK)
    ink = RECORDING_COLOUR if status.recording else FAINT
    paint_text(panel, RECORDING_TEXTS[status.recording], (width - pad, top), size, ink, "right")
    if prediction is None or state not in ("ok", "unsure"):
        return
    level = float(level_of(prediction.p, prediction.task))
    value = value_text(prediction)
    left = max(end + size, round(width * 0.24))
    right = width - 2 * size - text_width(RECORDING_TEXTS[0], size) - text_width(value, size)
    if right - left >= 2 * size:  # else there is no room next to long names
        y0, y1 = top + size // 3, top + round(size * 1.25)
        panel[y0:y1, left:right] = TRACK
        panel[y0:y1, left : left + round((right - left) * level)] = colour
        paint_text(panel, value, (right + size // 2, top), size, INK)


def _footer(
    canvas: np.ndarray, prediction: Prediction | None, status: Status, size: int, top: int, pad: int
) -> None:
    """Draw frame rate, latency and shares; below them the keys, and the notice if there is one."""
    details = [f"{status.fps:.0f} fps"]
    if prediction is not None:
        details += [f"{prediction.latency_ms:.0f} ms", f"face in {prediction.coverage:.0%} of the window"]
        details += [filled_text(prediction)] if filled_text(prediction) else []
    if status.personal:
        details.append(f"calibrated: {status.personal}")
    if prediction is not None and prediction.others:
        details.append("several faces: using the previous face, else the largest")  # last: it may be cut off
    paint_text(canvas, "   ".join(details), (pad, top), size, FAINT)
    paint_text(canvas, KEYS, (pad, top + round(size * 1.4)), size, FAINT)
    paint_text(canvas, status.notice, (pad, top + round(size * 2.8)), size, RECORDING_COLOUR)


def _signals(image: np.ndarray, signals: Mapping[str, float], size: int) -> None:
    """Draw one gauge per signal at the lower left: shares start at the left edge, BOTH_WAYS in the middle."""
    width, line = size * 7, round(size * 1.5)
    top, left = image.shape[0] - line * len(signals), size * 6
    image[top:, : left + width + size] //= 4
    for name, value in signals.items():
        paint_text(image, name, (size // 2, top), size, INK)
        y0, y1 = top + size // 3, top + size
        image[y0:y1, left : left + width] = TRACK
        both_ways = name in BOTH_WAYS
        start = left + width // 2 if both_ways else left
        end = start + round((width // 2 if both_ways else width) * min(1.0, max(-1.0, value)))
        image[y0:y1, min(start, end) : max(start, end, start + 2)] = SIGNAL_COLOUR
        top += line


def _banner(image: np.ndarray, message: str, size: int) -> None:
    height = round(size * 2.2)
    image[:height] = image[:height] // 4
    paint_text(image, message, (image.shape[1] // 2, size // 3), round(size * 1.1), INK, "centre")
