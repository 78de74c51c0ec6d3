"""Personal calibration in live/inference and live/commands.py: it changes only the decision."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.video.reader import Frame
from features.recipe import Pixels
from live.commands import CALIBRATE_S, Control
from live.config import SUBJECT
from live.inference.calibration import CalibrationSession, can_calibrate, personal_calibration
from live.inference.model import open_model
from live.inference.predictor import Prediction, Predictor
from live.inference.profiles import forget_personal, load_personal, save_personal
from live.inference.state_machine import STATES
from live.session import OutputOptions, Session
from live.web.server import snapshot
from seqmodel.metrics.calibration import Calibration, decide, probabilities
from seqmodel.runs.card import load_card, save_card
from seqmodel.runs.files import load_weights, save_weights
from tests.support.predictions import prediction
from tests.support.small_run import write_run

ATTENDING, AWAY = [1.9, 2.0, 2.1, 2.0, -5.0], [0.9, 1.0, 1.1, 1.0, 9.0]
"""Logits of a subject that are all on one side of zero, with one outlier per phase."""


@pytest.mark.parametrize("base", [Calibration(), Calibration(temperature=2, bias=-0.3, threshold=0.35)])
def test_personal_calibration_puts_the_threshold_between_the_phases(base: Calibration) -> None:
    """Before, both phases have the same class; after, each has its own. Outliers have no effect."""
    own = personal_calibration(ATTENDING, AWAY, base)
    logits = np.array([[1.5], [2.0], [1.0]])
    p = probabilities(logits, "binary", own)[:, 1]
    assert p[0] == pytest.approx(base.threshold)
    assert p[1] > base.threshold + 0.2  # more if the run's temperature allows it
    assert decide(logits, "binary", own).label.tolist()[1:] == [1, 0]
    assert (own.threshold, own.abstain) == (base.threshold, base.abstain)


@pytest.mark.parametrize(
    ("attending", "away", "message"),
    [
        ([1.0] * 5, [0.9] * 5, "too close"),
        ([0.0] * 5, [2.0] * 5, "too close"),
        ([1.0], [0.0] * 5, "too few"),
    ],
)
def test_phases_with_close_logits_are_refused(
    attending: list[float], away: list[float], message: str
) -> None:
    """Equal medians, swapped phases, or no face."""
    with pytest.raises(ValueError, match=message):
        personal_calibration(attending, away, Calibration())


def test_first_half_of_a_phase_is_skipped() -> None:
    """The window still has frames from before the phase."""
    trial = CalibrationSession.begin(100.0, 30.0, 10.0)
    for t_s in np.arange(100, 160, 1.0):
        trial.add(replace(prediction(), t_s=float(t_s), logits=(float(t_s),)))
    assert min(trial.attending) == 115
    assert max(trial.attending) == 129
    assert min(trial.away) == 145
    assert trial.phase(160.0) == "done"
    assert "attend" in trial.message(101.0)
    assert "look away" in trial.message(131.0)


def test_frame_from_before_the_start_of_a_calibration_is_skipped() -> None:
    """It waited while the key was pressed; the instruction has the whole time."""
    trial = CalibrationSession.begin(100.0, 30.0, 10.0)
    trial.add(replace(prediction(), t_s=99.9))
    assert trial.attending == trial.away == []
    assert trial.message(99.9) == "attend as usual: 30 s"


def test_states_without_prediction_are_skipped_in_a_calibration() -> None:
    """A lost camera in the first phase and no face in the second: too few predictions remain."""
    trial = CalibrationSession.begin(0.0, 30.0, 10.0)
    for state in STATES:
        for t_s in (20.0, 50.0):
            trial.add(replace(prediction(), t_s=t_s, state=state, logits=(1.0,)))
    assert (len(trial.attending), len(trial.away)) == (2, 2), "ok and unsure"


def test_phase_skips_a_whole_window_and_must_be_longer() -> None:
    """A phase with too little time after its first window is refused."""
    trial = CalibrationSession.begin(0.0, 20.0, 14.0)
    for t_s in np.arange(0, 40, 0.5):
        trial.add(replace(prediction(), t_s=float(t_s), logits=(float(t_s),)))
    assert min(trial.attending) - 14.0 >= 0
    assert min(trial.away) - 14.0 >= 20
    with pytest.raises(ValueError, match="at least 19 s"):
        CalibrationSession.begin(0.0, 18.0, 14.0)


def test_calibration_is_saved_per_subject_and_run_and_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hangul names work; another run has no calibration; a name cannot contain a path."""
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
def test_damaged_calibration_file_gives_a_message_and_the_session_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_path: Path, damage: str
) -> None:
    """The session uses the run's calibration and keeps the file; --forget removes it."""
    monkeypatch.setenv("BRAINBUDDY_HOME", str(tmp_path))
    model = open_model(write_run(tmp_path / "run", detector_path))
    path = save_personal("민수", model.key, Calibration())
    damage = damage.replace("KEY", model.key)
    path.write_text(damage, encoding="utf-8")
    messages: list[str] = []
    session = Session(("distracted", "engaged"), OutputOptions())
    control = Control(session, subject="민수", calibrate_s=None, notify=messages.append)
    control.start(Predictor(model), 0.0)
    control.close()
    assert (len(messages), session.personal) == (1, "")
    assert messages[0].startswith(f"{path} cannot be read")
    assert "--forget" in messages[0]
    with pytest.raises(ValueError, match="cannot be read"):
        save_personal("민수", model.key, Calibration())
    assert path.read_text(encoding="utf-8") == damage
    assert forget_personal("민수")


