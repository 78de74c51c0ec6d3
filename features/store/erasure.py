"""Deletion of rows: reset rows to pending, and erase all data of a deleted subject."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr

from features.cli import UserError
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
"""Value of `source` in a row whose subject was deleted; the row stays, empty."""


def clear_rows(group: zarr.Group, location: StoreLocation, rows: Sequence[int] | np.ndarray) -> None:
    """Reset rows to pending: delete their chunks, the marker of the embeddings (`frames`) first.

    Raises UserError for rows of imported features, because they share chunks.
    """
    if group.attrs["rows_per_chunk"] != 1 and len(rows):
        raise UserError("single rows of imported features cannot be deleted: import the file again")
    arrays = [(name, rank) for name, rank in ROW_ARRAYS.items() if name in group]
    for row in rows:
        delete_keys(location, [chunk_key(name, int(row), rank) for name, rank in arrays])


def erase_rows(group: zarr.Group, location: StoreLocation, rows: np.ndarray) -> None:
    """Delete rows: features, packed copies, and every text that could identify the subject.

    The subject's name is deleted last, so that an interrupted deletion can be repeated.
    """
    count = int(group.attrs["num_clips"])  # type: ignore[arg-type]
    clear_rows(group, location, rows)
    drop_packed(location)  # after clear_rows: another process may have packed these rows in the meantime
    attributes: Any = group.attrs
    if subsets := attributes["encoder_subsets"]:
        table = read_table(group, count)
        groups = group_names(table["subject"].tolist(), table["source"].tolist())
        deleted = {groups[row] for row in rows}
        commit(
            group,
            location,
            {"encoder_subsets": {name: subset for name, subset in subsets.items() if name not in deleted}},
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
    """Blank the rows after the last counted row. A killed planner left them, and their subject names could
    not be deleted otherwise."""
    attributes: Any = group.attrs
    blanks: dict[str, Any] = dict.fromkeys(TEXT_COLUMNS, "") | dict.fromkeys(NUMBER_COLUMNS, 0)
    blanks |= {array_name("labels", column): -1 for column in attributes["label_names"]}
    blanks |= {array_name("slices", column): "" for column in attributes["slice_columns"]}
    for name, blank in blanks.items():
        if name in group:  # missing if the first plan was interrupted
            array = array_of(group, name)
            if array.shape[0] > attributes["num_clips"]:
                array[attributes["num_clips"] :] = blank


def rows_after_deletion(group: zarr.Group, location: StoreLocation) -> np.ndarray:
    """Rows, ascending, of deleted subjects that have data: a worker wrote them after the deletion."""
    count = int(group.attrs["num_clips"])  # type: ignore[arg-type]
    if count == 0:  # the arrays may not exist yet
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
