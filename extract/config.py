"""The options of `python -m extract`: frozen dataclasses whose docstrings are the help texts.

Imports little, so that `--help` is fast.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from features.cli import UserError

Layout = Literal["auto", "csv", "folder", "daisee", "engagenet", "aihub"]


MAX_FRAMES = 100_000
"""Maximum number of frames per window: more is a typing error and does not fit into memory."""
NUM_CLIPS = 160
"""Number of clips of the demo set: 70 train, 30 validation, 60 test."""


@dataclass(frozen=True)
class ExtractConfig:
    """Turn labelled face videos into a store of embeddings. A second run extracts only what is missing."""

    data: Path
    """Table of clips (CSV, .xlsx, JSON lines), folder with such a table, folder with one subfolder per class
    (ROOT/<label>/<video>), or the root folder of a known data set."""
    out: str
    """The store to create or continue: a folder such as features.zarr, or s3://bucket/prefix."""
    layout: Layout = "auto"
    """Format of the data set. auto: detect it."""
    encoder: Literal["mobilenet_v3_large", "efficientnet_lite0"] = "mobilenet_v3_large"
    """The frozen network that turns a crop into an embedding."""
    weights: str = "imagenet"
    """The encoder's weights: imagenet, random (for tests only), or a file."""
    detector: str = "short"
    """Face detector: short (near faces), full (short, and if it finds no face, a detector for distant faces),
    or a file."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """Library that runs the encoder. auto: torch with a CUDA device, else openvino."""
    device: str = "auto"
    """Device of the encoder: auto, cpu or cuda."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Number format in the encoder. auto: the precision of the existing store; for a new store bf16 if the
    processor supports it, else f32."""
    fps: float = 3.0
    """Sampled frames per second."""
    window: float = 10.0
    """Length of a window, seconds."""
    geometry: Literal["on", "off"] = "on"
    """Also extract facial expression and head pose (geometry), the second stream."""
    crops: Literal["none", "jpeg"] = "none"
    """Store the face crops as JPEG. Fine-tuning needs them. They are personal data: pictures of people."""
    workers: int | None = None
    """Number of processes. Default: one per usable core; with CUDA at most one per 2 GB of free GPU memory.
    0: run in this process, for debugging; a video that crashes it ends the run."""
    shard: str = "0/1"
    """i/n: extract the i-th of n parts of the videos (i starts at 0), for array jobs that share one store."""
    engine: Literal["local", "ray"] = "local"
    """Where the workers run: local (this machine) or ray (a Ray cluster)."""
    limit: int | None = None
    """Extract only this many clips: a seeded sample, balanced over split, class and subject."""
    columns: str = ""
    """Names of columns in your table, as path=video,label=class,subject=user. Usual names are understood."""
    subject_regex: str = ""
    """Regular expression for the subject in a video's path (the first group that matches), if the data set
    has no subjects."""
    time_limit: float | None = None
    """Maximum time for one video, seconds. Default: 120 s plus ten times its length."""
    retry_failed: bool = False
    """Also extract clips that failed before."""
    verify_sample: int = 0
    """Extract this many finished clips again and compare them with the store; write nothing."""
    dry_run: bool = False
    """Print what would be extracted and how long it would take; write nothing."""
    json: bool = False
    """Print a JSON summary on stdout."""

    def __post_init__(self) -> None:
        for name, count, least in (
            ("workers", self.workers, int(self.engine == "ray")),
            ("limit", self.limit, 1),
        ):
            if count is not None and count < least:
                raise UserError(f"--{name} must be at least {least}, got {count}")
        for name, value in (("fps", self.fps), ("window", self.window)):
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"--{name} must be a number above 0, got {value}")
        if self.fps * self.window > MAX_FRAMES:
            raise UserError(
                f"--fps {self.fps:g} × --window {self.window:g} is over {MAX_FRAMES:,} frames: reduce one"
            )
        if self.verify_sample < 0:
            raise UserError(f"--verify-sample must be at least 0, got {self.verify_sample}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise UserError(f"--time-limit must be above 0, got {self.time_limit}")
        if self.dry_run and self.verify_sample:
            raise UserError("--dry-run and --verify-sample cannot be combined: give one of them")
        if self.device not in ("auto", "cpu") and not self.device.startswith("cuda"):
            raise UserError(f"--device must be auto, cpu or cuda, got {self.device!r}")
        shard_of(self.shard)


@dataclass(frozen=True)
class DemoConfig:
    """Write a small labelled data set of synthetic face videos, with a labels.csv."""

    out: Path
    """Folder to write to."""
    clips: int = NUM_CLIPS
    """Number of ten-second clips."""
    seed: int = 0
    """Random seed of the clips."""
    json: bool = False
    """Print a JSON summary on stdout."""


@dataclass(frozen=True)
class CheckConfig:
    """Check the packages, codecs, cameras, GPU and model files of this machine."""

    fetch: bool = False
    """Download all model files now, so that no network is needed later."""
    cameras: int = 4
    """Number of camera indices to try."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) from the text `i/n`. Raises UserError unless 0 <= i < n."""
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
        raise UserError(f"--shard must be i/n with i from 0 to n-1, got {text!r}")
    return int(first), int(second)
