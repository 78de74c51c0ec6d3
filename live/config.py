"""Options of the live commands. No option changes preprocessing: the run defines it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from features.cli import UserError

SUBJECT = "me"
"""Default of --subject."""
NOVELTY = ".novelty.csv"
"""Suffix of the file with novelty values, next to the log."""


@dataclass(frozen=True)
class LiveConfig:
    """Estimate engagement from a webcam or a video, on this machine only."""

    run: Path
    """Run directory, or a bundle from `python -m seqmodel export`."""
    camera: int = 0
    """Index of the camera."""
    video: str | None = None
    """Video file, RTSP or HTTP address, instead of a camera. A file at an address plays at its own speed."""
    realtime: bool = False
    """Play a video file at its own speed, like a camera, not as fast as possible; --serve always does."""
    headless: bool = False
    """Do not open a window."""
    serve: bool = False
    """Show the session in a browser on this machine."""
    port: int = 8765
    """Port for --serve; 0 means any free port."""
    log: str | None = None
    """CSV file with one row per sampled frame (next free name if it exists). `-`: JSON lines to stdout."""
    record: Path | None = None
    """Record an mp4 with the overlay (next free name if it exists). By default nothing is recorded."""
    record_raw: Path | None = None
    """Record an mp4 without the overlay, and a manifest for `python -m extract`. Keys 1-9 set labels."""
    subject: str = ""
    """Use this subject's calibration (--calibrate makes it); also the subject of --record-raw."""
    calibrate: float | None = None
    """Calibrate first: attend for this many seconds, then look away for as many. Key c does it later."""
    forget: bool = False
    """Remove the calibration of --subject and exit."""
    seconds: float | None = None
    """Stop after this many seconds of video."""
    json: bool = False
    """Print a JSON summary on stdout."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """Inference library of the encoder. It changes the speed, not the result."""

    def __post_init__(self) -> None:
        if self.camera < 0:
            raise UserError(f"--camera must be 0 or more, got {self.camera}")
        if self.seconds is not None and self.seconds <= 0:
            raise UserError(f"--seconds must be above 0, got {self.seconds}")
        if self.json and self.log == "-":
            raise UserError("--json and --log - both write to stdout: log to a file, or omit --json")
        if self.calibrate is not None and not 0 < self.calibrate <= 600:
            raise UserError(f"--calibrate must be above 0 and at most 600 seconds, got {self.calibrate}")
        if self.calibrate is not None and self.seconds is not None and self.seconds <= 2 * self.calibrate:
            raise UserError(
                f"--seconds {self.seconds:g} is too short for --calibrate {self.calibrate:g}: use more than "
                f"{2 * self.calibrate:g} s"
            )
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port must be 0 to 65535, got {self.port}")
        if self.forget and not self.subject:
            raise UserError("--forget needs --subject NAME")
        _refuse_collisions(self)


@dataclass(frozen=True)
class PredictConfig:
    """Predict unlabelled video files with the same predictor as live."""

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Video files, or folders with video files."""
    run: Path
    """Run directory."""
    out: Path
    """Folder for `predictions.csv` and for one log and one timeline per video. Existing files are kept."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """Inference library of the encoder. It changes the speed, not the result."""
    json: bool = False
    """Print a JSON summary on stdout."""


@dataclass(frozen=True)
class ReportConfig:
    """Write a report from the logs of one or more sessions."""

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Live logs (CSV); other CSV files are left out."""
    out: Path | None = None
    """HTML file to write; by default the next free name next to the first log."""
    reference_run: Path | None = None
    """Run directory: compare each day of the sessions with the training data of this run."""
    json: bool = False
    """Print a JSON summary on stdout."""


def log_files(log: Path) -> tuple[Path, ...]:
    """A log and the files next to it: novelty values, timeline, report."""
    return log, novelty_file(log), log.with_suffix(".png"), log.with_suffix(".html")


def novelty_file(log: Path) -> Path:
    """The file next to a log with the novelty of each face."""
    return log.with_name(log.stem + NOVELTY)


def manifest_file(video: Path) -> Path:
    """The manifest next to a raw recording."""
    return video.with_suffix(".csv")


def free_name(path: Path, files: Callable[[Path], Sequence[Path]] = lambda path: (path,)) -> Path:
    """The path, or the first of `name-2`, `name-3`, … whose `files` do not exist.

    So no recording or log is ever replaced.
    """
    number, candidate = 1, path
    while any(os.path.lexists(file) for file in files(candidate)):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def new_file(path: Path, files: Callable[[Path], Sequence[Path]] = lambda path: (path,)) -> Path:
    """Create an empty file with the `free_name` of the path, and its folder; returns the file.

    Two sessions that start at the same time get two files. Raises OSError when it cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        free = free_name(path, files)
        try:
            free.touch(exist_ok=False)
            return free
        except FileExistsError:  # another session has just created it
            continue


def _refuse_collisions(config: LiveConfig) -> None:
    """Raises UserError when two options name the same file."""
    files: dict[str, tuple[Path, ...]] = {
        "--log": log_files(Path(config.log)) if config.log and config.log != "-" else (),
        "--record": (config.record,) if config.record else (),
        "--record-raw": (config.record_raw, manifest_file(config.record_raw)) if config.record_raw else (),
        "--video": (Path(config.video),) if config.video and "://" not in config.video else (),
    }
    taken: dict[str, str] = {}
    for option, paths in files.items():
        for path in paths:
            # Some file systems ignore case.
            key = str(path.absolute()).casefold()
            if key in taken:
                raise UserError(f"{taken[key]} and {option} both use the file {path}: choose different names")
            taken[key] = option
