"""The log of a session: one row a sampled frame, flushed at once, so a power cut loses one at most.

Knows nothing about cameras, networks or windows on a screen. C classes.
"""

import csv
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from live.predictor import Prediction
from live.states import STATES, State


def log_columns(names: Sequence[str]) -> list[str]:
    """Columns of a live log for these class names."""
    return [
        *("t_s", "time_utc", "face", "state", "label"),
        *(f"p_raw_{name}" for name in names),
        *(f"p_{name}" for name in names),
        *("coverage", "latency_ms", "mark"),
    ]


class Log:
    """A live log: CSV in a file, or JSON lines on stdout for `-`."""

    def __init__(self, target: str, names: Sequence[str]) -> None:
        self._columns = log_columns(names)
        self._names = list(names)
        self._to_stdout = target == "-"
        self.num_rows = 0
        if self._to_stdout:
            self._file: TextIO = sys.stdout
            return
        self._path = Path(target)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._begin_file()

    def write(self, prediction: Prediction, mark: str = "") -> None:
        """One row for a sampled frame."""
        numbers = {f"p_raw_{n}": round(p, 6) for n, p in zip(prediction.names, prediction.p_raw, strict=True)}
        numbers |= {f"p_{n}": round(p, 6) for n, p in zip(prediction.names, prediction.p, strict=True)}
        row = {
            "t_s": round(prediction.t_s, 4),
            "face": int(prediction.face),
            "state": prediction.state,
            "label": prediction.label,
            "coverage": round(prediction.coverage, 4),
            "latency_ms": round(prediction.latency_ms, 2),
        }
        self._put(row | numbers, mark)

    def write_state(self, t_s: float, state: State, mark: str = "") -> None:
        """One row for a moment without a frame: paused, or the camera lost."""
        self._put({"t_s": round(t_s, 4), "face": 0, "state": state, "label": ""}, mark)

    def close(self) -> None:
        """Close the file."""
        if not self._to_stdout:
            self._file.close()

    def _put(self, row: dict[str, Any], mark: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        full = {"time_utc": now, "mark": mark} | row
        if self._to_stdout:
            self._file.write(json.dumps({c: full.get(c) for c in self._columns}, ensure_ascii=False) + "\n")
        else:
            if not self._is_in_place():
                self._file.close()
                self._begin_file()
            self._writer.writerow({column: full.get(column, "") for column in self._columns})
        self._file.flush()
        self.num_rows += 1

    def _begin_file(self) -> None:
        self._file = self._path.open("w", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, self._columns)
        self._writer.writeheader()
        self._file.flush()

    def _is_in_place(self) -> bool:
        """Whether the open file still has its name; a log that was rotated away is begun anew."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False


class Tally:
    """Counts for the summary of a session."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.latencies_ms: list[float] = []

    def add(self, prediction: Prediction) -> None:
        """Count one prediction."""
        self.states[prediction.state] += 1
        if prediction.label:
            self.labels[prediction.label] += 1
        self.latencies_ms.append(prediction.latency_ms)

    def summary(self) -> dict[str, Any]:
        """Rows, rows by state and by label, and the latency's median and 99th percentile."""
        found = self.latencies_ms or [0.0]
        return {
            "rows": sum(self.states.values()),
            "states": dict(self.states),
            "labels": dict(self.labels),
            "latency_ms": {
                "median": round(float(np.median(found)), 2),
                "p99": round(float(np.percentile(found, 99)), 2),
            },
        }


@dataclass(frozen=True)
class LogRow:
    """One row of a log as it was read back."""

    t_s: float
    time_utc: str
    face: bool
    state: State
    label: str
    p: tuple[float, ...]
    """Smoothed probabilities, C numbers; empty where nothing was predicted."""
    coverage: float
    """NaN where nothing was predicted."""
    latency_ms: float
    mark: str


def read_log(path: Path) -> tuple[tuple[str, ...], list[LogRow]]:
    """Class names and rows of a log; a last row cut off by a crash is left out.

    Raises ValueError when the file is not a live log.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}") from error
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    reader = csv.DictReader(lines)
    columns = list(reader.fieldnames or ())
    names = tuple(c.removeprefix("p_raw_") for c in columns if c.startswith("p_raw_"))
    if not names or columns != log_columns(names):
        raise ValueError(f"{path} is not a live log: its columns are {columns[:6]}…")
    return names, [_log_row(row, names, f"{path}, line {number}") for number, row in enumerate(reader, 2)]


def _log_row(row: dict[str, Any], names: Sequence[str], where: str) -> LogRow:
    if row["state"] not in STATES:
        raise ValueError(f"{where}: no state {row['state']!r}; there are {', '.join(STATES)}")
    try:
        p = tuple(float(row[f"p_{name}"]) for name in names) if row[f"p_{names[0]}"] else ()
        return LogRow(
            float(row["t_s"]),
            row["time_utc"],
            row["face"] == "1",
            cast(State, row["state"]),
            row["label"],
            p,
            float(row["coverage"] or math.nan),
            float(row["latency_ms"] or math.nan),
            row["mark"] or "",
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
