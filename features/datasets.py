"""Training data of a head: streams by name, each with a validity mask, and labels, from rows of a store.

Two classes with one interface (`len()`, `.labels`, `.batch(indices)`): `Samples` holds cached features in
memory or reads them from a shared memory map; `CropClips` decodes face crops when a batch is read.
Shorter sequences are masked, never truncated.

B clips, T frames, D embedding, G geometry, (H, W) crop pixels.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from features.cli import UserError
from features.labels import Labelling, class_indices
from features.store.store import FeatureStore, Stream
from features.store.table import ClipTable, group_names

Inputs = Literal["embeddings", "geometry", "both"]
Batch = tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]


class RowView:
    """A view of some rows of an array, usually a memory map: only indexed rows are read."""

    def __init__(self, base: np.ndarray, rows: np.ndarray):
        self.base, self.rows = base, rows
        self.shape = (len(rows), *base.shape[1:])
        self.dtype, self.ndim = base.dtype, base.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, tuple):
            return np.asarray(self.base[self.rows[index[0]]])[(slice(None), *index[1:])]
        return np.asarray(self.base[self.rows[index]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = np.asarray(self.base[self.rows])
        return values if dtype is None else values.astype(dtype, copy=False)


@dataclass(frozen=True)
class Samples:
    """Cached features of some clips: arrays, or `RowView`s if the store is read by memory map."""

    x: dict[str, Any]
    """(N,T,D) by stream, float16 or float32 as stored; 0 for invalid frames."""
    valid: dict[str, Any]
    """(N,T) bool by stream."""
    labels: np.ndarray
    """(N,) int64 class indices, −1 = not labelled."""
    clip_ids: np.ndarray
    subjects: np.ndarray
    rows: np.ndarray
    """(N,) rows of the store."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray) -> Batch:
        """(x by stream (B,T,D), valid by stream (B,T), labels (B,)) of the samples at these indices."""
        x = {name: values[indices] for name, values in self.x.items()}
        return x, {name: mask[indices] for name, mask in self.valid.items()}, self.labels[indices]


def streams_of(inputs: Inputs) -> tuple[Stream, ...]:
    """The streams that `--inputs` names."""
    return ("embeddings", "geometry") if inputs == "both" else (inputs,)


