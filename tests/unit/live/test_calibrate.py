"""live/inference/calibration.py, control.py: one person's minute moves the decision and nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.video.reader import Frame
from features.recipe import Pixels
from live.commands import CALIBRATE_S, Control
from live.config import SUBJECT
from live.inference.calibration import (
    CalibrationSession,
    can_calibrate,
    forget_personal,
    load_personal,
    personal_calibration,
    save_personal,
)
from live.inference.model import open_model
from live.inference.predictor import Prediction, Predictor
from live.inference.state_machine import STATES
from live.session import OutputOptions, Session
from live.web.server import snapshot
from seqmodel.metrics.calibration import Calibration, decide, probabilities
from seqmodel.runs.card import load_card, load_weights, save_card, save_weights
from tests.support.predictions import prediction
from tests.support.small_run import write_run

ATTENDING, AWAY = [1.9, 2.0, 2.1, 2.0, -5.0], [0.9, 1.0, 1.1, 1.0, 9.0]
"""A person whose logits all lie on one side of zero; one outlier each."""


@pytest.mark.parametrize("base", [Calibration(), Calibration(temperature=2, bias=-0.3, threshold=0.35)])
def test_the_middle_between_the_phases_becomes_the_threshold(base: Calibration) -> None:
    """Before, both phases read the same class; after, each its own. Outliers do not count."""
    own = personal_calibration(ATTENDING, AWAY, base)
    logits = np.array([[1.5], [2.0], [1.0]])
    p = probabilities(logits, "binary", own)[:, 1]
    assert p[0] == pytest.approx(base.threshold)
    assert p[1] > base.threshold + 0.2  # further where the run's temperature allows it
    assert decide(logits, "binary", own).label.tolist()[1:] == [1, 0]
    assert (own.threshold, own.abstain) == (base.threshold, base.abstain)


@pytest.mark.parametrize(
    ("attending", "away", "shown"),
    [
        ([1.0] * 5, [0.9] * 5, "look alike"),
        ([0.0] * 5, [2.0] * 5, "look alike"),
        ([1.0], [0.0] * 5, "too few"),
    ],
)
def test_phases_that_cannot_be_told_apart_change_nothing(
    attending: list[float], away: list[float], shown: str
) -> None:
    """Equal, the wrong way round, or without a face."""
    with pytest.raises(ValueError, match=shown):
        personal_calibration(attending, away, Calibration())


def test_a_phase_counts_its_second_half_only() -> None:
    """The window still holds what was before."""
    trial = CalibrationSession.begin(100.0, 30.0, 10.0)
    for t_s in np.arange(100, 160, 1.0):
        trial.add(replace(prediction(), t_s=float(t_s), logits=(float(t_s),)))
    assert min(trial.attending) == 115
    assert max(trial.attending) == 129
    assert min(trial.away) == 145
    assert trial.phase(160.0) == "done"
    assert "attend" in trial.message(101.0)
    assert "look away" in trial.message(131.0)


def test_what_nothing_may_be_said_about_does_not_count() -> None:
    """A lost camera in the first phase, nobody there in the second: too few are left."""
    trial = CalibrationSession.begin(0.0, 30.0, 10.0)
    for state in STATES:
        for t_s in (20.0, 50.0):
            trial.add(replace(prediction(), t_s=t_s, state=state, logits=(1.0,)))
    assert (len(trial.attending), len(trial.away)) == (2, 2), "ok and unsure"


def test_what_a_window_still_holds_of_before_does_not_count() -> None:
    """A phase settles for a whole window; one with too little left after that is refused."""
    trial = CalibrationSession.begin(0.0, 20.0, 14.0)
    for t_s in np.arange(0, 40, 0.5):
        trial.add(replace(prediction(), t_s=float(t_s), logits=(float(t_s),)))
    assert min(trial.attending) - 14.0 >= 0
    assert min(trial.away) - 14.0 >= 20
    with pytest.raises(ValueError, match="at least 19 s"):
        CalibrationSession.begin(0.0, 18.0, 14.0)


def test_it_is_kept_by_name_for_one_run_and_removable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hangul names work; another run does not see it; a name cannot leave the folder."""
    monkeypatch.setenv("BRAINBUDDY_HOME", str(tmp_path))
    own = Calibration(temperature=0.7, bias=0.2, abstain=(0.4, 0.6))
    save_personal("민수", "a" * 12, own)
    save_personal("민수", "b" * 12, Calibration())
    assert load_personal("민수", "a" * 12) == own
    assert load_personal("민수", "c" * 12) is None
    assert load_personal("영희", "a" * 12) is None
    with pytest.raises(ValueError, match="--subject"):
        save_personal("../evil", "a" * 12, own)
    assert forget_personal("민수")
    assert not forget_personal("민수")


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        '{"KEY": []}',
        '{"KEY": {"temperature": 1.0}}',
        '{"KEY": {"temperature": "hot", "bias": 0.0, "threshold": 0.5, "abstain": null, '
        '"threshold_metric": "f1"}}',
        '{"KEY": {"temperature": 1, "bias": 0, "threshold": 0.5, "abstain": null, '
        '"threshold_metric": "f1", "more": 1}}',
    ],
)
def test_a_damaged_file_is_named_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_path: Path, damage: str
) -> None:
    """The session goes on with the run's own calibration, and leaves the file; --forget removes it."""
    monkeypatch.setenv("BRAINBUDDY_HOME", str(tmp_path))
    model = open_model(write_run(tmp_path / "run", detector_path))
    path = save_personal("민수", model.key, Calibration())
    damage = damage.replace("KEY", model.key)
    path.write_text(damage, encoding="utf-8")
    told: list[str] = []
    session = Session(("distracted", "engaged"), OutputOptions())
    control = Control(session, subject="민수", calibrate_s=None, notify=told.append)
    control.start(Predictor(model), 0.0)
    control.close()
    assert (len(told), session.personal) == (1, "")
    assert told[0].startswith(f"{path} cannot be read")
    assert "--forget" in told[0]
    with pytest.raises(ValueError, match="cannot be read"):
        save_personal("민수", model.key, Calibration())
    assert path.read_text(encoding="utf-8") == damage
    assert forget_personal("민수")


