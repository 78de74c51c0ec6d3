"""The main loop of a session: reads frames, predicts, handles the keys and shows the picture.

The model loads in its own thread, so the camera's picture is visible at once.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np

from extract.video.reader import Frame
from live.commands import Control
from live.inference.predictor import Predictor
from live.session import Session
from live.sources.base import Source
from live.ui.view import NoView, WindowView

if TYPE_CHECKING:
    from live.web.server import BrowserView

    View = WindowView | NoView | BrowserView

WAIT_S = 0.05
"""Longest wait for a frame before the loop handles keys and the window again."""
VIEW_S = 1 / 30
"""Shortest time between two pictures of a file that is read as fast as possible."""


class Loading:
    """Loads the predictor in its own thread."""

    def __init__(self, load: Callable[[], Predictor]) -> None:
        self._threads = ThreadPoolExecutor(1, "model")
        self._predictor = self._threads.submit(load)
        self._is_taken = False

    def ready(self, wait_s: float = 0.0) -> Predictor | None:
        """The predictor, or None when it is not loaded after `wait_s` seconds. Raises errors of loading."""
        wait([self._predictor], wait_s)
        self._is_taken = self._predictor.done()
        return self._predictor.result() if self._is_taken else None

    def finish(self) -> None:
        """Wait until loading ends (a process that exits in native code aborts); frees an unused predictor."""
        self._threads.shutdown()
        if not self._is_taken and self._predictor.exception() is None:
            self._predictor.result().close()


class Loop:
    """The main loop: everything except reading a camera, loading and serving happens in its thread."""

    def __init__(
        self,
        seconds: float | None,
        source: Source,
        loading: Loading,
        session: Session,
        control: Control,
        view: "View",
    ) -> None:
        self._seconds, self._source, self._loading = seconds, source, loading
        self._session, self._control, self._view = session, control, view
        self._image = np.zeros((480, 640, 3), np.uint8)
        self._shown_s, self._paused = 0.0, False

    def run(self) -> None:
        """Run until the source ends, the user quits or the time is over."""
        source = self._source
        frame = source.next(WAIT_S)
        if frame is not None and self._view.is_watched:
            self._image = frame.rgb()
            self._show()  # a picture while the model loads
        self._handle_keys()  # a window shows its picture when its events are handled
        while source.is_file and self._control.predictor is None and not self._control.quits:
            self._start_predictor(wait_s=WAIT_S)
            self._handle_keys()
        while not self._control.quits:
            if self._control.predictor is None:
                self._start_predictor(wait_s=0.0)
            if frame is not None:
                self._control.frame_arrived()
                if self._seconds is not None and frame.pts_s >= self._seconds:
                    return
                self._session.add_frame(frame, self._control.push(frame))
            elif self._paused or source.is_lost:
                self._session.add_gap(source.now_s(), "paused" if self._paused else "camera_lost")
                self._control.gap(is_lost=not self._paused)
                if self._seconds is not None and source.now_s() >= self._seconds:
                    return
            elif source.has_ended:
                return
            self._update_view(frame)
            frame = self._next()

    def _next(self) -> Frame | None:
        if self._control.wants_pause != self._paused:
            self._paused = self._control.wants_pause
            (self._source.pause if self._paused else self._source.resume)()
        if self._paused:
            time.sleep(WAIT_S)
            return None
        return self._source.next(WAIT_S)

    def _start_predictor(self, *, wait_s: float) -> None:
        predictor = self._loading.ready(wait_s)
        if predictor is not None:
            self._control.start(predictor, 0.0 if self._source.is_file else self._source.now_s())
            self._source.begin()

    def _update_view(self, frame: Frame | None) -> None:
        """Draw where a view is open or the overlay is recorded; then handle the keys."""
        is_due = not self._source.is_file or time.monotonic() - self._shown_s >= VIEW_S
        if (self._session.wants_pictures and frame is not None) or (self._view.is_watched and is_due):
            if frame is not None:
                self._image = frame.rgb()
            self._show()
        self._handle_keys()

    def _handle_keys(self) -> None:
        for key in self._view.keys():
            self._control.press(key, self._source.now_s())

    def _show(self) -> None:
        self._session.message = self._control.line(self._source.now_s())
        if self._view.shows_overlay or self._session.wants_pictures:
            picture = self._session.picture(self._image, self._source.last_s)
        if self._view.is_watched:
            self._view.show(picture if self._view.shows_overlay else self._session.scene(self._image))
        self._shown_s = time.monotonic()
