"""Views of a session: a window or none. The browser view (live/web/server.py) has the same methods."""

import os
import socket
import sys

import cv2
import numpy as np

TITLE = "brainbuddy"
ESCAPE = 27


class WindowView:
    """A cv2 window that the user can resize."""

    shows_overlay = True
    """Whether pictures have the panel; else only the face boxes."""
    is_watched = True
    """Whether a picture is visible now."""

    def __init__(self) -> None:
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        self._is_sized = False

    def show(self, picture: np.ndarray) -> None:
        """Show a picture, RGB uint8 (H, W, 3); the first one sets the window's size."""
        if not self._is_sized:
            cv2.resizeWindow(TITLE, picture.shape[1], picture.shape[0])
            self._is_sized = True
        cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def keys(self) -> str:
        """Keys pressed since the last call; escape and a closed window are q."""
        code = cv2.waitKey(1) & 0xFF
        if code == ESCAPE or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1:
            return "q"
        return chr(code) if code != 255 else ""

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()


class NoView:
    """No view (--headless): shows nothing and has no keys."""

    shows_overlay = is_watched = False

    def show(self, picture: np.ndarray) -> None:
        """Do nothing."""

    def keys(self) -> str:
        """No keys."""
        return ""

    def close(self) -> None:
        """Do nothing."""


def window_problem() -> str:
    """The reason why no window can be shown; empty where a window is possible.

    Called before the first window, because cv2's Qt ends the process when there is no display.
    """
    gui = next(
        (line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")), ""
    )
    if "NONE" in gui:
        return "this OpenCV is built without window support"
    if not sys.platform.startswith("linux"):
        return ""
    display = os.environ.get("DISPLAY", "")
    if not display:
        return "there is no display: DISPLAY is not set"
    host, _, screen = display.rpartition(":")
    number = screen.split(".")[0]
    if host in ("", "unix") and number.isdigit():
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(f"/tmp/.X11-unix/X{number}")
        except OSError:
            return f"cannot connect to the display {display}"
    return ""
