"""The feature store: extraction writes it once, training and evaluation read it. A zarr v3 group.

    clip_id, source, subject, split, fold   (N,) str      clip-level, in large chunks,
    start_s, end_s                          (N,) float64  written by the planner only
    source_size, source_mtime_ns            (N,) int64    size and time of the video file when planned
    listed                                  (N,) bool     False: no longer in the manifest, or deleted
    labels/<column>                         (N,) int16    −1 = none; names in the attribute `label_names`
    slices/<column>                         (N,) str
    state                                   (N,) uint8    0 pending, 1 done, 2 failed; see below
    embeddings                              (N,T,D) float16 (imported features: float32; geometry: none)
    frames                                  (N,T,6) float32: time_s, x0, y0, x1, y1, score
    geometry (optional)                     (N,T,G) float32
    crops (optional)                        (N,T) JPEG bytes, b"" = no face
    failure                                 (N,) str      why a clip failed
    notes                                   (N,) str      why a clip's features may be wrong
    packed/                                 copies for fast reading, can be deleted: features/store/packed.py
    planner.lock.<n>                        the lock of the n-th plan: features/store/lock.py

Workers write `embeddings` to `notes`, one chunk per clip, so that no two workers write the same file.
**Chunks are written atomically, and the existing chunks are the state of a row**: `frames` is written last,
so a row with a `frames` chunk has embeddings. `geometry` and `crops` are independent: each has its own chunk.
One folder listing finds the missing rows, and a clip has at most five files. The array `state` has the same
information for external readers; the planner and `finalize` update it.

Missing values are NaN. A frame without a face has embedding 0 and score 0. Every chunk has a CRC-32C. The
planner writes the attribute `num_clips` last, so the rows of an interrupted plan do not count.

N clips, T frames, D embedding, G geometry features.
"""

import datetime
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from features.cli import UserError
from features.manifest import Clip
from features.recipe import Recipe, to_json
from features.store import erasure, planner
from features.store.data_statement import DataStatement
from features.store.description import commit, create, recipe_of, reconcile
from features.store.location import (
    StoreLocation,
    delete_all,
    existing_group,
    location_of,
    open_group,
    sweep,
    sweep_temporary_folders,
)
from features.store.lock import planner_lock
from features.store.packed import drop_packed, open_packed, write_packed
from features.store.planner import Changes
from features.store.rows import Rows
from features.store.schema import array_name, read_column, write_column
from features.store.table import ClipTable

PENDING, DONE, FAILED = 0, 1, 2
Part = Literal["embeddings", "geometry", "crops"]
Stream = Literal["embeddings", "geometry"]
STREAMS: tuple[Stream, ...] = ("embeddings", "geometry")
_MARKER: dict[str, str] = {"embeddings": "frames", "geometry": "geometry", "crops": "crops"}
"""For each part, the array whose chunk marks the part as done."""
_READ_ROWS = 256
_NAN = np.array(np.nan, np.float32)
_NO_FRAME = np.array([np.nan] * 5 + [0], np.float32)
"""The `frames` values after the end of a video: NaN, score 0."""


