"""The input and the output of an extraction: its configuration, jobs with their windows, and results.

Shapes: T frames of a window, D embedding, G geometry features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from features.recipe import Recipe
from seqmodel.encoders.engine import Backend, Precision

Part = Literal["embeddings", "geometry", "crops"]


@dataclass(frozen=True)
class ExtractorConfig:
    """Everything that a worker needs to open a `FeatureExtractor`; small and picklable."""

    recipe: Recipe
    detector_files: tuple[Path, ...]
    landmarker_file: Path | None = None
    weights: str = "imagenet"
    backend: Backend = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    threads: int = 1


@dataclass(frozen=True)
class Window:
    """A part of a video that becomes one row of the store."""

    row: int
    start_s: float
    end_s: float | None
    """End in seconds; None = a whole window, or up to the end of the video."""
    parts: frozenset[Part] = frozenset({"embeddings"})
    """The parts to compute."""


@dataclass(frozen=True)
class Job:
    """One video and the windows to extract from it."""

    path: Path
    windows: tuple[Window, ...]
    time_limit_s: float = float("inf")
    file_state: tuple[int, int] | None = None
    """The file's size in bytes and modification time in ns when it was planned; None = unknown."""


@dataclass(frozen=True)
class WindowFeatures:
    """The features of a window. Frames after the end of the video, and frames without a face, are invalid."""

    window: Window
    frames: np.ndarray
    """float32 (T, 6): time_s, x0, y0, x1, y1, score. No face: NaN box, score 0; not sampled: NaN time too."""
    embeddings: np.ndarray | None = None
    """float16 (T, D), 0 for invalid frames."""
    geometry: np.ndarray | None = None
    """float32 (T, G), NaN for invalid frames and where it failed."""
    crops: list[bytes] | None = None
    """T JPEG files, b"" for invalid frames."""
    notes: str = ""
    """Why the features may be wrong, to be checked by a person; '' = no doubt."""


@dataclass(frozen=True)
class FailedWindow:
    """A window that could not be extracted, and the reason."""

    window: Window
    reason: str
