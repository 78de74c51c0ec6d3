"""Drawing of text and timelines into pictures, for the overlay and the session report.

Text uses Pillow and an installed font with Hangul, because cv2's `putText` cannot draw Hangul.

Images are RGB uint8 (H, W, 3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from live.inference.state_machine import ABSENT, State

Colour = tuple[int, int, int]

INK, PAPER, FAINT, TROUGH = (240, 243, 246), (18, 22, 28), (150, 160, 170), (36, 42, 51)
FIRST_CLASS, LAST_CLASS = (165, 120, 235), (70, 200, 150)
"""Colours of the first and the last class, classes between are mixed; distinct for colour-blind viewers."""
STATE_COLOURS: dict[State, Colour] = {
    "warming_up": (120, 160, 220),
    "ok": LAST_CLASS,
    "unsure": (240, 190, 80),
    "no_face": (110, 118, 128),
    "paused": (110, 118, 128),
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
ROW_S = 1.0
"""Longest drawn length of a point, seconds, or twice the usual interval where that is longer; a longer time
without points is a gap."""
STEP_S = 1 / 3
"""Usual interval of points, seconds, where there are too few points to compute it."""
FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/nanum/NanumGothic.ttf",
    "C:/Windows/Fonts/malgun.ttf",
    "/System/Library/Fonts/AppleSDGothicNeo.ttc",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
)
"""Paths of fonts with Hangul; last DejaVu, a common font without Hangul."""


@dataclass(frozen=True)
class TimelinePoint:
    """One sampled frame on the timeline."""

    t_s: float
    state: State
    level: float
    """Height on the timeline, 0..1; NaN without a prediction."""
    tone: float = 1.0
    """Position of the predicted class, 0 (first) to 1 (last); sets the colour in state `ok`."""
    mark: str = ""


def colour_of(state: State, tone: float = 1.0) -> Colour:
    """RGB of a state; in state `ok` the colour of the predicted class, by its position 0..1."""
    if state != "ok":
        return STATE_COLOURS[state]
    red, green, blue = (round(a + (b - a) * tone) for a, b in zip(FIRST_CLASS, LAST_CLASS, strict=True))
    return red, green, blue


def step_s(points: Sequence[TimelinePoint]) -> float:
    """Usual interval of points with a frame, seconds: the lower median, so that one gap has no effect."""
    steps = [
        after.t_s - point.t_s
        for point, after in pairwise(points)
        if point.state not in ABSENT and after.state not in ABSENT
    ]
    return median_low(steps) if len(steps) > 1 else STEP_S


def row_s(points: Sequence[TimelinePoint]) -> float:
    """Longest drawn length of a point, seconds; see `ROW_S`."""
    return max(ROW_S, 2 * step_s(points))


def ends_s(points: Sequence[TimelinePoint]) -> list[float]:
    """End time of each point, seconds."""
    if not points:
        return []
    longest_s = row_s(points)
    ends = [
        after.t_s
        if point.state == after.state and point.state in ABSENT
        else min(after.t_s, point.t_s + longest_s)
        for point, after in pairwise(points)
    ]
    return [*ends, points[-1].t_s + step_s(points)]


def paint_timeline(area: np.ndarray, points: Sequence[TimelinePoint], start_s: float, end_s: float) -> None:
    """Draw the points from start_s to end_s into `area`, RGB uint8 (H, W, 3), oldest on the left.

    The height of a column is the level, its colour the state. A state without a prediction is a thin line at
    the bottom, a gap is empty, a mark is a white line with its text.
    """
    height, width = area.shape[:2]
    area[:] = TROUGH
    area[height // 2, ::4] = (74, 82, 92)
    per_s = width / max(end_s - start_s, 1e-6)
    texts = []
    for point, point_end_s in zip(points, ends_s(points), strict=True):
        left = math.floor((point.t_s - start_s) * per_s)
        right = max(left + 1, math.ceil((point_end_s - start_s) * per_s))
        if right <= 0 or left >= width:
            continue
        top = height - max(2, round(height * (0.0 if math.isnan(point.level) else point.level)))
        area[top:, max(left, 0) : right] = colour_of(point.state, point.tone)
        if point.mark:
            texts.append((left, point.mark))
    for left, text in texts:
        area[:, max(left, 0) : max(left, 0) + 1] = INK
        paint_text(area, text, (left + 3, 0), max(11, height // 3), INK)


def paint_text(
    image: np.ndarray, text: str, at: tuple[int, int], size: int, colour: Colour, align: str = "left"
) -> int:
    """Draw text with its top left (or top right, or top centre) at `at`; returns the x of its right end."""
    mask = _mask(text, size)
    height, width = mask.shape
    x, y = at[0] - {"left": 0, "right": width, "centre": width // 2}[align], at[1]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, image.shape[1]), min(y + height, image.shape[0])
    if x0 < x1 and y0 < y1:
        share = mask[y0 - y : y1 - y, x0 - x : x1 - x, None].astype(np.uint16)
        under = image[y0:y1, x0:x1].astype(np.uint16)
        image[y0:y1, x0:x1] = (under * (255 - share) + np.array(colour, np.uint16) * share) // 255
    return x + width


def text_width(text: str, size: int) -> int:
    """Width of the text in pixels."""
    return _mask(text, size).shape[1]


@lru_cache(maxsize=512)
def _mask(text: str, size: int) -> np.ndarray:
    """Alpha mask of the text, uint8 (h, w); cached, because most texts stay for many frames."""
    from PIL import Image, ImageDraw

    font = _font(size)
    left, _, right, bottom = font.getbbox(text or " ")
    picture = Image.new("L", (max(1, round(right - min(left, 0))), max(1, round(bottom + 2))))
    ImageDraw.Draw(picture).text((-min(left, 0), 0), text, fill=255, font=font)
    return np.asarray(picture)


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    from PIL import ImageFont

    for path in FONTS:
        if Path(path).is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)