class FeatureStore:
    """An open store. Any number of processes can read it. Each row is written by one worker only."""

    def __init__(
        self, location: StoreLocation, group: zarr.Group, *, writable: bool, changes: Changes | None = None
    ):
        attributes: Any = group.attrs
        self.path: Path | str = location.folder if location.folder is not None else location.text
        self.recipe: Recipe = recipe_of(group, location)
        self.numerics: dict[str, Any] = attributes["numerics"]
        self.other_numerics: list[dict[str, Any]] = attributes["other_numerics"]
        """Numerics of later extractions into the same store, if they differ."""
        self.num_clips: int = attributes["num_clips"]
        self.num_frames: int = attributes["num_frames"]
        self.label_names: dict[str, list[str]] = attributes["label_names"]
        self.test_evaluations: list[dict[str, str]] = attributes["test_evaluations"]
        self.data_statement = DataStatement(**attributes.get("data_statement", {}))
        """Where the data come from; empty if the store was made without a statement."""
        self.encoder_subsets: dict[str, str] = attributes["encoder_subsets"]
        """For a fine-tuned encoder: the subset of each group (as in `groups_of`) in the fine-tuning run,
        which trained on train and selected the model on val. Empty if unknown or not fine-tuned."""
        self.streams: tuple[Stream, ...] = tuple(name for name in STREAMS if name in group)
        self.has_crops: bool = "crops" in group
        self.parts: tuple[Part, ...] = (*self.streams, "crops") if self.has_crops else self.streams
        """The parts that rows can have, in addition to frames."""
        self.changes = changes or Changes()
        """The changes that the plan made that opened this store."""
        self.location, self.group, self._writable = location, group, writable
        self._rows_per_chunk: int = attributes["rows_per_chunk"]
        self.rows = Rows(location, group, self.num_clips, self._rows_per_chunk)
        """Reads and writes rows."""
        self._maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @staticmethod
    def open(path: Path | str, mode: Literal["r", "r+"] = "r") -> "FeatureStore":
        """Open an existing store, to read it or to write rows.

        Raises UserError when there is no store, or one of another schema.
        """
        location = location_of(path)
        group = existing_group(location, read_only=mode == "r")
        try:
            return FeatureStore(location, group, writable=mode == "r+")
        except (KeyError, TypeError) as error:
            raise UserError(f"{location.text}: its zarr.json is damaged ({error!r})") from error

    def table(self) -> ClipTable:
        """The clip table, read from disk on every call."""
        count, group = self.num_clips, self.group
        columns = {name: read_column(group, name, count) for name in (*_TABLE_COLUMNS, "listed")}
        listed = columns.pop("listed")
        slices: Any = group.attrs["slice_columns"]
        failure = self.rows.texts("failure")
        state = np.where(failure != "", FAILED, PENDING)
        return ClipTable(
            **columns,
            labels={
                column: np.where(
                    listed, read_column(group, array_name("labels", column), count), np.int16(-1)
                )
                for column in self.label_names
            },
            label_names=self.label_names,
            slices={name: read_column(group, array_name("slices", name), count) for name in slices},
            state=np.where(self.present("embeddings"), DONE, state).astype(np.uint8),
            failure=failure,
        )

    def listed(self) -> np.ndarray:
        """(N,) bool: whether the clip is in the last manifest. Other clips are kept, without labels."""
        return read_column(self.group, "listed", self.num_clips)

    def missing(self, part: Part = "embeddings") -> np.ndarray:
        """Rows, ascending, whose part is not extracted yet; without failed rows and clips that are no longer
        in the manifest."""
        return np.flatnonzero(~self.present(part) & (self.rows.texts("failure") == "") & self.listed())

    def row_of_clip(self) -> dict[str, int]:
        """Row by clip id; reads only that column of the table."""
        ids = read_column(self.group, "clip_id", self.num_clips).tolist()
        return {clip_id: row for row, clip_id in enumerate(ids) if clip_id}

    def changed(self, clips: Sequence[Clip]) -> set[str]:
        """Ids of the clips whose file or end time has changed since they were planned."""
        row_of = self.row_of_clip()
        known = [clip for clip in clips if clip.clip_id in row_of]
        rows = np.array([row_of[clip.clip_id] for clip in known], np.int64)
        before = {name: read_column(self.group, name, self.num_clips) for name in (*_FILE_COLUMNS, "end_s")}
        files = planner.states_of_files(known)
        changed = set(planner.changed_rows(before, rows, known, self.recipe, files).tolist())
        return {clip.clip_id for clip in known if row_of[clip.clip_id] in changed}

    def write_row(
        self,
        row: int,
        *,
        embeddings: np.ndarray | None = None,
        frames: np.ndarray | None = None,
        geometry: np.ndarray | None = None,
        crops: Sequence[bytes] | None = None,
        notes: str = "",
    ) -> None:
        """Write parts of one row; when this returns, they are done and an earlier failure is deleted.

        embeddings: (t, D) float16, 0 without a face. frames: (t, 6) float32 as FRAME_COLUMNS, in pixels of
        the upright frame, score 0 and NaN box without a face; always together with embeddings. geometry:
        (t, G) float32, NaN where it failed. crops: t JPEG files, b"" without a face. t may be up to T: frames
        after the end of the video are filled with NaN and score 0. notes: why the embeddings may be wrong.

        Raises UserError for a wrong shape or non-finite embeddings; OSError when the disk cannot be written.
        """
        self._require_writable(row)
        if (embeddings is None) != (frames is None):
            raise UserError("embeddings and frames must be given together: frames hold which ones are valid")
        if geometry is not None:
            self.rows.write_numbers("geometry", row, geometry, _NAN)
        if crops is not None:
            self.rows.write_bytes("crops", row, list(crops))
        if embeddings is not None and frames is not None:
            if len(embeddings) != len(frames):
                raise UserError(f"{len(embeddings)} embeddings for {len(frames)} frames")
            if not np.isfinite(embeddings[np.asarray(frames)[:, 5] > 0]).all():
                raise UserError("an embedding of a valid frame is not finite")
            if notes:
                self.rows.write_text("notes", row, notes)
            self.rows.write_numbers("embeddings", row, embeddings, _NAN)
            self.rows.write_numbers("frames", row, frames, _NO_FRAME)  # the marker: last
        self.rows.forget_texts(row, "failure", *(["notes"] if embeddings is not None and not notes else []))

    def write_failure(self, row: int, reason: str) -> None:
        """Write the reason why a row could not be extracted."""
        self._require_writable(row)
        self.rows.write_text("failure", row, reason or "failed")

    def read_stream(self, name: Stream, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(x (n,T,D), valid (n,T) bool) of these rows, or of all rows; x is 0 for invalid frames.

        float16 or float32 as stored. Reads the packed copy if it is up to date.
        """
        mapped = self.mapped_stream(name)
        wanted = np.arange(self.num_clips) if rows is None else np.asarray(rows, np.int64)
        if mapped is not None:
            return np.asarray(mapped[0][wanted]), np.asarray(mapped[1][wanted])
        blocks = [self._read_block(name, part) for part in _blocks(wanted)]
        return np.concatenate([x for x, _ in blocks]), np.concatenate([valid for _, valid in blocks])

    def mapped_stream(self, name: Stream | Literal["frames"]) -> tuple[np.ndarray, np.ndarray] | None:
        """(x (N,T,D), valid (N,T) bool) of all rows as read-only memory maps of the packed copy.

        All processes share one copy in memory. None if no packed copy is up to date; `pack` makes it. A store
        opened for reading keeps the maps; one opened for writing checks again on every call."""
        if name not in self._maps:
            found = open_packed(self.location, name, self._stamp(name))
            if found is None or self._writable:
                return found
            self._maps[name] = found
        return self._maps[name]

    def read_frames(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(n,T,6) float32 as FRAME_COLUMNS; NaN and score 0 for frames that were not extracted."""
        mapped = self.mapped_stream("frames")
        wanted = np.arange(self.num_clips) if rows is None else np.asarray(rows, np.int64)
        if mapped is not None:
            return np.asarray(mapped[0][wanted])
        frames = np.concatenate([self.rows.read_numbers("frames", part) for part in _blocks(wanted)])
        frames[..., 5] = np.nan_to_num(frames[..., 5])
        return frames

    def read_crops(self, row: int) -> list[bytes]:
        """T JPEG files of one row, b"" for frames without a face.

        Raises UserError when the store has no crops, or a chunk does not match its checksum.
        """
        if not self.has_crops:
            raise UserError(f"{self.path} has no crops: extract again with --crops jpeg")
        return self.rows.read_texts("crops", row)

    def pack(self) -> bool:
        """Make the packed copy of every stream; False if it was up to date already. Safe to interrupt."""
        stamps = {name: self._stamp(name) for name in (*self.streams, "frames")}
        stale = [name for name, stamp in stamps.items() if open_packed(self.location, name, stamp) is None]
        for name in stale:
            array = self.array(name)
            shape = (self.num_clips, array.shape[1], array.shape[2])
            blocks = functools.partial(self._packing_blocks, name)
            write_packed(self.location, name, stamps[name], shape, array.dtype, blocks)
        return bool(stale)

    def finalize(self, wait_s: float = math.inf) -> None:
        """Update the array `state` and delete what killed writers left. Call it at the end of an extraction.

        The next plan does the same. Raises UserError when another process holds the lock longer than
        `wait_s` seconds.
        """
        with planner_lock(self.location, wait_s):
            group = existing_group(self.location, read_only=False)
            _delete_leftovers(group, self.location)
            write_column(group, "state", self.table().state)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change when clips, labels, splits or the extracted parts change."""
        table = self.table()
        digest = hashlib.sha256(json.dumps(to_json(self.recipe), sort_keys=True).encode())
        texts = [table.clip_id, table.subject, table.split, table.fold, table.failure, *table.slices.values()]
        for values in texts:
            digest.update("\0".join(values.tolist()).encode() + b"\n")
        for column, codes in sorted(table.labels.items()):
            names = np.array([*table.label_names[column], ""])
            digest.update("\0".join([column, *names[codes].tolist()]).encode() + b"\n")
        numbers = [table.start_s, table.end_s]
        numbers += [read_column(self.group, name, self.num_clips) for name in _FILE_COLUMNS]
        numbers += [self.present(part) for part in self.parts]
        for values in numbers:
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def record_test_evaluation(self, run_name: str) -> int:
        """Log in the store that a run is evaluated on test; returns the number of such evaluations."""
        with planner_lock(self.location) as held:
            group = existing_group(self.location, read_only=False)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            earlier: Any = group.attrs["test_evaluations"]
            self.test_evaluations = [*earlier, {"time_utc": now, "run": run_name}]
            commit(group, held, {"test_evaluations": self.test_evaluations})
        return len(self.test_evaluations)

    def carry_over(self, test_evaluations: list[dict[str, str]], encoder_subsets: dict[str, str]) -> None:
        """Copy the log of test evaluations from the store that this one is made from, before its own entries,
        and set `encoder_subsets`."""
        with planner_lock(self.location) as held:
            group = existing_group(self.location, read_only=False)
            stored: Any = group.attrs["test_evaluations"]
            added = [entry for entry in stored if entry not in test_evaluations]
            self.test_evaluations = [*test_evaluations, *added]
            self.encoder_subsets = encoder_subsets
            commit(
                group,
                held,
                {"test_evaluations": self.test_evaluations, "encoder_subsets": encoder_subsets},
            )

    def _require_writable(self, row: int) -> None:
        assert self._writable
        assert 0 <= row < self.num_clips
        if self._rows_per_chunk != 1:
            raise UserError(f"{self.path} has imported features: single rows cannot be written")
        if self.location.folder is not None and not (self.location.folder / "zarr.json").exists():
            # zarr would create the folders again, and leave chunks without a zarr.json
            raise UserError(f"{self.path} was deleted while rows were being written")

    def array(self, name: str) -> zarr.Array:
        """The zarr array of that name."""
        return self.rows.array(name)

    def present(self, part: str) -> np.ndarray:
        """(N,) bool: which rows have this part on the disk now."""
        return self.rows.present(_MARKER[part])

    def _stamp(self, name: str) -> str:
        """Hash of the chunks that a packed copy is made from; includes frames, which hold the valid mask."""
        return self.rows.stamp(name, "frames")

    def _read_block(self, name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = self.rows.read_numbers(name, rows)
        valid = np.isfinite(x).all(axis=2)
        if name == "embeddings":
            valid &= self.rows.read_numbers("frames", rows)[..., 5] > 0
        x[~valid] = 0
        return x, valid

    def _packing_blocks(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in _blocks(np.arange(self.num_clips)):
            if name == "frames":
                frames = self.read_frames(rows)
                yield frames, frames[..., 5] > 0
            else:
                yield self._read_block(name, rows)


_TABLE_COLUMNS = ("clip_id", "source", "subject", "split", "fold", "start_s", "end_s")
_FILE_COLUMNS = ("source_size", "source_mtime_ns")


def plan(
    path: Path | str,
    clips: Sequence[Clip],
    recipe: Recipe,
    *,
    numerics: dict[str, Any],
    crops: bool = False,
    versions: dict[str, str] | None = None,
    listing_complete: bool = True,
    data_statement: DataStatement | None = None,
) -> FeatureStore:
    """Create a store for these clips, or update an existing one; returns it, open for writing rows.

    clips: windows. Known clips keep their rows; their labels, subjects and splits are updated; a clip whose
    file or end time changed becomes pending. `changes` of the returned store lists all this. With
    `listing_complete=False` (for example with `--limit`), other clips of the store do not change. A
    `data_statement` replaces the store's; an empty one and None change nothing.

    Raises UserError when the existing store has another recipe (naming the fields), when the path is not a
    store, or for duplicate clips.
    """
    location = location_of(path)
    _prepare_folder(location)
    file_states = planner.states_of_files(clips)
    with planner_lock(location) as held:
        group = open_group(location, read_only=False)
        if group is None:
            assert recipe.pixels is not None, "imported features are written by write_external"
            group = create(
                held, recipe, numerics=numerics, num_frames=recipe.pixels.num_frames, versions=versions
            )
        recipe = reconcile(group, held, recipe, numerics, data_statement)
        _delete_leftovers(group, location)
        changes = planner.write_rows(
            group,
            held,
            clips,
            recipe,
            has_crops=crops,
            listing="whole" if listing_complete else "part",
            file_states=file_states,
        )
        store = FeatureStore(
            location, existing_group(location, read_only=False), writable=True, changes=changes
        )
        write_column(group, "state", store.table().state)
    return store


def delete(path: Path | str, subject: str | None = None) -> int:
    """Delete a store, or the rows of one subject in it; returns the number of deleted rows.

    The subject's rows stay as empty rows, so that no other row moves.

    Raises UserError when there is no store at the path, or it has no such subject.
    """
    location = location_of(path)
    count = FeatureStore.open(path).num_clips
    if subject is None:
        drop_packed(location)
        delete_all(location)
        sweep_temporary_folders(location)
        return count
    with planner_lock(location) as held:
        group = existing_group(location, read_only=False)
        _delete_leftovers(group, location, include_recent=True)  # partial files may hold crops of the subject
        erasure.blank_uncounted(group)
        # Opened again: another process may have appended rows before this one got the lock.
        rows = np.flatnonzero(FeatureStore.open(path).table().subject == subject)
        if not len(rows) or not subject:
            raise UserError(f"{location.text} has no subject {subject!r}")
        erasure.erase_rows(group, held, rows)
    return len(rows)


def _delete_leftovers(group: zarr.Group, location: StoreLocation, *, include_recent: bool = False) -> None:
    """Delete what killed writers left, and data that was written after its subject was deleted."""
    sweep(location, include_recent=include_recent)
    rows = erasure.rows_after_deletion(group, location)
    if len(rows):
        erasure.clear_rows(group, location, rows)
        drop_packed(location)


def _prepare_folder(location: StoreLocation) -> None:
    if location.folder is None or (location.folder / "zarr.json").exists():
        return
    if location.folder.exists() and not location.folder.is_dir():
        raise UserError(f"{location.text} is a file, not a store: choose another path")
    location.folder.mkdir(parents=True, exist_ok=True)
    strange = [item.name for item in location.folder.iterdir() if not item.name.startswith("planner.lock")]
    is_begun = any(name.endswith(".partial") for name in strange)
    if (
        strange and not is_begun and not (location.folder / "zarr.json").exists()
    ):  # now: another may have begun
        raise UserError(
            f"{location.text} is not a store and not empty (it has {strange[0]}): choose another folder"
        )


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in order, in blocks of _READ_ROWS; at least one block, which may be empty."""
    for first in range(0, max(1, len(rows)), _READ_ROWS):
        yield rows[first : first + _READ_ROWS]
