"""When to look: frames of a video in upright RGB with their times, and the sampling of them by time.

`read_video` decodes a file once, in one thread unless told otherwise. `sample_at` picks frames by their
timestamps, never by counting, and is the same function for files and cameras.

Shapes: a frame's pixels are uint8 (H, W, 3), RGB, upright.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extract.video.decoder import IsWanted, duration_s, open_video, pictures, pixel_aspect, rate, video_stream

EARLY_S = 0.0005
"""A frame this much before its target still answers it: containers round their times to a millisecond."""


@dataclass(frozen=True)
class Frame:
    """One picture of a video or a camera; its pixels are converted only when asked for."""

    pts_s: float
    """Seconds since the first frame of the stream."""
    pixels: np.ndarray | Callable[[], np.ndarray]
    """uint8 (H, W, 3), RGB, upright; or what makes it."""
    duration_s: float = 0.0
    """Seconds that the picture is shown, 0 = unknown."""

    def rgb(self) -> np.ndarray:
        """The picture, uint8 (H, W, 3), RGB, upright."""
        return self.pixels() if callable(self.pixels) else self.pixels


@dataclass(frozen=True)
class VideoInfo:
    """What a container says about its video stream; it may be wrong."""

    duration_s: float
    """Seconds of the video stream."""
    fps: float
    """Average frames a second; 25 where nothing is known."""
    width: int
    """Pixels, as coded: before rotation."""
    height: int
    """Pixels, as coded: before rotation."""


def probe(path: Path | str) -> VideoInfo:
    """What the container says, without decoding.

    Where it does not say how long the video is, packets are read: the last ones, or all where that cannot be
    told otherwise (MPEG-TS). Raises ValueError with a reason for people when there is no video in the file.
    """
    with closing(open_video(path)) as container:
        stream = video_stream(container)
        size = stream.codec_context.width, stream.codec_context.height
        return VideoInfo(duration_s(container, stream), rate(stream), *size)


def read_video(path: Path | str, *, threads: int = 1, is_wanted: IsWanted | None = None) -> Iterator[Frame]:
    """The frames of a file (or URL) in the order they are shown, with strictly growing times.

    With `is_wanted`, frames that are neither wanted nor needed to build others may be left out; those given
    are pixel for pixel the same.

    A damaged packet is passed over, a frame not later than the last one left out; where a stream carries no
    times (raw H.264), they follow from its frame rate, and where they start again (recordings joined by
    `cat`), they go on. Raises ValueError with a reason for people when there is nothing to decode.
    """
    with closing(open_video(path)) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = threads
        time_base = float(stream.time_base or 1)
        first_pts, last_s, aspect = stream.start_time, -math.inf, pixel_aspect(stream)
        step = round(1 / (rate(stream) * time_base))
        untimed = -step
        for picture in pictures(container, stream, str(path), is_wanted):
            pts = picture.pts if picture.pts is not None else picture.dts
            if pts is None:
                untimed += step
                pts = untimed
            first_pts = pts if first_pts is None else first_pts
            pts_s = (pts - first_pts) * time_base
            if pts_s <= last_s:
                continue
            last_s = pts_s
            yield Frame(pts_s, _Upright(picture, threads, aspect), (picture.duration or 0) * time_base)


class Sampler:
    """The rule of `sample_at`, one frame at a time, for a camera that pushes its frames."""

    def __init__(self, fps: float, start_s: float = 0.0) -> None:
        self._fps, self._start_s, self._k = fps, start_s, 0

    def takes(self, pts_s: float) -> bool:
        """Whether the frame shown at `pts_s` is sampled; ask once for each frame, in order of time."""
        if pts_s < self._start_s + self._k / self._fps - EARLY_S:
            return False
        # One past the last target that this frame has reached; the loop mends the division's rounding.
        self._k = max(self._k, math.floor((pts_s - self._start_s + EARLY_S) * self._fps)) + 1
        while pts_s >= self._start_s + self._k / self._fps - EARLY_S:
            self._k += 1
        return True


def sample_at(frames: Iterable[Frame], fps: float, start_s: float = 0.0) -> Iterator[Frame]:
    """For k = 0, 1, …: the first frame at or after start_s + k / fps (half a millisecond early will do).

    A frame answers all the targets it passes and is given once, so a gap in the video is a gap in the samples
    and a video slower than `fps` gives each of its frames once.
    """
    sampler = Sampler(fps, start_s)
    return (frame for frame in frames if sampler.takes(frame.pts_s))


class Targets:
    """The times at which stretches of a video are sampled: which pictures `sample_at` may ask for."""

    def __init__(self, starts_s: Sequence[float], fps: float, num_frames: int) -> None:
        """Stretches of `num_frames` targets each that begin at `starts_s`, ascending, and do not overlap."""
        self._starts_s, self._fps, self._last = starts_s, fps, num_frames - 1

    def between(self, before_s: float, pts_s: float) -> bool:
        """Whether a target lies after `before_s`, up to `pts_s`; yes when it is close."""
        slack_s = EARLY_S + 1e-4
        for start_s in self._starts_s[: bisect_right(self._starts_s, pts_s + slack_s)][-2:]:
            passed_s = max(before_s, start_s - 1) - slack_s - start_s
            next_target = max(0, math.ceil(passed_s * self._fps))
            if next_target <= self._last and start_s + next_target / self._fps <= pts_s + slack_s:
                return True
        return False


class Spans:
    """One stream of frames cut into spans of time, each read on from where the last one stopped."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames = iter(frames)
        self._waiting: Frame | None = None
        self.end_s = 0.0
        """Where the last frame that was given stops being shown, seconds."""
        self.is_over = False
        """Whether the stream has ended."""

    def until(self, end_s: float) -> Iterator[Frame]:
        """The frames from here up to, not including, `end_s`; the next one waits for the next span."""
        while True:
            frame = self._waiting or next(self._frames, None)
            self._waiting, self.is_over = frame, frame is None
            if frame is None or frame.pts_s >= end_s - EARLY_S:
                return
            self._waiting = None
            self.end_s = frame.pts_s + frame.duration_s
            yield frame


@dataclass(frozen=True)
class _Upright:
    """A decoded picture. A call gives it as it is shown: RGB, upright, with square pixels."""

    picture: Any
    threads: int
    aspect: float = 1.0
    """Width of a pixel divided by its height, as shown."""

    def __call__(self) -> np.ndarray:
        width = round(self.picture.width * self.aspect)  # as ffmpeg's own scale=iw*sar:ih
        stretch = {} if width == self.picture.width else {"width": width, "interpolation": "BICUBIC"}
        rgb = self.picture.to_ndarray(format="rgb24", threads=self.threads, **stretch)
        try:
            matrix = self.picture.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV lists no side data where it does not know one of the types (EXIF)
            return np.ascontiguousarray(np.rot90(rgb, round(self.picture.rotation / 90)))
        return rgb if matrix is None else _turned(rgb, np.frombuffer(matrix, np.int32))


def _turned(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) as a display matrix (9,) wants them shown: turned by quarters, and mirrored.

    A stored point (x, y) is shown at (m0 x + m3 y, m1 x + m4 y); a phone's selfie may mirror as well.
    """
    xx, xy, _, yx, yy = (int(value) for value in matrix[:5])
    if abs(xy) > abs(xx):  # rows become columns
        rgb, xx, yy = rgb.swapaxes(0, 1), yx, xy
    return np.ascontiguousarray(rgb[:: -1 if yy < 0 else 1, :: -1 if xx < 0 else 1])
