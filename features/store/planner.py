"""Planning of a store's rows from a manifest: append new clips, update known clips, list missing clips.

Everything here runs under the planner lock. Rows never move: known clips keep their rows, new clips are
appended in manifest order, and the attribute `num_clips` is written last, so that readers never see the rows
of an interrupted plan.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from features.cli import UserError
from features.labels import by_value
from features.manifest import SUBSETS, Clip
from features.recipe import Recipe
from features.store.description import FRAME_COLUMNS, commit
from features.store.erasure import clear_rows
from features.store.location import StoreLocation
from features.store.schema import (
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    array_name,
    ensure_row_array,
    read_column,
    read_table,
    with_texts,
    write_column,
)
from features.store.table import group_names

TIME_SLACK_NS = 2_000_000_000
"""Tolerance for file times: FAT and exFAT (USB sticks) store them in steps of two seconds."""


@dataclass(frozen=True)
class Changes:
    """Changes that a plan made, as clip ids."""

    new: tuple[str, ...] = ()
    """Clips that the store did not have."""
    changed: tuple[str, ...] = ()
    """Known clips whose video file has another size or time (by more than two seconds), or that have another
    end time: extracted again."""
    corrected: tuple[str, ...] = ()
    """Known clips with another label, subject, split, fold or slice than before."""
    not_in_manifest: tuple[str, ...] = ()
    """Known clips that are no longer in the manifest: kept, but not used for training until they return."""


Listing = Literal["whole", "part", "none"]
"""What the clips of a plan are: the whole manifest, so that other clips of the store are no longer in it; a
part of it; or not a manifest, so that `listed` does not change."""


@dataclass(frozen=True)
class _Planned:
    """Clips and their rows: known clips keep their rows, new clips are appended in order."""

    clips: list[Clip]
    rows: np.ndarray
    """(len(clips),) int64."""
    num_before: int
    """Number of rows of the store before the plan."""
    before: dict[str, np.ndarray]
    """Clip-level columns before the plan, blank for new rows."""

    @property
    def new(self) -> np.ndarray:
        """Rows, ascending, of new clips."""
        return np.arange(self.num_before, self.num_after)

    @property
    def num_after(self) -> int:
        """Number of rows after the plan."""
        return len(self.before["clip_id"])


def write_rows(
    group: zarr.Group,
    location: StoreLocation,
    clips: Sequence[Clip],
    recipe: Recipe,
    *,
    has_crops: bool,
    listing: Listing,
    file_states: np.ndarray | None = None,
) -> Changes:
    """Update the store's clip-level arrays from the clips, and extend its row arrays; returns the changes.

    Known clips keep values that these clips do not have: a label or slice column that none of them has;
    subjects, splits or folds if none of them has one; and the end time of a clip without one.

    listing: whether these are all clips of the manifest. file_states: result of `states_of_files`; None =
    read now.

    Raises UserError for duplicate clips, for a label column with too many different values, for changed
    clips of imported features, and when the planner lock of `location` is lost.
    """
    planned = _planned(group, clips)
    files = states_of_files(planned.clips) if file_states is None else file_states
    is_old = planned.rows < planned.num_before
    known = [clip for clip, old in zip(planned.clips, is_old, strict=True) if old]
    changed = changed_rows(planned.before, planned.rows[is_old], known, recipe, files[is_old])
    table = _table_after(planned, files, listing)
    labels_before, labels, label_names = _label_codes(group, planned)
    slices_before, slices = _slice_values(group, planned)
    marks = {name: planned.before[name] for name in ("subject", "split", "fold")}
    corrected = _corrected_rows(planned, (marks, table), (labels_before, labels), (slices_before, slices))
    not_in_manifest = planned.before["listed"] & ~table["listed"]
    ids = table["clip_id"]
    changes = Changes(*(tuple(ids[of].tolist()) for of in (planned.new, changed, corrected, not_in_manifest)))

    location.require_lock()
    _make_row_arrays(group, recipe, len(ids), has_crops)
    subsets: Any = group.attrs["encoder_subsets"]
    renamed = _subsets_under_new_names(subsets, planned.before, table)
    _write_users_columns(group, labels, label_names, slices, subsets | renamed)
    clear_rows(group, location, changed)  # before what changed is noted: a kill repeats it
    for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS):
        location.require_lock()  # each column: a paused planner must not write over another one's plan
        write_column(group, name, table[name])
    commit(group, location, {"num_clips": len(ids), "encoder_subsets": renamed})
    return changes


def _write_users_columns(
    group: zarr.Group,
    labels: dict[str, np.ndarray],
    label_names: dict[str, list[str]],
    slices: dict[str, np.ndarray],
    subsets: dict[str, str],
) -> None:
    """Write labels and slices. Names are written before codes: after an interruption, a longer list of names
    is still correct. `subsets` has groups under old and new names until the new names are written."""
    group.update_attributes(
        {"label_names": label_names, "slice_columns": sorted(slices), "encoder_subsets": subsets}
    )
    for folder, columns in (("labels", labels), ("slices", slices)):
        for column, values in columns.items():
            write_column(group, array_name(folder, column), values)


def _make_row_arrays(group: zarr.Group, recipe: Recipe, count: int, has_crops: bool) -> None:
    attributes: Any = group.attrs
    num_frames, step = attributes["num_frames"], attributes["rows_per_chunk"]
    if recipe.encoder.dim:  # imported geometry has none
        shape = (num_frames, recipe.encoder.dim)
        ensure_row_array(group, "embeddings", attributes["embedding_dtype"], count, shape, step)
    ensure_row_array(group, "frames", "float32", count, (num_frames, len(FRAME_COLUMNS)), step)
    for name in ("failure", "notes"):
        ensure_row_array(group, name, str, count, ())
    if recipe.geometry is not None:
        shape = (num_frames, len(recipe.geometry.features))
        ensure_row_array(group, "geometry", "float32", count, shape, step)
    if has_crops or "crops" in group:
        ensure_row_array(group, "crops", "variable_length_bytes", count, (num_frames,))


def _planned(group: zarr.Group, clips: Sequence[Clip]) -> _Planned:
    ids = [clip.clip_id for clip in clips]
    duplicates = sorted(name for name, times in Counter(ids).items() if times > 1)
    if duplicates:
        raise UserError(f"duplicate clips (each clip id must be unique): {', '.join(duplicates[:5])}")
    num_before = int(group.attrs["num_clips"])  # type: ignore[arg-type]
    table = read_table(group, num_before)
    row_of = {name: row for row, name in enumerate(table["clip_id"].tolist()) if name}
    new = [name for name in ids if name not in row_of]
    row_of.update({name: num_before + index for index, name in enumerate(new)})
    before = {name: np.append(values, np.zeros(len(new), values.dtype)) for name, values in table.items()}
    rows = np.array([row_of[name] for name in ids], np.int64)
    return _Planned(_with_stored_labels(clips, group.attrs["label_names"]), rows, num_before, before)


def _table_after(planned: _Planned, files: np.ndarray, listing: Listing) -> dict[str, np.ndarray]:
    """The clip-level columns, updated from the clips and their files."""
    table, rows, clips = (
        {name: old.copy() for name, old in planned.before.items()},
        planned.rows,
        planned.clips,
    )
    texts = {
        "clip_id": [clip.clip_id for clip in clips],
        "source": [clip.clip_id.rpartition("#")[0] for clip in clips],
        "subject": [clip.subject for clip in clips],
        "split": [clip.split for clip in clips],
        "fold": [clip.fold for clip in clips],
    }
    for name, values in texts.items():
        if any(values):  # a column that is empty for all clips changes nothing, as with labels
            table[name] = with_texts(table[name], rows, values)
    table["start_s"][rows] = [clip.start_s for clip in clips]
    ends_s = _ends_s(clips)
    has_end = np.isfinite(ends_s) | (rows >= planned.num_before)
    table["end_s"][rows[has_end]] = ends_s[has_end]
    # Files that cannot be read now (for example on an unmounted disk) do not count as changed.
    differs = (files[:, 0] >= 0) & ~_same_files(_files_of(table, rows), files)
    table["source_size"][rows[differs]], table["source_mtime_ns"][rows[differs]] = files[differs].T
    if listing == "whole":
        table["listed"][:] = False
    if listing != "none":
        table["listed"][rows] = True
    return table


def _ends_s(clips: Sequence[Clip]) -> np.ndarray:
    """(n,) float64 end times in seconds; NaN = unknown."""
    return np.array([np.nan if clip.end_s is None else clip.end_s for clip in clips], np.float64)


def _subsets_under_new_names(
    subsets: dict[str, str], before: dict[str, np.ndarray], after: dict[str, np.ndarray]
) -> dict[str, str]:
    """`encoder_subsets` with the new group names after subjects were corrected. If several groups become one,
    it gets the first of their subsets in the order of `SUBSETS`."""
    found: dict[str, str] = {}
    old_groups, new_groups = (
        group_names(t["subject"].tolist(), t["source"].tolist()) for t in (before, after)
    )
    for old, new in zip(old_groups, new_groups, strict=True):
        if old in subsets:
            found[new] = min(found.get(new, SUBSETS[-1]), subsets[old], key=SUBSETS.index)
    return found


def states_of_files(clips: Sequence[Clip]) -> np.ndarray:
    """(n, 2) int64: size in bytes and modification time in ns of each clip's file; −1 if it cannot be read.

    Call it before taking the lock: thousands of files on a network disk take a while.
    """
    states = {path: _state_of(path) for path in {clip.path for clip in clips}}
    return np.array([states[clip.path] for clip in clips], np.int64).reshape(-1, 2)


def _state_of(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def changed_rows(
    before: dict[str, np.ndarray],
    rows: np.ndarray,
    clips: Sequence[Clip],
    recipe: Recipe,
    file_states: np.ndarray,
) -> np.ndarray:
    """Rows of known clips with another file size, file time or end time than in `before`.

    End times may differ by half a sampling period, which changes at most the last frame. Unknown sizes and
    end times, before or now, do not count as changes.
    """
    stored = _files_of(before, rows)
    changed = ~_same_files(stored, file_states) & (file_states[:, 0] >= 0) & (stored[:, 0] >= 0)
    if recipe.pixels is not None:
        changed |= np.abs(before["end_s"][rows] - _ends_s(clips)) > 0.5 / recipe.pixels.fps
    return np.sort(rows[changed])


def _files_of(table: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """(n, 2) int64: the stored `states_of_files` of these rows."""
    return np.stack([table["source_size"][rows], table["source_mtime_ns"][rows]], axis=1)


def _same_files(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) bool: whether two results of `states_of_files` have equal sizes and times."""
    return (one[:, 0] == other[:, 0]) & (np.abs(one[:, 1] - other[:, 1]) <= TIME_SLACK_NS)


