"""One face for files and for what goes on by itself: the next frame, the time now, pause and close."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from extract.video.reader import Frame, read_video
from live.sources.camera import camera_frames, is_file_address, stream_frames, without_password
from live.sources.latest_frame import Newest
from live.sources.realtime_file import PacedFile


class Source(Protocol):
    """What a session reads from."""

    last_s: float
    """Time of the last frame given, seconds."""

    @property
    def is_file(self) -> bool:
        """Whether frames wait until they are asked for; else the newest is given and the rest dropped."""

    @property
    def has_ended(self) -> bool:
        """Whether no frame will come any more."""

    @property
    def is_lost(self) -> bool:
        """Whether it stopped giving frames."""

    @property
    def num_dropped(self) -> int:
        """Frames that a newer one replaced before anybody looked."""

    def next(self, timeout_s: float) -> Frame | None:
        """A frame, or None when none came in time."""

    def now_s(self) -> float:
        """The present, in the time of the frames."""

    def begin(self) -> None:
        """The model is there: a file in real time plays on from its first frame."""

    def pause(self) -> None:
        """Let go of the camera until `resume`."""

    def resume(self) -> None:
        """Take it again."""

    def close(self) -> None:
        """Let go for good."""


def open_source(camera: int, video: str | None, realtime: bool) -> Source:
    """The source that a user named, its first frame on the way. Raises ValueError when there is none."""
    start = time.monotonic()

    def clock() -> float:
        return time.monotonic() - start

    if video is None:
        return _started(Newest(lambda: camera_frames(camera, clock), reconnects=True), clock)
    is_address = "://" in video
    if is_address and not is_file_address(video):
        return _started(Newest(lambda: stream_frames(video, clock), reconnects=True), clock)
    if not is_address and not Path(video).is_file():
        raise ValueError(f"{video}: no such video file")
    if not is_address and not realtime:
        return FileSource(read_video(Path(video)))
    paced = PacedFile(video)  # also from an address: keys and pictures must not wait for a network
    return _started(Newest(paced.frames, reconnects=False), paced.now_s, paced.begin)


class FileSource:
    """A file's frames one after the other, none dropped."""

    is_file = True
    is_lost = False
    num_dropped = 0

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames = frames
        self.last_s = 0.0
        self.has_ended = False

    def next(self, timeout_s: float) -> Frame | None:
        """The next frame, or None at the end."""
        frame = next(self._frames, None)
        self.has_ended = frame is None
        if frame is not None:
            self.last_s = frame.pts_s
        return frame

    def now_s(self) -> float:
        """Time of the last frame: a file's present is where it was read to."""
        return self.last_s

    def begin(self) -> None:
        """A file waits by itself."""

    def pause(self) -> None:
        """A file waits by itself."""

    def resume(self) -> None:
        """A file waits by itself."""

    def close(self) -> None:
        """Let go of the file."""
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()


class NewestSource:
    """The newest frame of something that goes on by itself."""

    is_file = False

    def __init__(
        self, newest: Newest, clock: Callable[[], float], begin: Callable[[], None] = lambda: None
    ) -> None:
        self._newest, self._clock, self._begin = newest, clock, begin
        self.last_s = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether no frame will come any more."""
        return self._newest.has_ended

    @property
    def is_lost(self) -> bool:
        """Whether it stopped giving frames."""
        return self._newest.is_lost

    @property
    def num_dropped(self) -> int:
        """Frames that nobody looked at in time."""
        return self._newest.num_dropped

    def next(self, timeout_s: float) -> Frame | None:
        """The newest frame, or None when there was none in time."""
        frame = self._newest.newest(timeout_s)
        if frame is not None:
            self.last_s = frame.pts_s
        return frame

    def now_s(self) -> float:
        """Seconds on the session's clock."""
        return self._clock()

    def begin(self) -> None:
        """Play a file on; nothing to do for a camera, which has gone on by itself."""
        self._begin()

    def pause(self) -> None:
        """Let go of the camera."""
        self._newest.pause()

    def resume(self) -> None:
        """Take it again."""
        self._newest.resume()

    def close(self) -> None:
        """Let go for good."""
        self._begin()  # its thread may be waiting for that
        self._newest.close()


def _started(
    newest: Newest, clock: Callable[[], float], begin: Callable[[], None] = lambda: None
) -> NewestSource:
    try:
        newest.start()
    except ValueError as error:
        raise ValueError(without_password(str(error))) from error
    return NewestSource(newest, clock, begin)
