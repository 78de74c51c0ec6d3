"""The index of a data set: its clips, and the videos and labels that could not be paired.

Unpaired videos and labels and dropped labels are listed in the `DatasetIndex`; nothing is guessed silently.
Official splits are kept.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.manifest import VIDEO_SUFFIXES, Clip, Failure, Manifest, readable

SPLIT_FOLDERS = {"train": "train", "training": "train", "validation": "val", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class DatasetIndex:
    """The clips of a data set, and what was left out."""

    manifest: Manifest
    layout: str
    """Name of the data set format."""
    unpaired_videos: tuple[str, ...] = ()
    """Videos without a label: not extracted."""
    unpaired_labels: tuple[str, ...] = ()
    """Labels without a video."""
    dropped: tuple[tuple[str, int], ...] = ()
    """(reason, number) of labels that were left out on purpose."""
    notes: tuple[str, ...] = ()
    """Warnings about this data set."""


def index(
    root: Path,
    layout: str,
    clips: Iterable[Clip],
    problems: Iterable[Failure],
    videos: Sequence[str],
    labels: Sequence[str],
    dropped: tuple[tuple[str, int], ...] = (),
    notes: tuple[str, ...] = (),
) -> DatasetIndex:
    """A `DatasetIndex` from what a reader collected; videos and labels: the unpaired ones."""
    manifest = Manifest(tuple(clips), tuple(problems), root)
    return DatasetIndex(manifest, layout, tuple(sorted(videos)), tuple(sorted(labels)), dropped, notes)


def stem_of(name: str) -> str:
    """The NFC name without a video or .json extension (other dots are part of the name)."""
    name = unicodedata.normalize("NFC", name.strip())
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in (VIDEO_SUFFIXES | {".json"}) else name


def relative(file: Path, root: Path) -> str:
    """The NFC posix path relative to `root`, printable."""
    return readable(unicodedata.normalize("NFC", file.relative_to(root).as_posix()))