def test_calibration_for_an_older_threshold_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_path: Path
) -> None:
    """A personal calibration copies threshold, abstain band and threshold metric: if the run's change, it is
    not used. Temperature and bias are always personal."""
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
        model, messages = open_model(run), list[str]()
        session = Session(("distracted", "engaged"), OutputOptions())
        control = Control(session, subject=SUBJECT, calibrate_s=None, notify=messages.append)
        control.start(Predictor(model), 0.0)
        control.close()
        assert (session.personal == SUBJECT) == is_used
        assert control.predictor is not None
        assert control.predictor.calibration == (own if is_used else model.card.calibration)
        assert ("because the run's calibration has changed" in messages[0]) != is_used


def test_calibration_that_cannot_be_saved_is_used_for_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_path: Path
) -> None:
    """The home is not a folder: used until the end or key x, and not reported as done."""
    home = tmp_path / "home"
    home.touch()
    monkeypatch.setenv("BRAINBUDDY_HOME", str(home))
    model = open_model(write_run(tmp_path / "run", detector_path, pixels=Pixels((), window_s=2)))
    session, messages = Session(("distracted", "engaged"), OutputOptions()), list[str]()
    control = Control(session, subject=SUBJECT, calibrate_s=8.0, notify=messages.append)
    control.start(Predictor(model), 0.0)
    assert control._calibration_session is not None
    control._calibration_session.attending, control._calibration_session.away = list(ATTENDING), list(AWAY)
    assert control.calibration.startswith("not finished")
    control.push(Frame(16.5, np.zeros((48, 64, 3), np.uint8)))
    assert session.personal == SUBJECT
    assert "for this session only" in control.calibration
    assert control.calibration == messages[-1]
    control.press("x", 17.0)
    assert session.personal == ""
    assert control.predictor is not None
    assert control.predictor.calibration == model.card.calibration
    control.close()


