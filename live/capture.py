"""Where frames come from: a camera, a video file or a stream address, all as frames with their times.

BGR exists here only: every frame that leaves is RGB. A camera's times are seconds since it was opened, by
the clock at the moment of the grab, so a slow or irregular camera is sampled as truly as a steady one.

Knows nothing about faces, predictions or displays.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from extract.video import Frame, read_video


def camera_frames(index: int) -> Iterator[Frame]:
    """Frames of a camera until it stops giving any.

    Raises ValueError when no such camera can be opened.
    """
    camera = open_camera(index)
    opened = time.monotonic()
    try:
        while True:
            grabbed, bgr = camera.read()
            if not grabbed:
                return
            yield Frame(time.monotonic() - opened, bgr_to_rgb(bgr))
    finally:
        camera.release()


def video_frames(path: str) -> Iterator[Frame]:
    """Frames of a video file or stream address, as fast as they can be decoded."""
    return read_video(path)


def open_camera(index: int) -> Any:
    """The camera, delivering the newest frame it has.

    Raises ValueError when it cannot be opened.
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
    return camera


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


@contextlib.contextmanager
def _quiet_cv2() -> Iterator[None]:
    """No warnings of the camera drivers' search: our own line says what matters."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
