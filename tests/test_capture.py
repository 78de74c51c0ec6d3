"""live/capture.py, sources.py: the present and never a queue, and what is lost comes back."""

import http.server
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from extract.video import Frame, read_video
from live.capture import Newest, PacedFile, bgr_to_rgb, camera_frames, stream_frames, window_problem
from live.record import Recorder
from live.sources import NewestSource, open_source

PICTURE = np.zeros((4, 4, 3), np.uint8)


def test_a_missing_camera_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """No camera of that number: a reason for people, and nothing from the drivers on stderr."""
    with pytest.raises(ValueError, match="camera 97 cannot be opened"):
        camera_frames(97, time.monotonic)
    with pytest.raises(ValueError, match="camera 97 cannot be opened"):
        open_source(97, None, False)
    assert capfd.readouterr().err == ""


def test_a_file_gives_the_frames_that_extraction_reads(real_clips: dict[str, Path]) -> None:
    """The same times and the same pixels, none dropped."""
    source = open_source(0, str(real_clips["carphone"]), False)
    for theirs in read_video(real_clips["carphone"]):
        ours = source.next(1.0)
        assert ours is not None
        assert ours.pts_s == theirs.pts_s
        assert np.array_equal(ours.rgb(), theirs.rgb())
    assert source.next(1.0) is None
    assert source.has_ended
    source.close()


def test_camera_order_becomes_rgb() -> None:
    """Blue first comes in, red first goes out."""
    bgr = np.array([[[1, 2, 3]]], np.uint8)
    assert bgr_to_rgb(bgr).tolist() == [[[3, 2, 1]]]


def test_a_slow_reader_gets_the_newest_frame() -> None:
    """What came in between is dropped and counted, not queued."""
    seen_all = threading.Event()

    def camera() -> Iterator[Frame]:
        for k in range(50):
            yield Frame(k / 100, PICTURE)
        seen_all.set()
        time.sleep(0.2)

    newest = Newest(camera, reconnects=False)
    newest.start()
    assert seen_all.wait(5)
    frame = newest.newest(1.0)
    assert frame is not None
    assert frame.pts_s == 0.49
    assert newest.num_dropped == 49
    newest.close()


def test_a_lost_camera_is_tried_again_and_its_time_goes_on() -> None:
    """Losses and failed attempts: frames come again, later than before, and the loss shows meanwhile."""
    start, opened = time.monotonic(), 0

    def camera() -> Iterator[Frame]:
        nonlocal opened
        opened += 1
        if opened in (2, 3, 5):
            raise ValueError("unplugged")
        for _ in range(5):
            time.sleep(0.005)
            yield Frame(time.monotonic() - start, PICTURE)
        if opened == 1:
            raise cv2.error("the driver failed")

    newest = Newest(camera, reconnects=True, backoff_s=(0.02, 0.04))
    newest.start()
    times, was_lost = [], False
    while opened < 7:
        frame = newest.newest(0.01)
        was_lost |= newest.is_lost
        if frame is not None:
            times.append(frame.pts_s)
    newest.close()
    assert was_lost
    assert times == sorted(times)
    assert max(b - a for a, b in pairwise(times)) > 0.02


def test_waits_between_attempts_grow() -> None:
    """A camera that is gone is not hammered."""
    tries: list[float] = []

    def camera() -> Iterator[Frame]:
        tries.append(time.monotonic())
        if len(tries) > 1:
            raise ValueError("gone")
        yield Frame(0.0, PICTURE)

    newest = Newest(camera, reconnects=True, backoff_s=(0.02, 0.06, 0.12))
    newest.start()
    while len(tries) < 5:
        time.sleep(0.01)
    newest.close()
    waits = np.diff(tries)
    assert waits[0] >= 0.02
    assert waits[1] >= 0.06
    assert waits[2] >= 0.12


def test_pausing_lets_go_of_the_camera() -> None:
    """The generator is closed while paused, and opened again on resume."""
    held = threading.Event()

    def camera() -> Iterator[Frame]:
        held.set()
        try:
            while True:
                time.sleep(0.005)
                yield Frame(0.0, PICTURE)
        finally:
            held.clear()

    newest = Newest(camera, reconnects=True)
    newest.start()
    newest.pause()
    deadline = time.monotonic() + 5
    while held.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not held.is_set()
    newest.resume()
    assert held.wait(5)
    assert newest.newest(1.0) is not None
    newest.close()
    assert not held.is_set()


