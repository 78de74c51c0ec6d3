"""Recordings, when asked for: pictures with their own times in an mp4, and labels given while recording."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from live.config import SUBJECT, manifest_file
from seqmodel.runs.card import write_csv

TICKS_PER_S = 1000
"""A recording's times are kept to a millisecond."""


class Recorder:
    """Writes pictures with their own times into an mp4; nothing is queued."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container: Any = None
        self._last_pts = -1
        self.start_s: float | None = None
        """Time of the first picture, which is second 0 of the file."""

    def write(self, rgb: np.ndarray, pts_s: float) -> None:
        """Add a picture, uint8 (H, W, 3) RGB, shown from `pts_s` on; OSError where the disk is full."""
        import av

        height, width = (side // 2 * 2 for side in rgb.shape[:2])  # H.264 wants even sides
        if self._container is None:
            self._start(width, height, pts_s)
        assert self.start_s is not None
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), format="rgb24")
        # The first picture sets the size; a source that changes it midway is scaled to fit.
        if (picture.width, picture.height) != (self._stream.width, self._stream.height):
            picture = picture.reformat(self._stream.width, self._stream.height)
        self._last_pts = max(self._last_pts + 1, round((pts_s - self.start_s) * TICKS_PER_S))
        picture.pts, picture.time_base = self._last_pts, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(picture))

    @property
    def end_s(self) -> float:
        """Time of the last picture in the file, seconds from its start."""
        return max(self._last_pts, 0) / TICKS_PER_S

    def close(self) -> None:
        """Finish the file; does nothing when no picture came. Raises OSError where the disk is full."""
        container, self._container = self._container, None
        if container is not None:
            with self._file, container:
                container.mux(self._stream.encode())

    def _start(self, width: int, height: int, pts_s: float) -> None:
        import av

        # A fragmented file can be played up to its last fragment even when the power is cut.
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        # Python's file, because FFmpeg's own says nothing of an end that the disk did not take.
        self._file = self.path.open("wb", buffering=0)
        self._container = av.open(self._file, "w", format="mp4", options=options)
        self._stream = self._container.add_stream("libx264", rate=30)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        # One thread and no look-ahead: the camera's loop must not wait for the codec.
        self._stream.codec_context.thread_count = 1
        self._stream.options = {"preset": "ultrafast", "crf": "20", "tune": "zerolatency"}
        self.start_s = pts_s


@dataclass(frozen=True)
class Interval:
    """A labelled stretch of a recording, seconds from its start."""

    label: str
    start_s: float
    end_s: float


class Labels:
    """Intervals that a user labels while they run; each label lasts until the next one or `stop`."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self.running: str = ""
        self._since_s = 0.0

    def begin(self, label: str, at_s: float) -> bool:
        """From here on the scene shows `label`; whether that ended a running interval."""
        ended = self.stop(at_s)
        self.running, self._since_s = label, at_s
        return ended

    def stop(self, at_s: float) -> bool:
        """End the running interval, if there is one; whether that left a new interval."""
        running, self.running = self.running, ""
        if not running or at_s <= self._since_s:
            return False
        self.intervals.append(Interval(running, self._since_s, at_s))
        return True


def write_manifest(video: Path, intervals: list[Interval], subject: str = SUBJECT) -> Path:
    """A manifest beside the video, as `python -m extract --data` takes it; gives its path. Atomic, and on the
    disk when this returns."""
    path = manifest_file(video)
    rows = [
        (video.name, interval.label, subject, f"{interval.start_s:.3f}", f"{interval.end_s:.3f}")
        for interval in intervals
    ]
    write_csv(path, [("path", "label", "subject", "start_s", "end_s"), *rows], durable=True)
    return path
