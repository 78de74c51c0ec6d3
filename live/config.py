"""What a user may ask of the live doors. No option touches preprocessing: that comes with the run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

SUBJECT = "me"
"""Who is in front of the camera, unless --subject says."""
NOVELTY = ".novelty.csv"
"""How the name of the file ends that a session leaves beside its log."""


@dataclass(frozen=True)
class LiveConfig:
    """An engagement signal from a webcam or a video, computed on this machine only."""

    run: Path
    """Run directory that training wrote, or a bundle that `python -m seqmodel export` wrote."""
    camera: int = 0
    """Index of the camera."""
    video: str | None = None
    """Read this video file, or RTSP or HTTP address, instead of a camera. A file at an address is played at
    its own speed."""
    realtime: bool = False
    """Play a video file at its own speed, as a camera would give it, not as fast as possible; --serve always
    does."""
    headless: bool = False
    """Open no window."""
    serve: bool = False
    """Show everything in a browser on this machine."""
    port: int = 8765
    """Port of --serve; 0 = any free one."""
    log: str | None = None
    """CSV file to write one row a sampled frame to; `-` streams JSON lines to stdout. Like the recordings, it
    gets the next free name where a file of that name is there already."""
    record: Path | None = None
    """Record an mp4 with the overlay. Nothing is recorded unless asked."""
    record_raw: Path | None = None
    """Record a clean mp4. Keys 1-9 label what runs; a manifest for `python -m extract` is left beside it."""
    subject: str = ""
    """Use (and with --calibrate, make) this person's calibration; also the subject of --record-raw."""
    calibrate: float | None = None
    """Calibrate first: this many seconds of attending, as many of looking away. Key c does it later."""
    forget: bool = False
    """Remove --subject's calibration, and do nothing else."""
    seconds: float | None = None
    """Stop after this many seconds of video."""
    json: bool = False
    """Print a JSON summary on stdout."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """What runs the encoder; changes speed, not what is computed."""

    def __post_init__(self) -> None:
        if self.camera < 0:
            raise ValueError(f"--camera is 0 or more, got {self.camera}")
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"--seconds must be above 0, got {self.seconds}")
        if self.json and self.log == "-":
            raise ValueError("--json and --log - both want stdout: log to a file, or leave --json out")
        if self.calibrate is not None and not 0 < self.calibrate <= 600:
            raise ValueError(f"--calibrate takes up to 600 seconds, got {self.calibrate}")
        if self.calibrate is not None and self.seconds is not None and self.seconds <= 2 * self.calibrate:
            raise ValueError(
                f"--seconds {self.seconds:g} ends before --calibrate {self.calibrate:g} does: it takes more "
                f"than {2 * self.calibrate:g} s"
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is 0 to 65535, got {self.port}")
        if self.forget and not self.subject:
            raise ValueError("--forget needs --subject NAME")
        _refuse_collisions(self)


@dataclass(frozen=True)
class PredictConfig:
    """Predictions for unlabelled video files, through the same kernels as live."""

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Video files, or folders of them."""
    run: Path
    """Run directory that training wrote."""
    out: Path
    """Folder for `predictions.csv`, and a log and a timeline a video; it keeps what it holds."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """What runs the encoder; changes speed, not what is computed."""
    json: bool = False
    """Print a JSON summary on stdout."""


@dataclass(frozen=True)
class ReportConfig:
    """A session report made later, from the logs of one or more sessions."""

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Live logs (CSV); other CSV files among them are left out."""
    out: Path | None = None
    """HTML file to write; by default beside the first log, under the next free name."""
    reference_run: Path | None = None
    """Run directory: compare the sessions with its training data, day by day."""
    json: bool = False
    """Print a JSON summary on stdout."""


def log_files(log: Path) -> tuple[Path, ...]:
    """A log and what a session leaves beside it: novelty of each face, timeline, report."""
    return log, novelty_file(log), log.with_suffix(".png"), log.with_suffix(".html")


def novelty_file(log: Path) -> Path:
    """The file beside a log that holds how new each face looked."""
    return log.with_name(log.stem + NOVELTY)


def manifest_file(video: Path) -> Path:
    """The manifest beside a raw recording."""
    return video.with_suffix(".csv")


def free_name(
    path: Path, files: Callable[[Path], Sequence[Path]] = lambda path: (path,), taken: Path | None = None
) -> Path:
    """The path, or the first of `name-2`, `name-3`, … of which none of its `files` is there and which is not
    `taken`: what was recorded is never replaced."""
    number, candidate = 1, path
    while candidate == taken or any(file.exists() for file in files(candidate)):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _refuse_collisions(config: LiveConfig) -> None:
    """Raises ValueError when two things that a session reads or writes have one name."""
    named: dict[str, tuple[Path, ...]] = {
        "--log": log_files(Path(config.log)) if config.log and config.log != "-" else (),
        "--record": (config.record,) if config.record else (),
        "--record-raw": (config.record_raw, manifest_file(config.record_raw)) if config.record_raw else (),
        "--video": (Path(config.video),) if config.video and "://" not in config.video else (),
    }
    taken: dict[str, str] = {}
    for option, paths in named.items():
        for path in paths:
            # Case does not tell files apart everywhere.
            key = str(path.absolute()).casefold()
            if key in taken:
                raise ValueError(
                    f"{taken[key]} and {option} both want the file {path}: name them differently"
                )
            taken[key] = option
