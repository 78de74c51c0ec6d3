"""The log of a session: one row a sampled frame, written through to the disk, so a power cut loses one."""

import contextlib
import csv
import io
import json
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from live.inference.predictor import Prediction
from live.inference.state_machine import State

MAX_LATENCIES = 20_000
"""Latencies kept for the summary: the last two hours at three frames a second."""


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

    def __init__(self, target: str, names: Sequence[str], *, durable: bool = False) -> None:
        """durable: each row is written through to the disk, not only handed to the system.

        Raises FileExistsError when there is such a file.
        """
        self._columns = log_columns(names)
        self._to_stdout = target == "-"
        self._durably = FsyncThread() if durable and not self._to_stdout else None
        if self._to_stdout:
            self._file: TextIO = sys.stdout
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8")  # JSON is, whatever the terminal would like
            return
        self._path = Path(target)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch(exist_ok=False)
        self._begin_file()

    def write(self, prediction: Prediction, mark: str = "") -> None:
        """One row for a sampled frame."""
        row = {
            "t_s": round(prediction.t_s, 4),
            "face": int(prediction.face),
            "state": prediction.state,
            "label": prediction.label,
            "coverage": round(prediction.coverage, 4),
            "latency_ms": round(prediction.latency_ms, 2),
        }
        for prefix, numbers in (("p_raw_", prediction.p_raw), ("p_", prediction.p)):
            row |= {f"{prefix}{n}": round(p, 6) for n, p in zip(prediction.names, numbers, strict=True)}
        self._put(row, mark)

    def write_state(self, t_s: float, state: State, mark: str = "") -> None:
        """One row for a moment without a frame: paused, or the camera lost."""
        self._put({"t_s": round(t_s, 4), "face": 0, "state": state, "label": ""}, mark)

    def close(self) -> None:
        """Close the file."""
        if self._durably is not None:
            self._durably.close()
            self._durably = None
        if not self._to_stdout:
            self._file.close()

    def _put(self, row: dict[str, Any], mark: str) -> None:
        full = {
            "time_utc": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "mark": mark,
            **row,
        }
        if self._to_stdout:
            self._file.write(json.dumps({c: full.get(c) for c in self._columns}, ensure_ascii=False) + "\n")
        else:
            if not self._is_in_place():
                self._file.close()
                self._begin_file()
            self._writer.writerow({column: full.get(column, "") for column in self._columns})
        self._file.flush()
        if self._durably is not None:
            self._durably.keep(self._file.fileno())

    def _begin_file(self) -> None:
        # Appending: whoever rotates logs may have left an empty file of this name, or another one.
        self._file = self._path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, self._columns)
        if self._file.tell() == 0:
            self._writer.writeheader()
        self._file.flush()

    def _is_in_place(self) -> bool:
        """Whether the open file still has its name and rows; a log that was rotated away is begun anew."""
        try:
            named = os.stat(self._path)
            return os.path.samestat(named, os.fstat(self._file.fileno())) and named.st_size > 0
        except FileNotFoundError:
            return False


class FsyncThread:
    """Has the system put files on the disk, in a thread: a slow disk must not hold up the picture."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[tuple[int, int], int] = {}
        """By the file's identity, a descriptor of each one with rows that the disk was not asked for yet: no
        more, however long the disk takes."""
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="log to disk", daemon=True)
        self._thread.start()

    def keep(self, descriptor: int) -> None:
        """See that what was written to this open file so far is on the disk soon."""
        facts = os.fstat(descriptor)
        with self._changed:
            if (facts.st_dev, facts.st_ino) not in self._waiting:
                # Its own, because a rotated log is closed meanwhile.
                self._waiting[facts.st_dev, facts.st_ino] = os.dup(descriptor)
                self._changed.notify()

    def close(self) -> None:
        """Wait until all of it is there."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ends)
                descriptors, self._waiting = list(self._waiting.values()), {}
            if not descriptors:
                return
            for descriptor in descriptors:  # once for all rows that came while the disk was busy
                with contextlib.suppress(OSError):  # what is no file on a disk, as a pipe, cannot be synced
                    os.fsync(descriptor)
                os.close(descriptor)


class LogStats:
    """Counts for the summary of a session."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.latencies_ms: deque[float] = deque(maxlen=MAX_LATENCIES)

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
