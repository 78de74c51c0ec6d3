"""Small video files made for a test: good ones, odd ones, broken ones."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np

from extract.video import read_video


def face_frames(clip: Path, count: int, width: int = 320, height: int = 240) -> list[np.ndarray]:
    """The first frames of a real clip, centre-cropped to the shape wanted and resized: uint8 (H,W,3) RGB."""
    frames = []
    for frame in islice(read_video(clip), count):
        rgb = frame.rgb()
        scale = min(rgb.shape[1] / width, rgb.shape[0] / height)
        w, h = int(width * scale), int(height * scale)
        left, top = (rgb.shape[1] - w) // 2, (rgb.shape[0] - h) // 2
        frames.append(cv2.resize(rgb[top : top + h, left : left + w], (width, height)))
    return frames


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float = 10,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    times_s: list[float] | None = None,
) -> Path:
    """Encode RGB frames; `times_s` gives each its own time, `rotation` is the display matrix in degrees."""
    with av.open(str(path), "w") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        for index, rgb in enumerate(frames):
            if index == 0:
                stream.height, stream.width = rgb.shape[:2]
                if rotation:
                    stream.set_display_rotation(rotation)
            picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            if times_s is not None:
                picture.time_base = Fraction(1, 1000)
                picture.pts = round(times_s[index] * 1000)
                stream.codec_context.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def looped(frames: list[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` frames, going back and forth over those given so that nothing jumps."""
    there_and_back = frames + frames[-2:0:-1]
    return [there_and_back[index % len(there_and_back)] for index in range(count)]
