"""Tests of log, recorder and session: rows, frame times, marks and labels."""

import csv
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from extract.video.reader import Frame
from features.manifest import read_csv
from live.config import novelty_file
from live.output.annotations import Interval, Labels, write_manifest
from live.output.log_reader import read_log
from live.output.log_writer import MAX_LATENCIES, Log, LogStats, log_columns
from live.output.recorder import Recorder
from live.session import OutputOptions, Session
from tests.support.full_disk import small_files
from tests.support.predictions import prediction

NAMES = ("distracted", "engaged")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log as they are on disk."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_log_columns_are_the_documented_ones() -> None:
    """Other programs rely on this order."""
    wanted = "t_s time_utc face state label p_raw_distracted p_raw_engaged p_distracted p_engaged"
    assert log_columns(NAMES) == [*wanted.split(), "coverage", "latency_ms", "mark"]


def test_every_row_is_in_the_file_at_once(tmp_path: Path) -> None:
    """A power cut loses at most one row: the file is complete while the log is open."""
    path = tmp_path / "기록" / "live.csv"
    log = Log(str(path), NAMES)
    for k in range(5):
        log.write(replace(prediction(), t_s=k / 3), mark="*" if k == 2 else "")
        rows = read_rows(path)
        assert len(rows) == k + 1
    log.write_state(9.0, "camera_lost")
    log.close()
    rows = read_rows(path)
    assert [row["mark"] for row in rows] == ["", "", "*", "", "", ""]
    assert rows[0]["p_engaged"] == "0.7"
    assert rows[-1]["state"] == "camera_lost"
    assert rows[-1]["p_engaged"] == ""
    assert rows[0]["time_utc"].endswith("Z")


def test_stdout_log_is_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """`--log -`: one object per line with the names of the columns."""
    log = Log("-", NAMES)
    log.write(prediction())
    log.write_state(1.0, "paused")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(first) == log_columns(NAMES)
    assert first["p_engaged"] == 0.7
    assert second["state"] == "paused"
    assert second["p_engaged"] is None


def test_recording_keeps_frame_times(tmp_path: Path) -> None:
    """Irregular times are read back with an error below a millisecond."""
    times = [0.0, 0.033, 0.1, 0.4, 0.433, 1.5]
    recorder = Recorder(tmp_path / "한글 record.mp4")
    for pts_s in times:
        recorder.write(np.full((121, 161, 3), round(pts_s * 100), np.uint8), 5.0 + pts_s)
    recorder.close()
    with av.open(str(recorder.path)) as container:
        found = [float(f.pts * f.time_base) for f in container.decode(video=0)]
    assert found == pytest.approx(times, abs=0.0011)


@pytest.mark.skipif(os.name == "nt", reason="no colon in a Windows name")
def test_recording_with_a_colon_in_its_name_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg would take the part before the colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    recorder = Recorder(Path("own10:31.mp4"))
    recorder.write(np.zeros((48, 64, 3), np.uint8), 0.0)
    recorder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["own10:31.mp4"]


def test_recording_without_pictures_makes_no_file(tmp_path: Path) -> None:
    """No picture, no file."""
    Recorder(tmp_path / "none.mp4").close()
    assert list(tmp_path.iterdir()) == []


def test_log_stats_count_states_and_labels() -> None:
    """Labels are counted only in state ok."""
    log_stats = LogStats()
    for p in (prediction(), prediction(state="unsure", label=""), prediction(latency_ms=10.0)):
        log_stats.add(p)
    assert log_stats.summary() == {
        "rows": 3,
        "states": {"ok": 2, "unsure": 1},
        "labels": {"engaged": 2},
        "latency_ms": {"median": 6.0, "p99": pytest.approx(9.92)},
    }


def test_log_is_read_back(tmp_path: Path) -> None:
    """States, probabilities and marks are the same; an incomplete last row is left out."""
    path = tmp_path / "live.csv"
    log = Log(str(path), NAMES)
    log.write(prediction(), mark='a, "quoted" mark')
    log.write_state(21.0, "paused")
    log.close()
    with path.open("a", encoding="utf-8") as file:
        file.write("21.5,2026-01-01T00:")
    names, rows = read_log(path)
    assert names == NAMES
    assert [row.state for row in rows] == ["ok", "paused"]
    assert rows[0].p == (0.3, 0.7)
    assert rows[0].mark == 'a, "quoted" mark'
    assert rows[1].p == ()


