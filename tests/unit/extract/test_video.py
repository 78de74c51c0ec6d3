"""Reading videos: upright, by time; sampling by timestamps."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.video.reader import Frame, Spans, Targets, probe, read_video, sample_at
from features.manifest import Clip, windows
from tests.support.clips import face_frames, looped, remux, write_talk, write_video

BLANK = np.zeros((2, 2, 3), np.uint8)


def frames_at(*times_s: float) -> list[Frame]:
    return [Frame(t, BLANK) for t in times_s]


def times(frames) -> list[float]:
    return [frame.pts_s for frame in frames]


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [("pexels", 472), ("single", 72), ("face_noface", 169), ("no_face", 95), ("carphone", 120)],
)
def test_every_frame_that_decodes_is_given(real_clips: dict[str, Path], name: str, num_frames: int) -> None:
    """The frame counts of the real clips are the published ones, not those in the header (`no_face`: 98)."""
    pts = times(read_video(real_clips[name]))
    assert len(pts) == num_frames
    assert pts[0] == pytest.approx(0, abs=0.05)
    assert (np.diff(pts) > 0).all()


def test_thirty_fps_and_twelve_fps_are_sampled_at_the_same_times() -> None:
    fast = sample_at(frames_at(*np.arange(300) / 30), 3)
    slow = sample_at(frames_at(*np.arange(120) / 12), 3)
    assert times(fast) == pytest.approx(np.arange(30) / 3)
    assert times(slow) == pytest.approx(np.arange(30) / 3)


def test_variable_frame_rate_is_sampled_by_time(real_clips: dict[str, Path]) -> None:
    """Every sample is the first frame at or after its target, in a clip with irregular times."""
    all_pts = np.array(times(read_video(real_clips["noface_face"])))
    assert np.ptp(np.diff(all_pts)) > 0.01
    sampled = times(sample_at(read_video(real_clips["noface_face"]), 3))
    targets = np.arange(len(sampled)) / 3
    assert sampled == [all_pts[all_pts >= target - 0.0005][0] for target in targets]


def test_a_gap_is_a_gap_in_the_samples() -> None:
    assert times(sample_at(frames_at(0, 0.1, 2.0, 2.1, 2.4, 2.5), 3)) == [0, 2.0, 2.4]


def test_a_slow_video_gives_each_frame_once() -> None:
    assert times(sample_at(frames_at(0, 1, 2, 3), 3)) == [0, 1, 2, 3]


def test_sampling_starts_at_start_s() -> None:
    assert times(sample_at(frames_at(*np.arange(100) / 10), 1, start_s=3.25)) == [
        3.3,
        4.3,
        5.3,
        6.3,
        7.3,
        8.3,
        9.3,
    ]


def test_a_millisecond_rounding_does_not_skip_a_frame() -> None:
    """Containers round 1/3 s to .333, which is before the target."""
    assert times(sample_at(frames_at(0, 0.333, 0.667, 1.0), 3)) == [0, 0.333, 0.667, 1.0]


@settings(deadline=None)  # other processes may use the processor
@given(
    steps=st.lists(st.floats(0.001, 3), min_size=1, max_size=60),
    fps=st.floats(0.2, 30),
    start_s=st.floats(0, 5),
)
def test_each_sample_is_the_first_frame_for_some_target(
    steps: list[float], fps: float, start_s: float
) -> None:
    pts = np.cumsum(steps)
    k = 0
    expected = []
    for t in pts:
        if t >= start_s + k / fps - 0.0005:
            expected.append(t)
            while t >= start_s + k / fps - 0.0005:
                k += 1
    assert times(sample_at(frames_at(*pts), fps, start_s)) == expected


def test_spans_lose_no_frame_between_them() -> None:
    spans = Spans(frames_at(*np.arange(10) / 2))
    assert times(spans.until(1.0)) == [0, 0.5]
    assert times(spans.until(2.0)) == [1.0, 1.5]
    assert not spans.is_over
    assert times(spans.until(99)) == [2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    assert spans.is_over


def test_skipping_unneeded_frames_changes_no_sample(real_clips: dict[str, Path], tmp_path: Path) -> None:
    """The same times and pixels from fewer decoded frames; in MJPEG nearly all can be skipped."""
    mjpeg = write_video(
        tmp_path / "m.avi", face_frames(real_clips["single"], 40), 30, codec="mjpeg", pix_fmt="yuvj420p"
    )
    for path in (*(real_clips[name] for name in ("single", "no_face", "carphone", "noface_face")), mjpeg):
        targets = Targets([0.0, 0.6, 2.1], 3, 2)

        def samples(**options) -> list[tuple[float, bytes]]:
            spans = Spans(read_video(path, **options))  # noqa: B023
            return [
                (frame.pts_s, frame.rgb().tobytes())
                for start_s in (0.0, 0.6, 2.1)
                for frame in sample_at(spans.until(start_s + 0.6), 3, start_s)
            ]

        assert samples(is_wanted=targets.between) == samples()
        decoded = len(times(read_video(path, is_wanted=targets.between)))
        assert decoded <= len(times(read_video(path)))
        assert decoded < 15 or path != mjpeg


@contextmanager
def served(content: bytes, length: int) -> Iterator[str]:
    """The address of a file whose connection breaks after `length` bytes."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:length])

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/video.mkv"
        server.shutdown()


