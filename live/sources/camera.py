"""Frames of a camera or a stream address, with their times.

BGR exists here only: every frame that leaves is RGB. A camera's times are seconds on the session's clock at
the moment of the grab, so a slow or irregular camera is sampled as truly as a steady one, and a reconnected
one goes on in the same time.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from extract.video.reader import Frame

STREAM_TIMEOUT_MS = 5000
"""An address that does not answer for this long counts as lost."""
Clock = Callable[[], float]


def camera_frames(index: int, clock: Clock) -> Iterator[Frame]:
    """Frames of a camera until it stops giving any; times by `clock`, seconds.

    Raises ValueError when no such camera can be opened.
    """
    camera = _opened(
        f"camera {index} cannot be opened: none there, in use by another program, or not permitted; "
        "try --camera 1, or --video FILE",
        index,
    )
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # one frame of the driver's queue: what is shown is now
    return _read_on(camera, clock)


def stream_frames(address: str, clock: Clock) -> Iterator[Frame]:
    """Frames of an RTSP or HTTP address until it stops giving any; times by `clock`, seconds.

    Raises ValueError when it cannot be opened.
    """
    options = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        STREAM_TIMEOUT_MS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        STREAM_TIMEOUT_MS,
    ]
    return _read_on(
        _opened(f"{address}: this address gives no video", address, cv2.CAP_FFMPEG, options), clock
    )


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


def bgr_to_rgb(bgr: np.ndarray) -> np.ndarray:
    """Camera order to ours; both uint8 (H, W, 3)."""
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _read_on(capture: Any, clock: Clock) -> Iterator[Frame]:
    try:
        while True:
            grabbed, bgr = capture.read()
            if not grabbed:
                return
            yield Frame(clock(), bgr_to_rgb(_with_square_pixels(bgr, capture)))
    finally:
        capture.release()


def _with_square_pixels(bgr: np.ndarray, capture: Any) -> np.ndarray:
    """The picture as it is shown, uint8 (H, W, 3), where the stream's pixels are not square."""
    wide, high = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
    width = round(bgr.shape[1] * wide / high) if wide > 0 and high > 0 else bgr.shape[1]
    if width == bgr.shape[1] or not 1 / 8 <= wide / high <= 8:
        return bgr
    return cv2.resize(bgr, (width, bgr.shape[0]), interpolation=cv2.INTER_CUBIC)


def _opened(reason: str, *given: Any) -> Any:
    """cv2's capture, without warnings of the drivers' search: our own line, the reason, says what matters."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(*given)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        capture.release()
        raise ValueError(reason)
    return capture
