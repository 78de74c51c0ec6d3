"""What a user may ask of the extract doors: frozen dataclasses whose docstrings are the help.

Light on purpose: `--help` reads this file alone.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Layout = Literal["auto", "csv", "folder", "daisee", "engagenet", "aihub"]


MAX_FRAMES = 100_000
"""Frames of a clip: more is a slip of the finger, and more than any memory holds."""
NUM_CLIPS = 168
"""Of the demo set: 98 to learn from, 28 for validation, 42 for test."""


@dataclass(frozen=True)
class ExtractConfig:
    """Turn labelled face videos into a store of embeddings. Run again, it does only what is missing."""

    data: Path
    """Manifest CSV, folder of classes (ROOT/<label>/<video>), or the root of a known data set."""
    out: str
    """The store to create or go on with: a folder such as features.zarr, or s3://bucket/prefix."""
    layout: Layout = "auto"
    """How the data lie; auto looks."""
    encoder: Literal["mobilenet_v3_large", "efficientnet_lite0"] = "mobilenet_v3_large"
    """The frozen network that turns a crop into an embedding."""
    weights: str = "imagenet"
    """The encoder's weights: imagenet, random (for tests only), or a file."""
    detector: str = "short"
    """Face detector: short (near faces), full (where short finds none, also distant ones), or a file."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """What runs the encoder: auto is torch where there is a CUDA device, else OpenVINO."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Number format inside the encoder; auto is what the store was begun with, or bf16 where the processor
    has it."""
    fps: float = 3.0
    """Sampled frames a second."""
    window: float = 10.0
    """Length of a window, seconds."""
    geometry: Literal["on", "off"] = "on"
    """Also measure expression and head pose: the second stream."""
    crops: Literal["none", "jpeg"] = "none"
    """Keep the face crops as JPEG: fine-tuning needs them. They are pictures of people."""
    workers: int | None = None
    """Processes; one for each usable core unless given, and with CUDA for each 2 GB of the GPU's memory. 0:
    work in this process, for debugging; a video that kills it ends the run."""
    shard: str = "0/1"
    """i/n: do the i-th of n shares of the videos (i from 0), for an array job on one store."""
    engine: Literal["local", "ray"] = "local"
    """Where the workers run: on this machine, or on a Ray cluster."""
    limit: int | None = None
    """Only this many clips, a seeded sample balanced over split, class and subject."""
    subject_regex: str = ""
    """Finds the subject in a video's path (its first group that matches), where the data set does not name
    it."""
    time_limit: float | None = None
    """Seconds a video may take before it is given up; unless given, two minutes and ten times its length."""
    retry_failed: bool = False
    """Try the clips again that failed before."""
    verify_sample: int = 0
    """Extract this many finished clips again, compare them with the store, and do nothing else."""
    dry_run: bool = False
    """Print what would be extracted and about how long it takes; write nothing."""
    json: bool = False
    """Print a JSON summary on stdout."""

    def __post_init__(self) -> None:
        for name, count, least in (
            ("workers", self.workers, int(self.engine == "ray")),
            ("limit", self.limit, 1),
        ):
            if count is not None and count < least:
                raise ValueError(f"--{name} must be at least {least}, got {count}")
        for name, value in (("fps", self.fps), ("window", self.window)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"--{name} must be a number above 0, got {value}")
        if self.fps * self.window > MAX_FRAMES:
            raise ValueError(
                f"--fps {self.fps:g} times --window {self.window:g} is over {MAX_FRAMES:,} frames a clip"
            )
        if self.verify_sample < 0:
            raise ValueError(f"--verify-sample must be at least 0, got {self.verify_sample}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"--time-limit must be above 0, got {self.time_limit}")
        shard_of(self.shard)


@dataclass(frozen=True)
class DemoConfig:
    """Write a small labelled set of synthetic face videos with a labels.csv."""

    out: Path
    """Folder to write."""
    clips: int = NUM_CLIPS
    """How many ten-second clips."""
    seed: int = 0
    """Which clips."""
    json: bool = False
    """Print a JSON summary on stdout."""


@dataclass(frozen=True)
class CheckConfig:
    """Say what this machine has and what is missing, before hours of work."""

    fetch: bool = False
    """Fetch all model files now, for use without network later."""
    cameras: int = 4
    """How many camera indices to try."""
    json: bool = False
    """Print what was found as JSON on stdout."""


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of `i/n`. Raises ValueError unless 0 <= i < n."""
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
        raise ValueError(f"--shard takes i/n with i from 0 to n-1, got {text!r}")
    return int(first), int(second)
