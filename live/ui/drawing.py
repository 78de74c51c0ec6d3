"""Drawing of text into pictures and the colours of states, for the overlay and the session report.

Text uses Pillow and an installed font with Hangul, because cv2's `putText` cannot draw Hangul.

Images are RGB uint8 (H, W, 3).
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from live.inference.state_machine import State

Colour = tuple[int, int, int]

INK, PAPER, FAINT, TRACK = (240, 243, 246), (18, 22, 28), (150, 160, 170), (36, 42, 51)
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
STATE_TEXTS: dict[State, str] = {
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
"""Paths of fonts with Hangul; last DejaVu, a common font without Hangul."""


def colour_of(state: State, tone: float = 1.0) -> Colour:
    """RGB of a state; in state `ok` the colour of the predicted class, by its position 0..1."""
    if state != "ok":
        return STATE_COLOURS[state]
    red, green, blue = (round(a + (b - a) * tone) for a, b in zip(FIRST_CLASS, LAST_CLASS, strict=True))
    return red, green, blue


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
