"""A clock and a camera that a test controls, so that no test waits or depends on timing."""

import queue
import threading
from collections.abc import Iterator

import numpy as np

from extract.video.reader import Frame

PICTURE = np.zeros((48, 64, 3), np.uint8)


class SteppedClock:
    """A clock whose seconds pass only when a test sets or adds them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Add the seconds to the clock and return at once."""
        self.now_s += seconds


class SteppedCamera:
    """A camera that blocks until the test gives it a frame."""

    def __init__(self) -> None:
        self._pending: queue.Queue[tuple[float, threading.Event]] = queue.Queue()
        self.is_closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        """The generator that `LatestFrameReader` reads."""
        try:
            while True:
                time_s, was_published = self._pending.get(timeout=60)
                yield Frame(time_s, PICTURE)
                was_published.set()
        finally:
            self.is_closed.set()

    def give(self, time_s: float) -> threading.Event:
        """Give the next frame. The event is set when the reader has published it and requests another one."""
        was_published = threading.Event()
        self._pending.put((time_s, was_published))
        return was_published

    def show(self, time_s: float) -> None:
        """Give the next frame and wait until it is published."""
        assert self.give(time_s).wait(60)
