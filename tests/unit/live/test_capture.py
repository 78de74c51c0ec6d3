"""live/sources/: the present and never a queue, and what is lost comes back."""

import contextlib
import http.server
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
from live.output.recorder import Recorder
from live.sources.base import open_source
from live.sources.camera import bgr_to_rgb, camera_frames, is_file_address, stream_frames
from live.sources.latest_frame import SILENT_S, LatestFrameReader
from live.sources.realtime_file import RealtimeFileReader
from live.ui.view import window_problem
from tests.support.stepped import PICTURE, SteppedCamera, SteppedClock


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

    latest = LatestFrameReader(camera, reconnects=False)
    latest.start()
    assert seen_all.wait(5)
    frame = latest.next(1.0)
    assert frame is not None
    assert frame.pts_s == 0.49
    assert latest.num_dropped == 49
    latest.close()


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
    """A camera that is gone is not hammered."""
    tries: list[float] = []

    def camera() -> Iterator[Frame]:
        tries.append(time.monotonic())
        if len(tries) > 1:
            raise ValueError("gone")
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


def test_a_file_in_real_time_keeps_its_own_pace(real_clips: dict[str, Path]) -> None:
    """Each frame comes when its own time has come, and none before."""
    clock = SteppedClock()
    paced = RealtimeFileReader(str(real_clips["pexels"]), clock, clock.sleep)
    paced.begin()
    came = [(frame.pts_s, paced.now_s()) for frame in islice(paced.frames(), 48)]
    assert came[-1][0] > 1.9
    assert [pts_s for pts_s, _ in came] == pytest.approx([now_s for _, now_s in came])
    theirs = islice(read_video(real_clips["pexels"]), 48)
    assert [pts_s for pts_s, _ in came] == [frame.pts_s for frame in theirs]


def test_a_file_in_real_time_goes_on_after_a_pause(real_clips: dict[str, Path]) -> None:
    """The pause is a gap in the times, and the picture after it is the file's next one."""
    clock = SteppedClock()
    paced = RealtimeFileReader(str(real_clips["single"]), clock, clock.sleep)
    paced.begin()
    seen = [Frame(frame.pts_s, frame.rgb()) for frame in islice(paced.frames(), 8)]
    clock.now_s += 5.0
    seen += [Frame(frame.pts_s, frame.rgb()) for frame in islice(paced.frames(), 8)]
    theirs = list(islice(read_video(real_clips["single"]), 16))
    assert all(np.array_equal(ours.rgb(), frame.rgb()) for ours, frame in zip(seen, theirs, strict=True))
    assert [frame.pts_s for frame in seen[:8]] == [frame.pts_s for frame in theirs[:8]]
    assert [frame.pts_s - 5.0 for frame in seen[8:]] == pytest.approx([f.pts_s for f in theirs[8:]])


def test_a_paused_file_gives_nothing_until_it_is_resumed(real_clips: dict[str, Path]) -> None:
    """In its thread, with the real clock: times grow across a pause."""
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


def test_a_camera_that_hangs_is_lost_until_it_goes_on() -> None:
    """A read that does not return says nothing; after a second of silence the camera counts as lost, though
    not while paused, and one frame brings it back."""
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
    camera.give(clock.now_s)
    assert source.next(5.0) is not None
    assert not source.is_lost
    camera.give(clock.now_s)  # so that its thread sees the end
    source.close()


def test_a_slow_camera_is_not_a_lost_one() -> None:
    """A picture every 1.2 seconds: after the second one, that is known to be its pace."""
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


def test_a_slow_opening_after_a_pause_is_no_loss() -> None:
    """Many a webcam needs seconds to open; one that then falls silent is lost as ever."""
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


def test_a_file_in_real_time_waits_for_the_model_on_its_first_frame(real_clips: dict[str, Path]) -> None:
    """However long that loads; and a session that is over before lets go of it."""
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


def test_a_file_that_decodes_slowly_keeps_its_clock_with_its_frames(
    real_clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a third of its speed: the present stays where the frames are, through a pause as well."""
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


def test_a_camera_at_an_address_is_tried_again_when_it_ends(address: str) -> None:
    """Its frames come; after its end it is lost, and opened again."""
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


@pytest.mark.parametrize("how", ["http", "file"])
def test_a_file_at_an_address_is_played_once_at_its_own_speed(address: str, tmp_path: Path, how: str) -> None:
    """Not for ever, and not as fast as it comes; its times are its own."""
    start_s = time.monotonic()
    place = f"{address}/own.mp4" if how == "http" else (tmp_path / "own.mp4").as_uri()
    source, times = open_source(0, place, False), list[float]()
    source.begin()
    while not source.has_ended:
        frame = source.next(0.05)
        times += [frame.pts_s] if frame is not None else []
        assert not source.is_lost
    source.close()
    assert time.monotonic() - start_s > times[-1] > 0.7
    assert set(times) <= {frame.pts_s for frame in read_video(tmp_path / "own.mp4")}


def test_what_is_a_file_at_an_address(address: str) -> None:
    """What has a length; a live stream in a file's clothes has none, and a camera's pictures neither."""
    named = ("clip.mp4", "own.mp4", "live/own.mp4", "camera", "none.mp4")
    assert [is_file_address(f"{address}/{name}") for name in named] == [True, True, False, False, False]
    assert not is_file_address("rtsp://127.0.0.1:1/camera")


def test_an_address_is_shown_without_its_password(address: str) -> None:
    """As in the line that it gives no video."""
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
        """Nothing."""

    def do_GET(self) -> None:
        """Answer with a file or a stream."""
        if self.path == "/camera":
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
            self.end_headers()
            jpeg = cv2.imencode(".jpg", np.full((96, 128, 3), 90, np.uint8))[1].tobytes()
            head = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            with contextlib.suppress(ConnectionError):  # who only looks goes before the end
                for _ in range(NUM_PICTURES):
                    self.wfile.write(head + jpeg + b"\r\n")
                    time.sleep(1 / 30)
        elif self.path.startswith("/live/"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write((Path(self.directory) / Path(self.path).name).read_bytes())
        else:
            super().do_GET()


def test_no_display_is_noticed_before_a_window_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """cv2's Qt would end the process."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert "no display" in window_problem()
    monkeypatch.setenv("DISPLAY", ":987")
    assert "does not answer" in window_problem()
