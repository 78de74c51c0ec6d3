"""Rows that go: made pending again, deleted with every word of a person, and what came back of one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr

from features.store.description import commit
from features.store.location import StoreLocation, delete_keys
from features.store.packed import drop_packed
from features.store.schema import (
    NUMBER_COLUMNS,
    ROW_ARRAYS,
    TEXT_COLUMNS,
    array_name,
    array_of,
    chunk_key,
    read_column,
    read_table,
    rows_present,
    with_texts,
    write_column,
)
from features.store.table import group_names

DELETED = "deleted"
"""Source of a row whose person was deleted: it stays as an empty place."""


def clear_rows(group: zarr.Group, location: StoreLocation, rows: Sequence[int] | np.ndarray) -> None:
    """Make rows pending again: their chunks go, the marker of the embeddings first.

    Raises ValueError for rows of imported features, which share their chunks.
    """
    if group.attrs["rows_per_chunk"] != 1 and len(rows):
        raise ValueError("single rows of imported features cannot be cleared: import the file again")
    arrays = [(name, rank) for name, rank in ROW_ARRAYS.items() if name in group]
    for row in rows:
        delete_keys(location, [chunk_key(name, int(row), rank) for name, rank in arrays])


def erase_rows(group: zarr.Group, location: StoreLocation, rows: np.ndarray) -> None:
    """Delete rows for good: features, their packed copies, and every word by which the person could be known.

    The subject goes last: a deletion that was cut short can be repeated.
    """
    count = int(group.attrs["num_clips"])  # type: ignore[arg-type]
    clear_rows(group, location, rows)
    drop_packed(location)  # no earlier: somebody may have packed the person once more
    attributes: Any = group.attrs
    if subsets := attributes["encoder_subsets"]:
        table = read_table(group, count)
        groups = group_names(table["subject"].tolist(), table["source"].tolist())
        gone = {groups[row] for row in rows}
        commit(
            group,
            location,
            {"encoder_subsets": {who: subset for who, subset in subsets.items() if who not in gone}},
        )
    names = {}
    for column, known in attributes["label_names"].items():
        _rewrite(group, array_name("labels", column), count, rows, -1)
        used = set(read_column(group, array_name("labels", column), count).tolist())
        names[column] = [name if code in used else "" for code, name in enumerate(known)]
    commit(group, location, {"label_names": names})
    for column in attributes["slice_columns"]:
        _rewrite(group, array_name("slices", column), count, rows, "")
    for name in NUMBER_COLUMNS:
        _rewrite(group, name, count, rows, 0)
    for name in sorted(TEXT_COLUMNS, key="subject".__eq__):
        _rewrite(group, name, count, rows, DELETED if name == "source" else "")


def blank_uncounted(group: zarr.Group) -> None:
    """Blank the rows behind the store's last that a planner left who was killed before they counted: whom
    they name, nobody could delete."""
    attributes: Any = group.attrs
    blanks: dict[str, Any] = dict.fromkeys(TEXT_COLUMNS, "") | dict.fromkeys(NUMBER_COLUMNS, 0)
    blanks |= {array_name("labels", column): -1 for column in attributes["label_names"]}
    blanks |= {array_name("slices", column): "" for column in attributes["slice_columns"]}
    for name, blank in blanks.items():
        if name in group:  # the first plan may have been cut short
            array = array_of(group, name)
            if array.shape[0] > attributes["num_clips"]:
                array[attributes["num_clips"] :] = blank


def rows_after_deletion(group: zarr.Group, location: StoreLocation) -> np.ndarray:
    """Rows, ascending, of deleted people that hold something: a worker that did not know wrote them later."""
    count = int(group.attrs["num_clips"])  # type: ignore[arg-type]
    if count == 0:  # arrays may be there or not
        return np.zeros(0, np.int64)
    erased = (read_column(group, "source", count) == DELETED) & (read_column(group, "clip_id", count) == "")
    if erased.any():
        erased &= np.any([rows_present(location, group, name, count) for name in ROW_ARRAYS], axis=0)
    return np.flatnonzero(erased)


def _rewrite(group: zarr.Group, name: str, count: int, rows: np.ndarray, value: Any) -> None:
    values = read_column(group, name, count)
    if isinstance(value, str):
        values = with_texts(values, rows, [value] * len(rows))
    else:
        values[rows] = value
    write_column(group, name, values)
