"""Key commands of a session: quit, pause, record, mark, label, calibrate; the same in window and browser.

`Control` holds the predictor, because a calibration changes the predictor's decision.
"""

import time
from collections.abc import Callable

from extract.video.reader import Frame
from features.cli import UserError
from live.inference.calibration import (
    CalibrationSession,
    can_calibrate,
    personal_calibration,
    shortest_phase_s,
)
from live.inference.predictor import Prediction, Predictor
from live.inference.profiles import forget_personal, is_outdated, load_personal, save_personal
from live.session import Session

CALIBRATE_S = 30.0
"""Length of each phase after key c, seconds; longer where the run's window is long."""
MESSAGE_S = 3.0
"""How long a message stays visible, seconds."""
DONE, NOT_FINISHED = "done", "not finished, nothing was changed"
"""Results of a calibration in the summary of a session."""


class Control:
    """Handles keys and messages; controls the session and the predictor."""

    def __init__(
        self, session: Session, *, subject: str, calibrate_s: float | None, notify: Callable[[str], None]
    ) -> None:
        self.predictor: Predictor | None = None
        self.quits = self.wants_pause = False
        self._session, self._subject, self._notify = session, subject, notify
        self._calibrate_s = calibrate_s
        self._calibration_session: CalibrationSession | None = None
        self.calibration = NOT_FINISHED if calibrate_s else ""
        """Result of the last calibration: DONE, or why nothing changed; empty where none was requested."""
        self._announced_phase = ""
        self._line, self._line_until = "loading the model …", float("inf")
        self._gap = self._is_lost = False

    @property
    def num_encoded(self) -> int:
        """Number of faces that were encoded."""
        return self.predictor.num_encoded if self.predictor else 0

    def start(self, predictor: Predictor, now_s: float) -> None:
        """Start to predict and write with a loaded model, and with the subject's calibration if there is one.

        Raises OSError when a requested file cannot be written.
        """
        self.predictor, self._line_until = predictor, 0.0
        predictor.reset(now_s)
        for line in self._session.begin():
            self._notify(line)
        try:
            personal = load_personal(self._subject, predictor.model.key)
        except UserError as error:
            personal = None
            self._show_message(str(error))
        if personal is not None and is_outdated(personal, predictor.model.card.calibration):
            self._show_message(
                f"the calibration of {self._subject} is not used, because the run's calibration has changed: "
                "calibrate again with key c or --calibrate"
            )
        elif personal is not None:
            predictor.calibration = personal
            self._session.personal = self._subject
            self._show_message(f"using the calibration of {self._subject}; key x removes it")
        if self._calibrate_s:
            self._begin_calibration(now_s, self._calibrate_s)

    def push(self, frame: Frame) -> Prediction | None:
        """Predict at this frame; None before the model is loaded or between sampled frames."""
        if self.predictor is None:
            return None
        if self._gap:
            # After a gap the followed face may be another one.
            self.predictor.reset(frame.pts_s)
            self._gap = False
        prediction = self.predictor.push(frame)
        if self._calibration_session is not None:
            if prediction is not None:
                self._calibration_session.add(prediction)
            self._follow_calibration(self._calibration_session, frame.pts_s)
        return prediction

    def gap(self, *, is_lost: bool) -> None:
        """The source is paused or lost: the next frame starts a new window."""
        self._gap = True
        if is_lost and not self._is_lost:
            self._is_lost = True
            self._show_message("no new frames from the camera: waiting for it")

    def frame_arrived(self) -> None:
        """The source gives frames again."""
        if self._is_lost:
            self._is_lost = False
            self._show_message("the camera works again")

    def line(self, now_s: float) -> str:
        """The message for the user now, or empty."""
        if self._calibration_session is not None:
            return self._calibration_session.message(now_s)
        return self._line if time.monotonic() < self._line_until else ""

    def press(self, key: str, now_s: float) -> None:
        """Run the command of a key; other keys do nothing."""
        if key == "q":
            self.quits = True
        elif key == "p":
            self.wants_pause = not self.wants_pause
        elif key == "r":
            self._show_message(self._session.toggle_recording())
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
            self._show_message(self._session.begin_label(int(key), now_s))

    def close(self) -> None:
        """Free the predictor."""
        if self.predictor is not None:
            self.predictor.close()

    def _begin_calibration(self, now_s: float, seconds: float) -> None:
        if self.predictor is None:
            self._show_message("the model is still loading")
        elif not can_calibrate(self.predictor.model.card.labelling.task):
            self._show_message("personal calibration needs a binary or ordinal run")
        else:
            self._calibration_session, self._announced_phase = (
                CalibrationSession.begin(now_s, seconds, self._window_s()),
                "",
            )
            self.calibration = NOT_FINISHED

    def _follow_calibration(self, calibration: CalibrationSession, now_s: float) -> None:
        """Print the instruction when a phase starts, also without a picture; end after the last phase."""
        phase = calibration.phase(now_s)
        if phase == "done":
            self._end_calibration(calibration)
        elif phase != self._announced_phase:
            self._announced_phase = phase
            self._notify(calibration.message(now_s))

    def _window_s(self) -> float:
        """Length of the model's window, seconds; 0 before the model is loaded."""
        pixels = self.predictor.model.card.recipe.pixels if self.predictor else None
        return pixels.window_s if pixels else 0.0

    def _show_signals(self) -> None:
        if self.predictor is not None and self.predictor.model.landmarker_file is None:
            self._show_message("this run does not use geometry: it has no signals to show")
        else:
            self._session.shows_signals = not self._session.shows_signals

    def _end_calibration(self, calibration: CalibrationSession) -> None:
        assert self.predictor is not None
        self._calibration_session, name = None, self._subject
        try:
            personal = personal_calibration(
                calibration.attending, calibration.away, self.predictor.model.card.calibration
            )
        except UserError as error:
            self.calibration = line = str(error)
        else:
            self.predictor.calibration, self._session.personal = personal, name
            try:
                path = save_personal(name, self.predictor.model.key, personal)
                self.calibration, line = DONE, f"calibrated to {name} ({path}); key x removes it"
            except (OSError, UserError) as error:
                self.calibration = line = f"calibrated to {name}, for this session only (not saved: {error})"
        self._show_message(line)

    def _forget(self) -> None:
        if self.predictor is None or not self._session.personal:
            self._show_message("no personal calibration to remove")
            return
        line = f"calibration of {self._session.personal} for this run removed"
        try:
            forget_personal(self._session.personal, self.predictor.model.key)
        except (OSError, UserError) as error:
            line = f"calibration off for this session only (file not changed: {error})"
        self.predictor.calibration = self.predictor.model.card.calibration
        self._session.personal = ""
        self._show_message(line)

    def _show_message(self, line: str) -> None:
        self._line, self._line_until = line, time.monotonic() + MESSAGE_S
        self._notify(line)
