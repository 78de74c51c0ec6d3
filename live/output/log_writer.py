"""The log of a session: one row per sampled frame, synced to disk, so a power cut loses at most one row."""

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

NEW_FACE = "new face"
"""Mark of a row whose face is probably another person's than before."""
MAX_LATENCIES = 20_000
"""Number of latencies kept for the summary: almost two hours at 3 frames/s."""


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

    def __init__(
        self, target: str, names: Sequence[str], *, durable: bool = False, is_live: bool = True
    ) -> None:
        """Open the log, a new or an empty file. With `durable`, each row is also synced to the disk.

        is_live: `time_utc` is the time of writing; else it is empty, because the video was made earlier.

        Raises FileExistsError when the file has content.
        """
        self._columns = log_columns(names)
        self._to_stdout, self._is_live = target == "-", is_live
        self._fsync_thread: FsyncThread | None = None
        if self._to_stdout:
            self._file: TextIO = sys.stdout
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8 for any locale
            return
        self._path = Path(target)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.stat().st_size:
            raise FileExistsError(f"{target} exists already")
        self._begin_file()
        self._fsync_thread = FsyncThread() if durable else None

    def write(self, prediction: Prediction, mark: str = "") -> None:
        """Write one row for a sampled frame."""
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
        """Write one row for a time without a frame; state is `paused` or `camera_lost`."""
        self._put({"t_s": round(t_s, 4), "face": 0, "state": state, "label": ""}, mark)

    def close(self) -> None:
        """Close the file."""
        if self._fsync_thread is not None:
            self._fsync_thread.close()
            self._fsync_thread = None
        if not self._to_stdout:
            self._file.close()

    def _put(self, row: dict[str, Any], mark: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        full = {"time_utc": now if self._is_live else "", "mark": mark, **row}
        if self._to_stdout:
            self._file.write(json.dumps({c: full.get(c) for c in self._columns}, ensure_ascii=False) + "\n")
        else:
            if not self._is_in_place():
                self._file.close()
                self._begin_file()
            self._writer.writerow({column: full.get(column, "") for column in self._columns})
        self._file.flush()
        if self._fsync_thread is not None:
            self._fsync_thread.keep(self._file.fileno())

    def _begin_file(self) -> None:
        # Append: log rotation may have left an empty file or another file with this name.
        self._file = self._path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, self._columns)
        if self._file.tell() == 0:
            self._writer.writeheader()
        self._file.flush()

    def _is_in_place(self) -> bool:
        """Whether the open file still has its name and rows; after log rotation a new file is started."""
        try:
            named = os.stat(self._path)
            return os.path.samestat(named, os.fstat(self._file.fileno())) and named.st_size > 0
        except FileNotFoundError:
            return False


class FsyncThread:
    """Syncs files to the disk in a thread, so that a slow disk does not delay the picture."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[tuple[int, int], int] = {}
        """(device, inode) -> descriptor of a file with rows to sync; one per file, also on a slow disk."""
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="log to disk", daemon=True)
        self._thread.start()

    def keep(self, descriptor: int) -> None:
        """Sync what was written to this open file so far, soon."""
        status = os.fstat(descriptor)
        with self._changed:
            if (status.st_dev, status.st_ino) not in self._waiting:
                # A duplicate, because a rotated log may be closed before the sync.
                self._waiting[status.st_dev, status.st_ino] = os.dup(descriptor)
                self._changed.notify()

    def close(self) -> None:
        """Wait until everything is on the disk."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                descriptors, self._waiting = list(self._waiting.values()), {}
            if not descriptors:
                return
            for descriptor in descriptors:  # one sync for all rows that arrived during the last one
                with contextlib.suppress(OSError):  # a pipe cannot be synced
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
        latencies = self.latencies_ms or [0.0]
        return {
            "rows": sum(self.states.values()),
            "states": dict(self.states),
            "labels": dict(self.labels),
            "latency_ms": {
                "median": round(float(np.median(latencies)), 2),
                "p99": round(float(np.percentile(latencies, 99)), 2),
            },
        }
