"""From the clips of a manifest to the rows of a store: append, correct, list what vanished.

Everything here runs under the planner's lock. Rows never move: known clips keep theirs, new ones are
appended in manifest order, and the attribute `num_clips` is written last, so that a killed planner leaves
nothing that a reader can see half.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

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
"""FAT and exFAT, as of USB sticks, store times in steps of two seconds: a copy is the same file."""


@dataclass(frozen=True)
class Changes:
    """What a plan did; clip ids."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    """Known clips whose video file has another size or time (by more than two seconds), or that end
    elsewhere: to be extracted again."""
    corrected: tuple[str, ...] = ()
    """Known clips with another label, subject, split, fold or slice than before."""
    vanished: tuple[str, ...] = ()
    """Known clips that this manifest does not name: kept, but left out of training until it does again."""


Listing = Literal["whole", "part", "none"]
"""Whether clips are all that there are, so that others have vanished; some of them; or no listing at all,
which leaves what has vanished as it is."""


@dataclass(frozen=True)
class _Planned:
    """Clips, and the rows that they have: known ones keep theirs, new ones are appended in their order."""

    clips: list[Clip]
    rows: np.ndarray
    """(len(clips),) int64."""
    num_before: int
    """Rows of the store so far."""
    before: dict[str, np.ndarray]
    """Its clip-level columns, blank where rows are new."""

    @property
    def new(self) -> np.ndarray:
        """Rows, ascending, of clips that the store did not have."""
        return np.arange(self.num_before, self.num_after)

    @property
    def num_after(self) -> int:
        """Rows with the new ones."""
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
    """Make the store's clip-level arrays say what the clips say, and its row arrays long enough.

    Known clips keep what these clips say nothing of: a label or slice column that none of them has, subjects,
    splits or folds where none of them has one, and the end of a clip that has none.

    listing: whether these are all clips that there are. file_states: as `states_of_files` gives them;
    None = asked now.

    Raises ValueError for a clip named twice, for a label column with too many different values, and for
    changed clips of imported features.
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
    vanished = planned.before["listed"] & ~table["listed"]
    ids = table["clip_id"]
    changes = Changes(*(tuple(ids[of].tolist()) for of in (planned.new, changed, corrected, vanished)))

    _make_row_arrays(group, recipe, len(ids), has_crops)
    subsets: Any = group.attrs["encoder_subsets"]
    renamed = _subsets_under_new_names(subsets, planned.before, table)
    _write_users_columns(group, labels, label_names, slices, subsets | renamed)
    clear_rows(group, location, changed)  # before what changed is noted: a kill repeats it
    for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS):
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
    """Write labels and slices. Names before codes: a longer list of names misnames nothing should the rest
    never come. People go by both names in `subsets` until the new ones stand."""
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
    ensure_row_array(group, "failure", str, count, ())
    if recipe.geometry is not None:
        shape = (num_frames, len(recipe.geometry.features))
        ensure_row_array(group, "geometry", "float32", count, shape, step)
    if has_crops or "crops" in group:
        ensure_row_array(group, "crops", "variable_length_bytes", count, (num_frames,))


def _planned(group: zarr.Group, clips: Sequence[Clip]) -> _Planned:
    ids = [clip.clip_id for clip in clips]
    twice = sorted(name for name, times in Counter(ids).items() if times > 1)
    if twice:
        raise ValueError(f"clips must be there once each; twice: {', '.join(twice[:5])}")
    num_before = int(group.attrs["num_clips"])  # type: ignore[arg-type]
    table = read_table(group, num_before)
    row_of = {name: row for row, name in enumerate(table["clip_id"].tolist()) if name}
    new = [name for name in ids if name not in row_of]
    row_of.update({name: num_before + index for index, name in enumerate(new)})
    before = {name: np.append(values, np.zeros(len(new), values.dtype)) for name, values in table.items()}
    rows = np.array([row_of[name] for name in ids], np.int64)
    return _Planned(_with_stored_labels(clips, group.attrs["label_names"]), rows, num_before, before)


def _table_after(planned: _Planned, files: np.ndarray, listing: Listing) -> dict[str, np.ndarray]:
    """The clip-level columns as the clips and their files say."""
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
        if any(values):  # a manifest that says nothing in a column corrects nothing, as with labels
            table[name] = with_texts(table[name], rows, values)
    table["start_s"][rows] = [clip.start_s for clip in clips]
    ends_s = _ends_s(clips)
    said = np.isfinite(ends_s) | (rows >= planned.num_before)
    table["end_s"][rows[said]] = ends_s[said]
    # A disk that is away today has not changed its files.
    noted = (files[:, 0] >= 0) & ~_same_files(_files_of(table, rows), files)
    table["source_size"][rows[noted]], table["source_mtime_ns"][rows[noted]] = files[noted].T
    if listing == "whole":
        table["listed"][:] = False
    if listing != "none":
        table["listed"][rows] = True
    return table


