"""The arrays of a store: their names, dtypes, chunks and codecs, and which chunks exist.

Every chunk has a CRC-32C. A chunk's file is named `c.<row>.0.0`, so that one listing of a flat folder shows
which rows exist. The layout is described in features/store/store.py.

N clips, T frames.
"""

import contextlib
import hashlib
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from features.cli import UserError
from features.store.location import StoreLocation, chunk_names

ROWS_PER_CHUNK = 16384
"""Rows per chunk of clip-level arrays: a data set has a few chunks, each well under a megabyte."""
TEXT_COLUMNS = ("clip_id", "source", "subject", "split", "fold")
NUMBER_COLUMNS = {
    "start_s": "float64",
    "end_s": "float64",
    "source_size": "int64",
    "source_mtime_ns": "int64",
    "listed": "bool",
    "state": "uint8",
}
ROW_ARRAYS = {"frames": 3, "embeddings": 3, "geometry": 3, "crops": 2, "failure": 1, "notes": 1}
"""Arrays that workers write, with their number of axes; the marker of the embeddings comes first."""
MAX_NAME_BYTES = 100
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
"""File names that Windows reserves."""
_FLAT_NAMES: Any = {"name": "default", "separator": "."}
_KEEP_EMPTY: Any = {"write_empty_chunks": True}  # write chunks even if all values are the fill value


def ensure_clip_array(group: zarr.Group, name: str, dtype: Any, num_clips: int, fill: Any) -> zarr.Array:
    """The clip-level array of that name, created or extended to `num_clips`. For the planner only."""
    if name in group:
        array = array_of(group, name)
        if array.shape[0] < num_clips:
            array.resize((num_clips,))
        return array
    return group.create_array(
        name,
        shape=(num_clips,),
        chunks=(ROWS_PER_CHUNK,),
        dtype=dtype,
        fill_value=fill,
        compressors=(ZstdCodec(level=3), Crc32cCodec()),
        chunk_key_encoding=_FLAT_NAMES,
        config=_KEEP_EMPTY,
    )


def ensure_row_array(
    group: zarr.Group, name: str, dtype: Any, num_clips: int, tail: tuple[int, ...], rows_per_chunk: int = 1
) -> zarr.Array:
    """The row array of that name, which workers write; created or extended. For the planner only."""
    if name in group:
        array = array_of(group, name)
        assert array.shape[1:] == tail, "the recipes would differ"
        if array.shape[0] < num_clips:
            with _untyped_bytes():
                array.resize((num_clips, *tail))
        return array
    texts = dtype is str or dtype == "variable_length_bytes"
    with _untyped_bytes():
        return group.create_array(
            name,
            shape=(num_clips, *tail),
            chunks=(rows_per_chunk, *tail),
            dtype=dtype,
            fill_value=("" if dtype is str else b"") if texts else np.nan,
            compressors=(Crc32cCodec(),),
            chunk_key_encoding=_FLAT_NAMES,
            config=_KEEP_EMPTY,
        )


def array_of(group: zarr.Group, name: str) -> zarr.Array:
    """The array of that name; chunks are written even if all values are the fill value.

    Raises UserError when it does not exist.
    """
    with _untyped_bytes():
        found = group.get(name)
    if not isinstance(found, zarr.Array):
        raise UserError(
            f"the store has no array {name!r}: its planning was interrupted; run the same command again"
        )
    return found.with_config(_KEEP_EMPTY)


def read_column(group: zarr.Group, name: str, num_clips: int) -> np.ndarray:
    """The first `num_clips` values of a clip-level array; texts as numpy `<U`."""
    return _values(array_of(group, name), num_clips)


def _values(array: zarr.Array, count: int) -> np.ndarray:
    values = np.asarray(array[:count])
    if values.dtype.kind not in "OT":
        return values
    return np.array(values.tolist(), dtype=str) if len(values) else np.zeros(0, "<U1")


def read_table(group: zarr.Group, count: int) -> dict[str, np.ndarray]:
    """The clip-level columns of the first rows."""
    if count == 0:  # arrays may be missing: the first plan may have been interrupted
        texts = {name: np.zeros(0, "<U1") for name in TEXT_COLUMNS}
        return texts | {name: np.zeros(0, dtype) for name, dtype in NUMBER_COLUMNS.items()}
    return {name: read_column(group, name, count) for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}


def with_texts(values: np.ndarray, rows: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """A copy of `values` with `texts` at `rows`; its string dtype is wide enough for both."""
    new = np.array(texts, dtype=str) if len(texts) else np.zeros(0, "<U1")
    wide = values.astype(np.promote_types(values.dtype, new.dtype))
    wide[rows] = new
    return wide


def write_column(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """Write a whole clip-level array, created or extended if necessary. Does nothing if it is unchanged."""
    texts = values.dtype.kind in "UOT"
    fill: Any = "" if texts else (-1 if values.dtype == np.int16 else values.dtype.type(0))
    if name in group and _is_column(array_of(group, name), values):
        return
    array = ensure_clip_array(group, name, str if texts else values.dtype, len(values), fill)
    if len(values):
        array[: len(values)] = values.astype(np.dtypes.StringDType()) if texts else values


def _is_column(array: zarr.Array, values: np.ndarray) -> bool:
    """Whether an array has these values and all of its chunks. (Without chunks, as a killed planner may leave
    it, an array reads as zeros.)"""
    if array.shape[0] < len(values):
        return False
    is_equal = np.array_equal(_values(array, len(values)), values, equal_nan=values.dtype.kind == "f")
    return is_equal and array.nchunks_initialized == array.nchunks


def array_name(folder: str, column: str) -> str:
    """Array name of a user's column, as `labels/engagement`; a name that is no valid file name is hashed."""
    plain = unicodedata.normalize("NFC", column)
    is_taken = plain.split(".")[0].upper() in _DEVICES or plain.startswith("__") or plain == "zarr.json"
    is_odd = plain.strip(" .") != plain or bool(set(plain) & set('/\\:*?"<>|')) or not plain.isprintable()
    if is_taken or is_odd or len(plain.encode()) > MAX_NAME_BYTES:
        plain = "column-" + hashlib.sha256(plain.encode()).hexdigest()[:12]
    return f"{folder}/{plain}"


def user_arrays(attributes: Any) -> list[str]:
    """Names of the arrays of the user's columns: labels, then slices."""
    labels = [array_name("labels", column) for column in attributes["label_names"]]
    return labels + [array_name("slices", column) for column in attributes["slice_columns"]]


def rows_present(location: StoreLocation, group: zarr.Group, name: str, num_clips: int) -> np.ndarray:
    """(num_clips,) bool: which rows have a chunk of this row array."""
    present = np.zeros(num_clips, bool)
    if name not in group:
        return present
    step = array_of(group, name).chunks[0]
    first = step * np.array([int(key.split(".")[1]) for key in chunk_names(location, name)], np.int64)
    rows = first[:, None] + np.arange(step)
    present[rows[rows < num_clips]] = True
    return present


def chunk_key(name: str, row: int, rank: int) -> str:
    """Key of the chunk with one row of a row array. rank: the array's number of axes."""
    return f"{name}/c.{row}" + ".0" * (rank - 1)


@contextlib.contextmanager
def _untyped_bytes() -> Iterator[None]:
    """Silence zarr's warning that variable-length bytes have no specification: our schema defines them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The data type", category=Warning)
        yield