def test_packets_before_a_read_error_are_decoded(real_clips: dict[str, Path], tmp_path: Path) -> None:
    """The same frames as from a file that ends there, with all frames or only some wanted."""
    frames = looped(face_frames(real_clips["carphone"], 60, 176, 144), 90)
    whole = write_video(tmp_path / "whole.mkv", frames, 30).read_bytes()
    length = len(whole) * 2 // 3
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[:length])
    wanted = Targets([0.0], 10, 100).between
    full = times(read_video(cut))
    assert 30 < len(full) < 90
    with served(whole, length) as address:
        assert times(read_video(address)) == full
        few = list(sample_at(read_video(address, is_wanted=wanted), 10))
    assert times(few) == times(sample_at(read_video(cut), 10))
    assert times(sample_at(read_video(cut, is_wanted=wanted), 10)) == times(few)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_video_is_read_upright(real_clips: dict[str, Path], tmp_path: Path, rotation: int) -> None:
    """A phone stores rotated pixels and a matrix; reading restores the upright picture."""
    upright = face_frames(real_clips["single"], 3, 128, 96)
    turned = [np.ascontiguousarray(np.rot90(frame, -rotation // 90)) for frame in upright]
    lossless = {"qp": "0", "preset": "ultrafast"}
    plain = write_video(tmp_path / "plain.mp4", turned, options=lossless)
    marked = write_video(tmp_path / "marked.mp4", turned, options=lossless, rotation=rotation)
    stored = [frame.rgb() for frame in read_video(plain)]
    read = [frame.rgb() for frame in read_video(marked)]
    assert read[0].shape == upright[0].shape
    for a, b in zip(read, stored, strict=True):
        assert np.array_equal(a, np.rot90(b, rotation // 90))
    assert np.abs(read[0].astype(int) - upright[0]).mean() < 3


MIRRORED = {
    "hflip": (0, True, False, lambda rgb: rgb[:, ::-1]),
    "vflip": (0, False, True, lambda rgb: rgb[::-1]),
    "both": (0, True, True, lambda rgb: rgb[::-1, ::-1]),
    "transposed": (90, False, True, lambda rgb: rgb.swapaxes(0, 1)),
    "transverse": (90, True, False, lambda rgb: rgb.swapaxes(0, 1)[::-1, ::-1]),
}


@pytest.mark.parametrize("name", MIRRORED)
def test_a_mirrored_video_is_read_as_it_is_shown(
    real_clips: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """As ffmpeg shows it, where it is installed."""
    rotation, hflip, vflip, mirrored = MIRRORED[name]
    face = face_frames(real_clips["single"], 2, 128, 96)
    lossless = {"qp": "0", "preset": "ultrafast"}
    plain = write_video(tmp_path / "plain.mp4", face, options=lossless)
    path = write_video(
        tmp_path / "marked.mp4", face, options=lossless, rotation=rotation, hflip=hflip, vflip=vflip
    )
    stored, read = next(read_video(plain)).rgb(), next(read_video(path)).rgb()
    assert np.array_equal(read, mirrored(stored))
    if shutil.which("ffmpeg"):
        command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-f", "rawvideo"]
        done = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
        shown = np.frombuffer(done.stdout, np.uint8).reshape(read.shape)
        assert np.abs(shown.astype(int) - read).mean() < 2


def windows_of(path: Path) -> list[tuple[float, float]]:
    """Start and end of the windows of two seconds that a video is cut into."""
    cut = windows(Clip("v#0", path), probe(path).duration_s, 2.0)
    return [(clip.start_s, round(clip.end_s or 0, 2)) for clip in cut]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".ts"])
@pytest.mark.parametrize(("late_s", "sound_s"), [(0, 5), (0, 9), (2, 7), (2, 12)])
def test_the_same_video_has_the_same_windows_in_every_container(
    real_clips: dict[str, Path], tmp_path: Path, suffix: str, late_s: float, sound_s: float
) -> None:
    """For any length of the sound, and any delay of the video after it."""
    face = looped(face_frames(real_clips["carphone"], 40, 96, 64), 50)
    path = write_talk(tmp_path / f"v{suffix}", face, 10, late_s=late_s, sound_s=sound_s)
    assert windows_of(path) == [(0, 2), (2, 4), (4, 5)]
    assert times(read_video(path)) == pytest.approx(np.arange(50) / 10, abs=0.002)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_segments_of_a_recording_have_their_own_length(
    real_clips: dict[str, Path], tmp_path: Path, suffix: str
) -> None:
    """Segments of `ffmpeg -c copy -f segment`, which keep the times of the whole recording."""
    face = looped(face_frames(real_clips["carphone"], 40, 96, 64), 150)
    whole = write_video(tmp_path / "whole.mp4", face, 10, options={"g": "50", "bf": "2", "sc_threshold": "0"})
    remux(whole, str(tmp_path / f"piece%d{suffix}"), format="segment", options={"segment_time": "5"})
    for piece in range(3):
        path = tmp_path / f"piece{piece}{suffix}"
        assert windows_of(path) == [(0, 2), (2, 4), (4, 5)]
        assert len(times(read_video(path))) == 50


def test_truncated_matroska_file_keeps_its_full_duration(real_clips: dict[str, Path], tmp_path: Path) -> None:
    """So the missing part is detected."""
    path = write_video(tmp_path / "v.mkv", looped(face_frames(real_clips["carphone"], 40, 96, 64), 50), 10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert probe(path).duration_s == pytest.approx(5)
    assert len(times(read_video(path))) < 45


def test_recordings_joined_by_cat_are_one_video(real_clips: dict[str, Path], tmp_path: Path) -> None:
    """Their times start again: every frame of both is read, one recording after the other, in full or
    sampled."""
    face = looped(face_frames(real_clips["carphone"], 40, 96, 64), 80)
    first = write_video(tmp_path / "first.ts", face[:30], 10, options={"bf": "2"})
    second = write_video(tmp_path / "second.ts", face[30:], 10, options={"bf": "2"})
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    assert probe(joined).duration_s == pytest.approx(8)
    frames = list(read_video(joined))
    assert times(frames) == pytest.approx(np.arange(80) / 10)
    alone = [frame.rgb() for path in (first, second) for frame in read_video(path)]
    assert all(np.array_equal(frame.rgb(), rgb) for frame, rgb in zip(frames, alone, strict=True))
    wanted = Targets([0.0], 3, 100).between
    few = times(sample_at(read_video(joined, is_wanted=wanted), 3))
    assert few == times(sample_at(frames, 3))
    assert len(few) == 24


def test_probe_returns_the_duration(real_clips: dict[str, Path], tmp_path: Path) -> None:
    info = probe(real_clips["pexels"])
    assert (info.width, info.height) == (640, 360)
    assert info.duration_s == pytest.approx(19.685, abs=0.01)
    assert info.fps == pytest.approx(23.976, abs=0.01)
    raw = write_video(tmp_path / "no_duration.h264", face_frames(real_clips["single"], 20), 10)
    assert probe(raw).duration_s == pytest.approx(20 / 25)  # raw H.264 has no times: 25 frames a second
    assert times(read_video(raw)) == pytest.approx(np.arange(20) / 25)


def test_file_name_with_spaces_hangul_and_emoji_can_be_opened(
    real_clips: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "수업 영상 😀 №1.mp4"
    path.write_bytes(real_clips["single"].read_bytes())
    assert len(times(read_video(path))) == 72


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no colon in a file's name")
def test_name_with_a_colon_is_not_a_protocol(
    real_clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also next to a labels.csv in the same folder, where the path has no slash before the colon."""
    monkeypatch.chdir(tmp_path)
    name = "2026-11-25T10:30:00.mp4"
    Path(name).write_bytes(real_clips["single"].read_bytes())
    for path in (Path(name), name):
        assert len(times(read_video(path))) == 72
        assert probe(path) == probe(real_clips["single"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"path,label\nx.mp4,engaged\n" * 50, "not a readable video"),
        (b"\x00" * 4000, "not a readable video"),
    ],
)
def test_file_without_a_video_is_an_error_with_the_reason(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        next(read_video(path))
    with pytest.raises(ValueError, match=message):
        probe(path)


def test_unknown_codec_is_an_error(real_clips: dict[str, Path], tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "m.avi", face_frames(real_clips["single"], 5), 10, codec="mjpeg", pix_fmt="yuvj420p"
    )
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZZZZ"))
    with pytest.raises(ValueError, match="its video codec is unknown"):
        next(read_video(path))
    with pytest.raises(ValueError, match="its video codec is unknown"):
        probe(path)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        probe(tmp_path / "none.mp4")
