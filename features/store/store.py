"""The feature store: what extraction writes once and everything else reads. A zarr v3 group.

    clip_id, source, subject, split, fold   (N,) str      clip-level, in large chunks,
    start_s, end_s                          (N,) float64  written by the planner only
    source_size, source_mtime_ns            (N,) int64    the video file as it was when planned
    listed                                  (N,) bool     False: vanished from the last manifest, or deleted
    labels/<column>                         (N,) int16    −1 = none; names in the attribute `label_names`
    slices/<column>                         (N,) str
    state                                   (N,) uint8    0 pending, 1 done, 2 failed; see below
    embeddings                              (N,T,D) float16 (imported features: float32; geometry: none)
    frames                                  (N,T,6) float32: time_s, x0, y0, x1, y1, score
    geometry (optional)                     (N,T,G) float32
    crops (optional)                        (N,T) JPEG bytes, b"" = no face
    failure                                 (N,) str      why a clip failed
    packed/                                 disposable copies for fast reading: features/store/packed.py

`embeddings` to `failure` are written by workers, one clip a chunk, so that no two ever write the same file.
**A chunk is there whole or not at all, and that is a row's state**: `frames` goes last, so a row whose
`frames` chunk exists is embedded; `geometry` and `crops` exist or do not, each for itself. Asking which rows
are missing is one listing, not one read a clip, and a clip costs at most four files. `state` says the same
in one small array for other people's readers, brought up to date by the planner and by `finalize`.

Unwritten is NaN; a frame without a face is 0 with score 0. Every chunk carries a CRC-32C. A planner writes
the attribute `num_clips` last, so rows of an interrupted plan do not exist yet.

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

from features.manifest import Clip
from features.recipe import Recipe, to_json
from features.store import erasure, planner
from features.store.description import commit, create, recipe_of, reconcile
from features.store.location import (
    StoreLocation,
    delete_all,
    existing_group,
    location_of,
    open_group,
    sweep,
    sweep_beside,
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
"""The array whose chunk says that a part of a row is done."""
_READ_ROWS = 256
_NAN = np.array(np.nan, np.float32)
_NO_FRAME = np.array([np.nan] * 5 + [0], np.float32)
"""What stands behind a video's end: score 0."""