def _ends_s(clips: Sequence[Clip]) -> np.ndarray:
    """(n,) float64; NaN = not said."""
    return np.array([np.nan if clip.end_s is None else clip.end_s for clip in clips], np.float64)


def _subsets_under_new_names(
    subsets: dict[str, str], before: dict[str, np.ndarray], after: dict[str, np.ndarray]
) -> dict[str, str]:
    """Who trained the encoder, as they are called after a correction of subjects; whoever is now one person
    stands where the first of them in the order of `SUBSETS` stood."""
    found: dict[str, str] = {}
    olds, news = (group_names(t["subject"].tolist(), t["source"].tolist()) for t in (before, after))
    for old, new in zip(olds, news, strict=True):
        if old in subsets:
            found[new] = min(found.get(new, SUBSETS[-1]), subsets[old], key=SUBSETS.index)
    return found


def states_of_files(clips: Sequence[Clip]) -> np.ndarray:
    """(n, 2) int64: size in bytes and time of change in ns of each clip's file; −1 where it cannot be asked.

    Best asked before the lock is taken: thousands of files on a network disk take their time.
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
    """Which rows of known clips have a file of another size or time than `before` says, or end elsewhere.

    An end that moves by up to half a sampling period moves no more than the last frame. One that is unknown,
    then or now, tells nothing.
    """
    stored = _files_of(before, rows)
    changed = ~_same_files(stored, file_states) & (file_states[:, 0] >= 0) & (stored[:, 0] >= 0)
    if recipe.pixels is not None:
        changed |= np.abs(before["end_s"][rows] - _ends_s(clips)) > 0.5 / recipe.pixels.fps
    return np.sort(rows[changed])


def _files_of(table: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """(n, 2), as `states_of_files`, of what a store knows of these rows."""
    return np.stack([table["source_size"][rows], table["source_mtime_ns"][rows]], axis=1)


def _same_files(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) bool: whether two `states_of_files` tell of the same files."""
    return (one[:, 0] == other[:, 0]) & (np.abs(one[:, 1] - other[:, 1]) <= TIME_SLACK_NS)


def _with_stored_labels(clips: Sequence[Clip], label_names: Any) -> list[Clip]:
    """The clips, with what is a label in the store as one: also a column that has too many values by now to
    become a label."""
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
    """Codes of every label column before and after, and the names they stand for. Names are only ever
    appended."""
    stored: Any = group.attrs["label_names"]
    clips = planned.clips
    columns = dict.fromkeys((*stored, *(column for clip in clips for column in clip.labels)))
    names: dict[str, list[str]] = {column: list(stored.get(column, ())) for column in columns}
    before = _columns_before(group, planned, "labels", columns, np.int16(-1))
    codes = {column: values.copy() for column, values in before.items()}
    for column, known in names.items():
        if not any(column in clip.labels for clip in clips):
            continue  # a manifest without the column corrects nothing
        texts = [clip.labels.get(column, "") for clip in clips]
        known += sorted(sorted(set(texts) - set(known) - {""}), key=by_value)
        if len(known) > np.iinfo(np.int16).max:
            raise ValueError(f"label column {column!r} has {len(known)} different values: it holds no labels")
        code_of = {name: code for code, name in enumerate(known)} | {"": -1}
        codes[column][planned.rows] = [code_of[text] for text in texts]
    return before, codes, names


def _slice_values(
    group: zarr.Group, planned: _Planned
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values of every slice column before and after."""
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
    """A user's columns as they are; blank where one or the row is new."""
    before = {}
    for column in columns:
        name = array_name(folder, column)
        old = read_column(group, name, planned.num_before) if name in group else np.full(0, blank)
        before[column] = np.append(old, np.full(planned.num_after - len(old), blank))
    return before


def _corrected_rows(
    planned: _Planned, *columns: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
) -> np.ndarray:
    """Rows, ascending, of known clips of which a column (before, after) says something else now."""
    known = np.sort(planned.rows[planned.rows < planned.num_before])
    differs = [before[name][known] != after[name][known] for before, after in columns for name in before]
    return known[np.any(differs, axis=0)]
