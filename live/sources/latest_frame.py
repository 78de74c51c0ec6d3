"""Newest frame of a live source: read in a thread, and reopened after a loss."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import cv2

from extract.video.decoder import NO_DATA_S
from extract.video.reader import Frame
from features.cli import UserError
from live.sources.camera import Clock, without_password

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts to reopen a lost camera, seconds; the last one repeats."""
SILENT_S = 1.0
"""A camera without a frame for longer than this is lost, seconds."""
OPEN_S = 10.0
"""Longest time to open a camera before it is lost, seconds: some webcams are slow."""


class LatestFrameReader:
    """Reads a source in its own thread and keeps only the newest frame, without a queue.

    `opener` gives the frames; with `reconnects` it is called again, with growing pauses, when they stop.
    Without `reconnects` the end of the frames ends the source. `clock` is the current time on the frames'
    time axis, seconds. `begin` starts a file after its first frame; a camera needs no start.
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
        self._first_error: UserError | None = None
        self._unexpected: Exception | None = None
        self._num_published = self._num_pauses = 0
        self._stopped = self._paused = self._is_retrying = False
        self._is_opening = True
        self._last_frame_s = clock()
        self._intervals_s: deque[float] = deque(maxlen=2)
        self.last_s = 0.0
        """Time of the last frame given, seconds."""
        self.has_ended = False
        """Whether there are no more frames."""
        self.failure = ""
        """Why the frames of a source that is not opened again ended too early, or empty."""
        self.num_dropped = 0
        """Frames that were replaced by a newer one before they were read."""
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    def start(self, timeout_s: float = 10.0) -> None:
        """Open the source and wait for its first frame.

        Raises UserError when it cannot be opened or gives no frame. Any other exception of the source is
        raised here or in `next`.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(
                lambda: self._num_published or self._first_error or self.has_ended, timeout_s
            )
            if self._num_published:
                return
        self.close()
        raise self._unexpected or self._first_error or UserError("the source opened but gave no frame")

    @property
    def is_lost(self) -> bool:
        """Whether the camera gives no frames: it is being reopened, or a read hangs."""
        # A slow camera with longer frame intervals is not lost. One long interval is a gap.
        usual_s = min(self._intervals_s, default=0.0)
        longest_s = OPEN_S if self._is_opening else max(SILENT_S, 2 * usual_s)
        hangs = self._reconnects and self.now_s() - self._last_frame_s > longest_s
        return not self._paused and not self.has_ended and (self._is_retrying or hangs)

    def next(self, timeout_s: float) -> Frame | None:
        """The newest unread frame; None when there is none within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self.has_ended, timeout_s)
            frame, self._frame = self._frame, None
        if self._unexpected is not None:
            raise self._unexpected
        self.last_s = self.last_s if frame is None else frame.pts_s
        return frame

    def pause(self) -> None:
        """Close the camera until `resume`."""
        with self._changed:
            self._paused = True
            self._num_pauses += 1
            self._frame = None

    def resume(self) -> None:
        """Open the camera again."""
        with self._changed:
            self._paused, self._is_opening = False, True
            self._last_frame_s = self.now_s()
            self._changed.notify_all()

    def close(self) -> None:
        """Close the camera and end the thread."""
        self.begin()  # the thread may wait for it
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=NO_DATA_S + 1)

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:  # a defect: the main thread raises it again
            with self._changed:
                self._unexpected, self.has_ended = error, True
                self._changed.notify_all()

    def _read(self) -> None:
        failures = 0
        while not self._stopped:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or not self._paused)
                num_pauses = self._num_pauses
            if self._stopped:
                return
            published = self._num_published
            error = self._read_once(num_pauses)
            if self._num_published > published:
                failures = 0
            if self._stopped or self._num_pauses != num_pauses:
                continue
            with self._changed:
                if self._num_published == 0 and error is not None:
                    self._first_error = error
                if not self._reconnects or self._first_error is not None:
                    self.has_ended, self.failure = True, without_password(str(error or ""))
                    self._changed.notify_all()
                    return
                self._is_retrying = True
                wait_s = self._backoff_s[min(failures, len(self._backoff_s) - 1)]
                self._changed.wait_for(lambda: self._stopped or self._paused, wait_s)
            failures += 1

    def _read_once(self, num_pauses: int) -> UserError | None:
        """Open the source and publish frames until it ends, fails, pauses or stops; returns an error.

        num_pauses: number of pauses before. After the next one, frames are left out, also after `resume`.
        """
        try:
            with contextlib.closing(self._opener()) as frames:  # type: ignore[type-var]
                for frame in frames:
                    if not self._publish(frame, num_pauses):
                        return None
        except UserError as error:
            return error
        except (OSError, cv2.error) as error:
            return UserError(str(error))
        return None

    def _publish(self, frame: Frame, num_pauses: int) -> bool:
        """Give the frame to `next`; False if the source was paused or closed after it was opened."""
        with self._changed:
            if self._stopped or self._num_pauses != num_pauses:
                return False
            self.num_dropped += self._frame is not None
            self._frame = frame
            self._num_published += 1
            self._is_retrying = False
            now_s = self.now_s()
            if not self._is_opening:
                self._intervals_s.append(now_s - self._last_frame_s)
            self._is_opening, self._last_frame_s = False, now_s
            self._changed.notify_all()
            return True
