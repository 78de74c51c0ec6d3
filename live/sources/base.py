"""Common interface of frame sources: next frame, current time, pause, close."""

import time
from collections.abc import Iterator
from pathlib import Path

from extract.video.reader import Frame, read_video
from features.cli import UserError
from live.sources.camera import camera_frames, is_file_address, stream_frames, without_password
from live.sources.latest_frame import LatestFrameReader
from live.sources.realtime_file import RealtimeFileReader


class FileSource:
    """Gives the frames of a file in order; drops none."""

    is_file = True
    """Whether every frame is given; else only the newest, and older ones are dropped."""
    is_lost = False
    failure = ""
    num_dropped = 0

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames = frames
        self.last_s = 0.0
        """Time of the last frame given, seconds."""
        self.has_ended = False
        """Whether there are no more frames."""

    def next(self, timeout_s: float) -> Frame | None:
        """The next frame, or None at the end."""
        frame = next(self._frames, None)
        self.has_ended = frame is None
        if frame is not None:
            self.last_s = frame.pts_s
        return frame

    def now_s(self) -> float:
        """Time of the last frame, seconds: the current time of a file."""
        return self.last_s

    def begin(self) -> None:
        """Do nothing: a file waits until the next frame is read."""

    pause = resume = begin

    def close(self) -> None:
        """Close the file."""
        self._frames.close()  # type: ignore[attr-defined]


Source = FileSource | LatestFrameReader
"""The source of a session."""


def open_source(camera: int, video: str | None, realtime: bool) -> Source:
    """Open the camera, stream or file. Raises UserError when it does not exist or gives no frame."""
    start = time.monotonic()

    def clock() -> float:
        return time.monotonic() - start

    is_address = video is not None and "://" in video
    if video is None:
        latest = LatestFrameReader(lambda: camera_frames(camera, clock), reconnects=True, clock=clock)
    elif is_address and not is_file_address(video):
        latest = LatestFrameReader(lambda: stream_frames(video, clock), reconnects=True, clock=clock)
    elif not is_address and not Path(video).is_file():
        raise UserError(f"{video}: no such video file")
    elif not is_address and not realtime:
        return FileSource(read_video(Path(video)))
    else:  # files at an address too: the main loop must not wait for the network
        paced = RealtimeFileReader(video)
        latest = LatestFrameReader(paced.frames, reconnects=False, clock=paced.now_s, begin=paced.begin)
    try:
        latest.start()
    except UserError as error:
        raise UserError(without_password(str(error))) from error
    return latest
