"""From the label names in a store to the classes of one question.

A store keeps every label column as it came; a `Labelling` says which column a run learns, in what
order its classes stand (the last is the positive one) and which names were merged. It is recorded in
the run's card and applied by everything that reads the store for that run.

N clips.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Task = Literal["binary", "multiclass", "ordinal"]


@dataclass(frozen=True)
class Labelling:
    """One question put to the labels of a store."""

    column: str
    """Label column of the store."""
    names: tuple[str, ...]
    """Class names in order; the last is the positive class of a binary task."""
    sources: tuple[tuple[str, ...], ...]
    """For each class, the stored label names that count as it."""
    task: Task = "binary"

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(
                f"label column {self.column!r} has the classes {list(self.names)}: at least two are needed"
            )
        if self.task == "binary" and len(self.names) != 2:
            raise ValueError(
                f"a binary task needs two classes, got {list(self.names)}; see --merge, --binarize-at, --task"
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
    """The labelling that a user's options ask for.

    `merge` holds groups as `a+b` or `new=a+b`, where `new` may be a name that is there: it is a member then.
    `binarize_at` K makes two classes: numbers below K and the rest, or, where no name is a number, names
    before position K and the rest; merged numbers stand where all of them do. `labels` fixes the order,
    last = positive, and leaves out the names it does not list; with `binarize_at`, two names are those of the
    two classes, others list the levels. Without `labels` numbers come first and by value, other names as
    stored; those that are `unused`, because no clip has them, make no class, and neither does a name that was
    blanked with the last who had it.

    Raises ValueError for a name that the column does not have, where only some of the names that
    `binarize_at` is to part are numbers, and where it parts what was merged.
    """
    groups: dict[str, tuple[str, ...]] = {
        name: (name,) for name in sorted(filter(None, stored_names), key=by_value)
    }
    for text in merge:
        new, _, members_text = (part.strip() for part in text.rpartition("="))
        members = tuple(member.strip() for member in members_text.split("+"))
        _require_known(members, groups, f"--merge {text}", column)
        if new in groups and new not in members:
            members = (new, *members)
        sources = tuple(source for member in members for source in groups[member])
        merged: dict[str, tuple[str, ...]] = {}
        for name, own in groups.items():
            if name == members[0]:
                merged[new or "+".join(members)] = sources
            elif name not in members:
                merged[name] = own
        groups = merged
    if labels and (binarize_at is None or len(labels) != 2):
        _require_known(labels, groups, f"--labels {','.join(labels)}", column)
        groups = {name: groups[name] for name in labels}
    elif binarize_at is None or _has_levels(groups):  # else positions count
        groups = {name: own for name, own in groups.items() if not set(own) <= set(unused)}
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
    # The last place answers code −1.
    lookup = np.array([*(class_of.get(name, -1) for name in stored_names), -1], np.int64)
    return lookup[np.asarray(codes, np.int64)]


def level_of(name: str) -> float | None:
    """The number that a label name is; None where it is none."""
    try:
        level = float(name)
    except ValueError:
        return None
    return level if math.isfinite(level) else None


def by_value(name: str) -> tuple[bool, float]:
    """Sorting key of label names: numbers first and by value, so that levels 0 to 3 stand in their order."""
    level = level_of(name)
    return level is None, level or 0.0


def _binarize(
    groups: dict[str, tuple[str, ...]], at: int, labels: Sequence[str], column: str
) -> dict[str, tuple[str, ...]]:
    levels = {name: _level_of_group(name, sources, at) for name, sources in groups.items()}
    numbers = [name for name, level in levels.items() if level is not None]
    others = [name for name, level in levels.items() if level is None]
    if numbers and others:
        instead = " without it" if len(numbers) == 2 else ""
        raise ValueError(
            f"--binarize-at {at}: column {column!r} has labels that are no numbers, {', '.join(others)}; "
            f"to leave them out, give --labels {','.join(numbers)}{instead}"
        )
    sides: dict[bool, list[str]] = {False: [], True: []}
    for position, (name, sources) in enumerate(groups.items()):
        level = levels[name]
        sides[(position if level is None else level) >= at].extend(sources)
    if not sides[False] or not sides[True]:
        raise ValueError(f"--binarize-at {at} leaves one side empty; the levels are {list(groups)}")
    low, high = labels if len(labels) == 2 else (f"below_{at}", f"at_least_{at}")
    return {low: tuple(sides[False]), high: tuple(sides[True])}


def _has_levels(groups: dict[str, tuple[str, ...]]) -> bool:
    return any(level_of(text) is not None for name, own in groups.items() for text in (name, *own))


def _level_of_group(name: str, sources: Sequence[str], at: int) -> float | None:
    """The number that a name is, or one of the numbers merged under it, which lie on one side of `at`."""
    if (level := level_of(name)) is not None:
        return level
    levels = [level for level in map(level_of, sources) if level is not None]
    if len(levels) < len(sources):
        return None
    if min(levels) < at <= max(levels):
        raise ValueError(
            f"--binarize-at {at} parts what --merge makes one, {name} of {', '.join(sources)}: "
            "merge labels of one side alone"
        )
    return levels[0]


def _require_known(names: Sequence[str], groups: dict[str, tuple[str, ...]], what: str, column: str) -> None:
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise ValueError(f"{what}: column {column!r} has no label {unknown[0]!r}; it has {sorted(groups)}")
