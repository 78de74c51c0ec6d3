"""What a session leaves behind, when asked to: a log of one row a sampled frame, and recordings.

Nothing is written unless a file was named. Every row is flushed, so a power cut loses one at most.

Knows nothing about cameras, networks or windows on a screen. C classes.
"""

import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from live.predictor import Prediction
from live.states import State


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
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, self._columns)
        self._writer.writeheader()
        self._file.flush()

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
            self._writer.writerow({column: full.get(column, "") for column in self._columns})
        self._file.flush()
        self.num_rows += 1


class Recorder:
    """Writes pictures with their own times into an mp4; nothing is queued."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container: Any = None
        self._last_pts = -1

    def write(self, rgb: np.ndarray, pts_s: float) -> None:
        """Add a picture, uint8 (H, W, 3) RGB, shown from `pts_s` on."""
        import av

        height, width = (side // 2 * 2 for side in rgb.shape[:2])  # H.264 wants even sides
        if self._container is None:
            self._start(width, height, pts_s)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), format="rgb24")
        # The first picture sets the size; a source that changes it midway is scaled to fit.
        if (picture.width, picture.height) != (self._stream.width, self._stream.height):
            picture = picture.reformat(self._stream.width, self._stream.height)
        picture.pts = max(self._last_pts + 1, round((pts_s - self._start_s) * 1000))
        picture.time_base = self._stream.codec_context.time_base
        self._last_pts = picture.pts
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file; does nothing when no picture came."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None

    def _start(self, width: int, height: int, pts_s: float) -> None:
        import av

        # A fragmented file can be played up to its last fragment even when the power is cut.
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        self._container = av.open(str(self.path), "w", format="mp4", options=options)
        self._stream = self._container.add_stream("libx264", rate=30)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, 1000)
        self._stream.options = {"preset": "veryfast", "crf": "23", "tune": "zerolatency"}
        self._start_s = pts_s


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
