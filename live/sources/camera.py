"""Frames of a camera or a stream address, with their times.

BGR is used only here: all returned frames are RGB. A frame's time is the session's clock (seconds) when it is
read. So slow or irregular cameras are sampled correctly, and the time continues after a reconnection.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from extract.video.decoder import NO_DATA_S
from extract.video.reader import Frame, shown_width
from features.cli import UserError

FROZEN_S = 1.0
"""Equal pictures of a camera for longer than this count as no frames, seconds. With `SILENT_S` of
latest_frame.py, a frozen camera is lost after two seconds. A real camera's pictures differ by noise."""
Clock = Callable[[], float]


def camera_frames(index: int, clock: Clock) -> Iterator[Frame]:
    """Frames of a camera until it stops giving any; times by `clock`, seconds.

    While its picture is frozen, there are no frames. Addresses and files are not checked: compression can
    make the pictures of a still scene equal.

    Raises UserError when no such camera can be opened.
    """
    camera = _open_capture(
        f"camera {index} cannot be opened: it does not exist, is in use by another program, or is not "
        "permitted; try another --camera, or --video FILE",
        index,
    )
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a driver queue of one frame keeps the delay short
    return _without_frozen(_read_frames(camera, clock))


def stream_frames(address: str, clock: Clock) -> Iterator[Frame]:
    """Frames of an RTSP or HTTP address until it stops giving any; times by `clock`, seconds.

    Raises UserError when it cannot be opened.
    """
    no_data_ms = round(1000 * NO_DATA_S)
    options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, no_data_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, no_data_ms]
    return _read_frames(
        _open_capture(f"{address}: this address gives no video", address, cv2.CAP_FFMPEG, options), clock
    )


def is_file_address(address: str) -> bool:
    """Whether the address is a file, not a live stream: it has a duration, and a size in bytes or frames.

    A duration is not enough: for a live stream it may be the time received so far.
    """
    import av

    if not address.lower().startswith(("http://", "https://", "file://")):
        return False
    try:
        with av.open(address, timeout=NO_DATA_S) as container:
            frames = sum(stream.frames for stream in container.streams.video)
            return bool(container.duration) and (container.size > 0 or frames > 0)
    except av.error.FFmpegError:
        return False


def without_password(text: str) -> str:
    """The text with user name and password of an address removed."""
    return re.sub("://.*@", "://…@", text)


def bgr_to_rgb(bgr: np.ndarray) -> np.ndarray:
    """Convert BGR to RGB; both uint8 (H, W, 3)."""
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _read_frames(capture: Any, clock: Clock) -> Iterator[Frame]:
    try:
        while True:
            grabbed, bgr = capture.read()
            if not grabbed:
                return
            yield Frame(clock(), bgr_to_rgb(_with_square_pixels(bgr, capture)))
    finally:
        capture.release()


def _without_frozen(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The frames without those that are equal to all frames of the FROZEN_S before."""
    last, changed_s = np.empty(0), 0.0
    with contextlib.closing(frames):  # type: ignore[type-var]
        for frame in frames:
            rgb = frame.rgb()
            # Most frames differ within a few rows: the other rows need not be compared.
            if not (np.array_equal(rgb[::32], last[::32]) and np.array_equal(rgb, last)):
                last, changed_s = rgb, frame.pts_s
            if frame.pts_s - changed_s <= FROZEN_S:
                yield frame


def _with_square_pixels(bgr: np.ndarray, capture: Any) -> np.ndarray:
    """The picture as it is shown, uint8 (H, W, 3), where the stream's pixels are not square."""
    wide, high = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
    width = shown_width(bgr.shape[1], wide / high if wide > 0 and high > 0 else 1.0)
    if width == bgr.shape[1]:
        return bgr
    return cv2.resize(bgr, (width, bgr.shape[0]), interpolation=cv2.INTER_CUBIC)


def _open_capture(reason: str, *arguments: Any) -> Any:
    """An open cv2.VideoCapture, without driver warnings. Raises UserError with `reason` on failure."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(*arguments)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        capture.release()
        raise UserError(reason)
    return capture
