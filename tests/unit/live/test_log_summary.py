"""Tests of the summary and the report of logs, and of the comparison with training data."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

from features.store.data_statement import DataStatement
from live.__main__ import main
from live.config import novelty_file
from live.inference.state_machine import State
from live.output.log_summary import days, summarise_log, timeline_png
from live.output.log_writer import Log, log_columns
from live.output.report import write_report
from live.ui.drawing import TRACK
from seqmodel.runs.card import load_card, save_card
from seqmodel.runs.files import write_text
from seqmodel.runs.training_stats import FILE, PercentileRange, TrainingStats
from tests.support.predictions import prediction
from tests.support.small_run import write_run

NAMES = ("distracted", "engaged")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Thirty seconds engaged, ten distracted, a lost camera for five, ten without a face."""
    path = tmp_path / "session <1>.csv"
    log = Log(str(path), NAMES)
    for k in range(120):
        label, p = ("engaged", (0.2, 0.8)) if k < 90 else ("distracted", (0.7, 0.3))
        log.write(replace(prediction(), t_s=k / 3, label=label, p=p), mark="<b>bell" if k == 30 else "")
    for k in range(5):
        log.write_state(40.0 + k, "camera_lost")
    for k in range(30):
        log.write(replace(prediction(), t_s=45 + k / 3, state="no_face", label="", box=None))
    log.close()
    return path


def test_time_per_state_adds_up(log: Path) -> None:
    """Classes by name, states as text, longest spans first, marks at their times."""
    session = summarise_log(log)
    rounded = {shown: round(seconds) for shown, seconds in session.seconds.items()}
    assert rounded == {"engaged": 30, "distracted": 10, "no face": 10, "camera lost": 5}
    assert [span.shown for span in session.spans][::3] == ["engaged", "camera lost"]
    assert session.spans[0].length_s == pytest.approx(30, abs=0.4)
    assert session.marks == ((10.0, "<b>bell"),)
    assert np.isnan(session.points[-1].level)


def test_classes_named_like_states_are_separate_from_them(tmp_path: Path) -> None:
    """Ten seconds of class `paused`, five of class `unsure`, three of state unsure, two of a pause."""
    path, names = tmp_path / "names.csv", ("paused", "unsure")
    log = Log(str(path), names)
    for k in range(54):
        state: State = "ok" if k < 45 else "unsure"
        label = ("paused" if k < 30 else "unsure") if state == "ok" else ""
        log.write(replace(prediction(), t_s=k / 3, names=names, state=state, label=label))
    for k in range(3):
        log.write_state(18.0 + k, "paused")
    log.close()
    session = summarise_log(path)
    rounded = {shown: round(seconds) for shown, seconds in session.seconds.items()}
    assert rounded == {"paused": 10, "unsure": 5, "unsure (state)": 3, "paused (state)": 2}
    assert "unsure (state)" in write_report([session]).read_text(encoding="utf-8")


def test_class_with_a_comma_in_its_name_is_in_the_report(tmp_path: Path) -> None:
    """The header quotes the name of its column."""
    path, names = tmp_path / "day1.csv", ('looks away, "tired"', "engaged")
    log = Log(str(path), names)
    log.write(replace(prediction(), names=names))
    log.close()
    assert main(["report", str(path)]) == 0
    assert summarise_log(path).names == names


def test_gap_in_the_log_is_not_counted(tmp_path: Path) -> None:
    """Two rows an hour apart are at most two seconds of session."""
    path = tmp_path / "gap.csv"
    log = Log(str(path), NAMES)
    log.write(replace(prediction(), t_s=0.0))
    log.write(replace(prediction(), t_s=3600.0))
    log.close()
    assert sum(summarise_log(path).seconds.values()) < 2


