"""Test of a long, accelerated session: changing faces, a failing camera, log rotation."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from extract.video.reader import Frame
from features.cli import UserError
from live.commands import Control
from live.inference.model import open_model
from live.inference.predictor import Predictor
from live.loop import Loading, Loop
from live.output.report import find_sessions
from live.session import OutputOptions, Session
from live.sources.latest_frame import LatestFrameReader
from live.ui.view import NoView
from tests.support.small_run import write_run

SECONDS = 600.0
STEP_S = 0.5
"""Time between the camera's frames: a slow camera, so that each is sampled and minutes pass quickly."""
MAX_GROWTH_MB = 10.0


def resident_mb() -> float:
    """Memory of this process, MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


class Rotates(NoView):
    """A view that measures memory and rotates the log from within the loop."""

    def __init__(self, log: Path, source: LatestFrameReader) -> None:
        self._log, self._source = log, source
        self._rotations = 0
        self.memory_mb: list[tuple[float, float]] = []

    def keys(self) -> str:
        """Key for a mark from time to time."""
        now_s = self._source.last_s
        if now_s > 60 * (self._rotations + 1):
            self._rotations += 1
            self._log.rename(self._log.with_name(f"live.{self._rotations}.csv"))
            self.memory_mb.append((now_s, resident_mb()))
            return " "
        return ""


@pytest.mark.serial
@pytest.mark.skipif(
    sys.platform != "linux", reason="reads memory from /proc; open files cannot be renamed elsewhere"
)
def test_ten_minutes_lose_no_row_and_leak_no_memory(tmp_path: Path, detector_path: Path) -> None:
    """Each camera frame and each second of a lost camera has its row in a log, nothing is raised, and memory
    is constant after the first minutes."""
    from skimage.data import astronaut

    face = cv2.resize(astronaut(), (320, 240))
    scenes = [face, np.zeros_like(face), np.ascontiguousarray(face[:, ::-1]), np.full_like(face, 200)]
    rng, time_s, opened = np.random.default_rng(0), [0.0], Counter[str]()
    sources: list[LatestFrameReader] = []
    given: list[float] = []

    def camera() -> Iterator[Frame]:
        """Gives frames, each a step later than the last; fails to open, breaks and ends at random."""
        opened["tries"] += 1
        if opened["tries"] > 1 and rng.random() < 0.3:
            time_s[0] += 1.0
            raise UserError("no such device")
        for _ in range(int(rng.integers(30, 200))):
            time_s[0] += STEP_S
            scene = scenes[int(time_s[0] / 37) % len(scenes)]
            given.append(time_s[0])
            yield Frame(time_s[0], scene)
            deadline = time.monotonic() + 60
            while sources[0].last_s < time_s[0] and time.monotonic() < deadline:
                time.sleep(0.0005)  # not faster than the loop reads it
        if rng.random() < 0.5:
            raise OSError("the cable")

    source = LatestFrameReader(camera, reconnects=True, backoff_s=(0.1, 0.3), clock=lambda: time_s[0])
    sources.append(source)
    log = tmp_path / "live.csv"
    session = Session(("distracted", "engaged"), OutputOptions(log=str(log)))
    control = Control(session, subject="nobody", calibrate_s=None, notify=lambda line: None)
    run = write_run(tmp_path / "run", detector_path)
    loading = Loading(lambda: Predictor(open_model(run)))
    loading.ready(600.0)
    source.start()
    view = Rotates(log, source)
    Loop(SECONDS, source, loading, session, control, view).run()
    source.close()
    control.close()
    session.close()
    rows = [row for summary in find_sessions(list(tmp_path.glob("live*.csv"))) for row in summary.rows]
    counted = session.summary()
    print(counted["rows"], counted["states"], "tries", opened["tries"], "memory", view.memory_mb)
    assert len(rows) == counted["rows"] > 300
    seen = [t_s for t_s in given if t_s < SECONDS]
    assert sorted(row.t_s for row in rows if row.state != "camera_lost") == seen
    assert source.num_dropped == 0
    assert Counter(row.state for row in rows) == counted["states"]
    assert {"ok", "no_face", "camera_lost"} <= set(counted["states"])
    assert sum("mark" in row.mark for row in rows) >= 8
    settled = [mb for now_s, mb in view.memory_mb if now_s >= 120]
    assert settled[-1] - settled[0] < MAX_GROWTH_MB
