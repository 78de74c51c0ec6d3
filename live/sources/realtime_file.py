"""A video file played at its own speed, as a camera would give it."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from extract.video.reader import Frame, read_video
from live.sources.camera import Clock

BEHIND_S = 0.2
"""A file in real time that is decoded later than this goes on from where it is: it does not catch up."""


class RealtimeFileReader:
    """A video file played at its own speed, or as fast as it can be decoded where that is slower.

    After the first frame it waits for `begin`. Opened again after a pause it goes on where it was; as with a
    camera, the pause is a gap in the times of its frames. `clock` (seconds) and `sleep` are the real ones
    but in tests.
    """

    def __init__(
        self, path: str, clock: Clock = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._frames, self._clock, self._sleep = read_video(path), clock, sleep
        self._begun = threading.Event()
        self._start: float | None = None
        self._last_s = self._away_s = 0.0

    def now_s(self) -> float:
        """The present in the time of the frames, seconds since the first one was due; 0 until it begins."""
        return 0.0 if self._start is None else self._clock() - self._start

    def begin(self) -> None:
        """Play on from the first frame: whoever looks is ready."""
        self._begun.set()

    def frames(self) -> Iterator[Frame]:
        """The frames from here on, each when its time has come."""
        if self._start is not None:
            self._away_s = self.now_s() - self._last_s
        for frame in self._frames:
            if self._start is None:
                yield frame
                self._begun.wait()
                self._start, self._last_s = self._clock() - frame.pts_s, frame.pts_s
                continue
            self._last_s = frame.pts_s
            wait_s = frame.pts_s + self._away_s - self.now_s()
            if wait_s > 0:
                self._sleep(wait_s)
            elif wait_s < -BEHIND_S:
                self._start -= wait_s
            yield replace(frame, pts_s=frame.pts_s + self._away_s)
