"""What may be said at this moment: the state of a live session, and when it changes.

What is said changes only when the evidence for something else has held for a while, so that the display
does not flicker. A missing face is the state `no_face`; it never counts for or against a class.
"""

from dataclasses import dataclass
from typing import Literal

State = Literal["warming_up", "ok", "unsure", "no_face", "paused", "camera_lost"]
STATES: tuple[State, ...] = ("warming_up", "ok", "unsure", "no_face", "paused", "camera_lost")
ABSENT: tuple[State, ...] = ("paused", "camera_lost")
"""States without a frame: a row a second or a little later, which speaks until the next one of its state."""


@dataclass(frozen=True)
class StateRule:
    """When something else is said."""

    min_filled: float = 0.5
    """Share of the window that must be filled before a prediction is shown."""
    face_enter: float = 0.3
    """`no_face` begins when a smaller share of the seen frames than this holds a face."""
    face_leave: float = 0.4
    """`no_face` ends when at least this share holds a face; above `face_enter`, so that it cannot flicker."""
    hold: int = 2
    """Sampled frames in a row that must agree before something else is said."""

    def __post_init__(self) -> None:
        if not 0 <= self.face_enter <= self.face_leave <= 1:
            raise ValueError(
                f"want 0 <= face_enter <= face_leave <= 1, got {self.face_enter}, {self.face_leave}"
            )
        if not 0 < self.min_filled <= 1 or self.hold < 1:
            raise ValueError(f"want 0 < min_filled <= 1 and hold >= 1, got {self.min_filled}, {self.hold}")


@dataclass(frozen=True)
class Statement:
    """A state, and the class that is named in it."""

    state: State = "warming_up"
    label: int | None = None
    """Class index; set in state `ok` only."""


@dataclass(frozen=True)
class DisplayState:
    """What is said now, and what speaks for saying something else."""

    shown: Statement = Statement()
    candidate: Statement = Statement()
    """What the last frames speak for."""
    streak: int = 0
    """How many frames in a row spoke for the candidate."""


def next_display_state(
    display_state: DisplayState, *, filled: float, coverage: float, label: int, unsure: bool, rule: StateRule
) -> DisplayState:
    """The standing after one more sampled frame.

    filled: share of the window that has been seen, 0..1. coverage: share of the seen frames that hold a
    face, 0..1. label: the class that the decision names; unsure: it lies in the abstain band.

    Warming up, once over, does not come back: a new `Standing()` after a gap is how it begins again.
    """
    wanted = _wanted(display_state.shown.state, filled, coverage, label, unsure, rule)
    if wanted == display_state.shown:
        return DisplayState(wanted, wanted, 0)
    streak = display_state.streak + 1 if wanted == display_state.candidate else 1
    # Warming up ends once, which cannot flicker.
    if display_state.shown.state == "warming_up" or streak >= rule.hold:
        return DisplayState(wanted, wanted, 0)
    return DisplayState(display_state.shown, wanted, streak)


def _wanted(
    now: State, filled: float, coverage: float, label: int, unsure: bool, rule: StateRule
) -> Statement:
    if now == "warming_up" and filled < rule.min_filled:
        return Statement("warming_up")
    if coverage < (rule.face_leave if now == "no_face" else rule.face_enter):
        return Statement("no_face")
    return Statement("unsure") if unsure else Statement("ok", label)
