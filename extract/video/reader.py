"""Frames of a video in upright RGB with their times, and sampling of frames by time.

`read_video` decodes a file once, with one thread by default. `sample_at` selects frames by their timestamps,
never by counting, and is used for files and cameras.

Shapes: a frame's pixels are uint8 (H, W, 3), RGB, upright.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extract.video.decoder import (
    IsWanted,
    duration_s,
    open_video,
    pictures,
    rate,
    seek,
    video_stream,
    video_tracks,
)

DAMAGED = "decoded from damaged data"
MISSING_S = 1.0
"""A video that ends this many seconds before its expected end counts as truncated; less is rounding."""
SEEK_MARGIN_S = 1.0
"""Reading begins at a keyframe this many seconds before a time: some frames before it must be known too."""
EARLY_S = 0.0005
"""A frame may be this many seconds before its target time: containers round times to a millisecond."""


@dataclass(frozen=True)
class Frame:
    """One frame of a video or a camera; its pixels are converted only when `rgb` is called."""

    pts_s: float
    """Seconds since the first frame of the stream."""
    pixels: np.ndarray | Callable[[], np.ndarray]
    """uint8 (H, W, 3), RGB, upright; or a function that returns it."""
    duration_s: float = 0.0
    """Seconds for which the frame is shown; 0 = unknown."""
    doubts: tuple[str, ...] = ()
    """Why its pixels or its time may be wrong."""

    def rgb(self) -> np.ndarray:
        """The pixels, uint8 (H, W, 3), RGB, upright."""
        return self.pixels() if callable(self.pixels) else self.pixels


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of a container's video stream; it may be wrong."""

    duration_s: float
    """Length of the video stream, seconds."""
    fps: float
    """Average frames per second; 25 if unknown."""
    width: int
    """Pixels, as coded: before rotation."""
    height: int
    """Pixels, as coded: before rotation."""


def probe(path: Path | str) -> VideoInfo:
    """Read the metadata of a video without decoding it.

    If the container does not have the length, packets are read: the last ones, or all of them if necessary
    (MPEG-TS). Raises UserError with the reason when the file has no video.
    """
    with closing(open_video(path)) as container:
        stream = video_stream(container)
        size = stream.codec_context.width, stream.codec_context.height
        return VideoInfo(duration_s(container, stream), rate(stream), *size)


def read_video(
    path: Path | str, *, threads: int = 1, is_wanted: IsWanted | None = None, start_s: float = 0.0
) -> Iterator[Frame]:
    """Yield the frames of a file (or URL) in display order, with strictly increasing times.

    With `start_s`, frames before that time may be left out: reading begins at the keyframe before it, if the
    file can be searched. Later frames are the same.

    With `is_wanted`, frames that are neither wanted nor needed to decode others may be left out; the other
    frames have exactly the same pixels.

    Packets that cannot be decoded are skipped, and so are frames not later than the last one. If a stream has
    no times (raw H.264), they are computed from its frame rate; if they start again (recordings joined by
    `cat`), they continue. Frames of damaged data, assumed times and files with several tracks have doubts.
    Raises UserError with the reason when nothing can be decoded.
    """
    frames = _frames(path, threads, is_wanted, start_s)
    first = next(frames, None)
    if first is not None and 0 < start_s < first.pts_s:  # a wrong index: the keyframe is too late
        frames.close()
        frames = _frames(path, threads, is_wanted, 0.0)
        first = next(frames, None)
    with closing(frames):
        if first is not None:
            yield first
        yield from frames


def _frames(
    path: Path | str, threads: int, is_wanted: IsWanted | None, start_s: float
) -> Generator[Frame, None, None]:
    """`read_video`, from the keyframe that the file's index has before `start_s`."""
    with closing(open_video(path)) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = threads
        seek(container, stream, start_s - SEEK_MARGIN_S)
        time_base = float(stream.time_base or 1)
        first_pts, last_s, aspect = stream.start_time, -math.inf, float(stream.sample_aspect_ratio or 1)
        step = round(1 / (rate(stream) * time_base))
        untimed, number = -step, video_tracks(container).index(stream) + 1
        of_file = _track_doubt(number, len(video_tracks(container)))
        for picture, is_damaged in pictures(container, stream, str(path), is_wanted):
            pts, doubts = picture.pts if picture.pts is not None else picture.dts, of_file
            if is_damaged:
                doubts += (DAMAGED,)
            if pts is None:
                untimed += step
                pts = untimed
                doubts += (f"the file has no times: {rate(stream):g} frames per second are assumed",)
            first_pts = pts if first_pts is None else first_pts
            pts_s = (pts - first_pts) * time_base
            if pts_s <= last_s:
                continue
            last_s = pts_s
            length_s = (picture.duration or 0) * time_base
            yield Frame(pts_s, _Upright(picture, threads, aspect), length_s, doubts)


def _track_doubt(number: int, count: int) -> tuple[str, ...]:
    return (f"the file has {count} video tracks: track {number} is read",) if count > 1 else ()