class FeatureStore:
    """An open store. Any number of processes may read; workers write rows that no other writes."""

    def __init__(
        self, location: StoreLocation, group: zarr.Group, *, writable: bool, changes: Changes | None = None
    ):
        attributes: Any = group.attrs
        self.path: Path | str = location.folder if location.folder is not None else location.text
        self.recipe: Recipe = recipe_of(group, location)
        self.numerics: dict[str, Any] = attributes["numerics"]
        self.other_numerics: list[dict[str, Any]] = attributes["other_numerics"]
        """Numerics of later runs into the same store, where they differ."""
        self.num_clips: int = attributes["num_clips"]
        self.num_frames: int = attributes["num_frames"]
        self.label_names: dict[str, list[str]] = attributes["label_names"]
        self.test_openings: list[dict[str, str]] = attributes["test_openings"]
        self.encoder_subsets: dict[str, str] = attributes["encoder_subsets"]
        """Where the encoder was fine-tuned, the side on which its run had each person or video, named as by
        `groups_of`: it learned from train and was chosen by val. Empty where nobody wrote that down."""
        self.streams: tuple[Stream, ...] = tuple(name for name in STREAMS if name in group)
        self.has_crops: bool = "crops" in group
        self.parts: tuple[Part, ...] = (*self.streams, "crops") if self.has_crops else self.streams
        """What its rows may have beside frames."""
        self.changes = changes or Changes()
        """What the plan that opened this store did."""
        self.location, self.group, self._writable = location, group, writable
        self._rows_per_chunk: int = attributes["rows_per_chunk"]
        self.rows = Rows(location, group, self.num_clips, self._rows_per_chunk)
        """The rows as bytes."""
        self._maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @staticmethod
    def open(path: Path | str, mode: Literal["r", "r+"] = "r") -> "FeatureStore":
        """Open a store that is there, to read or to write rows.

        Raises ValueError when there is none, or one of another schema.
        """
        location = location_of(path)
        group = existing_group(location, read_only=mode == "r")
        try:
            return FeatureStore(location, group, writable=mode == "r+")
        except (KeyError, TypeError) as error:
            raise ValueError(f"{location.text}: its zarr.json is damaged ({error!r})") from error

    def table(self) -> ClipTable:
        """What is known about each row, read afresh."""
        count, group = self.num_clips, self.group
        columns = {name: read_column(group, name, count) for name in (*_TABLE_COLUMNS, "listed")}
        listed = columns.pop("listed")
        slices: Any = group.attrs["slice_columns"]
        failure = self.rows.failures()
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
        """(N,) bool: whether the last manifest named the clip. Others are kept, without labels."""
        return read_column(self.group, "listed", self.num_clips)

    def missing(self, part: Part = "embeddings") -> np.ndarray:
        """Rows, ascending, whose part is still to be extracted; not those that failed or vanished."""
        return np.flatnonzero(~self.present(part) & (self.rows.failures() == "") & self.listed())

    def row_of_clip(self) -> dict[str, int]:
        """Row by clip id; without reading anything else of the table."""
        ids = read_column(self.group, "clip_id", self.num_clips).tolist()
        return {clip_id: row for row, clip_id in enumerate(ids) if clip_id}

    def changed(self, clips: Sequence[Clip]) -> set[str]:
        """Ids of those of the clips that have changed since they were planned: file or end."""
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
    ) -> None:
        """Write parts of one row; when this returns, they are done and an earlier failure is forgotten.

        embeddings: (t, D) float16, 0 without a face. frames: (t, 6) float32 as FRAME_COLUMNS, in pixels of
        the upright frame, score 0 and NaN box without a face; always together with embeddings. geometry:
        (t, G) float32, NaN where it failed. crops: t JPEG files, b"" without a face. t may be up to T: what
        lies behind the video's end is filled with NaN and score 0.

        Raises ValueError on another shape or on non-finite embeddings; OSError when the disk refuses.
        """
        self._require_writable(row)
        if (embeddings is None) != (frames is None):
            raise ValueError("embeddings and frames go together: frames say which embeddings are valid")
        if geometry is not None:
            self.rows.write_numbers("geometry", row, geometry, _NAN)
        if crops is not None:
            self.rows.write_bytes("crops", row, list(crops))
        if embeddings is not None and frames is not None:
            if len(embeddings) != len(frames):
                raise ValueError(f"{len(embeddings)} embeddings for {len(frames)} frames")
            if not np.isfinite(embeddings[np.asarray(frames)[:, 5] > 0]).all():
                raise ValueError("an embedding of a valid frame is not finite")
            self.rows.write_numbers("embeddings", row, embeddings, _NAN)
            self.rows.write_numbers("frames", row, frames, _NO_FRAME)  # the marker: last
        self.rows.forget_failure(row)

    def write_failure(self, row: int, reason: str) -> None:
        """Note that a row could not be extracted, and why."""
        self._require_writable(row)
        self.rows.write_failure(row, reason or "failed")

    def read_stream(self, name: Stream, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(x (n,T,D), valid (n,T) bool) of the rows asked for, or of all; x is 0 where not valid.

        float16 or float32 as stored. Reads the packed copy where there is a fresh one.
        """
        mapped = self.mapped_stream(name)
        wanted = np.arange(self.num_clips) if rows is None else np.asarray(rows, np.int64)
        if mapped is not None:
            return np.asarray(mapped[0][wanted]), np.asarray(mapped[1][wanted])
        blocks = [self._read_block(name, part) for part in _blocks(wanted)]
        return np.concatenate([x for x, _ in blocks]), np.concatenate([valid for _, valid in blocks])

    def mapped_stream(self, name: Stream | Literal["frames"]) -> tuple[np.ndarray, np.ndarray] | None:
        """(x (N,T,D), valid (N,T)) of all rows as read-only memory maps of the packed copy: one copy in
        memory however many processes read it. None where there is no fresh one; `pack` makes it. Asked for
        afresh unless this is a reader that has found it: that one keeps it."""
        if name not in self._maps:
            found = open_packed(self.location, name, self._stamp(name))
            if found is None or self._writable:
                return found
            self._maps[name] = found
        return self._maps[name]

    def read_frames(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(n,T,6) float32 as FRAME_COLUMNS; NaN and score 0 where nothing was extracted."""
        mapped = self.mapped_stream("frames")
        wanted = np.arange(self.num_clips) if rows is None else np.asarray(rows, np.int64)
        if mapped is not None:
            return np.asarray(mapped[0][wanted])
        frames = np.concatenate([self.rows.read_numbers("frames", part) for part in _blocks(wanted)])
        frames[..., 5] = np.nan_to_num(frames[..., 5])
        return frames

    def read_crops(self, row: int) -> list[bytes]:
        """T JPEG files of one row, b"" where there was no face.

        Raises ValueError where the store holds no crops, or a chunk does not match its checksum.
        """
        if not self.has_crops:
            raise ValueError(f"{self.path} holds no crops: extract with --crops jpeg")
        return self.rows.read_texts("crops", row)

    def pack(self) -> bool:
        """Make the fast copy of every stream; False when it was there and fresh. Safe to interrupt."""
        stamps = {name: self._stamp(name) for name in (*self.streams, "frames")}
        stale = [name for name, stamp in stamps.items() if open_packed(self.location, name, stamp) is None]
        for name in stale:
            array = self.array(name)
            shape = (self.num_clips, array.shape[1], array.shape[2])
            blocks = functools.partial(self._packing_blocks, name)
            write_packed(self.location, name, stamps[name], shape, array.dtype, blocks)
        return bool(stale)

    def finalize(self, wait_s: float = math.inf) -> None:
        """Bring the array `state` up to date and sweep what killed writers left. At the end of a run.

        The next plan does it too. Raises ValueError when others plan for longer than `wait_s`.
        """
        with planner_lock(self.location, wait_s):
            group = existing_group(self.location, read_only=False)
            _tidy(group, self.location)
            write_column(group, "state", self.table().state)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change when clips, labels, splits or what was extracted change."""
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

    def record_test_opening(self, run_name: str) -> int:
        """Note in the store's ledger that the test split was opened; returns how often it has been."""
        with planner_lock(self.location):
            group = existing_group(self.location, read_only=False)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            earlier: Any = group.attrs["test_openings"]
            self.test_openings = [*earlier, {"time_utc": now, "run": run_name}]
            commit(group, self.location, {"test_openings": self.test_openings})
        return len(self.test_openings)

    def carry_over(self, test_openings: list[dict[str, str]], encoder_subsets: dict[str, str]) -> None:
        """Take over the ledger of the store that this one is made from, before its own entries, and note who
        trained the encoder."""
        with planner_lock(self.location):
            group = existing_group(self.location, read_only=False)
            own: Any = group.attrs["test_openings"]
            self.test_openings = [*test_openings, *(entry for entry in own if entry not in test_openings)]
            self.encoder_subsets = encoder_subsets
            commit(
                group,
                self.location,
                {"test_openings": self.test_openings, "encoder_subsets": encoder_subsets},
            )

    def _require_writable(self, row: int) -> None:
        assert self._writable
        assert 0 <= row < self.num_clips
        if self._rows_per_chunk != 1:
            raise ValueError(f"{self.path} holds imported features, which are written all at once")
        if self.location.folder is not None and not (self.location.folder / "zarr.json").exists():
            # zarr would make the folders again and leave a heap without a head
            raise ValueError(f"{self.path} was deleted while rows were being written")

    def array(self, name: str) -> zarr.Array:
        """The zarr array of that name."""
        return self.rows.array(name)

    def present(self, part: str) -> np.ndarray:
        """(N,) bool: whose part is there, as far as the disk says now."""
        return self.rows.present(_MARKER[part])

    def _stamp(self, name: str) -> str:
        """Which chunks a packed copy is made from; frames say what is valid."""
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
) -> FeatureStore:
    """Create a store, or make one that is there fit these clips; opened for writing rows.

    clips are windows already. Known clips keep their rows; labels, subjects and splits become what the
    clips say; a clip whose file or end changed becomes pending; `changes` of the store returned tells. With
    `listing_complete=False` (a `--limit`, say) clips that are not named are left as they are.

    Raises ValueError when the store that is there has another recipe, naming the fields, when something
    else lies at the path, or when a clip is named twice.
    """
    location = location_of(path)
    _prepare_folder(location)
    file_states = planner.states_of_files(clips)
    with planner_lock(location):
        group = open_group(location, read_only=False)
        if group is None:
            assert recipe.pixels is not None, "imported features have a writer of their own"
            group = create(
                location, recipe, numerics=numerics, num_frames=recipe.pixels.num_frames, versions=versions
            )
        recipe = reconcile(group, location, recipe, numerics)
        _tidy(group, location)
        changes = planner.write_rows(
            group,
            location,
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
    """Delete a store for good, or one person's rows in it; returns how many rows that were.

    A person's rows stay as empty places, so that nobody else's row moves.

    Raises ValueError when there is no store at the path, or nobody of that name in it.
    """
    location = location_of(path)
    count = FeatureStore.open(path).num_clips
    if subject is None:
        drop_packed(location)
        delete_all(location)
        sweep_beside(location)
        return count
    with planner_lock(location):
        group = existing_group(location, read_only=False)
        _tidy(group, location, young=True)  # half a crop of the person, too
        erasure.blank_uncounted(group)
        # Opened afresh: whoever was waited for may have appended rows.
        rows = np.flatnonzero(FeatureStore.open(path).table().subject == subject)
        if not len(rows) or not subject:
            raise ValueError(f"{location.text} has no subject {subject!r}")
        erasure.erase_rows(group, location, rows)
    return len(rows)


def _tidy(group: zarr.Group, location: StoreLocation, *, young: bool = False) -> None:
    """Sweep what killed writers left, and clear what was written of people who were deleted by then."""
    sweep(location, young=young)
    rows = erasure.rows_after_deletion(group, location)
    if len(rows):
        erasure.clear_rows(group, location, rows)
        drop_packed(location)


def _prepare_folder(location: StoreLocation) -> None:
    if location.folder is None or (location.folder / "zarr.json").exists():
        return
    if location.folder.exists() and not location.folder.is_dir():
        raise ValueError(f"{location.text} is a file, not a store")
    location.folder.mkdir(parents=True, exist_ok=True)
    strange = [item.name for item in location.folder.iterdir() if not item.name.startswith("planner.lock")]
    if strange and not any(name.endswith(".partial") for name in strange):
        raise ValueError(f"{location.text} is not a store, and not empty: it holds {strange[0]}")


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in their order, some at a time; never no block at all."""
    for first in range(0, max(1, len(rows)), _READ_ROWS):
        yield rows[first : first + _READ_ROWS]
