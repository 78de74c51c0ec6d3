"""live/session.py: rows on disk at once, recordings with true times."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from live.session import Log, Recorder, Tally, log_columns
from tests.test_overlay import prediction

NAMES = ("distracted", "engaged")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log as they stand on disk."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_columns_are_the_documented_ones() -> None:
    """The order that other people's scripts rely on."""
    wanted = "t_s time_utc face state label p_raw_distracted p_raw_engaged p_distracted p_engaged"
    assert log_columns(NAMES) == [*wanted.split(), "coverage", "latency_ms", "mark"]


def test_every_row_is_on_disk_at_once(tmp_path: Path) -> None:
    """A power cut loses one row at most: the file is complete while the log is still open."""
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


def test_stdout_gets_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """`--log -`: one object a line with the same names."""
    log = Log("-", NAMES)
    log.write(prediction())
    log.write_state(1.0, "paused")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(first) == log_columns(NAMES)
    assert first["p_engaged"] == 0.7
    assert second["state"] == "paused"
    assert second["p_engaged"] is None


def test_a_recording_keeps_the_times(tmp_path: Path) -> None:
    """Irregular times come back to a millisecond."""
    times = [0.0, 0.033, 0.1, 0.4, 0.433, 1.5]
    recorder = Recorder(tmp_path / "한글 record.mp4")
    for pts_s in times:
        recorder.write(np.full((121, 161, 3), round(pts_s * 100), np.uint8), 5.0 + pts_s)
    recorder.close()
    with av.open(str(recorder.path)) as container:
        found = [float(f.pts * f.time_base) for f in container.decode(video=0)]
    assert found == pytest.approx(times, abs=0.0011)


def test_a_recording_without_pictures_leaves_no_file(tmp_path: Path) -> None:
    """Nothing to record, nothing written."""
    Recorder(tmp_path / "none.mp4").close()
    assert list(tmp_path.iterdir()) == []


def test_the_tally_counts_states_and_labels() -> None:
    """Labels are counted in state ok alone."""
    tally = Tally()
    for p in (prediction(), prediction(state="unsure", label=""), prediction(latency_ms=10.0)):
        tally.add(p)
    assert tally.summary() == {
        "rows": 3,
        "states": {"ok": 2, "unsure": 1},
        "labels": {"engaged": 2},
        "latency_ms": {"median": 6.0, "p99": pytest.approx(9.92)},
    }
