"""live/capture.py: where frames come from, and what is said when none come."""

from pathlib import Path

import numpy as np
import pytest

from extract.video import read_video
from live.capture import bgr_to_rgb, camera_frames, video_frames, window_problem


def test_a_missing_camera_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """No camera of that number: a reason for people, and nothing from the drivers on stderr."""
    with pytest.raises(ValueError, match="camera 97 cannot be opened"):
        next(camera_frames(97))
    assert capfd.readouterr().err == ""


def test_a_file_gives_the_frames_that_extraction_reads(real_clips: dict[str, Path]) -> None:
    """The same times and the same pixels."""
    ours, theirs = (reader(real_clips["carphone"]) for reader in (video_frames, read_video))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pts_s == other.pts_s
    assert np.array_equal(mine.rgb(), other.rgb())


def test_camera_order_becomes_rgb() -> None:
    """Blue first comes in, red first goes out."""
    bgr = np.array([[[1, 2, 3]]], np.uint8)
    assert bgr_to_rgb(bgr).tolist() == [[[3, 2, 1]]]


def test_no_display_is_noticed_before_a_window_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """cv2's Qt would end the process."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert "no display" in window_problem()
    monkeypatch.setenv("DISPLAY", ":987")
    assert "does not answer" in window_problem()