def test_rotated_log_continues_in_a_new_file(tmp_path: Path) -> None:
    """After a rename, earlier rows are in the old file and later rows in a new one."""
    log = Log(str(tmp_path / "live.csv"), NAMES)
    log.write(prediction())
    (tmp_path / "live.csv").rename(tmp_path / "live.1.csv")
    log.write(prediction())
    log.write(prediction())
    log.close()
    assert [len(read_log(tmp_path / name)[1]) for name in ("live.1.csv", "live.csv")] == [1, 2]


def test_two_sessions_in_one_file_are_refused(tmp_path: Path) -> None:
    """A row that is slightly late is accepted."""
    path = tmp_path / "live.csv"
    log = Log(str(path), NAMES)
    for t_s in (20.0, 19.6, 300.0):
        log.write_state(t_s, "paused")
    assert len(read_log(path)[1]) == 3
    log.write_state(0.3, "paused")
    log.close()
    with pytest.raises(ValueError, match=r"line 5: the time goes back from 300\.0 to 0\.3 s"):
        read_log(path)


def test_another_csv_is_refused_as_a_log(tmp_path: Path) -> None:
    """The message has the columns of the file."""
    path = tmp_path / "labels.csv"
    path.write_text("path,label\na.mp4,b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a live log"):
        read_log(path)


def test_slow_disk_uses_one_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written while a sync hangs; the next sync covers all of them."""
    may_continue, sync_started, sizes = threading.Event(), threading.Event(), list[int]()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        sync_started.set()
        assert may_continue.wait(20)
        real(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    copies: list[int] = []
    duplicate = os.dup

    def dup(descriptor: int) -> int:
        copies.append(duplicate(descriptor))
        return copies[-1]

    monkeypatch.setattr(os, "dup", dup)
    log = Log(str(tmp_path / "live.csv"), NAMES, durable=True)
    log.write(prediction())
    assert sync_started.wait(10)
    for _ in range(50):
        log.write(prediction())
    assert len(copies) == 2, "the sync that hangs, and one for all later rows"
    may_continue.set()
    log.close()
    assert sizes[-1] == (tmp_path / "live.csv").stat().st_size


def test_labels_become_a_manifest_that_extract_reads(tmp_path: Path) -> None:
    """Intervals are adjacent, none is empty, and extract's reader accepts the file."""
    labels = Labels()
    labels.begin("engaged", 1.0)
    labels.begin("distracted", 5.0)
    labels.stop(9.5)
    labels.stop(11.0)
    assert labels.intervals == [Interval("engaged", 1.0, 5.0), Interval("distracted", 5.0, 9.5)]
    video = tmp_path / "민수.mp4"
    video.write_bytes(b"x")
    manifest = read_csv(write_manifest(video, labels.intervals, "민수"))
    assert not manifest.problems
    assert [(c.labels["label"], c.subject, c.start_s, c.end_s) for c in manifest.clips] == [
        ("engaged", "민수", 1.0, 5.0),
        ("distracted", "민수", 5.0, 9.5),
    ]


