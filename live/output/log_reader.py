"""Reading of a live log.

C classes.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from features.cli import UserError
from live.inference.state_machine import STATES, State
from live.output.log_writer import log_columns

BACK_S = 1.0
"""Allowed step back in the time of two rows, seconds: a waiting frame can follow a row without a frame."""
BEGINS = ",".join([*log_columns(())[:5], ""])
"""First characters of each log, for any classes (a name with a comma is quoted in the header)."""


@dataclass(frozen=True)
class LogRow:
    """One row of a log."""

    t_s: float
    time: datetime | None
    """When it was written, in the local time zone; None for a video file, whose day is not known."""
    face: bool
    state: State
    label: str
    p: tuple[float, ...]
    """Smoothed probabilities, C numbers; empty without a prediction."""
    coverage: float
    """Share of the window's frames with a face, 0..1; NaN without a prediction."""
    latency_ms: float
    mark: str


def is_log(path: Path) -> bool:
    """Whether a file starts like a live log. Raises OSError when it cannot be read."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(len(BEGINS)) == BEGINS


def read_log(path: Path) -> tuple[tuple[str, ...], list[LogRow]]:
    """Class names and rows of a log; an incomplete last row (after a crash) is left out.

    Raises UserError when the file is not the live log of one session.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}") from error
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    reader = csv.DictReader(lines)
    columns = list(reader.fieldnames or ())
    names = tuple(c.removeprefix("p_raw_") for c in columns if c.startswith("p_raw_"))
    if not names or columns != log_columns(names):
        raise UserError(
            f"{path} is not a live log: its columns are {columns[:6]}…, not t_s, time_utc, face …"
        )
    rows = [_log_row(row, names, f"{path}, line {number}") for number, row in enumerate(reader, 2)]
    for number, (before, row) in enumerate(pairwise(rows), 3):
        if row.t_s < before.t_s - BACK_S:
            raise UserError(
                f"{path}, line {number}: the time goes back from {before.t_s:.1f} to {row.t_s:.1f} s: the "
                "file holds two sessions; give each session its own file"
            )
    return names, rows


def _log_row(row: dict[str, Any], names: Sequence[str], where: str) -> LogRow:
    if row["state"] not in STATES:
        raise UserError(f"{where}: unknown state {row['state']!r}; the states are {', '.join(STATES)}")
    try:
        p = tuple(float(row[f"p_{name}"]) for name in names) if row[f"p_{names[0]}"] else ()
        return LogRow(
            float(row["t_s"]),
            datetime.fromisoformat(row["time_utc"]).astimezone() if row["time_utc"] else None,
            row["face"] == "1",
            cast(State, row["state"]),
            row["label"],
            p,
            float(row["coverage"] or math.nan),
            float(row["latency_ms"] or math.nan),
            row["mark"] or "",
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
