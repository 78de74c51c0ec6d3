"""Where frames come from: a camera, a stream address or a video file, all as frames with their times.

BGR exists here only: every frame that leaves is RGB. A camera's times are seconds on the session's clock at
the moment of the grab, so a slow or irregular camera is sampled as truly as a steady one, and a reconnected
one goes on in the same time.
"""

import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from extract.video.reader import Frame, read_video

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts to open a lost camera again; the last one repeats."""
SILENT_S = 1.0
"""A camera that gives no frame for longer than this is lost, whatever its driver says."""
OPEN_S = 10.0
"""A camera may take so long to open before it counts as lost: some webcams need seconds."""
BEHIND_S = 0.2
"""A file in real time that is decoded later than this goes on from where it is: it does not catch up."""
STREAM_TIMEOUT_MS = 5000
"""An address that does not answer for this long counts as lost."""
Clock = Callable[[], float]


def camera_frames(index: int, clock: Clock) -> Iterator[Frame]:
    """Frames of a camera until it stops giving any; times by `clock`, seconds.

    Raises ValueError when no such camera can be opened.
    """
    with _quiet_cv2():
        camera = cv2.VideoCapture(index)
    if not camera.isOpened():
        camera.release()
        raise ValueError(
            f"camera {index} cannot be opened: none there, in use by another program, or not permitted; "
            "try --camera 1, or --video FILE"
        )
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # one frame of the driver's queue: what is shown is now
    return _read_on(camera, clock)


def stream_frames(address: str, clock: Clock) -> Iterator[Frame]:
    """Frames of an RTSP or HTTP address until it stops giving any; times by `clock`, seconds.

    Raises ValueError when it cannot be opened.
    """
    with _quiet_cv2():
        options = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            STREAM_TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            STREAM_TIMEOUT_MS,
        ]
        stream = cv2.VideoCapture(address, cv2.CAP_FFMPEG, options)
    if not stream.isOpened():
        stream.release()
        raise ValueError(f"{address}: this address gives no video")
    return _read_on(stream, clock)


def is_file_address(address: str) -> bool:
    """Whether a file with an end lies at an address, and nothing live: it has a length, in seconds and in
    bytes or frames (a live stream may seem to last as long as what came of it so far)."""
    import av

    if not address.lower().startswith(("http://", "https://", "file://")):
        return False
    try:
        with av.open(address, timeout=STREAM_TIMEOUT_MS / 1000) as container:
            frames = sum(stream.frames for stream in container.streams.video)
            return bool(container.duration) and (container.size > 0 or frames > 0)
    except av.error.FFmpegError:
        return False


def without_password(text: str) -> str:
    """What is to be shown of an address: without the name and password that it may hold."""
    return re.sub("://.*@", "://…@", text)


class PacedFile:
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
        self._last_s = 0.0
        self._away_s = 0.0

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


class Newest:
    """A source read in its own thread, of which only the newest frame is kept: the present, never a queue.

    `opener` gives the frames and is called again, with growing pauses, when they stop coming; with
    `reconnects` off, their end is the end.
    """

    def __init__(
        self,
        opener: Callable[[], Iterator[Frame]],
        *,
        reconnects: bool,
        backoff_s: tuple[float, ...] = BACKOFF_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self._opener, self._reconnects, self._backoff_s, self._clock = opener, reconnects, backoff_s, clock
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._first_error: ValueError | None = None
        self._num_published = 0
        self._stopped = self._paused = False
        self._is_retrying = False
        self._is_opening = True
        self._heard_s = clock()
        self._usual_s = 0.0
        self.has_ended = False
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
        silent_s = self._clock() - self._heard_s
        # A camera slower than that is no less there.
        longest_s = OPEN_S if self._is_opening else max(SILENT_S, 2 * self._usual_s)
        hangs = self._reconnects and silent_s > longest_s
        return not self._paused and not self.has_ended and (self._is_retrying or hangs)

    def newest(self, timeout_s: float) -> Frame | None:
        """The newest frame that was not given yet; None when none came in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self.has_ended, timeout_s)
            frame, self._frame = self._frame, None
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
            self._heard_s = self._clock()
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of the camera for good."""
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
            frames = self._opener()
            with contextlib.closing(frames):  # type: ignore[type-var]
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
            now_s = self._clock()
            if not self._is_opening:
                self._usual_s = now_s - self._heard_s
            self._is_opening, self._heard_s = False, now_s
            self._changed.notify_all()


def bgr_to_rgb(bgr: np.ndarray) -> np.ndarray:
    """Camera order to ours; both uint8 (H, W, 3)."""
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def window_problem() -> str:
    """Why no window can be shown here, in words; empty where one can.

    Asked before the first window: cv2's Qt ends the whole process where it finds no display.
    """
    gui = next(
        (line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")), ""
    )
    if "NONE" in gui:
        return "this OpenCV is built without windows"
    if not sys.platform.startswith("linux"):
        return ""
    display = os.environ.get("DISPLAY", "")
    if not display:
        return "there is no display here"
    host, _, rest = display.rpartition(":")
    number = rest.split(".")[0]
    if host in ("", "unix") and number.isdigit():
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(f"/tmp/.X11-unix/X{number}")
        except OSError:
            return f"the display {display} does not answer"
    return ""


def _read_on(capture: Any, clock: Clock) -> Iterator[Frame]:
    try:
        while True:
            grabbed, bgr = capture.read()
            if not grabbed:
                return
            yield Frame(clock(), bgr_to_rgb(bgr))
    finally:
        capture.release()


@contextlib.contextmanager
def _quiet_cv2() -> Iterator[None]:
    """No warnings of the camera drivers' search: our own line says what matters."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
