"""Where a session is seen: a window, or nowhere. The browser's view is in live/web/server.py, with the same
methods."""

import os
import socket
import sys

import cv2
import numpy as np

TITLE = "brainbuddy"
ESCAPE = 27


class WindowView:
    """cv2's window, which the user may resize."""

    shows_overlay = True
    """Whether it wants the panel in the picture; else the face boxes alone."""
    is_watched = True
    """Whether pictures are worth drawing now."""

    def __init__(self) -> None:
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        self._is_sized = False

    def show(self, picture: np.ndarray) -> None:
        """Show a picture; the first one sets the window's size, then the user does."""
        if not self._is_sized:
            cv2.resizeWindow(TITLE, picture.shape[1], picture.shape[0])
            self._is_sized = True
        cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def keys(self) -> str:
        """Keys pressed since last asked; escape and a closed window count as q."""
        code = cv2.waitKey(1) & 0xFF
        if code == ESCAPE or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1:
            return "q"
        return chr(code) if code != 255 else ""

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()


class NoView:
    """Headless: nobody looks, nobody presses."""

    shows_overlay = is_watched = False

    def show(self, picture: np.ndarray) -> None:
        """Nothing."""

    def keys(self) -> str:
        """None."""
        return ""

    def close(self) -> None:
        """Nothing."""


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
