"""Videos are read as players show them: pixel shape, track, orientation, joined parts."""

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from extract.video.decoder import seek
from extract.video.reader import probe, read_video
from live.sources.camera import stream_frames
from tests.support.clips import face_frames, looped, write_video

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def ffmpeg(*argv: str | Path) -> bytes:
    """What ffmpeg writes to stdout."""
    command = ["ffmpeg", "-v", "error", "-y", *map(str, argv)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def shown_by_ffmpeg(path: Path, width: int, height: int) -> np.ndarray:
    """The first frame with square pixels, uint8 (H, W, 3), RGB."""
    argv = ["-vf", "scale=iw*sar:ih,setsar=1", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    return np.frombuffer(ffmpeg("-i", path, *argv), np.uint8).reshape(height, width, 3)


@pytest.fixture
def plain(real_clips: dict[str, Path], tmp_path: Path) -> Path:
    """Three seconds of a face, 10 frames a second, 128 × 96."""
    face = looped(face_frames(real_clips["single"], 10, 128, 96), 30)
    return write_video(tmp_path / "plain.mp4", face, options={"qp": "10", "preset": "ultrafast"})


@needs_ffmpeg
@pytest.mark.parametrize(
    ("stored", "sar", "width"), [("iw/2:ih", "2", 128), ("iw*2:ih", "1/2", 128), ("88:96", "16/11", 128)]
)
def test_video_with_oblong_pixels_is_read_in_its_shown_shape(
    plain: Path, tmp_path: Path, stored: str, sar: str, width: int
) -> None:
    path = tmp_path / "oblong.mp4"
    ffmpeg("-i", plain, "-vf", f"scale={stored},setsar={sar}", "-qp", "10", path)
    expected = shown_by_ffmpeg(path, width, 96)
    for frame in (next(read_video(path)), next(stream_frames(str(path), lambda: 0.0))):
        rgb = frame.rgb()
        assert rgb.shape == expected.shape
        assert np.abs(rgb.astype(int) - expected).mean() < 2


def test_oblong_pixels_are_restored_before_the_video_is_turned(
    real_clips: dict[str, Path], tmp_path: Path
) -> None:
    """A phone's video in portrait format."""
    narrow = face_frames(real_clips["single"], 1, 64, 96)
    options = {"qp": "0", "preset": "ultrafast"}
    path, turned = tmp_path / "narrow.mp4", tmp_path / "turned.mp4"
    write_video(path, narrow, options=options, pixel_aspect=Fraction(2))
    write_video(turned, narrow, options=options, pixel_aspect=Fraction(2), rotation=90)
    upright = next(read_video(path)).rgb()
    assert upright.shape == (96, 128, 3)
    assert np.array_equal(next(read_video(turned)).rgb(), np.rot90(upright))


@needs_ffmpeg
def test_default_track_is_read_and_not_the_first(plain: Path, tmp_path: Path) -> None:
    """A recording whose first track is the screen and whose default track is the webcam."""
    path = tmp_path / "tracks.mkv"
    screen = ["-f", "lavfi", "-i", "color=blue:size=64x48:rate=10:duration=3"]
    maps = ["-map", "0:v", "-map", "1:v", "-disposition:v:0", "0", "-disposition:v:1", "default"]
    ffmpeg(*screen, "-i", plain, *maps, "-qp", "10", path)
    first = next(read_video(path))
    assert first.rgb().shape == (96, 128, 3)
    assert first.doubts == ("the file has 2 video tracks: track 2 is read",)
    assert (probe(path).width, probe(path).height) == (128, 96)


@needs_ffmpeg
def test_cover_picture_is_not_the_video(plain: Path, tmp_path: Path) -> None:
    cover, path = tmp_path / "cover.png", tmp_path / "with_cover.mp4"
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(cover)
    maps = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic"]
    ffmpeg("-i", cover, "-i", plain, *maps, path)
    frames = list(read_video(path))
    assert len(frames) == 30
    assert frames[0].rgb().shape == (96, 128, 3)
    assert not frames[0].doubts


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_picture_with_exif_is_read_upright(
    real_clips: dict[str, Path], tmp_path: Path, orientation: int
) -> None:
    """PyAV does not know this type of side data."""
    picture = Image.fromarray(face_frames(real_clips["single"], 1, 128, 96)[0])
    exif = picture.getexif()
    exif[0x0112], exif[0x010E] = orientation, "a description"
    picture.save(tmp_path / "face.jpg", exif=exif, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "face.jpg")))
    rgb = next(read_video(tmp_path / "face.jpg")).rgb()
    assert rgb.shape == expected.shape
    assert np.abs(rgb.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("length", [8, 10, 13])
def test_parts_joined_by_cat_are_all_read(real_clips: dict[str, Path], tmp_path: Path, length: int) -> None:
    """Also parts of exactly one second: every part starts at the same time again."""
    face = looped(face_frames(real_clips["carphone"], 10, 96, 64), length)
    part = write_video(tmp_path / "part.ts", face, 10)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 10)
    assert len(list(read_video(joined))) == 10 * length
    assert probe(joined).duration_s == pytest.approx(length, abs=0.01)


@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov", "ts"])
def test_frames_after_a_start_time_are_those_of_the_whole_video(
    real_clips: dict[str, Path], tmp_path: Path, suffix: str, bf: str
) -> None:
    """Reading begins at a keyframe before it, where the container has an index."""
    frames = looped(face_frames(real_clips["carphone"], 40, 64, 48), 100)
    path = write_video(tmp_path / f"v.{suffix}", frames, 10, options={"g": "10", "bf": bf})
    whole = list(read_video(path))
    for start_s in (0.0, 0.5, 5.0, 7.3, 9.9):
        late = list(read_video(path, start_s=start_s))
        expected = whole[-len(late) :]
        assert [frame.pts_s for frame in late] == [frame.pts_s for frame in expected]
        assert all(np.array_equal(a.rgb(), b.rgb()) for a, b in zip(late, expected, strict=True))
        assert late[0].pts_s <= max(start_s, whole[0].pts_s)
        assert not any(frame.doubts for frame in late)
        if suffix != "ts":
            assert late[0].pts_s >= start_s - 2.0 - 0.1
    assert len(list(read_video(path, start_s=100.0))) == len(whole)


def test_file_with_a_wrong_index_is_read_from_its_start(
    real_clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = looped(face_frames(real_clips["carphone"], 40, 64, 48), 60)
    path = write_video(tmp_path / "v.mp4", frames, 10, options={"g": "10"})

    def seek_too_far(container: Any, stream: Any, time_s: float) -> None:
        seek(container, stream, time_s + 3 if time_s > 0 else time_s)

    monkeypatch.setattr("extract.video.reader.seek", seek_too_far)
    late = list(read_video(path, start_s=3.0))
    assert late[0].pts_s <= 3.0
    assert len(late) == 60