def test_removing_the_calibration_of_one_run_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrations for other runs stay; the file is deleted with the last one."""
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


def test_headless_calibration_prints_each_instruction_once(tmp_path: Path, detector_path: Path) -> None:
    """With --calibrate: attend, then look away, at the start of each phase; then the result."""
    run = write_run(tmp_path / "run", detector_path, pixels=Pixels((), window_s=2))
    messages: list[str] = []
    session = Session(("distracted", "engaged"), OutputOptions())
    control = Control(session, subject="nobody", calibrate_s=8.0, notify=messages.append)
    control.start(Predictor(open_model(run)), 0.0)
    for k in range(50):
        control.push(Frame(k / 3, np.zeros((48, 64, 3), np.uint8)))
    control.close()
    assert messages == [
        "attend as usual: 8 s",
        "now look away, as if distracted: 8 s",
        "too few frames with a face for a calibration: nothing was changed",
    ]


def test_multiclass_runs_cannot_be_calibrated() -> None:
    """There is no single scale from looking away to attending."""
    assert [can_calibrate(task) for task in ("binary", "ordinal", "multiclass")] == [True, True, False]


@pytest.mark.slow
def test_key_c_calibrates_also_the_next_session_and_key_x_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_path: Path
) -> None:
    """Without --subject: key c with two pictures that the run assigns to one class. After the calibration
    they have two classes, also in the next session, until key x."""
    from skimage.data import astronaut

    monkeypatch.setenv("BRAINBUDDY_HOME", str(tmp_path))
    card = Calibration(bias=20.0)  # everything is "engaged"
    run = write_run(tmp_path / "run", detector_path, pixels=Pixels((), window_s=2), calibration=card)
    head = load_weights(run)["head"]
    name = "member.0.fold.0.output.weight"
    # A random head separates the two pictures by little; a trained head has larger logits.
    save_weights(run, head | {name: 3 * head[name]}, None)
    model = open_model(run)
    pictures = [astronaut(), astronaut() // 4]

    def begin() -> tuple[Session, Control]:
        session = Session(model.card.labelling.names, OutputOptions())
        control = Control(session, subject=SUBJECT, calibrate_s=None, notify=messages.append)
        control.start(Predictor(model), 0.0)
        return session, control

    def watch(control: Control, picture: np.ndarray, start_s: float, seconds: float) -> Prediction:
        frames = (Frame(start_s + k / 3, picture) for k in range(round(3 * seconds)))
        return [p for frame in frames if (p := control.push(frame)) is not None][-1]

    messages: list[str] = []
    session, control = begin()
    assert session.personal == ""
    before = [watch(control, picture, 10.0 * k, 6.0) for k, picture in enumerate(pictures)]
    assert [p.label for p in before] == ["engaged"] * 2
    away, attending = (pictures[k] for k in np.argsort([p.logits[0] for p in before]))
    control.press("c", 100.0)
    watch(control, attending, 100.0, CALIBRATE_S)
    watch(control, away, 100.0 + CALIBRATE_S, CALIBRATE_S + 1)
    assert [line.split(":")[0] for line in messages[:-1]] == [
        "attend as usual",
        "now look away, as if distracted",
    ]
    assert f"calibrated to {SUBJECT}" in messages[-1]
    save_personal(SUBJECT, "another run", card)
    assert (tmp_path / "personal" / f"{SUBJECT}.json").is_file()
    for again in (False, True):
        if again:
            session, control = begin()
            assert "using the calibration of" in messages[-1]
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


def test_key_g_toggles_the_signals_of_a_run_with_geometry(
    tmp_path: Path, detector_path: Path, landmarker_path: Path
) -> None:
    """In window and browser; a run without geometry gives a message."""
    from skimage.data import astronaut

    for landmarker, inputs in ((None, ("embeddings",)), (landmarker_path, ("embeddings", "geometry"))):
        run = write_run(tmp_path / str(len(inputs)), detector_path, landmarker=landmarker, inputs=inputs)
        messages: list[str] = []
        session = Session(("distracted", "engaged"), OutputOptions())
        control = Control(session, subject="nobody", calibrate_s=None, notify=messages.append)
        control.start(Predictor(open_model(run)), 0.0)
        frame = Frame(0.0, astronaut())
        session.add_frame(frame, control.push(frame))
        plain = session.picture(frame.rgb(), 0.0)
        assert "signals" not in snapshot(session)
        control.press("g", 0.0)
        if landmarker is None:
            assert "does not use geometry" in messages[0]
            assert not session.shows_signals
        else:
            assert set(snapshot(session)["signals"]) == {"eyes open", "gaze", "yaw"}
            assert not np.array_equal(session.picture(frame.rgb(), 0.0), plain)
            control.press("g", 0.0)
            assert "signals" not in snapshot(session)
        control.close()


def test_keys_run_their_commands(tmp_path: Path) -> None:
    """Marks, pause, quit and messages; unknown keys do nothing."""
    session, messages = Session(("distracted", "engaged"), OutputOptions(record=None)), list[str]()
    control = Control(session, subject="me", calibrate_s=None, notify=messages.append)
    for key in (" ", "z", "p", "ö", ""):
        control.press(key, 5.0)
    assert session.marks == [(5.0, "mark 1")]
    assert control.wants_pause
    control.press("c", 5.0)
    control.press("1", 5.0)
    control.press("x", 5.0)
    assert "still loading" in messages[0]
    assert "--record-raw" in messages[1]
    assert "no personal calibration" in messages[2]
    control.press("q", 6.0)
    assert control.quits