def test_a_file_in_real_time_keeps_its_own_pace(real_clips: dict[str, Path]) -> None:
    """The first second takes about a second, and times are the file's."""
    start = time.monotonic()
    times = []
    for frame in PacedFile(str(real_clips["pexels"])).frames():
        times.append(frame.pts_s)
        if frame.pts_s >= 1:
            break
    assert time.monotonic() - start >= 1
    assert times == [f.pts_s for f, _ in zip(read_video(real_clips["pexels"]), times, strict=False)]


def test_a_file_in_real_time_goes_on_after_a_pause(real_clips: dict[str, Path]) -> None:
    """The pause is a gap in the times, which never run backwards, and the picture after it is the file's next
    one, or one of the next where some were dropped."""
    pictures = {frame.rgb().tobytes(): k for k, frame in enumerate(read_video(real_clips["single"]))}
    source = open_source(0, str(real_clips["single"]), True)
    seen: list[Frame] = []

    def look(count: int) -> None:
        while count and not source.has_ended:
            frame = source.next(0.05)
            if frame is not None:
                seen.append(Frame(frame.pts_s, frame.rgb()))
                count -= 1

    look(8)
    source.pause()
    before = source.now_s()
    time.sleep(0.5)
    paused_s = source.now_s()
    assert paused_s - before >= 0.5
    source.resume()
    look(8)
    source.close()
    assert len(seen) == 16
    times, places = [f.pts_s for f in seen], [pictures[f.rgb().tobytes()] for f in seen]
    assert times == sorted(set(times))
    assert times[7] <= before + 0.05
    assert times[8] >= paused_s
    assert places == sorted(set(places))


def test_a_camera_that_hangs_is_lost_until_it_goes_on() -> None:
    """A read that does not return says nothing; after a second of silence the camera counts as lost, though
    not while paused, and one frame brings it back."""
    goes_on, hangs = threading.Event(), threading.Event()
    start = time.monotonic()

    def camera() -> Iterator[Frame]:
        while True:
            yield Frame(time.monotonic() - start, PICTURE)
            time.sleep(0.02)
            if hangs.is_set() and not goes_on.is_set():
                goes_on.wait(20)

    newest = Newest(camera, reconnects=True)
    newest.start()
    source = NewestSource(newest, lambda: time.monotonic() - start)
    assert not source.is_lost
    hangs.set()
    deadline = time.monotonic() + 10
    while not source.is_lost:
        assert time.monotonic() < deadline
        source.next(0.02)
    source.pause()
    assert not source.is_lost
    source.resume()
    goes_on.set()
    assert source.next(5.0) is not None
    assert not source.is_lost
    source.close()


def test_a_slow_camera_is_not_a_lost_one() -> None:
    """A picture every 1.2 seconds: after the second one, that is known to be its pace."""

    def camera() -> Iterator[Frame]:
        for k in range(4):
            yield Frame(k * 1.2, PICTURE)
            time.sleep(1.2)

    newest = Newest(camera, reconnects=True)
    newest.start()
    source, lost, num_seen = NewestSource(newest, time.monotonic), [], 0
    while num_seen < 4:
        num_seen += source.next(0.05) is not None
        lost += [source.is_lost] if num_seen in (2, 3) else []
    source.close()
    assert not any(lost)


def test_an_address_is_a_source_and_is_tried_again_when_it_ends(tmp_path: Path) -> None:
    """A video over HTTP from this machine: its frames come, and after its end it is opened again."""
    recorder = Recorder(tmp_path / "stream.mp4")
    for k in range(60):
        recorder.write(np.full((96, 128, 3), 4 * k, np.uint8), k / 30)
    recorder.close()
    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/stream.mp4"
        frames = list(stream_frames(address, time.monotonic))
        assert len(frames) == 60
        source = open_source(0, address, False)
        found, lost = 0, False
        deadline = time.monotonic() + 30
        while not (lost and found) and time.monotonic() < deadline:
            found += source.next(0.05) is not None
            lost |= source.is_lost
        source.close()
        assert lost
        with pytest.raises(ValueError, match="gives no video"):
            stream_frames(f"http://127.0.0.1:{server.server_port}/none.mp4", time.monotonic)
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's file server without its log."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_no_display_is_noticed_before_a_window_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """cv2's Qt would end the process."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert "no display" in window_problem()
    monkeypatch.setenv("DISPLAY", ":987")
    assert "does not answer" in window_problem()
