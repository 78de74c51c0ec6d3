"""The timeline of a session: its points, how long each is drawn, and its drawing into a picture.

Images are RGB uint8 (H, W, 3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low

import numpy as np

from live.inference.state_machine import ABSENT, State
from live.ui.drawing import INK, TRACK, colour_of, paint_text

ROW_S = 1.0
"""Longest drawn length of a point, seconds, or twice the usual interval where that is longer; a longer time
without points is a gap."""
STEP_S = 1 / 3
"""Usual interval of points, seconds, where there are too few points to compute it."""


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
    area[:] = TRACK
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
