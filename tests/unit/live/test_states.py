"""Tests of the display states: changes need several frames, and a missing face is no class."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live.inference.state_machine import DisplayState, Statement, StateRule, next_display_state

RULE = StateRule()


def run(*steps: dict[str, object]) -> list[Statement]:
    """The displayed statement after each step, from the start."""
    usual = {"filled": 1.0, "coverage": 1.0, "label": 1, "unsure": False}
    display_state, shown = DisplayState(), []
    for step in steps:
        display_state = next_display_state(display_state, **usual | step, rule=RULE)  # type: ignore[arg-type]
        shown.append(display_state.shown)
    return shown


def test_first_prediction_is_shown_when_min_filled_is_reached() -> None:
    """Half a window by default; the end of warming up needs no second frame."""
    states = [s.state for s in run({"filled": 0.49}, {"filled": 0.5})]
    assert states == ["warming_up", "ok"]


def test_single_different_frame_does_not_change_the_display() -> None:
    """One frame with another label or unsure is ignored; two consecutive frames change the display."""
    shown = run({}, {"label": 0}, {}, {"unsure": True}, {}, {"label": 0}, {"label": 0})
    assert [s.label for s in shown] == [1, 1, 1, 1, 1, 1, 0]
    assert {s.state for s in shown} == {"ok"}


def test_no_face_starts_and_ends_at_different_shares() -> None:
    """Between the two shares the state does not change."""
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
def test_label_is_set_only_in_state_ok(steps: list[dict[str, object]]) -> None:
    """For any input: a label if and only if the state is ok; warming up only at the start."""
    warms = True
    for step, shown in zip(steps, run(*steps), strict=True):
        assert (shown.label is not None) == (shown.state == "ok")
        warms &= step["filled"] < RULE.min_filled  # type: ignore[operator]
        assert (shown.state == "warming_up") == warms


def test_rule_with_face_leave_below_face_enter_is_refused() -> None:
    """There would be no hysteresis."""
    with pytest.raises(ValueError, match="face_enter <= face_leave"):
        StateRule(face_enter=0.5, face_leave=0.4)