def labelled_rows(
    table: ClipTable, labelling: Labelling, *, with_failed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, class indices (len(rows),) int64) of the clips that have a class in this labelling.

    Clips that were not extracted are left out. With `with_failed`, failed clips are included: all their
    frames are invalid, but metrics count them.

    Raises UserError when the store has no such label column.
    """
    labels = _labels(table, labelling)
    rows = np.flatnonzero((labels >= 0) & ((table.state == 1) | ((table.state == 2) & with_failed)))
    return rows, labels[rows]


def load_samples(
    store: FeatureStore,
    labelling: Labelling,
    rows: np.ndarray,
    inputs: Inputs = "embeddings",
    *,
    mapped: bool = False,
) -> Samples:
    """Features and labels of these rows.

    With `mapped`, the store's packed copy is made if it is missing, and read by memory map: all processes
    share one copy in memory. A store larger than memory works too, but reads from disk what does not fit.
    Without `mapped`, the rows are copied into this process.

    Raises UserError when the store has no such stream or label column.
    """
    rows = np.asarray(rows, np.int64)
    _require_streams(store, inputs)
    table = store.table()
    if mapped:
        with contextlib.suppress(OSError):  # no disk space for a copy: then each process loads its own rows
            store.pack()
    x: dict[str, Any] = {}
    valid: dict[str, Any] = {}
    for name in streams_of(inputs):
        maps = store.mapped_stream(name) if mapped else None
        if maps is not None:
            x[name], valid[name] = RowView(maps[0], rows), RowView(maps[1], rows)
        else:
            x[name], valid[name] = store.read_stream(name, rows)
    return Samples(x, valid, _labels(table, labelling)[rows], table.clip_id[rows], table.subject[rows], rows)


def select_samples(samples: Samples, indices: np.ndarray) -> Samples:
    """The samples at these indices (integers or a bool mask); memory maps stay memory maps."""
    if indices.dtype == bool:
        indices = np.flatnonzero(indices)

    def taken(values: Any) -> Any:
        return RowView(values.base, values.rows[indices]) if isinstance(values, RowView) else values[indices]

    return dataclasses.replace(
        samples,
        x={name: taken(values) for name, values in samples.x.items()},
        valid={name: taken(mask) for name, mask in samples.valid.items()},
        labels=samples.labels[indices],
        clip_ids=samples.clip_ids[indices],
        subjects=samples.subjects[indices],
        rows=samples.rows[indices],
    )


def sample_groups(samples: Samples) -> np.ndarray:
    """(N,) str: group of each sample, as `groups_of` gives it; samples of one group stay in one subset."""
    sources = [clip_id.rpartition("#")[0] for clip_id in samples.clip_ids.tolist()]
    return np.array(group_names(samples.subjects.tolist(), sources), dtype=str)


class CropClips:
    """Face crops of some clips, decoded when a batch is read."""

    def __init__(self, store: FeatureStore, labelling: Labelling, rows: np.ndarray):
        """Raises UserError when the store has no crops, or lacks the label column."""
        if not store.has_crops:
            raise UserError(f"{store.path} has no crops: extract again with --crops jpeg")
        assert store.recipe.pixels is not None, "imported features have no crops"
        table = store.table()
        self.rows = np.asarray(rows, np.int64)
        self.labels = _labels(table, labelling)[self.rows]
        self.clip_ids, self.subjects = table.clip_id[self.rows], table.subject[self.rows]
        self.valid = {"crops": np.nan_to_num(store.read_frames(self.rows)[..., 5]) > 0}
        self._store, self._crop_px = store, store.recipe.pixels.crop_px

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray) -> Batch:
        """(x, valid, labels): x["crops"] uint8 RGB (B,T,H,W,3), 0 without a face; valid["crops"] (B,T) bool;
        labels (B,) int64.

        Raises UserError for a chunk that does not match its checksum, and for a crop of a wrong size.
        """
        indices = np.atleast_1d(np.arange(len(self))[indices])
        size = self._crop_px
        crops = np.zeros((len(indices), self._store.num_frames, size, size, 3), np.uint8)
        for position, index in enumerate(indices.tolist()):
            _decode_into(crops[position], self._store.read_crops(int(self.rows[index])), self.clip_ids[index])
        return (
            {"crops": crops},
            {name: mask[indices] for name, mask in self.valid.items()},
            self.labels[indices],
        )


def _decode_into(frames: np.ndarray, files: Sequence[bytes], clip_id: str) -> None:
    import cv2

    for index, file in enumerate(files):
        if not file:
            continue
        image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None or image.shape != frames.shape[1:]:
            shape = None if image is None else image.shape
            raise UserError(f"crop {index} of {clip_id} has shape {shape}, expected {frames.shape[1:]}")
        frames[index] = image


def _labels(table: ClipTable, labelling: Labelling) -> np.ndarray:
    """(N,) int64 class index of every row; −1 = none.

    Raises UserError when the store has no such label column.
    """
    if labelling.column not in table.labels:
        have = ", ".join(table.labels) or "none"
        raise UserError(f"the store has no label column {labelling.column!r}; it has: {have}")
    return class_indices(labelling, table.labels[labelling.column], table.label_names[labelling.column])


def _require_streams(store: FeatureStore, inputs: Inputs) -> None:
    for name in streams_of(inputs):
        if name not in store.streams:
            have = ", ".join(store.streams)
            raise UserError(
                f"{store.path} has no {name}, only {have}: change --inputs, or extract with --geometry on"
            )