def _with_stored_labels(clips: Sequence[Clip], label_names: Any) -> list[Clip]:
    """The clips, with every column that is a label in the store as a label, even if it now has too many
    values for a new label column."""
    return [
        dataclasses.replace(
            clip,
            labels={name: text for name, text in clip.slices.items() if name in label_names} | clip.labels,
        )
        for clip in clips
    ]


def _label_codes(
    group: zarr.Group, planned: _Planned
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, list[str]]]:
    """(codes before, codes after, label names) by label column. Names are only appended, never removed."""
    stored: Any = group.attrs["label_names"]
    clips = planned.clips
    columns = dict.fromkeys((*stored, *(column for clip in clips for column in clip.labels)))
    names: dict[str, list[str]] = {column: list(stored.get(column, ())) for column in columns}
    before = _columns_before(group, planned, "labels", columns, np.int16(-1))
    codes = {column: values.copy() for column, values in before.items()}
    for column, known in names.items():
        if not any(column in clip.labels for clip in clips):
            continue  # a manifest without the column changes nothing
        texts = [clip.labels.get(column, "") for clip in clips]
        known += sorted(sorted(set(texts) - set(known) - {""}), key=by_value)
        if len(known) > np.iinfo(np.int16).max:
            raise UserError(
                f"label column {column!r} has {len(known)} different values, at most "
                f"{np.iinfo(np.int16).max} are allowed: it does not hold labels"
            )
        code_of = {name: code for code, name in enumerate(known)} | {"": -1}
        codes[column][planned.rows] = [code_of[text] for text in texts]
    return before, codes, names


