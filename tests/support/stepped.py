"""Time and a camera that a test moves by hand, so that nothing waits and nothing depends on luck."""

import queue
import threading
from collections.abc import Iterator

import numpy as np

from extract.video.reader import Frame

PICTURE = np.zeros((48, 64, 3), np.uint8)


class SteppedClock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """What waits on this clock lets it run."""
        self.now_s += seconds


class SteppedCamera:
    """A camera that gives a frame when a test tells it to, and blocks until then."""

    def __init__(self) -> None:
        self._due: queue.Queue[tuple[float, threading.Event]] = queue.Queue()
        self.is_closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        """The generator that `LatestFrameReader` opens."""
        try:
            while True:
                time_s, was_published = self._due.get(timeout=60)
                yield Frame(time_s, PICTURE)
                was_published.set()
        finally:
            self.is_closed.set()

    def give(self, time_s: float) -> threading.Event:
        """The next frame; the event comes when its reader has published it and asks for another one."""
        was_published = threading.Event()
        self._due.put((time_s, was_published))
        return was_published

    def show(self, time_s: float) -> None:
        """The next frame, published when this returns."""
        assert self.give(time_s).wait(60)
