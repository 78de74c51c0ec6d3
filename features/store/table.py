"""The clip table of a store (one entry per row), and the group of each row: its subject, or its video.

N clips.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClipTable:
    """Clip-level columns of a store; all arrays have length N."""

    clip_id: np.ndarray
    """(N,) str; '' = a deleted row."""
    source: np.ndarray
    """(N,) str: the video, as its path relative to the data root."""
    subject: np.ndarray
    split: np.ndarray
    fold: np.ndarray
    labels: dict[str, np.ndarray]
    """(N,) int16 codes by column; −1 = no label, also for clips that are no longer in the manifest."""
    label_names: dict[str, list[str]]
    """Label names by column; a code is an index into them."""
    slices: dict[str, np.ndarray]
    """(N,) str by column."""
    start_s: np.ndarray
    end_s: np.ndarray
    """(N,) float64 seconds; NaN = the end of the video."""
    state: np.ndarray
    """(N,) uint8, state of the embeddings: 0 pending, 1 done, 2 failed."""
    failure: np.ndarray
    """(N,) str: failure reason; '' = not failed."""


def group_names(subjects: Sequence[str], sources: Sequence[str]) -> list[str]:
    """The group of each clip; clips of one group must be in the same subset of a split.

    It is the clip's subject, or else the only subject of the other clips of its video, or else its video.
    """
    named = values_by_source(subjects, sources)
    known = [
        name or only_value(named.get(source, ())) for name, source in zip(subjects, sources, strict=True)
    ]
    return [
        f"subject {name}" if name else f"video {source}" for name, source in zip(known, sources, strict=True)
    ]


def groups_of(table: ClipTable, rows: np.ndarray) -> np.ndarray:
    """(len(rows),) str: group names of these rows; the whole table is used to find them."""
    return np.array(group_names(table.subject.tolist(), table.source.tolist()), dtype=str)[rows]


def values_by_source(values: Sequence[str], sources: Sequence[str]) -> dict[str, set[str]]:
    """The set of values of each video's clips, without ''."""
    found: dict[str, set[str]] = {}
    for value, source in zip(values, sources, strict=True):
        if value:
            found.setdefault(source, set()).add(value)
    return found


def only_value(values: Collection[str]) -> str:
    """The value, if there is exactly one; else ''."""
    return next(iter(values)) if len(values) == 1 else ""