def test_a_person_is_not_decided_about_by_a_run_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_path: Path
) -> None:
    """Threshold, band and goal of the run go into a person's calibration: where they have changed since, it
    is not used, and that is said. Temperature and bias are the person's own in any case."""
    monkeypatch.setenv("BRAINBUDDY_HOME", str(tmp_path))
    run = write_run(tmp_path / "run", detector_path)
    card = load_card(run)
    own = personal_calibration(ATTENDING, AWAY, card.calibration)
    save_personal(SUBJECT, open_model(run).key, own)
    for changes, is_used in (
        ({}, True),
        ({"temperature": 2.0, "bias": 1.0}, True),
        ({"threshold": 0.7}, False),
        ({"abstain": (0.4, 0.6)}, False),
        ({"threshold_metric": "recall:distracted=0.9"}, False),
    ):
        save_card(run, replace(card, calibration=replace(card.calibration, **changes)))
        model, told = open_model(run), list[str]()
        session = Session(("distracted", "engaged"), OutputOptions())
        control = Control(session, subject=SUBJECT, calibrate_s=None, notify=told.append)
        control.start(Predictor(model), 0.0)
        control.close()
        assert (session.personal == SUBJECT) == is_used
        assert control.predictor is not None
        assert control.predictor.calibration == (own if is_used else model.card.calibration)
        assert ("made for another calibration of this run" in told[0]) != is_used


def test_a_calibration_that_cannot_be_kept_holds_for_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_path: Path
) -> None:
    """A home that is no folder: on until the end or key x, and not called done."""
    home = tmp_path / "home"
    home.touch()
    monkeypatch.setenv("BRAINBUDDY_HOME", str(home))
    model = open_model(write_run(tmp_path / "run", detector_path, pixels=Pixels((), window_s=2)))
    session, told = Session(("distracted", "engaged"), OutputOptions()), list[str]()
    control = Control(session, subject=SUBJECT, calibrate_s=8.0, notify=told.append)
    control.start(Predictor(model), 0.0)
    assert control._calibration_session is not None
    control._calibration_session.attending, control._calibration_session.away = list(ATTENDING), list(AWAY)
    assert control.calibration.startswith("not finished")
    control.push(Frame(16.5, np.zeros((48, 64, 3), np.uint8)))
    assert session.personal == SUBJECT
    assert "for this session alone" in control.calibration
    assert control.calibration == told[-1]
    control.press("x", 17.0)
    assert session.personal == ""
    assert control.predictor is not None
    assert control.predictor.calibration == model.card.calibration
    control.close()


