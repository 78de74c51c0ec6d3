"""What a user may ask of the live doors. No option touches preprocessing: that comes with the run.

Knows nothing about cameras or networks; imports nothing heavy, so `--help` answers at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class LiveConfig:
    """An engagement signal from a webcam or a video, computed on this machine only."""

    run: Path
    """Run directory that training wrote."""
    camera: int = 0
    """Index of the camera."""
    video: str | None = None
    """Read this video file or stream address instead of a camera."""
    headless: bool = False
    """Open no window."""
    log: str | None = None
    """CSV file to write one row a sampled frame to; `-` streams JSON lines to stdout."""
    record: Path | None = None
    """Record an mp4 with the overlay. Nothing is recorded unless asked."""
    seconds: float | None = None
    """Stop after this many seconds of video."""
    json: bool = False
    """Print a JSON summary on stdout."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """What runs the encoder; changes speed, not what is computed."""

    def __post_init__(self) -> None:
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"--seconds must be above 0, got {self.seconds}")
        if self.json and self.log == "-":
            raise ValueError("--json and --log - both want stdout: log to a file, or leave --json out")


@dataclass(frozen=True)
class PredictConfig:
    """Predictions for unlabelled video files, through the same kernels as live."""

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Video files, or folders of them."""
    run: Path
    """Run directory that training wrote."""
    out: Path
    """Folder for `predictions.csv` and one timeline a video."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """What runs the encoder; changes speed, not what is computed."""
    json: bool = False
    """Print a JSON summary on stdout."""


@dataclass(frozen=True)
class ReportConfig:
    """A session report made later, from the logs of one or more sessions."""

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Live logs (CSV)."""
    out: Path | None = None
    """HTML file to write; by default beside the first log."""
    against: Path | None = None
    """Run directory: compare the sessions with its training data, day by day."""
    json: bool = False
    """Print a JSON summary on stdout."""
