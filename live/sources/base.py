"""One face for files and for what goes on by itself: the next frame, the time now, pause and close."""

import time
from collections.abc import Iterator
from pathlib import Path

from extract.video.reader import Frame, read_video
from live.sources.camera import camera_frames, is_file_address, stream_frames, without_password
from live.sources.latest_frame import LatestFrameReader
from live.sources.realtime_file import RealtimeFileReader


class FileSource:
    """A file's frames one after the other, none dropped."""

    is_file = True
    """Whether frames wait until they are asked for; else the newest is given and the rest dropped."""
    is_lost = False
    num_dropped = 0

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames = frames
        self.last_s = 0.0
        """Time of the last frame given, seconds."""
        self.has_ended = False
        """Whether no frame will come any more."""

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

    pause = resume = begin

    def close(self) -> None:
        """Let go of the file."""
        self._frames.close()  # type: ignore[attr-defined]


Source = FileSource | LatestFrameReader
"""What a session reads from."""


def open_source(camera: int, video: str | None, realtime: bool) -> Source:
    """The source that a user named, its first frame on the way. Raises ValueError when there is none."""
    start = time.monotonic()

    def clock() -> float:
        return time.monotonic() - start

    is_address = video is not None and "://" in video
    if video is None:
        latest = LatestFrameReader(lambda: camera_frames(camera, clock), reconnects=True, clock=clock)
    elif is_address and not is_file_address(video):
        latest = LatestFrameReader(lambda: stream_frames(video, clock), reconnects=True, clock=clock)
    elif not is_address and not Path(video).is_file():
        raise ValueError(f"{video}: no such video file")
    elif not is_address and not realtime:
        return FileSource(read_video(Path(video)))
    else:  # also from an address: keys and pictures must not wait for a network
        paced = RealtimeFileReader(video)
        latest = LatestFrameReader(paced.frames, reconnects=False, clock=paced.now_s, begin=paced.begin)
    try:
        latest.start()
    except ValueError as error:
        raise ValueError(without_password(str(error))) from error
    return latest
