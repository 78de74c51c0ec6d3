"""What is known about each row of a store, and which rows must stay together: those of one person, or video.

N clips.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClipTable:
    """What is known about each row; all arrays of length N."""

    clip_id: np.ndarray
    """(N,) str; '' = a row that was deleted."""
    source: np.ndarray
    """(N,) str: the video, as its path relative to the data root."""
    subject: np.ndarray
    split: np.ndarray
    fold: np.ndarray
    labels: dict[str, np.ndarray]
    """(N,) int16 by column; −1 = no label, also of clips that vanished from the manifest."""
    label_names: dict[str, list[str]]
    """By column, the names that the codes stand for."""
    slices: dict[str, np.ndarray]
    """(N,) str by column."""
    start_s: np.ndarray
    end_s: np.ndarray
    """(N,) float64 seconds; NaN = to the video's end."""
    state: np.ndarray
    """(N,) uint8: 0 pending, 1 done, 2 failed; of the embeddings."""
    failure: np.ndarray
    """(N,) str: why, where something failed."""


def group_names(subjects: Sequence[str], sources: Sequence[str]) -> list[str]:
    """For each clip who must stay together: its subject, or else the one that other clips of its video name,
    or the video where those name nobody or several."""
    named = values_by_source(subjects, sources)
    people = [who or only_value(named.get(source, ())) for who, source in zip(subjects, sources, strict=True)]
    return [
        f"subject {who}" if who else f"video {source}" for who, source in zip(people, sources, strict=True)
    ]


def groups_of(table: ClipTable, rows: np.ndarray) -> np.ndarray:
    """(len(rows),) str: the `group_names` of these rows among all of the table."""
    return np.array(group_names(table.subject.tolist(), table.source.tolist()), dtype=str)[rows]


def values_by_source(values: Sequence[str], sources: Sequence[str]) -> dict[str, set[str]]:
    """The different values of each video's clips, without ''."""
    found: dict[str, set[str]] = {}
    for value, source in zip(values, sources, strict=True):
        if value:
            found.setdefault(source, set()).add(value)
    return found


def only_value(values: Collection[str]) -> str:
    """The value; '' where there is none or another."""
    return next(iter(values)) if len(values) == 1 else ""