def _slice_values(
    group: zarr.Group, planned: _Planned
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(values before, values after) by slice column."""
    stored: Any = group.attrs["slice_columns"]
    clips = planned.clips
    columns = sorted({*stored, *(column for clip in clips for column in clip.slices)})
    before = _columns_before(group, planned, "slices", columns, "")
    values = dict(before)
    for column in columns:
        if any(column in clip.slices for clip in clips):
            texts = [clip.slices.get(column, "") for clip in clips]
            values[column] = with_texts(values[column], planned.rows, texts)
    return before, values


def _columns_before(
    group: zarr.Group, planned: _Planned, folder: str, columns: Iterable[str], blank: Any
) -> dict[str, np.ndarray]:
    """The user's columns before the plan; `blank` in new columns and new rows."""
    before = {}
    for column in columns:
        name = array_name(folder, column)
        old = read_column(group, name, planned.num_before) if name in group else np.full(0, blank)
        before[column] = np.append(old, np.full(planned.num_after - len(old), blank))
    return before


def _corrected_rows(
    planned: _Planned, *columns: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
) -> np.ndarray:
    """Rows, ascending, of known clips with a changed value in one of these columns (before, after)."""
    known = np.sort(planned.rows[planned.rows < planned.num_before])
    differs = [before[name][known] != after[name][known] for before, after in columns for name in before]
    return known[np.any(differs, axis=0)]
