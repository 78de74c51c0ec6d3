"""State machine of the display: state and predicted class of a live session, and when they change.

The display changes only after several frames agree, so that it does not flicker. A missing face is the state
`no_face`; it never counts for or against a class.
"""

from dataclasses import dataclass
from typing import Literal

from features.cli import UserError

State = Literal["warming_up", "ok", "unsure", "no_face", "paused", "camera_lost"]
STATES: tuple[State, ...] = ("warming_up", "ok", "unsure", "no_face", "paused", "camera_lost")
ABSENT: tuple[State, ...] = ("paused", "camera_lost")
"""States without frames: one log row per second, valid until the next row of the same state."""


@dataclass(frozen=True)
class StateRule:
    """Thresholds for changes of the display."""

    min_filled: float = 0.5
    """Share of the window that must be filled before a prediction is shown."""
    face_enter: float = 0.3
    """`no_face` starts when the share of frames with a face is below this."""
    face_leave: float = 0.4
    """`no_face` ends when the share is at least this; above `face_enter`, to avoid flicker."""
    hold: int = 2
    """Number of consecutive sampled frames that must agree before the display changes."""

    def __post_init__(self) -> None:
        if not 0 <= self.face_enter <= self.face_leave <= 1:
            raise UserError(
                f"face_enter and face_leave must be 0 <= face_enter <= face_leave <= 1, "
                f"got {self.face_enter}, {self.face_leave}"
            )
        if not 0 < self.min_filled <= 1 or self.hold < 1:
            raise UserError(
                f"min_filled must be in (0, 1] and hold at least 1, got {self.min_filled}, {self.hold}"
            )


@dataclass(frozen=True)
class Statement:
    """A state with its predicted class."""

    state: State = "warming_up"
    label: int | None = None
    """Class index; set in state `ok` only."""


@dataclass(frozen=True)
class DisplayState:
    """The displayed state and class, and the candidate for the next ones."""

    shown: Statement = Statement()
    candidate: Statement = Statement()
    """State and class of the last frames."""
    streak: int = 0
    """Number of consecutive frames with the candidate."""


def next_display_state(
    display_state: DisplayState, *, filled: float, coverage: float, label: int, unsure: bool, rule: StateRule
) -> DisplayState:
    """The display state after one more sampled frame.

    filled: share of the window that is filled, 0..1. coverage: share of the window's frames with a face,
    0..1. label: index of the predicted class; unsure: the probability lies in the abstain band.

    Warming up happens once; after a gap the caller starts again with a new `DisplayState()`.
    """
    new = _statement(display_state.shown.state, filled, coverage, label, unsure, rule)
    if new == display_state.shown:
        return DisplayState(new, new, 0)
    streak = display_state.streak + 1 if new == display_state.candidate else 1
    # Warming up ends only once, so it cannot flicker.
    if display_state.shown.state == "warming_up" or streak >= rule.hold:
        return DisplayState(new, new, 0)
    return DisplayState(display_state.shown, new, streak)


def _statement(
    now: State, filled: float, coverage: float, label: int, unsure: bool, rule: StateRule
) -> Statement:
    if now == "warming_up" and filled < rule.min_filled:
        return Statement("warming_up")
    if coverage < (rule.face_leave if now == "no_face" else rule.face_enter):
        return Statement("no_face")
    return Statement("unsure") if unsure else Statement("ok", label)
