"""Tests of the command `python -m live`: outputs of a session, and one line per error."""

import contextlib
import csv
import errno
import json
import os
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest

from extract.__main__ import main as extract
from extract.video.reader import read_video
from features.store.store import FeatureStore
from live.__main__ import main
from live.commands import Control
from live.inference.model import LiveModel, open_model
from live.inference.predictor import Prediction, Predictor
from live.loop import Loading, Loop
from live.output.log_reader import read_log
from live.output.log_writer import Log
from live.session import OutputOptions, Session
from live.sources.base import open_source
from live.sources.latest_frame import LatestFrameReader
from live.ui.view import NoView
from tests.support.commands import run_here
from tests.support.full_disk import small_files
from tests.support.small_run import write_run
from tests.support.stepped import SteppedCamera, SteppedClock

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, detector_path: Path) -> Path:
    """A small run in a folder with Hangul and a space."""
    return write_run(tmp_path_factory.mktemp("live") / "내 run", detector_path)


def live(*argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process."""
    return subprocess.run(
        [sys.executable, "-m", "live", *map(str, argv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_video_gives_log_recordings_report_and_summary(
    run: Path, real_clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row per sampled frame; recordings with every frame; only the summary on stdout."""
    log = tmp_path / "로그" / "live.csv"
    argv = ["--run", run, "--video", real_clips["single"], "--headless", "--log", log, "--json"]
    argv += ["--record", tmp_path / "view.mp4", "--record-raw", tmp_path / "raw.mp4"]
    assert main([str(word) for word in argv]) == 0
    summary = json.loads(capsys.readouterr().out)
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert summary["rows"] == len(rows) == summary["encoded"] == 8
    assert summary["frames"] == 72
    assert {row["state"] for row in rows} == {"warming_up"}
    for name in ("view.mp4", "raw.mp4"):
        with av.open(str(tmp_path / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 72
    assert Path(summary["report"]).is_file()
    assert log.with_suffix(".png").is_file()


class Presses(NoView):
    """A view that presses keys at given times of the video."""

    is_watched = True

    def __init__(self, now_s: Callable[[], float], *presses: tuple[float, str]) -> None:
        self._now_s, self._left = now_s, list(presses)
        self.was_shown = False
        self.is_handled = threading.Event()

    def show(self, picture: np.ndarray) -> None:
        """Count a picture."""
        self.was_shown = True

    def keys(self) -> str:
        """Keys whose time has passed."""
        if self.was_shown:
            self.is_handled.set()
        due = "".join(key for at_s, key in self._left if at_s <= self._now_s())
        self._left = [press for press in self._left if press[0] > self._now_s()]
        return due


def test_window_events_are_handled_before_the_model_is_loaded(run: Path, real_clips: dict[str, Path]) -> None:
    """A window paints its picture when its events are handled: the first picture does not wait for the
    model."""
    source = open_source(0, str(real_clips["single"]), False)
    session = Session(("distracted", "engaged"), OutputOptions())
    control = Control(session, subject="nobody", calibrate_s=None, notify=lambda line: None)
    view = Presses(source.now_s)

    def load() -> Predictor:
        if not view.is_handled.wait(10):
            raise ValueError("the window's events were not handled")
        return Predictor(open_model(run))

    Loop(1.0, source, Loading(load), session, control, view).run()
    source.close()
    control.close()
    assert session.summary()["rows"] == 3


class Moves(NoView):
    """A view that moves the clock and the camera: 16 frames, 2.4 s without frames, some more frames."""

    def __init__(self, clock: SteppedClock, camera: SteppedCamera) -> None:
        self._clock, self._camera, self._pass = clock, camera, 0

    def keys(self) -> str:
        """No keys."""
        self._pass += 1
        self._clock.now_s += 0.3
        if self._pass < 16 or 24 <= self._pass < 40:
            self._camera.show(self._clock.now_s)
        elif self._pass == 40:
            self._camera.give(1000.0)
        return ""


def test_hanging_camera_gives_two_messages_and_log_rows(run: Path, tmp_path: Path) -> None:
    """Two seconds without frames: one message at the loss, one at the return, log rows of the gap."""
    clock, camera = SteppedClock(), SteppedCamera()
    loading = Loading(lambda: Predictor(open_model(run)))
    loading.ready(60.0)
    camera.give(0.0)
    source = LatestFrameReader(camera.frames, reconnects=True, clock=clock)
    source.start()
    session = Session(("distracted", "engaged"), OutputOptions(log=str(tmp_path / "a.csv")))
    messages: list[str] = []
    control = Control(session, subject="nobody", calibrate_s=None, notify=messages.append)
    Loop(999.0, source, loading, session, control, Moves(clock, camera)).run()
    camera.give(1000.0)  # so that its thread sees the end
    source.close()
    control.close()
    session.close()
    assert [line for line in messages if line.startswith(("no new frames", "the camera"))] == [
        "no new frames from the camera: waiting for it",
        "the camera works again",
    ]
    states = [row.state for row in read_log(tmp_path / "a.csv")[1]]
    assert 1 <= states.count("camera_lost") <= 3


def test_labelled_recording_is_a_data_set_for_extract(
    run: Path, real_clips: dict[str, Path], tmp_path: Path
) -> None:
    """extract accepts recording and manifest: every labelled second has its label, subject and face."""
    own = tmp_path / "내 것" / "own.mp4"
    source = open_source(0, str(real_clips["pexels"]), False)
    session = Session(("distracted", "engaged"), OutputOptions(record_raw=own, subject="민수"))
    control = Control(session, subject="민수", calibrate_s=None, notify=lambda line: None)
    view = Presses(source.now_s, (1.0, "2"), (9.0, "1"), (17.0, "0"), (18.0, "q"))
    Loop(None, source, Loading(lambda: Predictor(open_model(run))), session, control, view).run()
    for each in (source, control, session):
        each.close()
    assert session.files == [own, own.with_suffix(".csv")]
    store = tmp_path / "own.zarr"
    argv = ["--data", own.with_suffix(".csv"), "--out", store, "--weights", "random", "--workers", "0"]
    assert extract([str(word) for word in argv]) == 0
    opened = FeatureStore.open(store)
    table = opened.table()
    names = table.label_names["label"]
    assert [names[index] for index in table.labels["label"]] == ["engaged", "distracted"]
    assert table.subject.tolist() == ["민수"] * 2
    assert table.state.tolist() == [1, 1]
    frames = opened.read_frames(np.arange(2))
    assert (np.isfinite(frames[..., 0]).sum(axis=1) >= 23).all()
    assert (frames[..., 5] > 0).sum() == np.isfinite(frames[..., 0]).sum()


def test_served_file_plays_at_its_own_speed(run: Path, real_clips: dict[str, Path]) -> None:
    """Else it would end before a browser is open."""
    done = live("--run", run, "--video", real_clips["single"], "--serve", "--port", "0", "--json")
    summary = json.loads(done.stdout)
    # It may be over before the model is loaded.
    assert done.returncode == (0 if summary["model"] else 1), done.stderr
    assert "http://127.0.0.1:" in done.stderr
    assert summary["seconds"] >= summary["duration_s"] > 2.3


def test_seconds_option_ends_the_session(
    run: Path, real_clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The time is that of the video, not of the computer."""
    argv = ["--run", run, "--video", real_clips["pexels"], "--headless", "--seconds", "2", "--json"]
    assert main([str(word) for word in argv]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 6
    assert summary["duration_s"] == pytest.approx(2.0, abs=0.05)


def test_json_lines_stream_to_stdout(run: Path, real_clips: dict[str, Path]) -> None:
    """`--log -`: one line per sampled frame on stdout; messages go to stderr."""
    done = run_here("live", "--run", run, "--video", real_clips["single"], "--headless", "--log", "-")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 8
    assert rows[0]["state"] == "warming_up"
    assert "not recording" in done.stderr
    assert "W0000" not in done.stderr


def test_decomposed_subject_is_the_composed_one(run: Path, tmp_path: Path) -> None:
    """Some systems give Hangul in parts."""
    folder = tmp_path / "personal"
    folder.mkdir()
    (folder / "민수.json").write_text("{}", encoding="utf-8")
    subject = unicodedata.normalize("NFD", "민수")
    done = run_here("live", "--run", run, "--subject", subject, "--forget", BRAINBUDDY_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())


def test_subject_named_none_is_a_name(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "personal"
    folder.mkdir()
    for name in ("me", "None"):
        (folder / f"{name}.json").write_text("{}", encoding="utf-8")
    done = run_here("live", "--run", run, "--subject", "None", "--forget", BRAINBUDDY_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [file.name for file in folder.iterdir()] == ["me.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--headless", "--camera", "97"), "camera 97 cannot be opened"),
        (("--headless", "--camera", "-1"), "--camera must be 0 or more"),
        (("--video", "no/such.mp4", "--headless"), "no/such.mp4"),
        (("--headless", "--calibrate", "1"), "at least 15 s"),
        (("--headless", "--calibrate", "15", "--seconds", "30"), "--seconds 30 is too short"),
        (("--headless", "--subject", "../evil"), "--subject may contain letters"),
        (("--headless", "--forget"), "--subject"),
        (("--headless", "--log", "a/day1.csv", "--record-raw", "a/day1.mp4"), "a/day1.csv"),
        (("--headless", "--log", "a/x.csv", "--record", "a/x.html"), "--log and --record"),
        (("--headless", "--record", "x.mp4", "--record-raw", "X.MP4"), "--record and --record-raw"),
        (("--headless", "--record", "./clip.mp4", "--video", "clip.mp4"), "--record and --video"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(run: Path, arguments: tuple[str, ...], message: str) -> None:
    """Without a traceback."""
    done = run_here("live", "--run", run, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_calibrate_with_a_multiclass_run_is_exit_2(
    tmp_path: Path, detector_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is opened."""
    run = write_run(tmp_path / "run", detector_path, names=("a", "b", "c"), task="multiclass")
    assert main(["--run", str(run), "--headless", "--calibrate", "20"]) == 2
    assert "binary or ordinal" in capsys.readouterr().err


def test_unfinished_calibration_is_exit_1(
    run: Path, real_clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A video too short for both phases: an error and an entry in the summary; everything else is written."""
    argv = ["--run", run, "--video", real_clips["single"], "--headless", "--calibrate", "15", "--json"]
    assert main([str(word) for word in argv]) == 1
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (summary["rows"], summary["calibration"]) == (8, "not finished, nothing was changed")
    assert "calibration: not finished, nothing was changed" in output.err


@pytest.mark.parametrize("is_whole", [True, False])
def test_session_that_ends_before_the_model_is_loaded_is_exit_1(
    tmp_path: Path,
    detector_path: Path,
    real_clips: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_whole: bool,
) -> None:
    """There is no log. An error of loading is shown instead, with exit code 2."""
    run = write_run(tmp_path / "run", detector_path)
    if not is_whole:
        (run / "detector" / "detector.tflite").unlink()
    is_over, loop = threading.Event(), Loop.run

    def run_loop(self: Loop) -> None:
        loop(self)
        is_over.set()

    def load_late(run: Path, backend: Literal["auto"]) -> LiveModel:
        assert is_over.wait(60)
        return open_model(run, backend=backend)

    monkeypatch.setattr(Loop, "run", run_loop)

    def camera(*ignored: object) -> LatestFrameReader:
        source = LatestFrameReader(
            lambda: read_video(real_clips["single"]), reconnects=False, clock=lambda: 0.0
        )
        source.start()
        return source

    monkeypatch.setattr("live.app.open_model", load_late)
    monkeypatch.setattr("live.app.open_source", camera)
    argv = ["--run", run, "--headless", "--json"]
    assert main([*map(str, argv), "--log", str(tmp_path / "a.csv")]) == (1 if is_whole else 2)
    output = capsys.readouterr()
    assert not (tmp_path / "a.csv").exists()
    if is_whole:
        summary = json.loads(output.out)
        assert (summary["model"], summary["log"]) == (None, None)
        assert summary["frames"] > 0
        assert "before the model was loaded" in output.err
    else:
        assert "the face detector of this run" in output.err


def test_incomplete_recording_is_exit_1(
    run: Path,
    real_clips: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The session continues to its end; the recording is listed with the reason."""
    video = tmp_path / "view.mp4"
    argv = ["--run", run, "--video", real_clips["single"], "--headless", "--record", video, "--json"]
    with contextlib.ExitStack() as stack:
        begin = Session.begin

        def begin_with_little_room(self: Session) -> list[str]:
            stack.enter_context(small_files())  # not before: opening a model writes files too
            return begin(self)

        monkeypatch.setattr(Session, "begin", begin_with_little_room)
        assert main([str(word) for word in argv]) == 1
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (summary["rows"], [each["file"] for each in summary["failed"]]) == (8, [str(video)])
    assert f"{video}: the file is incomplete" in " ".join(output.err.split())


def test_full_disk_ends_only_the_log(
    run: Path,
    real_clips: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The session continues to its summary, with a warning, the rows before, and exit code 1."""
    log, write = tmp_path / "day1.csv", Log.write

    def write_three(self: Log, prediction: Prediction, mark: str = "") -> None:
        if prediction.t_s > 0.9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, prediction, mark)

    monkeypatch.setattr(Log, "write", write_three)
    argv = ["--run", run, "--video", real_clips["single"], "--headless", "--log", log, "--json"]
    assert main([str(word) for word in argv]) == 1
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (summary["rows"], [each["file"] for each in summary["failed"]]) == (8, [str(log)])
    errors = " ".join(output.err.split())
    assert errors.count(f"log {log} stopped, the session continues") == 1
    assert f"{log}: the file is incomplete" in errors
    assert len(read_log(log)[1]) == 3


def test_failed_start_writes_no_log(run: Path, tmp_path: Path) -> None:
    """Without a camera the old log is unchanged and no new log is made."""
    log = tmp_path / "day.csv"
    log.write_text("yesterday", encoding="utf-8")
    assert run_here("live", "--run", run, "--camera", "97", "--headless", "--log", log).returncode == 2
    assert log.read_text(encoding="utf-8") == "yesterday"
    assert list(tmp_path.iterdir()) == [log]


def test_serve_without_its_packages_is_one_line(run: Path, real_clips: dict[str, Path]) -> None:
    """The packages to install, without a traceback."""
    for absent in ("starlette", "uvicorn", "websockets"):
        code = (
            "import sys\n"
            f"sys.modules[{absent!r}] = None\n"
            "from live.__main__ import main\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        argv = ["--run", run, "--video", real_clips["single"], "--serve"]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, argv)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 2
        assert absent in done.stderr
        assert "pip install 'brainbuddy[serve]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_json_lines_are_utf8_for_any_locale(
    tmp_path: Path, detector_path: Path, real_clips: dict[str, Path]
) -> None:
    """Hangul class names are correct also in the C locale."""
    run = write_run(tmp_path / "run", detector_path, names=("졸음", "집중"))
    argv = ("--run", run, "--video", real_clips["single"], "--headless", "--log", "-")
    done = live(*argv, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert {"p_졸음", "p_집중"} <= json.loads(done.stdout.splitlines()[0]).keys()


def test_log_rotated_at_the_end_leaves_only_the_report_out(
    run: Path, real_clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session ends normally without a report."""
    close = Session.close

    def close_and_rotate(self: Session) -> None:
        close(self)
        (tmp_path / "a.csv").rename(tmp_path / "a.1.csv")

    monkeypatch.setattr(Session, "close", close_and_rotate)
    argv = ["--run", run, "--video", real_clips["single"], "--headless", "--log", tmp_path / "a.csv"]
    assert main([str(word) for word in argv]) == 0
    assert len(read_log(tmp_path / "a.1.csv")[1]) == 8


def test_missing_display_error_names_serve_and_headless(run: Path, real_clips: dict[str, Path]) -> None:
    """cv2's window would end the process; the command checks first."""
    if sys.platform != "linux":
        pytest.skip("other systems always have a display")
    done = run_here("live", "--run", run, "--video", real_clips["single"], DISPLAY="")
    assert done.returncode == 2
    assert "--serve" in done.stderr
    assert "--headless" in done.stderr


def test_file_that_is_not_a_video_is_one_line(run: Path, tmp_path: Path) -> None:
    """The reason, without a traceback."""
    path = tmp_path / "text.mp4"
    path.write_text("not a video", encoding="utf-8")
    done = run_here("live", "--run", run, "--video", path, "--headless")
    assert done.returncode == 2
    assert "text.mp4" in done.stderr
    assert "Traceback" not in done.stderr


def test_forget_removes_the_calibration_of_a_subject(run: Path, tmp_path: Path) -> None:
    """The file is deleted; a second call has nothing to remove and exit code 1."""
    folder = tmp_path / "personal"
    folder.mkdir()
    (folder / "민수.json").write_text("{}", encoding="utf-8")
    done = [
        run_here("live", "--run", run, "--subject", "민수", "--forget", BRAINBUDDY_HOME=str(tmp_path))
        for _ in range(2)
    ]
    assert [d.returncode for d in done] == [0, 1]
    assert not list(folder.iterdir())
