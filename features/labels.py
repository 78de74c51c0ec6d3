"""How the label names in a store map to the classes of a task.

A store keeps every label column unchanged. A `Labelling` holds the column that a run learns, the order of
its classes (the last is the positive one) and which names are merged. The run's card records it, and
everything that reads the store for that run applies it.

N clips.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from features.cli import UserError

Task = Literal["binary", "multiclass", "ordinal"]


@dataclass(frozen=True)
class Labelling:
    """How one label column of a store maps to classes."""

    column: str
    """Label column of the store."""
    names: tuple[str, ...]
    """Class names in order; the last is the positive class of a binary task."""
    sources: tuple[tuple[str, ...], ...]
    """For each class, the stored label names that count as it."""
    task: Task = "binary"

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise UserError(
                f"label column {self.column!r} has the classes {list(self.names)}: at least two are required"
            )
        if self.task == "binary" and len(self.names) != 2:
            raise UserError(
                f"a binary task needs two classes, got {list(self.names)}: see --merge, --binarize-at, --task"
            )


def make_labelling(
    stored_names: Sequence[str],
    *,
    column: str = "label",
    labels: Sequence[str] = (),
    binarize_at: int | None = None,
    merge: Sequence[str] = (),
    task: Literal["auto", "binary", "multiclass", "ordinal"] = "auto",
    unused: Collection[str] = (),
) -> Labelling:
    """The labelling that the user's options define.

    `merge` holds groups as `a+b` or `new=a+b`. If `new` is an existing name, it joins the group.

    `binarize_at` K makes two classes: numbers below K, and the others. If no name is a number: names before
    position K, and the others. Merged numbers must all be below K, or none.

    `labels` sets the order (last = positive) and leaves out the names that it does not list. With
    `binarize_at`, exactly two names are the names of the two classes; otherwise they are the levels to use.
    Without `labels`, numbers come first, by value, then other names as stored.

    `unused` names, which no clip has, make no class; nor do empty names (names of deleted clips).

    Raises UserError for a name that the column does not have, when `binarize_at` gets numbers and other
    names, and when it separates merged names.
    """
    groups: dict[str, tuple[str, ...]] = {
        name: (name,) for name in sorted(filter(None, stored_names), key=by_value)
    }
    for text in merge:
        groups = _merged(groups, text, column)
    if labels and (binarize_at is None or len(labels) != 2):
        _require_known(labels, groups, f"--labels {','.join(labels)}", column)
        groups = {name: groups[name] for name in labels}
    elif binarize_at is None or _has_levels(groups):  # otherwise --binarize-at counts positions
        groups = {name: sources for name, sources in groups.items() if not set(sources) <= set(unused)}
    if binarize_at is not None:
        groups = _binarize(groups, binarize_at, labels, column)
    names = tuple(groups)
    chosen: Task = ("binary" if len(names) == 2 else "multiclass") if task == "auto" else task
    return Labelling(column, names, tuple(groups.values()), chosen)


def class_indices(labelling: Labelling, codes: np.ndarray, stored_names: Sequence[str]) -> np.ndarray:
    """Class index of each clip.

    codes: (N,) integers into `stored_names`, −1 = no label. Returns (N,) int64, −1 where a clip has no
    label or one that the labelling leaves out.
    """
    class_of = {source: index for index, sources in enumerate(labelling.sources) for source in sources}
    # Code −1 reads the last element.
    lookup = np.array([*(class_of.get(name, -1) for name in stored_names), -1], np.int64)
    return lookup[np.asarray(codes, np.int64)]


def level_of(name: str) -> float | None:
    """The label name as a finite number; None if it is not one."""
    try:
        level = float(name)
    except ValueError:
        return None
    return level if math.isfinite(level) else None


def by_value(name: str) -> tuple[bool, float]:
    """Sort key of label names: numbers first, by value, so that levels 0 to 3 are in order."""
    level = level_of(name)
    return level is None, level or 0.0


def _binarize(
    groups: dict[str, tuple[str, ...]], at: int, labels: Sequence[str], column: str
) -> dict[str, tuple[str, ...]]:
    levels = {name: _level_of_group(name, sources, at) for name, sources in groups.items()}
    numbers = [name for name, level in levels.items() if level is not None]
    others = [name for name, level in levels.items() if level is None]
    if numbers and others:
        instead = " without --binarize-at" if len(numbers) == 2 else ""
        raise UserError(
            f"--binarize-at {at}: column {column!r} has labels that are not numbers: {', '.join(others)}; "
            f"to leave them out, use --labels {','.join(numbers)}{instead}"
        )
    halves: dict[bool, list[str]] = {False: [], True: []}
    for position, (name, sources) in enumerate(groups.items()):
        level = levels[name]
        halves[(position if level is None else level) >= at].extend(sources)
    if not halves[False] or not halves[True]:
        raise UserError(f"--binarize-at {at} leaves one class empty; the levels are {list(groups)}")
    low, high = labels if len(labels) == 2 else (f"below_{at}", f"at_least_{at}")
    return {low: tuple(halves[False]), high: tuple(halves[True])}


def _merged(groups: dict[str, tuple[str, ...]], text: str, column: str) -> dict[str, tuple[str, ...]]:
    """The groups after one `--merge`: `a+b` or `new=a+b`."""
    new, _, members_text = (part.strip() for part in text.rpartition("="))
    members = tuple(member.strip() for member in members_text.split("+"))
    _require_known(members, groups, f"--merge {text}", column)
    if new in groups and new not in members:
        members = (new, *members)
    sources = tuple(source for member in members for source in groups[member])
    merged: dict[str, tuple[str, ...]] = {}
    for name, own_sources in groups.items():
        if name == members[0]:
            merged[new or "+".join(members)] = sources
        elif name not in members:
            merged[name] = own_sources
    return merged


def _has_levels(groups: dict[str, tuple[str, ...]]) -> bool:
    return any(level_of(text) is not None for name, sources in groups.items() for text in (name, *sources))


def _level_of_group(name: str, sources: Sequence[str], at: int) -> float | None:
    """The group's name as a number, or else the first of its merged numbers; None if one is not a number.

    Raises UserError when some merged numbers are below `at` and others are not.
    """
    if (level := level_of(name)) is not None:
        return level
    levels = [level for level in map(level_of, sources) if level is not None]
    if len(levels) < len(sources):
        return None
    if min(levels) < at <= max(levels):
        raise UserError(
            f"--binarize-at {at} separates labels that --merge joins ({name}: {', '.join(sources)}): "
            f"merge only labels below {at}, or only labels from {at} on"
        )
    return levels[0]


def _require_known(names: Sequence[str], groups: dict[str, tuple[str, ...]], what: str, column: str) -> None:
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise UserError(f"{what}: column {column!r} has no label {unknown[0]!r}; it has {sorted(groups)}")
