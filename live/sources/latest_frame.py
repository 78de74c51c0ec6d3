"""The newest frame of a source that goes on by itself: read in a thread, reopened when it is lost."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import cv2

from extract.video.reader import Frame
from live.sources.camera import STREAM_TIMEOUT_MS, Clock

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts to open a lost camera again; the last one repeats."""
SILENT_S = 1.0
"""A camera that gives no frame for longer than this is lost, whatever its driver says."""
OPEN_S = 10.0
"""A camera may take so long to open before it counts as lost: some webcams need seconds."""


class LatestFrameReader:
    """A source read in its own thread, of which only the newest frame is kept: the present, never a queue.

    `opener` gives the frames and is called again, with growing pauses, when they stop coming; with
    `reconnects` off, their end is the end. `clock` gives the present in the time of the frames, seconds, and
    `begin` plays a file on; there is nothing to do for a camera, which has gone on by itself.
    """

    is_file = False

    def __init__(
        self,
        opener: Callable[[], Iterator[Frame]],
        *,
        reconnects: bool,
        backoff_s: tuple[float, ...] = BACKOFF_S,
        clock: Clock = time.monotonic,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._opener, self._reconnects, self._backoff_s = opener, reconnects, backoff_s
        self.now_s, self.begin = clock, begin
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._first_error: ValueError | None = None
        self._num_published = 0
        self._stopped = self._paused = self._is_retrying = False
        self._is_opening = True
        self._heard_s = clock()
        self._usual_s = 0.0
        self.last_s = 0.0
        """Time of the last frame given, seconds."""
        self.has_ended = False
        """Whether no frame will come any more."""
        self.num_dropped = 0
        """Frames that a newer one replaced before anybody looked."""
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    def start(self, timeout_s: float = 10.0) -> None:
        """Open the source and wait for its first frame.

        Raises ValueError when it cannot be opened or gives nothing.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(
                lambda: self._num_published or self._first_error or self.has_ended, timeout_s
            )
            if self._num_published:
                return
        self.close()
        raise self._first_error or ValueError("the source opened but gave no picture")

    @property
    def is_lost(self) -> bool:
        """Whether a camera has stopped giving frames: it is tried again, or it hangs in a read."""
        # A camera slower than that is no less there.
        longest_s = OPEN_S if self._is_opening else max(SILENT_S, 2 * self._usual_s)
        hangs = self._reconnects and self.now_s() - self._heard_s > longest_s
        return not self._paused and not self.has_ended and (self._is_retrying or hangs)

    def next(self, timeout_s: float) -> Frame | None:
        """The newest frame that was not given yet; None when none came in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self.has_ended, timeout_s)
            frame, self._frame = self._frame, None
        self.last_s = self.last_s if frame is None else frame.pts_s
        return frame

    def pause(self) -> None:
        """Let go of the camera until `resume`."""
        with self._changed:
            self._paused = True
            self._frame = None

    def resume(self) -> None:
        """Open the camera again."""
        with self._changed:
            self._paused, self._is_opening = False, True
            self._heard_s = self.now_s()
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of the camera for good."""
        self.begin()  # its thread may be waiting for that
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=STREAM_TIMEOUT_MS / 1000 + 1)

    def _run(self) -> None:
        failures = 0
        while not self._stopped:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or not self._paused)
            if self._stopped:
                return
            published = self._num_published
            error = self._read_once()
            if self._num_published > published:
                failures = 0
            if self._paused or self._stopped:
                continue
            with self._changed:
                if self._num_published == 0 and error is not None:
                    self._first_error = error
                if not self._reconnects or self._first_error is not None:
                    self.has_ended = True
                    self._changed.notify_all()
                    return
                self._is_retrying = True
                wait_s = self._backoff_s[min(failures, len(self._backoff_s) - 1)]
                self._changed.wait_for(lambda: self._stopped or self._paused, wait_s)
            failures += 1

    def _read_once(self) -> ValueError | None:
        """Open the source and publish until it ends, fails or is not wanted; gives the error that it met."""
        try:
            with contextlib.closing(self._opener()) as frames:  # type: ignore[type-var]
                for frame in frames:
                    if self._paused or self._stopped:
                        return None
                    self._publish(frame)
        except ValueError as error:
            return error
        except (OSError, cv2.error) as error:
            return ValueError(str(error))
        return None

    def _publish(self, frame: Frame) -> None:
        with self._changed:
            self.num_dropped += self._frame is not None
            self._frame = frame
            self._num_published += 1
            self._is_retrying = False
            now_s = self.now_s()
            if not self._is_opening:
                self._usual_s = now_s - self._heard_s
            self._is_opening, self._heard_s = False, now_s
            self._changed.notify_all()