def truncation(end_s: float, expected_s: float) -> str:
    """The failure reason of a video that ends at `end_s` instead of `expected_s` (seconds); '' = whole."""
    if end_s >= expected_s - MISSING_S:
        return ""
    return f"truncated: the video ends at {end_s:.1f} s, expected {expected_s:.1f} s"


class Sampler:
    """The sampling rule of `sample_at`, one frame at a time, for cameras."""

    def __init__(self, fps: float, start_s: float = 0.0) -> None:
        self._fps, self._start_s, self._k = fps, start_s, 0

    def takes(self, pts_s: float) -> bool:
        """Whether the frame at `pts_s` is sampled; call it once for each frame, in time order."""
        if pts_s < self._start_s + self._k / self._fps - EARLY_S:
            return False
        # One past the last target that this frame has reached; the loop corrects the division's rounding.
        self._k = max(self._k, math.floor((pts_s - self._start_s + EARLY_S) * self._fps)) + 1
        while pts_s >= self._start_s + self._k / self._fps - EARLY_S:
            self._k += 1
        return True


def sample_at(frames: Iterable[Frame], fps: float, start_s: float = 0.0) -> Iterator[Frame]:
    """For k = 0, 1, …: the first frame at or after start_s + k / fps (or up to EARLY_S before it).

    A frame that is the first for several targets is yielded once. So a gap in the video is a gap in the
    samples, and a video slower than `fps` yields each of its frames once.
    """
    sampler = Sampler(fps, start_s)
    return (frame for frame in frames if sampler.takes(frame.pts_s))


class Targets:
    """The target times of the windows of a video, to find the pictures that `sample_at` may select."""

    def __init__(self, starts_s: Sequence[float], fps: float, num_frames: int) -> None:
        """Windows of `num_frames` targets each, which start at `starts_s` (ascending) and do not overlap."""
        self._starts_s, self._fps, self._last = starts_s, fps, num_frames - 1

    def between(self, before_s: float, pts_s: float) -> bool:
        """Whether a target is after `before_s` and up to `pts_s` (with a small tolerance)."""
        slack_s = EARLY_S + 1e-4
        for start_s in self._starts_s[: bisect_right(self._starts_s, pts_s + slack_s)][-2:]:
            passed_s = max(before_s, start_s - 1) - slack_s - start_s
            next_target = max(0, math.ceil(passed_s * self._fps))
            if next_target <= self._last and start_s + next_target / self._fps <= pts_s + slack_s:
                return True
        return False


class Spans:
    """A stream of frames, read in consecutive time spans."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames = iter(frames)
        self._waiting: Frame | None = None
        self.end_s = 0.0
        """End time of the last yielded frame, seconds."""
        self.is_over = False
        """Whether the stream has ended."""

    def until(self, end_s: float) -> Iterator[Frame]:
        """Yield the next frames before `end_s`; the first frame at or after it is kept for the next span."""
        while True:
            frame = self._waiting or next(self._frames, None)
            self._waiting, self.is_over = frame, frame is None
            if frame is None or frame.pts_s >= end_s - EARLY_S:
                return
            self._waiting = None
            self.end_s = frame.pts_s + frame.duration_s
            yield frame


def shown_width(width: int, pixel_aspect: float) -> int:
    """Width of a picture with square pixels, as ffmpeg's scale=iw*sar:ih; the height stays.

    pixel_aspect: width of a pixel divided by its height. Values outside 1/8 to 8 are errors of the file and
    are ignored.
    """
    return round(width * pixel_aspect) if 1 / 8 <= pixel_aspect <= 8 else width


@dataclass(frozen=True)
class _Upright:
    """A decoded picture; a call converts it to upright RGB with square pixels."""

    picture: Any
    threads: int
    aspect: float = 1.0
    """Width of a pixel divided by its height, as shown."""

    def __call__(self) -> np.ndarray:
        width = shown_width(self.picture.width, self.aspect)
        stretch = {} if width == self.picture.width else {"width": width, "interpolation": "BICUBIC"}
        rgb = self.picture.to_ndarray(format="rgb24", threads=self.threads, **stretch)
        try:
            matrix = self.picture.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV lists no side data where it does not know one of the types (EXIF)
            return np.ascontiguousarray(np.rot90(rgb, round(self.picture.rotation / 90)))
        return rgb if matrix is None else _turned(rgb, np.frombuffer(matrix, np.int32))


def _turned(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) rotated by multiples of 90° and mirrored according to a display matrix (9,).

    A stored point (x, y) is shown at (m0 x + m3 y, m1 x + m4 y). Selfie videos may be mirrored too.
    """
    xx, xy, _, yx, yy = (int(value) for value in matrix[:5])
    if abs(xy) > abs(xx):  # rows become columns
        rgb, xx, yy = rgb.swapaxes(0, 1), yx, xy
    return np.ascontiguousarray(rgb[:: -1 if yy < 0 else 1, :: -1 if xx < 0 else 1])