def test_session_without_output_options_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live records only on request."""
    monkeypatch.chdir(tmp_path)
    session = Session(NAMES, OutputOptions())
    session.add_frame(Frame(0.0, np.zeros((48, 64, 3), np.uint8)), prediction())
    session.picture(np.zeros((48, 64, 3), np.uint8), 0.0)
    session.mark(0.1)
    session.close()
    assert list(tmp_path.iterdir()) == []
    assert not session.recording


def test_session_writes_log_marks_recordings_and_labels(tmp_path: Path) -> None:
    """All requested files exist, and the manifest's times are those of the raw recording."""
    output_options = OutputOptions(
        str(tmp_path / "a.csv"), tmp_path / "view.mp4", tmp_path / "raw.mp4", "민수"
    )
    session = Session(NAMES, output_options)
    assert list(tmp_path.iterdir()) == []  # a start that fails leaves nothing
    assert len(session.begin()) == 3
    image = np.full((96, 128, 3), 60, np.uint8)
    for k in range(40):
        t_s = 100 + k / 10
        if k == 10:
            session.mark(t_s, "bell")
            assert session.begin_label(2, t_s) == "label from now on: engaged"
        session.add_frame(
            Frame(t_s, image), replace(prediction(), t_s=t_s, novelty=1.5) if k % 3 == 0 else None
        )
        session.picture(image, t_s)
    session.add_gap(104.0, "camera_lost")
    session.add_gap(104.2, "camera_lost")
    session.add_gap(105.1, "camera_lost")
    session.close()
    rows = read_rows(tmp_path / "a.csv")
    assert [row["mark"] for row in rows].count("bell") == 1
    assert [row["state"] for row in rows[-2:]] == ["camera_lost"] * 2
    assert len(novelty_file(tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()) == 15
    clip = read_csv(tmp_path / "raw.csv").clips[0]
    assert (clip.start_s, clip.end_s, clip.subject) == (pytest.approx(1.0), pytest.approx(3.9), "민수")
    for name in ("view.mp4", "raw.mp4"):
        with av.open(str(tmp_path / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 40
    assert session.summary()["states"] == {"ok": 14, "camera_lost": 2}


@pytest.mark.parametrize("num_frames", [90, 300])
def test_disk_error_ends_only_its_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_frames: int
) -> None:
    """In the middle or at the end: a warning and an entry in the summary; log, labels and the other recording
    are complete."""
    session = Session(
        NAMES, OutputOptions(str(tmp_path / "a.csv"), tmp_path / "view.mp4", tmp_path / "own.mp4")
    )
    session.begin()
    rng, still = np.random.default_rng(0), np.full((96, 128, 3), 60, np.uint8)
    with small_files():
        for k in range(num_frames):
            t_s = k / 30
            noise = rng.integers(0, 256, (96, 128, 3), np.uint8)
            session.add_frame(Frame(t_s, noise), replace(prediction(), t_s=t_s))  # for the raw recording
            assert session._overlay is not None
            session._overlay.write(still, t_s)
            if k == 10:
                session.begin_label(2, t_s)
        session.close()
    (failure,) = session.summary()["failed"]
    assert failure["file"] == str(tmp_path / "own.mp4")
    assert "large" in failure["reason"]
    assert ("own.mp4" in capsys.readouterr().err) == (num_frames == 300)
    assert len(read_log(tmp_path / "a.csv")[1]) == num_frames
    assert read_csv(tmp_path / "own.csv").clips[0].labels == {"label": "engaged"}
    with av.open(str(tmp_path / "view.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == num_frames
    assert "has ended" in session.begin_label(1, 99.0)


def test_log_on_a_full_disk_ends_and_the_session_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a row: one warning, one failure, and the rows before are read."""
    session = Session(NAMES, OutputOptions(str(tmp_path / "a.csv")))
    session.begin()
    with small_files():
        for k in range(1000):
            session.add_frame(Frame(k / 3, np.zeros((8, 8, 3), np.uint8)), prediction(t_s=k / 3, novelty=1.0))
        session.add_gap(400.0, "paused")
        session.mark(401.0)
        session.close()
    assert [path for path, _ in session.failures] == [tmp_path / "a.csv"]
    assert capsys.readouterr().err.count("the session continues") == 1
    assert 100 < len(read_log(tmp_path / "a.csv")[1]) < 1000
    assert session.summary()["rows"] == 1001


def test_recording_started_while_the_model_loads_continues(tmp_path: Path) -> None:
    """Key r before the model is loaded starts the recording of --record, not a second one."""
    session = Session(NAMES, OutputOptions(record=tmp_path / "view.mp4", record_raw=tmp_path / "view-2.mp4"))
    image = np.full((96, 128, 3), 60, np.uint8)
    (tmp_path / "view.mp4").write_bytes(b"earlier")
    assert session.toggle_recording() == f"recording to {tmp_path / 'view-2.mp4'}"
    session.picture(image, 0.0)
    assert session.begin() == [f"recording to {tmp_path / 'view-2-2.mp4'}"]
    session.add_frame(Frame(1.0, image), None)
    session.picture(image, 1.0)
    session.close()
    counted = {}
    for path in session.files:
        if path.suffix == ".mp4":
            with av.open(str(path)) as container:
                counted[path.name] = sum(1 for _ in container.decode(video=0))
    assert counted == {"view-2.mp4": 2, "view-2-2.mp4": 1}


def test_label_keys_without_raw_recording_give_a_message() -> None:
    """The same for a class number that does not exist."""
    assert "--record-raw" in Session(NAMES, OutputOptions()).begin_label(1, 0.0)


def test_second_session_with_the_same_names_replaces_nothing(tmp_path: Path) -> None:
    """Its log, the files next to it, recordings and manifest get free names, with a message."""
    output_options = OutputOptions(str(tmp_path / "day1.csv"), tmp_path / "view.mp4", tmp_path / "own.mp4")
    image = np.full((96, 128, 3), 60, np.uint8)
    kept: dict[Path, bytes] = {}
    for number in ("", "-2", "-3"):
        session = Session(NAMES, output_options)
        lines = session.begin()
        assert session.log_path == tmp_path / f"day1{number}.csv"
        assert str(session.log_path) in lines[0]
        for k in range(10):
            session.add_frame(Frame(k / 10, image), replace(prediction(), t_s=k / 10, novelty=1.0))
            session.picture(image, k / 10)
            if k == 2:
                session.begin_label(1, k / 10)
        session.close()
        found = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert kept.items() <= found.items()
        assert {path.name for path in found.keys() - kept.keys()} == {
            *(f"day1{number}.csv", f"day1{number}.novelty.csv", f"view{number}.mp4"),
            *(f"own{number}.mp4", f"own{number}.csv"),
        }
        kept = found


def test_two_sessions_that_record_at_the_same_time_have_two_files(tmp_path: Path) -> None:
    """Also before either has its first picture. A session without a picture leaves no file."""
    options = OutputOptions(record=tmp_path / "view.mp4", record_raw=tmp_path / "own.mp4")
    sessions = [Session(NAMES, options) for _ in range(3)]
    for session in sessions:
        session.begin()
    image = np.full((96, 128, 3), 60, np.uint8)
    for count, session in enumerate(sessions):
        for k in range(count):
            session.add_frame(Frame(k / 10, image), None)
            session.picture(image, k / 10)
    for session in sessions:
        session.close()
    assert [[path.name for path in session.files] for session in sessions] == [
        [],
        ["own-2.mp4", "view-2.mp4"],
        ["own-3.mp4", "view-3.mp4"],
    ]
    for count, session in enumerate(sessions):
        for path in session.files:
            with av.open(str(path)) as container:
                assert sum(1 for _ in container.decode(video=0)) == count
    assert len(list(tmp_path.iterdir())) == 4


def test_log_name_that_another_session_takes_first_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session creates the file after this one has found the name free."""
    first, second = (Session(NAMES, OutputOptions(log=str(tmp_path / "day1.csv"))) for _ in range(2))
    touch = Path.touch

    def touch_later(self: Path, mode: int = 0o666, exist_ok: bool = True) -> None:
        monkeypatch.setattr(Path, "touch", touch)
        second.begin()
        touch(self, mode, exist_ok)

    monkeypatch.setattr(Path, "touch", touch_later)
    first.begin()
    for session in (first, second):
        session.add_frame(Frame(0.0, np.zeros((48, 64, 3), np.uint8)), prediction())
        session.close()
    assert [first.log_path, second.log_path] == [tmp_path / "day1-2.csv", tmp_path / "day1.csv"]
    assert [len(read_log(tmp_path / name)[1]) for name in ("day1.csv", "day1-2.csv")] == [1, 1]


def test_key_r_in_a_folder_that_cannot_be_written_gives_a_message(tmp_path: Path) -> None:
    """The session goes on."""
    (tmp_path / "file").touch()
    session = Session(NAMES, OutputOptions(record=tmp_path / "file" / "view.mp4"))
    assert session.toggle_recording().startswith("nothing is recorded: ")
    assert not session.recording


def test_free_names_of_two_recordings_differ(tmp_path: Path) -> None:
    """A free name of one recording is not the name of the other, before or after the first picture."""
    (tmp_path / "own.mp4").write_bytes(b"earlier")
    session = Session(NAMES, OutputOptions(record=tmp_path / "own.mp4", record_raw=tmp_path / "own-2.mp4"))
    session.begin()
    image = np.full((96, 128, 3), 60, np.uint8)
    for k in range(5):
        session.add_frame(Frame(k / 10, image), None)
        session.picture(image, k / 10)
    session.close()
    assert [path.name for path in session.files] == ["own-2-2.mp4", "own-2.mp4"]
    for path in session.files:
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 5


def test_files_next_to_a_moved_log_are_kept(tmp_path: Path) -> None:
    """An earlier report of a log that was moved is not overwritten."""
    (tmp_path / "day1.html").write_text("yesterday's", encoding="utf-8")
    session = Session(NAMES, OutputOptions(log=str(tmp_path / "day1.csv")))
    session.begin()
    session.close()
    assert session.log_path == tmp_path / "day1-2.csv"


def test_pause_ends_the_label_and_the_manifest_is_written_at_once(tmp_path: Path) -> None:
    """The manifest has every ended interval while the session runs."""
    session = Session(NAMES, OutputOptions(record_raw=tmp_path / "own.mp4"))
    session.begin()
    image = np.full((96, 128, 3), 60, np.uint8)

    def record(start_s: float) -> None:
        for k in range(20):
            session.add_frame(Frame(start_s + k / 10, image), None)

    def intervals() -> list[tuple[str, float | None, float | None]]:
        clips = read_csv(tmp_path / "own.csv").clips
        return [(clip.labels["label"], clip.start_s, clip.end_s) for clip in clips]

    record(0.0)
    session.begin_label(2, 1.0)
    session.add_gap(30.0, "paused")
    assert intervals() == [("engaged", 1.0, pytest.approx(1.9))]
    assert session.label == ""
    assert "nothing is recorded now" in session.begin_label(1, 31.0)
    record(60.0)
    session.begin_label(1, 61.0)
    session.begin_label(0, 61.5)
    assert intervals()[1:] == [("distracted", pytest.approx(61.0), pytest.approx(61.5))]
    session.close()


def test_new_face_is_a_mark(tmp_path: Path) -> None:
    """In the log and the summary, with a mark of the user."""
    session = Session(NAMES, OutputOptions(log=str(tmp_path / "a.csv")))
    session.begin()
    session.mark(19.9, "bell")
    session.add_frame(Frame(20.0, np.zeros((48, 64, 3), np.uint8)), prediction(new_face=True))
    session.close()
    assert [row.mark for row in read_log(tmp_path / "a.csv")[1]] == ["bell; new face"]
    assert session.summary()["marks"][1] == {"t_s": 20.0, "mark": "new face"}


def test_mark_after_the_last_row_is_written(tmp_path: Path) -> None:
    """A mark before quitting has its own row and time."""
    session = Session(NAMES, OutputOptions(log=str(tmp_path / "a.csv")))
    session.begin()
    session.add_frame(Frame(20.0, np.zeros((48, 64, 3), np.uint8)), prediction())
    session.mark(20.2, "bell")
    session.close()
    rows = read_log(tmp_path / "a.csv")[1]
    assert [(row.t_s, row.state, row.mark) for row in rows] == [(20.0, "ok", ""), (20.2, "paused", "bell")]
    assert session.summary()["rows"] == 2


def test_durable_log_syncs_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each row all bytes are synced, also after log rotation; a log that is not durable is not
    synced."""
    synced: dict[int, int] = {}
    real = os.fsync

    def fsync(descriptor: int) -> None:
        facts = os.fstat(descriptor)
        real(descriptor)
        synced[facts.st_ino] = facts.st_size

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "live.csv"
    log = Log(str(path), NAMES, durable=True)
    for k in range(6):
        if k == 3:
            path.rename(tmp_path / "old.csv")
        log.write(prediction())
        facts = path.stat()
        deadline = time.monotonic() + 10
        while synced.get(facts.st_ino) != facts.st_size:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    log.close()
    assert len(synced) == 2
    synced.clear()
    log = Log(str(tmp_path / "predict.csv"), NAMES)
    log.write(prediction())
    log.close()
    assert not synced


def test_existing_log_file_is_refused(tmp_path: Path) -> None:
    """The caller must choose a free name; an empty file is one that it has reserved."""
    (tmp_path / "a.csv").touch()
    Log(str(tmp_path / "a.csv"), NAMES).close()
    threads = set(threading.enumerate())
    with pytest.raises(FileExistsError):
        Log(str(tmp_path / "a.csv"), NAMES, durable=True)
    assert set(threading.enumerate()) == threads


def test_emptied_log_gets_its_header_again(tmp_path: Path) -> None:
    """Some tools rotate by copying and emptying the file."""
    log = Log(str(tmp_path / "live.csv"), NAMES)
    log.write(prediction())
    os.truncate(tmp_path / "live.csv", 0)
    log.write(prediction())
    log.close()
    assert len(read_log(tmp_path / "live.csv")[1]) == 1


def test_log_stats_of_a_long_session_stay_small() -> None:
    """Only latencies of the last hours are kept."""
    log_stats = LogStats()
    for k in range(MAX_LATENCIES + 500):
        log_stats.add(prediction(latency_ms=1000.0 if k < 500 else 5.0))
    assert len(log_stats.latencies_ms) == MAX_LATENCIES
    assert log_stats.summary()["latency_ms"] == {"median": 5.0, "p99": 5.0}


def test_new_recording_replaces_no_file(tmp_path: Path) -> None:
    """A second recording gets the next free name."""
    session = Session(NAMES, OutputOptions(record=tmp_path / "view.mp4"))
    session.begin()
    image = np.full((96, 128, 3), 60, np.uint8)
    session.picture(image, 0.0)
    session.toggle_recording()
    assert "view-2.mp4" in session.toggle_recording()
    session.picture(image, 1.0)
    session.close()
    assert [path.name for path in session.files] == ["view.mp4", "view-2.mp4"]
