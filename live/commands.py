"""What the keys do: quit, pause, record, mark, label, calibrate. The same keys for window and browser.

Holds the predictor while it runs, because calibrating changes what it decides with.
"""

import time
from collections.abc import Callable

from extract.video.reader import Frame
from live.inference.calibration import (
    CalibrationSession,
    can_calibrate,
    forget_personal,
    is_outdated,
    load_personal,
    personal_calibration,
    save_personal,
    shortest_phase_s,
)
from live.inference.predictor import Prediction, Predictor
from live.session import Session

CALIBRATE_S = 30.0
"""Length of each phase when key c is pressed; longer where the run's window asks for it."""
MESSAGE_S = 3.0
"""How long a line for the user stays."""
DONE, NOT_FINISHED = "done", "not finished, nothing was changed"
"""Ends of a calibration, as a session's summary tells them."""


class Control:
    """Keys in; session and predictor obey."""

    def __init__(
        self, session: Session, *, subject: str, calibrate_s: float | None, notify: Callable[[str], None]
    ) -> None:
        self.predictor: Predictor | None = None
        self.quits = self.wants_pause = False
        self._session, self._subject, self._notify = session, subject, notify
        self._calibrate_s = calibrate_s
        self._calibration_session: CalibrationSession | None = None
        self.calibration = NOT_FINISHED if calibrate_s else ""
        """How the last calibration ended: DONE, or why nothing changed; empty where none was asked for."""
        self._told_phase = ""
        self._line, self._line_until = "loading the model …", float("inf")
        self._gap = self._is_lost = False

    @property
    def num_encoded(self) -> int:
        """Faces that went through the encoder."""
        return self.predictor.num_encoded if self.predictor else 0

    def start(self, predictor: Predictor, now_s: float) -> None:
        """The model is ready: predict and write from now on, with the person's calibration if there is one.

        Raises OSError when a file that was asked for cannot be written.
        """
        self.predictor, self._line_until = predictor, 0.0
        predictor.reset(now_s)
        for line in self._session.begin():
            self._notify(line)
        try:
            own = load_personal(self._subject, predictor.model.key)
        except ValueError as error:
            own = None
            self._say(str(error))
        if own is not None and is_outdated(own, predictor.model.card.calibration):
            self._say(
                f"the calibration of {self._subject} was made for another calibration of this run and is not "
                "used: key c or --calibrate makes it again"
            )
        elif own is not None:
            predictor.calibration = own
            self._session.personal = self._subject
            self._say(f"the calibration of {self._subject} is on; key x removes it")
        if self._calibrate_s:
            self._begin_calibration(now_s, self._calibrate_s)

    def push(self, frame: Frame) -> Prediction | None:
        """Predict at this frame, if the model is there."""
        if self.predictor is None:
            return None
        if self._gap:
            # Another camera, or another moment: the face that was followed is not the one that comes.
            self.predictor.reset(frame.pts_s)
            self._gap = False
        prediction = self.predictor.push(frame)
        if self._calibration_session is not None:
            if prediction is not None:
                self._calibration_session.add(prediction)
            self._follow_calibration(self._calibration_session, frame.pts_s)
        return prediction

    def gap(self, *, is_lost: bool) -> None:
        """The source is away, paused or lost: the next frame begins a new window."""
        self._gap = True
        if is_lost and not self._is_lost:
            self._is_lost = True
            self._say("the camera gives no picture: waiting for it")

    def found(self) -> None:
        """A frame came."""
        if self._is_lost:
            self._is_lost = False
            self._say("the camera is back")

    def line(self, now_s: float) -> str:
        """What to tell the user now, or empty."""
        if self._calibration_session is not None:
            return self._calibration_session.message(now_s)
        return self._line if time.monotonic() < self._line_until else ""

    def press(self, key: str, now_s: float) -> None:
        """Do what a key stands for; other keys do nothing."""
        if key == "q":
            self.quits = True
        elif key == "p":
            self.wants_pause = not self.wants_pause
        elif key == "r":
            self._say(self._session.toggle_recording())
        elif key == " ":
            self._session.mark(now_s)
        elif key == "g":
            self._show_signals()
        elif key == "c":
            window_s = self._window_s()
            self._begin_calibration(now_s, max(CALIBRATE_S, shortest_phase_s(window_s), 2 * window_s))
        elif key == "x":
            self._forget()
        elif len(key) == 1 and key in "0123456789":
            self._say(self._session.begin_label(int(key), now_s))

    def close(self) -> None:
        """Free the predictor."""
        if self.predictor is not None:
            self.predictor.close()

    def _begin_calibration(self, now_s: float, seconds: float) -> None:
        if self.predictor is None:
            self._say("the model is still loading")
        elif not can_calibrate(self.predictor.model.card.labelling.task):
            self._say("personal calibration needs a binary or ordinal run")
        else:
            self._calibration_session, self._told_phase = (
                CalibrationSession.begin(now_s, seconds, self._window_s()),
                "",
            )
            self.calibration = NOT_FINISHED

    def _follow_calibration(self, calibration: CalibrationSession, now_s: float) -> None:
        """Say what is asked as each phase begins, for whoever sees no picture; and end with the last one."""
        phase = calibration.phase(now_s)
        if phase == "done":
            self._end_calibration(calibration)
        elif phase != self._told_phase:
            self._told_phase = phase
            self._notify(calibration.message(now_s))

    def _window_s(self) -> float:
        """Seconds that the model looks back over; 0 before it is there."""
        pixels = self.predictor.model.card.recipe.pixels if self.predictor else None
        return pixels.window_s if pixels else 0.0

    def _show_signals(self) -> None:
        if self.predictor is not None and self.predictor.model.landmarker_file is None:
            self._say("this run reads no geometry: there are no signals to show")
        else:
            self._session.shows_signals = not self._session.shows_signals

    def _end_calibration(self, calibration: CalibrationSession) -> None:
        assert self.predictor is not None
        self._calibration_session, name = None, self._subject
        try:
            own = personal_calibration(
                calibration.attending, calibration.away, self.predictor.model.card.calibration
            )
        except ValueError as error:
            self.calibration = line = str(error)
        else:
            self.predictor.calibration, self._session.personal = own, name
            try:
                path = save_personal(name, self.predictor.model.key, own)
                self.calibration, line = DONE, f"calibrated to {name} ({path}); key x removes it"
            except (OSError, ValueError) as error:
                self.calibration = line = f"calibrated to {name} for this session alone: {error}"
        self._say(line)

    def _forget(self) -> None:
        if self.predictor is None or not self._session.personal:
            self._say("there is no personal calibration to remove")
            return
        line = f"the calibration of {self._session.personal} for this run is removed"
        try:
            forget_personal(self._session.personal, self.predictor.model.key)
        except (OSError, ValueError) as error:
            line = f"off for this session alone: {error}"
        self.predictor.calibration = self.predictor.model.card.calibration
        self._session.personal = ""
        self._say(line)

    def _say(self, line: str) -> None:
        self._line, self._line_until = line, time.monotonic() + MESSAGE_S
        self._notify(line)
