"""Recordings on request: pictures with their times in an mp4."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

TICKS_PER_S = 1000
"""Time resolution of a recording: one millisecond."""


class Recorder:
    """Writes pictures with their times into an mp4, without a queue.

    The file is replaced at the first picture, and removed at the end if there was none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container: Any = None
        self._last_pts = -1
        self.start_s: float | None = None
        """Time of the first picture, which is second 0 of the file."""

    def write(self, rgb: np.ndarray, pts_s: float) -> None:
        """Add a picture, uint8 (H, W, 3) RGB, with time `pts_s`. Raises OSError when the disk is full."""
        import av

        height, width = (length // 2 * 2 for length in rgb.shape[:2])  # H.264 needs even width and height
        if self._container is None:
            self._start(width, height, pts_s)
        assert self.start_s is not None
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), format="rgb24")
        # The first picture sets the size; later pictures of another size are scaled.
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
        """Finish the file, or remove it if it has no picture. Raises OSError when the disk is full."""
        container, self._container = self._container, None
        if self.start_s is None:
            self.path.unlink(missing_ok=True)
        if container is not None:
            with self._file, container:
                container.mux(self._stream.encode())

    def _start(self, width: int, height: int, pts_s: float) -> None:
        import av

        # A fragmented file can be played up to its last fragment after a power cut.
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        # A Python file, because FFmpeg does not report a disk error at the end of a file.
        self._file = self.path.open("wb", buffering=0)
        self._container = av.open(self._file, "w", format="mp4", options=options)
        self._stream = self._container.add_stream("libx264", rate=30)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        # One thread and no look-ahead: the main loop must not wait for the codec.
        self._stream.codec_context.thread_count = 1
        self._stream.options = {"preset": "ultrafast", "crf": "20", "tune": "zerolatency"}
        self.start_s = pts_s
