"""Rows of a store as what a head learns from: streams by name, each with its own validity, and labels.

Two sources with one face, `len()`, `.labels` and `.batch(indices)`: `Samples` holds cached features in
memory or reads them from a shared memory map; `CropClips` decodes face crops as they are asked for.
Sequences that are shorter are masked, never cut.

B clips, T frames, D embedding, G geometry, (H, W) crop pixels.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from features.labels import Labelling, class_indices
from features.store.store import FeatureStore, Stream
from features.store.table import ClipTable, group_names

Inputs = Literal["embeddings", "geometry", "both"]
Batch = tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]


class RowView:
    """Some rows of an array that stays where it is, a memory map usually: only what is indexed is read."""

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
    """Cached features of some clips. Arrays, or `RowView`s where the store is read by memory map."""

    x: dict[str, Any]
    """(N,T,D) by stream, float16 or float32 as stored; 0 where not valid."""
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
        """(x by stream (B,T,D), valid by stream (B,T), labels (B,)) of the samples at these places."""
        x = {name: values[indices] for name, values in self.x.items()}
        return x, {name: mask[indices] for name, mask in self.valid.items()}, self.labels[indices]


def streams_of(inputs: Inputs) -> tuple[Stream, ...]:
    """The streams that `--inputs` names."""
    return ("embeddings", "geometry") if inputs == "both" else (inputs,)


def labelled_rows(
    table: ClipTable, labelling: Labelling, *, with_failed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, class indices (len(rows),) int64) of the clips that have a label of this labelling.

    Clips that were not extracted are left out; `with_failed` keeps those that failed, whose features are
    all invalid, so that they stay in a denominator.

    Raises ValueError when the store has no such label column.
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

    With `mapped`, the store's packed copy is made if need be and read by memory map: one copy in memory for
    all processes, and a store larger than memory works too, at the cost of reading from disk what does not
    fit. Without, the rows are copied into this process.

    Raises ValueError when the store has no such stream or label column.
    """
    rows = np.asarray(rows, np.int64)
    _require_streams(store, inputs)
    table = store.table()
    if mapped:
        with contextlib.suppress(OSError):  # no room for a copy anywhere: then each process reads its own
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
    """The samples at these places; memory maps stay maps."""
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
    """(N,) str: who must stay together, as `splits.groups_of` says it of a store's rows."""
    sources = [clip_id.rpartition("#")[0] for clip_id in samples.clip_ids.tolist()]
    return np.array(group_names(samples.subjects.tolist(), sources), dtype=str)


class CropClips:
    """Face crops of some clips, decoded as they are asked for, beside the geometry where a head reads it."""

    def __init__(
        self, store: FeatureStore, labelling: Labelling, rows: np.ndarray, inputs: Inputs = "embeddings"
    ):
        """Raises ValueError when the store holds no crops, or no stream or label column of that name."""
        if not store.has_crops:
            raise ValueError(f"{store.path} holds no crops: extract with --crops jpeg")
        assert store.recipe.pixels is not None, "imported features have no crops"
        _require_streams(store, inputs)
        table = store.table()
        self.rows = np.asarray(rows, np.int64)
        self.labels = _labels(table, labelling)[self.rows]
        self.clip_ids, self.subjects = table.clip_id[self.rows], table.subject[self.rows]
        self.valid = {"crops": np.nan_to_num(store.read_frames(self.rows)[..., 5]) > 0}
        self._store, self._crop_px = store, store.recipe.pixels.crop_px
        self._geometry: np.ndarray | None = None
        if inputs != "embeddings":
            self._geometry, self.valid["geometry"] = store.read_stream("geometry", self.rows)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray) -> Batch:
        """x["crops"] uint8 RGB (B,T,H,W,3), 0 where there is no face, and x["geometry"] where it is read;
        valid (B,T) by stream; labels (B,).

        Raises ValueError for a chunk that does not match its checksum, and for a crop of another size.
        """
        indices = np.atleast_1d(np.arange(len(self))[indices])
        side = self._crop_px
        crops = np.zeros((len(indices), self._store.num_frames, side, side, 3), np.uint8)
        for location, index in enumerate(indices.tolist()):
            _decode_into(crops[location], self._store.read_crops(int(self.rows[index])), self.clip_ids[index])
        x = {"crops": crops}
        if self._geometry is not None:
            x["geometry"] = self._geometry[indices]
        return x, {name: mask[indices] for name, mask in self.valid.items()}, self.labels[indices]


def _decode_into(frames: np.ndarray, files: Sequence[bytes], clip_id: str) -> None:
    import cv2

    for index, file in enumerate(files):
        if not file:
            continue
        image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None or image.shape != frames.shape[1:]:
            shape = None if image is None else image.shape
            raise ValueError(f"crop {index} of {clip_id} decodes to {shape}, wanted {frames.shape[1:]}")
        frames[index] = image


def _labels(table: ClipTable, labelling: Labelling) -> np.ndarray:
    """(N,) int64 class index of every row."""
    if labelling.column not in table.labels:
        have = ", ".join(table.labels) or "none"
        raise ValueError(f"the store has no label column {labelling.column!r}; it has: {have}")
    return class_indices(labelling, table.labels[labelling.column], table.label_names[labelling.column])


def _require_streams(store: FeatureStore, inputs: Inputs) -> None:
    for name in streams_of(inputs):
        if name not in store.streams:
            raise ValueError(f"{store.path} has no {name}: it was extracted with --geometry off")
