"""What a viewer sees: the picture with the tracked face, and a panel below it that never hides the face.

`draw` is a function of its arguments and keeps no state. Text goes through Pillow and an installed font
that has Hangul, because cv2's `putText` cannot draw it.

Knows nothing about cameras, windows or how a prediction was made. Images are RGB uint8 (H, W, 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from live.predictor import Prediction
from live.states import State

MIN_WIDTH_PX = 640
"""Smaller pictures are enlarged to this width: the panel's text would not fit otherwise."""
TIMELINE_S = 180.0
"""Length of the timeline, seconds."""

INK, PAPER, FAINT = (240, 243, 246), (18, 22, 28), (140, 150, 160)
STATE_COLOURS: dict[State, tuple[int, int, int]] = {
    "warming_up": (120, 160, 220),
    "ok": (70, 200, 150),
    "unsure": (240, 190, 80),
    "no_face": (150, 155, 165),
    "paused": (150, 155, 165),
    "camera_lost": (240, 100, 90),
}
STATE_WORDS: dict[State, str] = {
    "warming_up": "warming up",
    "ok": "ok",
    "unsure": "unsure",
    "no_face": "no face",
    "paused": "paused",
    "camera_lost": "camera lost",
}
FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/nanum/NanumGothic.ttf",
    "C:/Windows/Fonts/malgun.ttf",
    "/System/Library/Fonts/AppleSDGothicNeo.ttc",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
)
"""Where systems keep a font with Hangul; DejaVu last, which has none but is common."""


@dataclass(frozen=True)
class Moment:
    """One sampled frame's place on the timeline."""

    t_s: float
    state: State
    level: float
    """Height on the timeline, 0..1; NaN where nothing was predicted."""
    mark: str = ""


@dataclass(frozen=True)
class Status:
    """What the panel tells beside the prediction."""

    fps: float = 0.0
    latency_ms: float = 0.0
    recording: bool = False
    personal: str = ""
    """Name of the personal calibration in force, or empty."""
    message: str = ""
    """A line for the user, as what the calibration asks for now."""
    state: State | None = None
    """Overrides the prediction's state: `paused` and `camera_lost` have no prediction."""


def draw(
    image: np.ndarray, prediction: Prediction | None, moments: Sequence[Moment], status: Status
) -> np.ndarray:
    """The picture with boxes and the panel below it.

    image: RGB uint8 (H, W, 3). prediction: the last one, None before the first. moments: oldest first.
    Returns a new RGB uint8 array (H + panel, W, 3), enlarged to at least MIN_WIDTH_PX, its sides even as
    video codecs want them.
    """
    scale = max(1.0, MIN_WIDTH_PX / image.shape[1])
    height, width = (round(side * scale / 2) * 2 for side in image.shape[:2])
    size = max(14, round(width / 42))
    panel_px = round(size * 6.6 / 2) * 2
    canvas = np.empty((height + panel_px, width, 3), np.uint8)
    canvas[:height] = (
        image if scale == 1 and image.shape[:2] == (height, width) else cv2.resize(image, (width, height))
    )
    canvas[height:] = PAPER
    state = status.state or (prediction.state if prediction else "warming_up")
    if prediction is not None and status.state is None:
        _boxes(canvas[:height], prediction, scale, STATE_COLOURS[state])
    _panel(canvas[height:], prediction, state, moments, status, size)
    if status.message:
        _banner(canvas[:height], status.message, size)
    return canvas


def level_of(probabilities: Sequence[float], task: str) -> float:
    """Height of a prediction on the bar and the timeline, 0..1.

    Binary: the positive class's probability. Ordinal: the expected level over the highest one. Multiclass:
    the probability of the most probable class.
    """
    p = np.asarray(probabilities, float)
    if task == "ordinal":
        return float(p @ np.arange(len(p)) / (len(p) - 1))
    return float(p[-1] if task == "binary" else p.max())


def _boxes(image: np.ndarray, prediction: Prediction, scale: float, colour: tuple[int, int, int]) -> None:
    for box in prediction.others:
        _rectangle(image, box, scale, FAINT, 1)
    if prediction.box is not None:
        _rectangle(image, prediction.box, scale, colour, 2)


def _rectangle(
    image: np.ndarray, box: Sequence[float], scale: float, colour: tuple[int, int, int], thick: int
) -> None:
    x0, y0, x1, y1 = (round(side * scale) for side in box)
    # Dark below, colour above: one of the two stands out on any background.
    cv2.rectangle(image, (x0, y0), (x1, y1), (0, 0, 0), thick + 2, cv2.LINE_AA)
    cv2.rectangle(image, (x0, y0), (x1, y1), colour, thick, cv2.LINE_AA)


