"""The live states: what is said changes only for a reason that lasts, and a missing face is no class."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live.inference.state_machine import DisplayState, Statement, StateRule, next_display_state

RULE = StateRule()


def run(*steps: dict[str, object]) -> list[Statement]:
    """What is said after each step, from the beginning."""
    usual = {"filled": 1.0, "coverage": 1.0, "label": 1, "unsure": False}
    display_state, shown = DisplayState(), []
    for step in steps:
        display_state = next_display_state(display_state, **usual | step, rule=RULE)  # type: ignore[arg-type]
        shown.append(display_state.shown)
    return shown


def test_the_first_prediction_shows_as_soon_as_enough_is_seen() -> None:
    """Half a window by default, and no hysteresis on the way out of warming up."""
    states = [s.state for s in run({"filled": 0.49}, {"filled": 0.5})]
    assert states == ["warming_up", "ok"]


def test_one_odd_frame_changes_nothing() -> None:
    """A single frame with another label, or unsure, is passed over; two in a row are believed."""
    shown = run({}, {"label": 0}, {}, {"unsure": True}, {}, {"label": 0}, {"label": 0})
    assert [s.label for s in shown] == [1, 1, 1, 1, 1, 1, 0]
    assert {s.state for s in shown} == {"ok"}


def test_no_face_begins_and_ends_at_different_shares() -> None:
    """Between the two shares the state stays what it was."""
    middle = (RULE.face_enter + RULE.face_leave) / 2
    low, high = {"coverage": RULE.face_enter - 0.01}, {"coverage": RULE.face_leave}
    between = {"coverage": middle}
    states = [s.state for s in run({}, between, between, low, low, between, between, high, high)]
    assert states == ["ok"] * 4 + ["no_face"] * 4 + ["ok"]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "filled": st.floats(0, 1),
                "coverage": st.floats(0, 1),
                "label": st.integers(0, 2),
                "unsure": st.booleans(),
            }
        )
    )
)
def test_a_class_is_named_in_state_ok_alone(steps: list[dict[str, object]]) -> None:
    """Whatever comes, no label without ok, no ok without a label; warming up until enough was seen, and never
    again."""
    warms = True
    for step, shown in zip(steps, run(*steps), strict=True):
        assert (shown.label is not None) == (shown.state == "ok")
        warms &= step["filled"] < RULE.min_filled  # type: ignore[operator]
        assert (shown.state == "warming_up") == warms


def test_a_rule_that_would_flicker_is_refused() -> None:
    """Leaving below entering is no hysteresis."""
    with pytest.raises(ValueError, match="face_enter <= face_leave"):
        StateRule(face_enter=0.5, face_leave=0.4)
