"""From the label names in a store to the classes of one question.

A store keeps every label column as it came; a `Labelling` says which column a run learns, in what
order its classes stand (the last is the positive one) and which names were merged. It is recorded in
the run's card and applied by everything that reads the store for that run.

Knows nothing about stores, splits or networks. N clips.
"""

from collections.abc import Sequence
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
) -> Labelling:
    """The labelling that a user's options ask for.

    `merge` holds groups as `a+b` or `new=a+b`; `binarize_at` K makes names before position K "low" and the
    rest "high" (with integer names, position counts values below K); `labels` fixes the order, last =
    positive, and leaves out the names it does not list. Without `labels` the stored order holds.

    Raises ValueError for a name that the column does not have.
    """
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in stored_names}
    for text in merge:
        new, _, members_text = text.rpartition("=")
        members = tuple(member.strip() for member in members_text.split("+"))
        _require_known(members, groups, f"--merge {text}", column)
        sources = tuple(source for member in members for source in groups[member])
        merged: dict[str, tuple[str, ...]] = {}
        for name, own in groups.items():
            if name == members[0]:
                merged[new or "+".join(members)] = sources
            elif name not in members:
                merged[name] = own
        groups = merged
    if labels and binarize_at is None:
        _require_known(labels, groups, f"--labels {','.join(labels)}", column)
        groups = {name: groups[name] for name in labels}
    if binarize_at is not None:
        groups = _binarize(groups, binarize_at, labels)
    names = tuple(groups)
    chosen: Task = ("binary" if len(names) == 2 else "multiclass") if task == "auto" else task
    return Labelling(column, names, tuple(groups.values()), chosen)


def class_indices(labelling: Labelling, codes: np.ndarray, stored_names: Sequence[str]) -> np.ndarray:
    """Class index of each clip.

    codes: (N,) integers into `stored_names`, −1 = no label. Returns (N,) int64, −1 where a clip has no
    label or one that the labelling leaves out.
    """
    lookup = np.full(len(stored_names) + 1, -1, np.int64)  # the last place answers code −1
    for index, sources in enumerate(labelling.sources):
        for source in sources:
            if source in stored_names:
                lookup[list(stored_names).index(source)] = index
    return lookup[np.asarray(codes, np.int64)]


def _binarize(
    groups: dict[str, tuple[str, ...]], at: int, labels: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    def is_high(position: int, name: str) -> bool:
        return (int(name) if name.lstrip("-").isdigit() else position) >= at

    sides: dict[bool, list[str]] = {False: [], True: []}
    for position, (name, sources) in enumerate(groups.items()):
        sides[is_high(position, name)].extend(sources)
    if not sides[False] or not sides[True]:
        raise ValueError(f"--binarize-at {at} leaves one side empty; the levels are {list(groups)}")
    low, high = labels if len(labels) == 2 else (f"below_{at}", f"at_least_{at}")
    return {low: tuple(sides[False]), high: tuple(sides[True])}


def _require_known(names: Sequence[str], groups: dict[str, tuple[str, ...]], what: str, column: str) -> None:
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise ValueError(f"{what}: column {column!r} has no label {unknown[0]!r}; it has {sorted(groups)}")