def test_one_run_is_forgotten_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other runs know of the person stays; the file goes with the last one."""
    monkeypatch.setenv("BRAINBUDDY_HOME", str(tmp_path))
    own = Calibration(temperature=0.7, bias=0.2)
    for key in ("a" * 12, "b" * 12):
        save_personal("민수", key, own)
    assert forget_personal("민수", "a" * 12)
    assert not forget_personal("민수", "a" * 12)
    assert load_personal("민수", "a" * 12) is None
    assert load_personal("민수", "b" * 12) == own
    assert forget_personal("민수", "b" * 12)
    assert list((tmp_path / "personal").iterdir()) == []


def test_each_phase_is_said_once_where_nobody_sees_a_picture(tmp_path: Path, detector_path: Path) -> None:
    """Headless, from --calibrate on: attend, then look away, each as it begins, then how it ended."""
    run = write_run(tmp_path / "run", detector_path, pixels=Pixels((), window_s=2))
    told: list[str] = []
    session = Session(("distracted", "engaged"), OutputOptions())
    control = Control(session, subject="nobody", calibrate_s=8.0, notify=told.append)
    control.start(Predictor(open_model(run)), 0.0)
    for k in range(50):
        control.push(Frame(k / 3, np.zeros((48, 64, 3), np.uint8)))
    control.close()
    assert told == [
        "attend as you usually do: 8 s",
        "now look away, as when you are distracted: 8 s",
        "too few frames with a face to calibrate on: nothing was changed",
    ]


def test_multiclass_runs_have_no_one_direction() -> None:
    """There is no single scale from looking away to attending."""
    assert [can_calibrate(task) for task in ("binary", "ordinal", "multiclass")] == [True, True, False]


@pytest.mark.slow
def test_c_is_kept_shown_used_next_time_and_removed_by_x(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_path: Path
) -> None:
    """Without --subject: key c, and a minute of two pictures that the run alone calls by one name; from then
    on they have two, in the next session as well, until x."""
    from skimage.data import astronaut

    monkeypatch.setenv("BRAINBUDDY_HOME", str(tmp_path))
    card = Calibration(bias=20.0)  # everything is "engaged"
    run = write_run(tmp_path / "run", detector_path, pixels=Pixels((), window_s=2), calibration=card)
    head = load_weights(run)["head"]
    # A random head tells the two pictures apart by a tenth; a trained one says things louder.
    save_weights(run, head | {"output.weight": 30 * head["output.weight"]}, None)
    model = open_model(run)
    pictures = [astronaut(), astronaut() // 4]

    def begin() -> tuple[Session, Control]:
        session = Session(model.card.labelling.names, OutputOptions())
        control = Control(session, subject=SUBJECT, calibrate_s=None, notify=told.append)
        control.start(Predictor(model), 0.0)
        return session, control

    def watch(control: Control, picture: np.ndarray, start_s: float, seconds: float) -> Prediction:
        frames = (Frame(start_s + k / 3, picture) for k in range(round(3 * seconds)))
        return [p for frame in frames if (p := control.push(frame)) is not None][-1]

    told: list[str] = []
    session, control = begin()
    assert session.personal == ""
    before = [watch(control, picture, 10.0 * k, 6.0) for k, picture in enumerate(pictures)]
    assert [p.label for p in before] == ["engaged"] * 2
    away, attending = (pictures[k] for k in np.argsort([p.logits[0] for p in before]))
    control.press("c", 100.0)
    watch(control, attending, 100.0, CALIBRATE_S)
    watch(control, away, 100.0 + CALIBRATE_S, CALIBRATE_S + 1)
    assert [line.split(":")[0] for line in told[:-1]] == [
        "attend as you usually do",
        "now look away, as when you are distracted",
    ]
    assert f"calibrated to {SUBJECT}" in told[-1]
    save_personal(SUBJECT, "another run", card)
    assert (tmp_path / "personal" / f"{SUBJECT}.json").is_file()
    for again in (False, True):
        if again:
            session, control = begin()
            assert "is on" in told[-1]
        assert session.personal == SUBJECT
        assert snapshot(session)["personal"] == SUBJECT
        start_s = 200.0 if not again else 0.0
        shown = [
            watch(control, picture, start_s + 9 * k, 6.0).label for k, picture in enumerate((attending, away))
        ]
        assert shown == ["engaged", "distracted"]
    control.press("x", 60.0)
    assert session.personal == snapshot(session)["personal"] == ""
    assert control.predictor is not None
    assert control.predictor.calibration == card
    assert load_personal(SUBJECT, "another run") == card
    assert begin()[0].personal == ""


def test_g_shows_the_signals_of_a_run_that_has_them(
    tmp_path: Path, detector_path: Path, landmarker_path: Path
) -> None:
    """On and off, in window and browser; a run without geometry says why not."""
    from skimage.data import astronaut

    for landmarker, inputs in ((None, ("embeddings",)), (landmarker_path, ("embeddings", "geometry"))):
        run = write_run(tmp_path / str(len(inputs)), detector_path, landmarker=landmarker, inputs=inputs)
        told: list[str] = []
        session = Session(("distracted", "engaged"), OutputOptions())
        control = Control(session, subject="nobody", calibrate_s=None, notify=told.append)
        control.start(Predictor(open_model(run)), 0.0)
        frame = Frame(0.0, astronaut())
        session.saw(frame, control.push(frame))
        plain = session.picture(frame.rgb(), 0.0)
        assert "signals" not in snapshot(session)
        control.press("g", 0.0)
        if landmarker is None:
            assert "no geometry" in told[0]
            assert not session.shows_signals
        else:
            assert set(snapshot(session)["signals"]) == {"eyes open", "gaze", "yaw"}
            assert not np.array_equal(session.picture(frame.rgb(), 0.0), plain)
            control.press("g", 0.0)
            assert "signals" not in snapshot(session)
        control.close()


def test_keys_do_what_they_say(tmp_path: Path) -> None:
    """Marks, pause, quit and messages; unknown keys do nothing."""
    session, told = Session(("distracted", "engaged"), OutputOptions(record=None)), list[str]()
    control = Control(session, subject="me", calibrate_s=None, notify=told.append)
    for key in (" ", "z", "p", "ö", ""):
        control.press(key, 5.0)
    assert session.marks == [(5.0, "mark 1")]
    assert control.wants_pause
    control.press("c", 5.0)
    control.press("1", 5.0)
    control.press("x", 5.0)
    assert "still loading" in told[0]
    assert "--record-raw" in told[1]
    assert "no personal calibration" in told[2]
    control.press("q", 6.0)
    assert control.quits
