"""Tests of live/sources/: newest frame without a queue, and reconnection."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from extract.video.reader import Frame, read_video
from features.cli import UserError
from live.__main__ import main
from live.output.recorder import Recorder
from live.sources.base import open_source
from live.sources.camera import bgr_to_rgb, camera_frames, is_file_address, stream_frames
from live.sources.latest_frame import SILENT_S, LatestFrameReader
from live.sources.realtime_file import RealtimeFileReader
from live.ui.view import window_problem
from tests.support.small_run import write_run
from tests.support.stepped import PICTURE, SteppedCamera, SteppedClock


def test_missing_camera_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """The reason is in the error, and the drivers print nothing to stderr."""
    with pytest.raises(ValueError, match="camera 97 cannot be opened"):
        camera_frames(97, time.monotonic)
    with pytest.raises(ValueError, match="camera 97 cannot be opened"):
        open_source(97, None, False)
    assert capfd.readouterr().err == ""


def test_file_source_gives_the_frames_of_extraction(real_clips: dict[str, Path]) -> None:
    """The same times and pixels, no frame is dropped."""
    source = open_source(0, str(real_clips["carphone"]), False)
    for expected in read_video(real_clips["carphone"]):
        actual = source.next(1.0)
        assert actual is not None
        assert actual.pts_s == expected.pts_s
        assert np.array_equal(actual.rgb(), expected.rgb())
    assert source.next(1.0) is None
    assert source.has_ended
    source.close()


def test_bgr_becomes_rgb() -> None:
    """The blue channel moves from first to last."""
    bgr = np.array([[[1, 2, 3]]], np.uint8)
    assert bgr_to_rgb(bgr).tolist() == [[[3, 2, 1]]]


def test_slow_reader_gets_the_newest_frame() -> None:
    """Frames between two reads are dropped and counted."""
    seen_all = threading.Event()

    def camera() -> Iterator[Frame]:
        for k in range(50):
            yield Frame(k / 100, PICTURE)
        seen_all.set()
        time.sleep(0.2)

    latest = LatestFrameReader(camera, reconnects=False)
    latest.start()
    assert seen_all.wait(5)
    frame = latest.next(1.0)
    assert frame is not None
    assert frame.pts_s == 0.49
    assert latest.num_dropped == 49
    latest.close()


def test_lost_camera_is_reopened_and_its_time_continues() -> None:
    """After losses and failed attempts there are frames again, with later times; `is_lost` is true
    meanwhile."""
    start, opened = time.monotonic(), 0

    def camera() -> Iterator[Frame]:
        nonlocal opened
        opened += 1
        if opened in (2, 3, 5):
            raise UserError("unplugged")
        for _ in range(5):
            time.sleep(0.005)
            yield Frame(time.monotonic() - start, PICTURE)
        if opened == 1:
            raise cv2.error("the driver failed")

    latest = LatestFrameReader(camera, reconnects=True, backoff_s=(0.02, 0.04))
    latest.start()
    times, was_lost = [], False
    while opened < 7:
        frame = latest.next(0.01)
        was_lost |= latest.is_lost
        if frame is not None:
            times.append(frame.pts_s)
    latest.close()
    assert was_lost
    assert times == sorted(times)
    assert max(b - a for a, b in pairwise(times)) > 0.02


def test_waits_between_attempts_grow() -> None:
    """A missing camera is not opened all the time."""
    tries: list[float] = []

    def camera() -> Iterator[Frame]:
        tries.append(time.monotonic())
        if len(tries) > 1:
            raise UserError("gone")
        yield Frame(0.0, PICTURE)

    latest = LatestFrameReader(camera, reconnects=True, backoff_s=(0.02, 0.06, 0.12))
    latest.start()
    while len(tries) < 5:
        time.sleep(0.01)
    latest.close()
    waits = np.diff(tries)
    assert waits[0] >= 0.02
    assert waits[1] >= 0.06
    assert waits[2] >= 0.12


def test_pause_closes_the_camera() -> None:
    """The generator is closed while paused and opened again on resume."""
    held = threading.Event()

    def camera() -> Iterator[Frame]:
        held.set()
        try:
            while True:
                time.sleep(0.005)
                yield Frame(0.0, PICTURE)
        finally:
            held.clear()

    latest = LatestFrameReader(camera, reconnects=True)
    latest.start()
    latest.pause()
    deadline = time.monotonic() + 5
    while held.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not held.is_set()
    latest.resume()
    assert held.wait(5)
    assert latest.next(1.0) is not None
    latest.close()
    assert not held.is_set()


def test_frame_from_before_a_pause_is_not_used_after_it() -> None:
    """The camera gives it while, or after, the session is paused; then the camera is opened again."""
    was_taken, may_give, opened = threading.Event(), threading.Event(), list[float]()

    def camera() -> Iterator[Frame]:
        opened.append(100.0 * len(opened))
        yield Frame(opened[-1], PICTURE)
        if len(opened) == 1:
            taken = Frame(1.0, PICTURE)
            was_taken.set()
            assert may_give.wait(20)
            yield taken
        assert is_over.wait(20)

    is_over = threading.Event()
    latest = LatestFrameReader(camera, reconnects=True)
    latest.start()
    assert latest.next(5.0) is not None
    assert was_taken.wait(20)
    latest.pause()
    latest.resume()
    may_give.set()
    following = latest.next(20.0)
    is_over.set()
    latest.close()
    assert following is not None
    assert following.pts_s == 100.0


def test_gap_does_not_delay_the_notice_of_the_next_one() -> None:
    """After three seconds without a frame, the next second without one is a loss again."""
    clock, camera = SteppedClock(), SteppedCamera()
    camera.give(0.0)
    latest, lost = LatestFrameReader(camera.frames, reconnects=True, clock=clock), []
    latest.start()
    for step_s in (0.1, 0.1, 3.0):
        clock.now_s += step_s
        camera.show(clock.now_s)
    for _ in range(2):
        clock.now_s += 0.9 * SILENT_S
        lost.append(latest.is_lost)
    camera.give(clock.now_s)  # so that its thread sees the end
    latest.close()
    assert lost == [False, True]


def test_unexpected_exception_of_a_source_ends_the_session() -> None:
    """It is raised in the main thread, at the start or later."""
    for num_frames in (0, 1):

        def camera(num_frames: int = num_frames) -> Iterator[Frame]:
            for _ in range(num_frames):
                yield Frame(0.0, PICTURE)
            raise RuntimeError("a defect")

        latest = LatestFrameReader(camera, reconnects=True)

        def read_all(latest: LatestFrameReader = latest) -> None:
            latest.start()
            while not latest.has_ended:
                latest.next(5.0)
            latest.next(5.0)

        with pytest.raises(RuntimeError, match="a defect"):
            read_all()


def test_file_at_an_address_that_sends_no_more_ends_the_session(
    address: str,
    tmp_path: Path,
    detector_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With its summary, an error line without the password, and exit code 1."""
    monkeypatch.setattr("extract.video.decoder.NO_DATA_S", 0.2)
    run = write_run(tmp_path / "run", detector_path)
    video = f"{address}/stalls/long.mp4".replace("://", "://minsu:secret@")
    assert main(["--run", str(run), "--video", video, "--headless", "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["frames"] > 0
    error = " ".join(output.err.split())
    assert "the video ended too early: " in error
    assert "no data for 0.2 s" in error
    assert "secret" not in error


def test_realtime_file_plays_at_its_own_speed(real_clips: dict[str, Path]) -> None:
    """Each frame is given at its own time, not earlier."""
    clock = SteppedClock()
    paced = RealtimeFileReader(str(real_clips["pexels"]), clock, clock.sleep)
    paced.begin()
    came = [(frame.pts_s, paced.now_s()) for frame in islice(paced.frames(), 48)]
    assert came[-1][0] > 1.9
    assert [pts_s for pts_s, _ in came] == pytest.approx([now_s for _, now_s in came])
    expected = islice(read_video(real_clips["pexels"]), 48)
    assert [pts_s for pts_s, _ in came] == [frame.pts_s for frame in expected]


def test_realtime_file_continues_after_a_pause(real_clips: dict[str, Path]) -> None:
    """The pause is a gap in the times, and the next picture is the file's next one."""
    clock = SteppedClock()
    paced = RealtimeFileReader(str(real_clips["single"]), clock, clock.sleep)
    paced.begin()
    seen = [Frame(frame.pts_s, frame.rgb()) for frame in islice(paced.frames(), 8)]
    clock.now_s += 5.0
    seen += [Frame(frame.pts_s, frame.rgb()) for frame in islice(paced.frames(), 8)]
    expected = list(islice(read_video(real_clips["single"]), 16))
    assert all(
        np.array_equal(actual.rgb(), frame.rgb()) for actual, frame in zip(seen, expected, strict=True)
    )
    assert [frame.pts_s for frame in seen[:8]] == [frame.pts_s for frame in expected[:8]]
    assert [frame.pts_s - 5.0 for frame in seen[8:]] == pytest.approx([f.pts_s for f in expected[8:]])


def test_paused_file_gives_no_frame(real_clips: dict[str, Path]) -> None:
    """In its thread, with the real clock: times increase across a pause."""
    source = open_source(0, str(real_clips["single"]), True)
    source.begin()
    before = source.next(5.0)
    source.pause()
    while source.next(0.05) is not None:
        pass
    source.resume()
    after = source.next(5.0)
    source.close()
    assert before is not None
    assert after is not None
    assert after.pts_s > before.pts_s


def test_hanging_camera_is_lost_until_its_next_frame() -> None:
    """After a second without a frame the camera is lost, but not while paused; one frame ends the loss."""
    clock, camera = SteppedClock(), SteppedCamera()
    camera.give(0.0)
    source = LatestFrameReader(camera.frames, reconnects=True, clock=clock)
    source.start()
    assert source.next(5.0) is not None
    clock.now_s = 0.9 * SILENT_S
    assert not source.is_lost
    clock.now_s = 1.1 * SILENT_S
    assert source.is_lost
    source.pause()
    assert not source.is_lost
    source.resume()
    for _ in range(2):  # the read that hung before the pause is not used, and the camera is opened again
        camera.give(clock.now_s)
    assert source.next(5.0) is not None
    assert not source.is_lost
    camera.give(clock.now_s)  # so that its thread sees the end
    source.close()


class SteppedCapture:
    """A driver with pictures of one shade each, an eighth of a second apart on the clock; then it is gone."""

    def __init__(self, clock: SteppedClock, shades: list[int]) -> None:
        self._clock, self._shades = clock, shades

    def read(self) -> tuple[bool, np.ndarray]:
        """The next picture, if there is one."""
        self._clock.now_s += 0.125
        shade = self._shades.pop(0) if self._shades else -1
        return shade >= 0, np.full((48, 64, 3), max(shade, 0), np.uint8)

    def get(self, name: int) -> float:
        """No property is known."""
        return 0.0

    def set(self, name: int, value: float) -> None:
        """No property is settable."""

    def release(self) -> None:
        """Nothing to release."""


def test_frozen_camera_gives_no_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is lost two seconds after its picture froze, until that changes. An address is not checked."""
    clock, shades = SteppedClock(), [*range(10), *[10] * 50, *range(11, 21)]
    monkeypatch.setattr(
        "live.sources.camera._open_capture", lambda *ignored: SteppedCapture(clock, shades.copy())
    )
    times = [frame.pts_s for frame in camera_frames(0, clock)]
    first_frozen_s = 11 * 0.125
    assert times == [0.125 * k for k in (*range(1, 20), *range(61, 71))]
    assert times[18] + SILENT_S == first_frozen_s + 2.0
    assert len(list(stream_frames("rtsp://camera", clock))) == 70


def test_slow_camera_is_not_lost() -> None:
    """With a picture every 1.2 s the interval is known after the second picture."""
    clock, camera = SteppedClock(), SteppedCamera()
    camera.give(0.0)
    source, lost = LatestFrameReader(camera.frames, reconnects=True, clock=clock), []
    source.start()
    assert source.next(5.0) is not None
    for _ in range(3):
        clock.now_s += 1.2
        lost.append(source.is_lost)
        camera.give(clock.now_s)
        assert source.next(5.0) is not None
    clock.now_s += 2.5
    lost.append(source.is_lost)
    camera.give(clock.now_s)
    source.close()
    assert lost == [True, False, False, True]


def test_slow_reopening_after_a_pause_is_not_a_loss() -> None:
    """Some webcams need seconds to open; one that then gives no frame is lost."""
    clock, camera = SteppedClock(), SteppedCamera()
    camera.give(0.0)
    latest = LatestFrameReader(camera.frames, reconnects=True, clock=clock)
    latest.start()
    latest.pause()
    camera.give(0.0)
    assert camera.is_closed.wait(5)
    latest.resume()
    clock.now_s += 5 * SILENT_S
    assert not latest.is_lost
    camera.give(clock.now_s)
    assert latest.next(5.0) is not None
    clock.now_s += 1.1 * SILENT_S
    assert latest.is_lost
    camera.give(clock.now_s)
    latest.close()


def test_realtime_file_waits_for_the_model_after_its_first_frame(real_clips: dict[str, Path]) -> None:
    """For any loading time; a session that ends before closes the file."""
    for begins in (True, False):
        source = open_source(0, str(real_clips["single"]), True)
        assert source.next(5) is not None
        assert source.next(0.05) is None
        assert (source.now_s(), source.has_ended) == (0, False)
        if begins:
            source.begin()
            following = source.next(5)
            assert following is not None
            assert following.pts_s < 0.2
        source.close()


def test_slowly_decoded_file_keeps_its_clock_with_its_frames(
    real_clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a third of its speed the clock stays at the frames' times, also through a pause."""
    clock = SteppedClock()

    def slowed(path: str) -> Iterator[Frame]:
        """Three frames a second of a video, each after nine tenths of a second."""
        for frame in islice(read_video(path), 0, None, 10):
            clock.now_s += 0.9
            yield frame

    monkeypatch.setattr("live.sources.realtime_file.read_video", slowed)
    paced = RealtimeFileReader(str(real_clips["single"]), clock, clock.sleep)
    paced.begin()
    for _ in range(2):
        for frame in islice(paced.frames(), 3):
            assert paced.now_s() == pytest.approx(frame.pts_s)


@pytest.fixture
def address(tmp_path: Path, real_clips: dict[str, Path]) -> Iterator[str]:
    """Of a server on this machine with a video (`clip.mp4`), a recording (`own.mp4`), the same without its
    length, as a live stream would come (`live/own.mp4`), and a camera's pictures that end (`camera`)."""
    (tmp_path / "clip.mp4").write_bytes(real_clips["single"].read_bytes())
    (tmp_path / "long.mp4").write_bytes(real_clips["pexels"].read_bytes())  # its index comes first
    recorder = Recorder(tmp_path / "own.mp4")
    for k in range(24):
        recorder.write(np.full((96, 128, 3), 10 * k, np.uint8), k / 30)
    recorder.close()
    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_camera_at_an_address_is_reopened_after_its_end(address: str) -> None:
    """It gives frames, is lost after its end, and is opened again."""
    assert len(list(stream_frames(f"{address}/camera", time.monotonic))) == NUM_PICTURES
    source = open_source(0, f"{address}/camera", False)
    again, lost = False, False
    deadline = time.monotonic() + 30
    while not again and time.monotonic() < deadline:
        again = source.next(0.05) is not None and lost
        lost |= source.is_lost
    source.close()
    assert again
    with pytest.raises(ValueError, match="gives no video"):
        stream_frames(f"{address}/none.mp4", time.monotonic)


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_file_at_an_address_plays_once_at_its_own_speed(address: str, tmp_path: Path, scheme: str) -> None:
    """Not in a loop and not as fast as possible; the times are those of the file."""
    start_s = time.monotonic()
    place = f"{address}/own.mp4" if scheme == "http" else (tmp_path / "own.mp4").as_uri()
    source, times = open_source(0, place, False), list[float]()
    source.begin()
    while not source.has_ended:
        frame = source.next(0.05)
        times += [frame.pts_s] if frame is not None else []
        assert not source.is_lost
    source.close()
    assert time.monotonic() - start_s > times[-1] > 0.7
    assert set(times) <= {frame.pts_s for frame in read_video(tmp_path / "own.mp4")}


def test_file_address_needs_a_length(address: str) -> None:
    """A live stream in a file format and a camera's pictures have no length."""
    named = ("clip.mp4", "own.mp4", "live/own.mp4", "camera", "none.mp4")
    assert [is_file_address(f"{address}/{name}") for name in named] == [True, True, False, False, False]
    assert not is_file_address("rtsp://127.0.0.1:1/camera")


def test_error_shows_the_address_without_its_password(address: str) -> None:
    """In the error for an address without video."""
    secret = address.replace("://", "://minsu:p@ss/w0rd@")
    with pytest.raises(ValueError, match="gives no video") as caught:
        open_source(0, f"{secret}/none.mp4", False)
    assert "w0rd" not in str(caught.value)
    assert "none.mp4" in str(caught.value)


NUM_PICTURES = 10


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's file server without its log; also gives files as a stream, and pictures as an IP camera does
    that ends after a moment."""

    def log_message(self, format: str, *args: object) -> None:
        """Do not log."""

    def do_GET(self) -> None:
        """Answer with a file or a stream."""
        if self.path == "/camera":
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
            self.end_headers()
            jpeg = cv2.imencode(".jpg", np.full((96, 128, 3), 90, np.uint8))[1].tobytes()
            head = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            with contextlib.suppress(
                ConnectionError
            ):  # a client that only checks the address disconnects before the end
                for _ in range(NUM_PICTURES):
                    self.wfile.write(head + jpeg + b"\r\n")
                    time.sleep(1 / 30)
        elif self.path.startswith("/stalls/"):
            content = (Path(self.directory) / Path(self.path).name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:120_000])  # a second and a half
            self.connection.settimeout(20)
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # until the client disconnects
        elif self.path.startswith("/live/"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write((Path(self.directory) / Path(self.path).name).read_bytes())
        else:
            super().do_GET()


def test_missing_display_is_detected_before_a_window_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """cv2's Qt would end the process."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert "no display" in window_problem()
    monkeypatch.setenv("DISPLAY", ":987")
    assert "cannot connect" in window_problem()