@pytest.mark.parametrize(("state", "shown"), [("paused", "paused"), ("camera_lost", "camera lost")])
def test_pause_is_one_span(tmp_path: Path, state: State, shown: str) -> None:
    """Its rows are a little more than a second apart."""
    path = tmp_path / "pause.csv"
    log = Log(str(path), NAMES)
    for k in range(30):
        log.write(replace(prediction(), t_s=k / 3))
    for k in range(300):
        log.write_state(10.0 + k * 1.03, state)
    log.write(replace(prediction(), t_s=318.5))
    log.close()
    session = summarise_log(path)
    absent_s = 299 * 1.03 + 0.53
    assert session.seconds == pytest.approx({shown: absent_s, "engaged": 10 + 1 / 3}, abs=1e-3)
    spans = [(span.shown, span.start_s, span.length_s) for span in session.spans]
    assert spans[:2] == [(shown, 10.0, pytest.approx(absent_s)), ("engaged", 0.0, pytest.approx(10.0))]
    assert len(spans) == 3


@pytest.fixture
def seoul(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time zone nine hours before UTC."""
    if not hasattr(time, "tzset"):
        pytest.skip("Windows has no tzset")
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "KST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("seoul")
def test_days_are_those_of_the_local_time_zone(tmp_path: Path) -> None:
    """From 8:30 to 9:30 in Seoul it is one day, and two in UTC. A video file has no date."""
    path = tmp_path / "morning.csv"
    columns = log_columns(NAMES)
    times = {0.0: "2026-11-27T23:30:00.000Z", 3600.0: "2026-11-28T00:30:00.000Z"}
    lines = [",".join(columns)]
    for t_s, time_utc in times.items():
        row = {"t_s": t_s, "time_utc": time_utc, "face": 0, "state": "no_face", "coverage": 0.0}
        lines.append(",".join(str(row.get(column, "")) for column in columns))
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    video = tmp_path / "video.csv"
    log = Log(str(video), NAMES, is_live=False)
    log.write(prediction())
    log.close()
    sessions = [summarise_log(path), summarise_log(video)]
    assert [session.began for session in sessions] == ["2026-11-28 08:30:00+09:00", "no date"]
    assert [day.date for day in days(sessions)] == ["2026-11-28", "no date"]


@pytest.mark.parametrize("fps", [0.1, 0.5, 1, 1.5, 3, 5])
def test_minutes_of_a_day_are_those_of_its_sessions(tmp_path: Path, fps: float) -> None:
    """At any rate of rows; without pauses and the time between two sessions."""
    logs = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path in logs:
        log = Log(str(path), NAMES)
        for k in range(round(300 * fps)):
            log.write(replace(prediction(), t_s=k / fps))
        for k in range(120):
            log.write_state(300 + k * 1.03, "paused")
        log.close()
    assert sum(day.minutes for day in days(list(map(summarise_log, logs)))) == pytest.approx(10.0, abs=0.1)


@pytest.mark.parametrize("step_s", [(2.0, 2.0), (0.95, 1.05), (1.0, 1.6)])
def test_slow_rows_are_one_span(tmp_path: Path, step_s: tuple[float, float]) -> None:
    """One row every two seconds, sometimes late, with decisions that take over a second."""
    path = tmp_path / "slow.csv"
    times = np.cumsum(np.random.default_rng(0).uniform(*step_s, 300))
    log = Log(str(path), NAMES)
    for t_s in times:
        log.write(replace(prediction(), t_s=float(t_s)))
    log.close()
    session = summarise_log(path)
    length_s = pytest.approx(times[-1] - times[0] + np.median(np.diff(times)), abs=0.01)
    assert session.seconds == {"engaged": length_s}
    assert [(span.shown, span.length_s) for span in session.spans] == [("engaged", length_s)]
    picture = cv2.imdecode(np.frombuffer(timeline_png(session), np.uint8), cv2.IMREAD_COLOR)
    assert (picture[114, 12:-12] != TRACK[::-1]).any(axis=1).all()


def test_gap_among_slow_rows_is_not_counted(tmp_path: Path) -> None:
    """200 rows two seconds apart with a gap of ten minutes: the row before the gap lasts two intervals."""
    path = tmp_path / "gap.csv"
    log = Log(str(path), NAMES)
    for k in range(200):
        log.write(replace(prediction(), t_s=2.0 * k + (600.0 if k >= 100 else 0.0)))
    log.close()
    session = summarise_log(path)
    assert session.seconds == {"engaged": pytest.approx(402.0)}
    assert [span.length_s for span in session.spans] == [pytest.approx(202.0), pytest.approx(200.0)]


def test_report_is_one_file_with_escaped_text(log: Path) -> None:
    """It makes no request, and a mark is escaped."""
    page = write_report([summarise_log(log)]).read_text(encoding="utf-8")
    assert "&lt;b&gt;bell" in page
    assert "<b>bell" not in page
    assert "http" not in page
    picture = cv2.imdecode(np.frombuffer(timeline_png(summarise_log(log)), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (150, 1200, 3)
    below = picture[120:]
    assert (below[:, [0, -1]] == below[-1, -1]).all(), (
        "a time of the axis is cut off by the edge of the picture"
    )


def test_days_are_compared_with_training(log: Path, tmp_path: Path, detector_path: Path) -> None:
    """Face rate without lost camera; a value outside the training range is highlighted."""
    novelty_file(log).write_text("t_s,novelty\n0.0,4.0\n0.3333,6.0\n", encoding="utf-8")
    (day,) = days([summarise_log(log)])
    assert day.face_rate == pytest.approx(120 / 150)
    assert day.p == pytest.approx((90 * 0.8 + 30 * 0.3) / 120, abs=1e-3)
    assert day.novelty == 5.0
    run = write_run(tmp_path / "run", detector_path)
    reference = TrainingStats(
        50,
        PercentileRange(0.98, 0.7, 1.0),
        PercentileRange(0.6, 0.1, 0.9),
        PercentileRange(1.0, 0.5, 1.8),
        0.5,
    )
    write_text(run / FILE, json.dumps(asdict(reference)))
    out = tmp_path / "drift.html"
    assert main(["report", str(log), "--reference-run", str(run), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert page.count('class="outside"') == 1
    assert "training (50 clips)" in page


def test_day_without_a_value_is_null_in_json(
    log: Path, tmp_path: Path, detector_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No novelty is null, not NaN; for an ordinal run the value of a day is the expected level."""
    names = ("low", "middle", "high")
    path = tmp_path / "ordinal.csv"
    ordinal = Log(str(path), names)
    ordinal.write(replace(prediction(), names=names, label="middle", p_raw=(0, 1, 0), p=(0.1, 0.7, 0.2)))
    ordinal.close()
    run = write_run(tmp_path / "run", detector_path, task="ordinal", names=names)
    spread = PercentileRange(0.5, 0.1, 0.9)
    write_text(run / FILE, json.dumps(asdict(TrainingStats(50, spread, spread, None, 0.5))))
    assert main(["report", str(path), "--reference-run", str(run), "--json"]) == 0
    (day,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["days"]
    assert day["p"] == pytest.approx(0.55)
    assert day["novelty"] is None


@pytest.mark.parametrize(
    ("task", "figure"),
    [("binary", "probability"), ("ordinal", "level"), ("multiclass", "largest probability")],
)
def test_drift_table_names_its_value_by_task(
    tmp_path: Path, detector_path: Path, task: Literal["binary", "ordinal", "multiclass"], figure: str
) -> None:
    """An expected level and a largest probability have their own names."""
    names = NAMES if task == "binary" else ("low", "middle", "high")
    path = tmp_path / "day1.csv"
    log = Log(str(path), names)
    p = tuple(1 / len(names) for _ in names)
    log.write(replace(prediction(), names=names, label=names[1], p_raw=p, p=p))
    log.close()
    run = write_run(tmp_path / "run", detector_path, task=task, names=names)
    spread = PercentileRange(0.5, 0.1, 0.9)
    write_text(run / FILE, json.dumps(asdict(TrainingStats(50, spread, spread, None, 0.5))))
    page = write_report([summarise_log(path, task)], reference_run=run).read_text(encoding="utf-8")
    assert f"<td>face rate</td><td>{figure}</td>" in page


def test_report_of_a_run_on_synthetic_data_says_so(log: Path, tmp_path: Path, detector_path: Path) -> None:
    run = write_run(tmp_path / "run", detector_path)
    card = load_card(run)
    statement = DataStatement(synthetic=True, recruitment="made from one <portrait>")
    spread = PercentileRange(0.5, 0.1, 0.9)
    write_text(run / FILE, json.dumps(asdict(TrainingStats(50, spread, spread, None, 0.5))))
    pages = []
    for data_statement in (DataStatement(), statement):
        save_card(run, replace(card, data_statement=data_statement))
        assert main(["report", str(log), "--reference-run", str(run), "--out", str(tmp_path / "r.html")]) == 0
        pages.append((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "SYNTHETIC" not in pages[0]
    assert "SYNTHETIC DATA: made from one &lt;portrait&gt;" in pages[1]


def test_report_of_all_csv_files_uses_only_the_logs(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Novelty files belong to their logs, other files give a warning; without any log the exit code is 2."""
    novelty_file(log).write_text("t_s,novelty\n0.0,4.0\n", encoding="utf-8")
    others = {"predictions.csv": "video,log\na.mp4,a.csv\n", "own.csv": "path,label\nown.mp4,engaged\n"}
    for name, text in others.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    named = sorted(str(path) for path in tmp_path.glob("*.csv"))
    assert len(named) == 4
    assert main(["report", *named, "--json"]) == 0
    output = capsys.readouterr()
    assert [session["log"] for session in json.loads(output.out)["sessions"]] == [str(log)]
    lines = [line for line in output.err.splitlines() if "left out" in line]
    assert [name for name in sorted(others) for line in lines if name in line] == sorted(others)
    assert len(lines) == 2
    assert log.with_suffix(".html").is_file()
    assert main(["report", *(path for path in named if path != str(log))]) == 2
    assert "no live log with rows among the given files" in capsys.readouterr().err


def test_log_without_rows_is_left_out(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a warning; if no log has rows, the exit code is 2."""
    begun = tmp_path / "begun.csv"
    Log(str(begun), NAMES).close()
    assert main(["report", str(begun), str(log), "--json"]) == 0
    output = capsys.readouterr()
    assert [session["log"] for session in json.loads(output.out)["sessions"]] == [str(log)]
    assert "begun.csv has no rows yet" in " ".join(output.err.split())
    assert not begun.with_suffix(".html").exists()
    assert main(["report", str(begun)]) == 2
    assert "no live log with rows among the given files" in " ".join(capsys.readouterr().err.split())


def test_report_replaces_no_file_of_the_sessions(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reports and timelines that exist are kept, missing timelines are made, --out is overwritten, and no
    report has the name of another log's files."""
    write_report([summarise_log(log)], of_session=True)
    for name in ("another.csv", f"{log.stem}-2.csv"):
        (tmp_path / name).write_bytes(log.read_bytes())
    log.with_suffix(".png").write_bytes(b"the session's")
    out = tmp_path / "both.html"
    out.write_text("earlier", encoding="utf-8")
    kept = {path: path.read_bytes() for path in tmp_path.iterdir() if path != out}
    argv = ["report", str(log), str(tmp_path / "another.csv"), "--json"]
    for more, page in (((), f"{log.stem}-3"), ((), f"{log.stem}-4"), (("--out", str(out)), "both")):
        assert main([*argv, *more]) == 0
        written = tmp_path / f"{page}.html"
        assert json.loads(capsys.readouterr().out)["report"] == str(written)
        assert "2 sessions" in written.read_text(encoding="utf-8")
        assert kept.items() <= {path: path.read_bytes() for path in tmp_path.iterdir()}.items()
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{log.stem}.png", "another.png"}


@pytest.mark.parametrize("suffix", [".csv", ".novelty.csv", ".png"])
def test_report_over_its_log_is_refused(log: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    kept = log.read_bytes()
    out = log.parent / "." / (log.stem + suffix)
    assert main(["report", str(log), "--out", str(out)]) == 2
    assert "is one of the logs or its timeline" in " ".join(capsys.readouterr().err.split())
    assert (log.read_bytes(), log.with_suffix(".html").exists()) == (kept, False)


def test_reference_run_with_other_classes_is_refused(
    log: Path, tmp_path: Path, detector_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", detector_path, names=("asleep", "awake"))
    assert main(["report", str(log), "--reference-run", str(run)]) == 2
    assert "--reference-run has asleep, awake" in " ".join(capsys.readouterr().err.split())
    assert not log.with_suffix(".html").exists()


def test_log_given_twice_is_used_once(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = log.parent / "." / ".." / log.parent.name / log.name
    assert main(["report", str(log), str(again), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sessions"]) == 1


def test_session_replaces_its_own_timeline(log: Path) -> None:
    """A timeline made by a report while the session ran is out of date; that report is kept."""
    write_report([summarise_log(log)])
    log.with_suffix(".png").write_bytes(b"half of it")
    page = write_report([summarise_log(log)], of_session=True)
    assert page == log.with_name(f"{log.stem}-2.html")
    assert log.with_suffix(".png").read_bytes() == timeline_png(summarise_log(log))


@pytest.mark.parametrize("task", ["binary", "ordinal", "multiclass"])
def test_report_with_reference_run_draws_the_same_timeline(
    tmp_path: Path, detector_path: Path, task: Literal["binary", "ordinal", "multiclass"]
) -> None:
    """The page has the meaning of the height. Without the run, a log of more than two classes does not show
    whether they are levels, and the page has a note."""
    names = NAMES if task == "binary" else ("low", "middle", "high")
    path = tmp_path / "day1.csv"
    log = Log(str(path), names)
    rng = np.random.default_rng(0)
    for k in range(60):
        p = tuple(rng.dirichlet(np.ones(len(names))).tolist())
        log.write(replace(prediction(), t_s=k / 3, names=names, label=names[k % len(names)], p_raw=p, p=p))
    log.close()
    session = write_report([summarise_log(path, task)], of_session=True).read_text(encoding="utf-8")
    run = write_run(tmp_path / "run", detector_path, task=task, names=names)
    spread = PercentileRange(0.5, 0.1, 0.9)
    write_text(run / FILE, json.dumps(asdict(TrainingStats(50, spread, spread, None, 0.5))))
    pages = []
    for more in (["--reference-run", str(run)], []):
        out = tmp_path / "page.html"
        assert main(["report", str(path), "--out", str(out), *more]) == 0
        pages.append(out.read_text(encoding="utf-8"))
    reference_run, alone = pages

    def facts(page: str) -> list[str]:
        return re.findall('base64,([^"]+)|<p>(Height: .+)</p>', page)

    assert len(facts(session)) == 2
    assert facts(reference_run) == facts(session)
    assert (facts(alone) == facts(session)) == (task == "binary")
    assert ("--reference-run" in alone) == (task != "binary")
    assert "--reference-run" not in session


def test_report_is_written_when_the_timeline_cannot_be(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example on a read-only disk: a warning, and the report contains the timeline."""
    try:
        log.with_suffix(".png").symlink_to(tmp_path / "unplugged" / "a.png")
    except OSError:
        pytest.skip("no links here")
    out = tmp_path / "page.html"
    assert main(["report", str(log), "--out", str(out)]) == 0
    assert "no timeline next to the log" in " ".join(capsys.readouterr().err.split())
    assert "data:image/png" in out.read_text(encoding="utf-8")


def test_missing_log_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2; the message has the file name."""
    assert main(["report", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in " ".join(capsys.readouterr().err.split()).replace(" ", "")
