"""Functions that write small video files for tests."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np

from extract.video.reader import read_video


def face_frames(clip: Path, count: int, width: int = 320, height: int = 240) -> list[np.ndarray]:
    """The first `count` frames of a real clip, centre-cropped and resized: uint8 (height,width,3) RGB."""
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
    hflip: bool = False,
    vflip: bool = False,
    times_s: list[float] | None = None,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Encode RGB frames. `times_s` gives the time of each frame.

    `rotation` (degrees), `hflip` and `vflip` set the display matrix; `pixel_aspect` is the width of a
    pixel divided by its height.
    """
    with av.open(str(path), "w") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for index, rgb in enumerate(frames):
            if index == 0:
                stream.height, stream.width = rgb.shape[:2]
                if rotation or hflip or vflip:
                    stream.set_display_rotation(rotation, hflip=hflip, vflip=vflip)
            picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            if times_s is not None:
                picture.time_base = Fraction(1, 1000)
                picture.pts = round(times_s[index] * 1000)
                stream.codec_context.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def write_talk(path: Path, frames: list[np.ndarray], fps: float, *, late_s: float, sound_s: float) -> Path:
    """Encode RGB frames and `sound_s` seconds of silence; the frames begin `late_s` after the sound.

    VP9 and Opus in WebM, else H.264 and AAC.
    """
    codecs = ("libvpx-vp9", "libopus") if path.suffix == ".webm" else ("libx264", "aac")
    options = {"cpu-used": "8", "deadline": "realtime"} if path.suffix == ".webm" else {"bf": "2"}
    with av.open(str(path), "w") as container:
        video = container.add_stream(codecs[0], rate=Fraction(fps).limit_denominator(1001), options=options)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        sound = container.add_stream(codecs[1], rate=48000, layout="mono")
        packets = []
        for index, rgb in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            picture.pts, picture.time_base = index + round(late_s * fps), 1 / Fraction(fps)
            packets += video.encode(picture)
        for first in range(0, int(sound_s * 48000), 960):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 48000, first, Fraction(1, 48000)
            packets += sound.encode(silence)
        packets += [*video.encode(None), *sound.encode(None)]
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return path


def remux(source: Path, target: str, **options: str) -> None:
    """Write the packets of a video's first stream to another container, or to several (format="segment")."""
    with av.open(str(source)) as given, av.open(target, "w", **options) as container:
        video = given.streams.video[0]
        stream = container.add_stream_from_template(video)
        for packet in given.demux(video):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)


def looped(frames: list[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` frames: the given frames forwards and backwards in turn, so that no motion jumps."""
    there_and_back = frames + frames[-2:0:-1]
    return [there_and_back[index % len(there_and_back)] for index in range(count)]
