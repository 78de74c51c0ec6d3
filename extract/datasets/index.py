"""What a data set's layout gives: its clips, and what did not pair up.

What does not pair up (a video without label, a label without video) and what is dropped is counted and listed
in the `DatasetIndex`; nothing is guessed silently. Official splits are kept as they are.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.manifest import VIDEO_SUFFIXES, Clip, Failure, Manifest, readable

SPLIT_FOLDERS = {"train": "train", "training": "train", "validation": "val", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class DatasetIndex:
    """What was found at the place that a user named."""

    manifest: Manifest
    layout: str
    """Which layout that was."""
    unpaired_videos: tuple[str, ...] = ()
    """Videos without a label: not extracted."""
    unpaired_labels: tuple[str, ...] = ()
    """Labels without a video."""
    dropped: tuple[tuple[str, int], ...] = ()
    """(why, how many) labels that were left out on purpose."""
    notes: tuple[str, ...] = ()
    """What a user should know about this data set."""


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
    manifest = Manifest(tuple(clips), tuple(problems), root)
    return DatasetIndex(manifest, layout, tuple(sorted(videos)), tuple(sorted(labels)), dropped, notes)


def stem_of(name: str) -> str:
    """The name without a video's or a table's extension (a dot inside a name is no extension)."""
    name = unicodedata.normalize("NFC", name.strip())
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in (VIDEO_SUFFIXES | {".json"}) else name


def relative(file: Path, root: Path) -> str:
    return readable(unicodedata.normalize("NFC", file.relative_to(root).as_posix()))
