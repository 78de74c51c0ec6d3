"""Playback of a video file at its own speed, like a camera."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from extract.video.reader import Frame, read_video
from live.sources.camera import Clock

BEHIND_S = 0.2
"""Longest delay of decoding before the clock is moved back, seconds: playback does not catch up."""


class RealtimeFileReader:
    """Plays a video file at its own speed, or slower where decoding is slower.

    After the first frame it waits for `begin`. After a pause it continues at the next frame; as with a
    camera, the pause is a gap in the frame times. Tests replace `clock` (seconds) and `sleep`.
    """

    def __init__(
        self, path: str, clock: Clock = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._frames, self._clock, self._sleep = read_video(path), clock, sleep
        self._may_play = threading.Event()
        self._start: float | None = None
        self._last_s = self._paused_s = 0.0

    def now_s(self) -> float:
        """Current time on the frames' time axis, seconds; 0 before `begin`."""
        return 0.0 if self._start is None else self._clock() - self._start

    def begin(self) -> None:
        """Continue after the first frame: the model is loaded."""
        self._may_play.set()

    def frames(self) -> Iterator[Frame]:
        """The remaining frames, each at its own time."""
        if self._start is not None:
            self._paused_s = self.now_s() - self._last_s
        for frame in self._frames:
            if self._start is None:
                yield frame
                self._may_play.wait()
                self._start, self._last_s = self._clock() - frame.pts_s, frame.pts_s
                continue
            self._last_s = frame.pts_s
            wait_s = frame.pts_s + self._paused_s - self.now_s()
            if wait_s > 0:
                self._sleep(wait_s)
            elif wait_s < -BEHIND_S:
                self._start -= wait_s
            yield replace(frame, pts_s=frame.pts_s + self._paused_s)