def _panel(
    panel: np.ndarray,
    prediction: Prediction | None,
    state: State,
    moments: Sequence[Moment],
    status: Status,
    size: int,
) -> None:
    width, pad, colour = panel.shape[1], size // 2, STATE_COLOURS[state]
    panel[:3] = colour
    top = pad + 2
    words = _headline(prediction, state)
    cv2.circle(panel, (pad + size // 2, top + size * 3 // 4), size // 2 - 1, colour, -1, cv2.LINE_AA)
    end = _text(panel, words, (pad + size + size // 2, top), round(size * 1.15), INK)
    recording = "● recording" if status.recording else "local only, not recording"
    _text(panel, recording, (width - pad, top), size, (250, 110, 100) if status.recording else FAINT, "right")
    if prediction is not None and state in ("ok", "unsure"):
        left = max(end + size, round(width * 0.34))
        _bar(
            panel, prediction, (left, top + size // 4), (round(width * 0.62), top + round(size * 1.3)), colour
        )
    line = top + round(size * 1.9)
    _timeline(panel, moments, (pad, line), (width - pad, line + round(size * 2.2)))
    facts = f"{status.fps:.0f} fps   {status.latency_ms:.0f} ms"
    if prediction is not None:
        facts += f"   face in {prediction.coverage:.0%} of the window"
    if status.personal:
        facts += f"   personal calibration: {status.personal}"
    _text(panel, facts, (pad, line + round(size * 2.35)), round(size * 0.85), FAINT)
    keys = "q quit  p pause  r record  space mark  c calibrate"
    _text(panel, keys, (width - pad, line + round(size * 2.35)), round(size * 0.85), FAINT, "right")


def _headline(prediction: Prediction | None, state: State) -> str:
    if prediction is None or state in ("paused", "camera_lost", "no_face"):
        return STATE_WORDS[state]
    if state == "warming_up":
        return f"{STATE_WORDS[state]} {prediction.filled:.0%}"
    return prediction.label if state == "ok" else STATE_WORDS[state]


def _bar(
    panel: np.ndarray,
    prediction: Prediction,
    top_left: tuple[int, int],
    bottom_right: tuple[int, int],
    colour: Any,
) -> None:
    (x0, y0), (x1, y1) = top_left, bottom_right
    if x1 - x0 < 40:
        return  # no room beside a long label
    level = level_of(prediction.p, prediction.task)
    size = y1 - y0
    figure = round(size * 2.6)
    panel[y0:y1, x0 : x1 - figure] = (52, 60, 70)
    panel[y0:y1, x0 : x0 + round((x1 - figure - x0) * level)] = colour
    _text(panel, f"{level:.0%}", (x1, y0 - size // 6), size, INK, "right")


def _timeline(
    panel: np.ndarray, moments: Sequence[Moment], top_left: tuple[int, int], bottom_right: tuple[int, int]
) -> None:
    (x0, y0), (x1, y1) = top_left, bottom_right
    panel[y0:y1, x0:x1] = (32, 38, 46)
    panel[(y0 + y1) // 2, x0:x1:4] = (70, 78, 88)
    if not moments:
        return
    now = moments[-1].t_s
    per_s = (x1 - x0) / TIMELINE_S
    for index, moment in enumerate(moments):
        left = round(x1 - (now - moment.t_s + 0.4) * per_s)
        if left < x0:
            continue
        following = moments[index + 1].t_s if index + 1 < len(moments) else now
        right = max(left + 1, min(x1, round(x1 - (now - min(following, moment.t_s + 1.0) + 0.4) * per_s)))
        known = not np.isnan(moment.level)
        top = y1 - max(2, round((y1 - y0) * moment.level)) if known else y1 - 2
        panel[top:y1, left:right] = STATE_COLOURS[moment.state]
        if moment.mark:
            cv2.line(panel, (left, y0), (left, y1 - 1), INK, 1)
            _text(panel, moment.mark, (left + 2, y0 - 1), max(10, (y1 - y0) // 3), INK)


def _banner(image: np.ndarray, message: str, size: int) -> None:
    height = round(size * 2.2)
    image[:height] = image[:height] // 4
    _text(image, message, (image.shape[1] // 2, size // 3), round(size * 1.1), INK, "centre")


def _text(
    image: np.ndarray,
    words: str,
    at: tuple[int, int],
    size: int,
    colour: tuple[int, int, int],
    align: str = "left",
) -> int:
    """Draw words with their top left (top right, top centre) corner at `at`; gives the x where they end."""
    mask = _mask(words, size)
    height, width = mask.shape
    x = at[0] - {"left": 0, "right": width, "centre": width // 2}[align]
    y = at[1]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, image.shape[1]), min(y + height, image.shape[0])
    if x0 < x1 and y0 < y1:
        part = mask[y0 - y : y1 - y, x0 - x : x1 - x, None].astype(np.uint16)
        under = image[y0:y1, x0:x1].astype(np.uint16)
        image[y0:y1, x0:x1] = ((under * (255 - part) + np.array(colour, np.uint16) * part) // 255).astype(
            np.uint8
        )
    return x + width


@lru_cache(maxsize=512)
def _mask(words: str, size: int) -> np.ndarray:
    """Coverage of the drawn words, uint8 (h, w); remembered, because most words stay for many frames."""
    from PIL import Image, ImageDraw

    font = _font(size)
    left, _, right, bottom = font.getbbox(words or " ")
    picture = Image.new("L", (max(1, round(right - min(left, 0))), max(1, round(bottom + 2))))
    ImageDraw.Draw(picture).text((-min(left, 0), 0), words, fill=255, font=font)
    return np.asarray(picture)


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    from PIL import ImageFont

    for path in FONTS:
        if Path(path).is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)
