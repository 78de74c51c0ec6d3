"""Drawing words and timelines into pictures, for the overlay and the session report alike.

Text goes through Pillow and an installed font that has Hangul, because cv2's `putText` cannot draw it.

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
"""Colours of the first and the last class, those between lie between; told apart with any colour vision."""
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
"""A moment speaks until the next one, but for a second at most, or twice the usual time between two where
that is longer: a gap belongs to nobody."""
STEP_S = 1 / 3
"""The usual time between two moments, where too few tell."""
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
class TimelinePoint:
    """One sampled frame's place on the timeline."""

    t_s: float
    state: State
    level: float
    """Height on the timeline, 0..1; NaN where nothing is said."""
    tone: float = 1.0
    """Place of the named class among the classes, 0 first .. 1 last; tells the colour in state `ok`."""
    mark: str = ""


def colour_of(state: State, tone: float = 1.0) -> Colour:
    """RGB of a state; in state `ok` the class named decides, by its place 0..1 among the classes."""
    if state != "ok":
        return STATE_COLOURS[state]
    red, green, blue = (round(a + (b - a) * tone) for a, b in zip(FIRST_CLASS, LAST_CLASS, strict=True))
    return red, green, blue


def step_s(points: Sequence[TimelinePoint]) -> float:
    """The usual time between two neighbouring moments with a frame: the median, the lower one of two, so that
    a gap among three moments is none of it."""
    steps = [
        after.t_s - point.t_s
        for point, after in pairwise(points)
        if point.state not in ABSENT and after.state not in ABSENT
    ]
    return median_low(steps) if len(steps) > 1 else STEP_S


def row_s(points: Sequence[TimelinePoint]) -> float:
    """How long a moment speaks at most; see `ROW_S`."""
    return max(ROW_S, 2 * step_s(points))


def ends_s(points: Sequence[TimelinePoint]) -> list[float]:
    """The second until which each moment speaks."""
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
    """Fill `area`, a part of a picture, with the moments from start_s to end_s, oldest left.

    Columns rise with the level and wear the state's colour; a state without a prediction is a thin line at
    the bottom, a gap stays empty, a mark is a white line with its words.
    """
    height, width = area.shape[:2]
    area[:] = TROUGH
    area[height // 2, ::4] = (74, 82, 92)
    per_s = width / max(end_s - start_s, 1e-6)
    texts = []
    for point, moment_end_s in zip(points, ends_s(points), strict=True):
        left = math.floor((point.t_s - start_s) * per_s)
        right = max(left + 1, math.ceil((moment_end_s - start_s) * per_s))
        if right <= 0 or left >= width:
            continue
        top = height - max(2, round(height * (0.0 if math.isnan(point.level) else point.level)))
        area[top:, max(left, 0) : right] = colour_of(point.state, point.tone)
        if point.mark:
            texts.append((left, point.mark))
    for left, words in texts:
        area[:, max(left, 0) : max(left, 0) + 1] = INK
        paint_text(area, words, (left + 3, 0), max(11, height // 3), INK)


def paint_text(
    image: np.ndarray, words: str, at: tuple[int, int], size: int, colour: Colour, align: str = "left"
) -> int:
    """Draw words with their top left (or top right, or top centre) at `at`; gives the x where they end."""
    mask = _mask(words, size)
    height, width = mask.shape
    x, y = at[0] - {"left": 0, "right": width, "centre": width // 2}[align], at[1]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, image.shape[1]), min(y + height, image.shape[0])
    if x0 < x1 and y0 < y1:
        share = mask[y0 - y : y1 - y, x0 - x : x1 - x, None].astype(np.uint16)
        under = image[y0:y1, x0:x1].astype(np.uint16)
        image[y0:y1, x0:x1] = (under * (255 - share) + np.array(colour, np.uint16) * share) // 255
    return x + width


def text_width(words: str, size: int) -> int:
    """Pixels that `paint_text` will take."""
    return _mask(words, size).shape[1]


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
