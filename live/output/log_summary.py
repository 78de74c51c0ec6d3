"""Summary of a session from its log: time in each state, longest spans, marks, timeline, values per day."""

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from features.cli import UserError
from live.config import novelty_file
from live.inference.state_machine import ABSENT, State
from live.output.log_reader import LogRow, read_log
from live.ui.drawing import FAINT, INK, PAPER, STATE_TEXTS, paint_text, text_width
from live.ui.timeline import TimelinePoint, ends_s, paint_timeline
from seqmodel.runs.training_stats import level_of

NUM_SPANS = 5
NO_DATE = "no date"
"""Day of a row without a time: it is from a video file."""
WIDTH_PX, HEIGHT_PX = 1200, 150


@dataclass(frozen=True)
class StateSpan:
    """A span of time with one displayed class or state."""

    shown: str
    """Class name, or state in words."""
    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Length of the span, seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class SessionSummary:
    """Summary of one log."""

    log: Path
    names: tuple[str, ...]
    task: str
    """The given task; else binary for two classes and multiclass for more (a log does not show whether they
    are levels)."""
    rows: tuple[LogRow, ...]
    began: str
    """Local time of the first row, or NO_DATE."""
    duration_s: float
    seconds: dict[str, float]
    """Seconds per class (in state ok) or state."""
    spans: tuple[StateSpan, ...]
    """The NUM_SPANS longest spans, longest first."""
    marks: tuple[tuple[float, str], ...]
    points: tuple[TimelinePoint, ...]
    """One point per row."""


@dataclass(frozen=True)
class Day:
    """Values of one day of sessions, for comparison with the training data."""

    date: str
    """Day in the local time zone, or NO_DATE."""
    minutes: float
    """Minutes of session, without lost camera and pauses."""
    face_rate: float
    p: float
    """Mean of `level_of` over the rows with a prediction; NaN without any."""
    novelty: float
    """Mean novelty; NaN where no session has novelty values."""


def summarise_log(log: Path, task: str | None = None) -> SessionSummary:
    """Summary of a log. Raises UserError when it cannot be read or is empty."""
    names, rows = read_log(log)
    if not rows:
        raise UserError(f"{log} has no rows yet")
    return summarise_rows(log, names, rows, task)


def summarise_rows(
    log: Path, names: tuple[str, ...], rows: Sequence[LogRow], task: str | None = None
) -> SessionSummary:
    """Summary of the rows of a log; at least one row."""
    task = task or ("binary" if len(names) == 2 else "multiclass")
    points = tuple(_point(row, names, task) for row in rows)
    seconds: dict[str, float] = {}
    spans: list[StateSpan] = []
    for row, end_s in zip(rows, ends_s(points), strict=True):
        shown = row.label or state_text(row.state, names)
        seconds[shown] = seconds.get(shown, 0.0) + end_s - row.t_s
        if spans and spans[-1].shown == shown and row.t_s - spans[-1].end_s < 1e-6:
            spans[-1] = StateSpan(shown, spans[-1].start_s, end_s)
        else:
            spans.append(StateSpan(shown, row.t_s, end_s))
    return SessionSummary(
        log,
        names,
        task,
        tuple(rows),
        rows[0].time.isoformat(" ", "seconds") if rows[0].time else NO_DATE,
        rows[-1].t_s - rows[0].t_s,
        dict(sorted(seconds.items(), key=lambda item: -item[1])),
        tuple(sorted(spans, key=lambda span: -span.length_s)[:NUM_SPANS]),
        tuple((row.t_s, row.mark) for row in rows if row.mark),
        points,
    )


def state_text(state: State, names: Sequence[str]) -> str:
    """A state in words, different from the names of the classes."""
    return STATE_TEXTS[state] + (" (state)" if STATE_TEXTS[state] in names else "")


def timeline_png(session: SessionSummary) -> bytes:
    """Timeline of the whole session with a time axis, as PNG bytes."""
    picture = np.empty((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    picture[:] = PAPER
    start_s, end_s = session.points[0].t_s, max(session.points[-1].t_s, session.points[0].t_s + 1)
    left, right, top, bottom = 12, WIDTH_PX - 12, 12, HEIGHT_PX - 34
    paint_timeline(picture[top:bottom, left:right], session.points, start_s, end_s)
    step_s = next((s for s in (1, 5, 10, 30, 60, 300, 600, 1800, 3600) if (end_s - start_s) / s <= 12), 7200)
    for tick in np.arange(math.ceil(start_s / step_s) * step_s, end_s, step_s):
        x = left + round((tick - start_s) / (end_s - start_s) * (right - left))
        picture[bottom : bottom + 5, x : x + 1] = FAINT
        text = clock(float(tick))
        half = text_width(text, 15) // 2 + 1
        paint_text(picture, text, (min(max(x, half), WIDTH_PX - half), bottom + 7), 15, INK, "centre")
    done, encoded = cv2.imencode(".png", picture[..., ::-1])
    assert done
    return encoded.tobytes()


def days(sessions: Sequence[SessionSummary]) -> list[Day]:
    """Values of each local day over all sessions, in order of time; NO_DATE comes last."""
    by_day: dict[str, list[tuple[LogRow, float]]] = defaultdict(list)
    novelty: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for session in sessions:
        for row, point, end_s in zip(session.rows, session.points, ends_s(session.points), strict=True):
            if row.state not in ABSENT:
                date = _date(row)
                by_day[date].append((row, point.level))
                seconds[date] = seconds[date] + end_s - row.t_s
        date_of = {row.t_s: _date(row) for row in session.rows}
        for t_s, value in _read_novelty(novelty_file(session.log)):
            if t_s in date_of:
                novelty[date_of[t_s]].append(value)
    return [
        Day(
            date,
            round(seconds[date] / 60, 1),
            round(float(np.mean([row.face for row, _ in rows])), 4),
            round(_mean([level for _, level in rows if not math.isnan(level)]), 4),
            round(_mean(novelty[date]), 4),
        )
        for date, rows in sorted(by_day.items())
    ]


def _point(row: LogRow, names: tuple[str, ...], task: str) -> TimelinePoint:
    tone = names.index(row.label) / (len(names) - 1) if row.label in names else 1.0
    known = bool(row.p) and row.state in ("ok", "unsure")
    return TimelinePoint(
        row.t_s, row.state, float(level_of(row.p, task)) if known else math.nan, tone, row.mark
    )


def _date(row: LogRow) -> str:
    return row.time.date().isoformat() if row.time else NO_DATE


def _read_novelty(path: Path) -> list[tuple[float, float]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(float(row["t_s"]), float(row["novelty"])) for row in csv.DictReader(file) if row["novelty"]]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 1:02:05."""
    hours, remainder = divmod(round(seconds), 3600)
    minutes, seconds = divmod(remainder, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
