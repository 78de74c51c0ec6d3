"""The rows of a store as bytes: which are there, reading and writing them, on a disk or on object storage.

On a local disk chunks are read and written directly (features/store/chunk_io.py), elsewhere through zarr.

N clips, T frames.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from features.store.chunk_io import IS_NATIVE, numbers_of, read_chunk, texts_of, write_chunk
from features.store.location import StoreLocation, chunks_identity, delete_keys, retried
from features.store.schema import ROW_ARRAYS, array_of, chunk_key, read_column, rows_present

MAX_REASON = 500
"""Characters: libraries say what went wrong in their first line, some go on for pages."""


class Rows:
    """The worker-written arrays of an open store."""

    def __init__(self, location: StoreLocation, group: zarr.Group, num_clips: int, rows_per_chunk: int):
        self.location, self.group, self.num_clips = location, group, num_clips
        self.is_direct = IS_NATIVE and location.folder is not None and rows_per_chunk == 1
        """Past zarr; the bytes are the same."""
        self._arrays: dict[str, zarr.Array] = {}

    def array(self, name: str) -> zarr.Array:
        """The zarr array of that name."""
        if name not in self._arrays:
            self._arrays[name] = array_of(self.group, name)
        return self._arrays[name]

    def present(self, name: str) -> np.ndarray:
        """(N,) bool: whose chunk of that array is there, as far as the disk says now."""
        return rows_present(self.location, self.group, name, self.num_clips)

    def failures(self) -> np.ndarray:
        """(N,) str objects: why a row failed; '' where none did."""
        reasons = np.full(self.num_clips, "", dtype=object)
        for row in np.flatnonzero(self.present("failure")):
            reasons[row] = str(self.array("failure")[int(row)])
        return reasons

    def write_failure(self, row: int, reason: str) -> None:
        """Note why a row failed, in MAX_REASON characters at most."""
        cut = reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 1] + "…"
        retried(self.array("failure").__setitem__, row, cut)

    def forget_failure(self, row: int) -> None:
        """The row did not fail after all."""
        delete_keys(self.location, [chunk_key("failure", row, 1)])

    def write_numbers(self, name: str, row: int, values: np.ndarray, fill: np.ndarray) -> None:
        """Write (t, …) numbers of one row; behind t stands `fill` (…).

        Raises ValueError for another width, or more frames than the array has.
        """
        array = self.array(name)
        tail = array.shape[1:]
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != tail[1] or len(values) > tail[0]:
            raise ValueError(f"{name} of shape {values.shape}, the store holds up to {tail} a clip")
        padded = np.full(tail, fill, array.dtype)
        padded[: len(values)] = values
        self._write(name, row, padded)

    def write_bytes(self, name: str, row: int, texts: list[bytes]) -> None:
        """Write up to T byte strings of one row; behind them stands b"".

        Raises ValueError for more than T.
        """
        (num_frames,) = self.array(name).shape[1:]
        if len(texts) > num_frames:
            raise ValueError(f"{name} of {len(texts)} frames, the store holds {num_frames}")
        padded = np.full(num_frames, b"", object)
        padded[: len(texts)] = texts
        self._write(name, row, padded)

    def read_numbers(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(n, …) numbers of some rows; NaN where a row is not there.

        Raises ValueError when a chunk does not match its checksum.
        """
        array = self.array(name)
        try:
            if not self.is_direct:
                return np.asarray(array.oindex[rows])
            tail = array.shape[1:]
            values = np.full((len(rows), *tail), np.nan, array.dtype)
            for location, row in enumerate(rows.tolist()):
                payload = read_chunk(self._file(name, row))
                if payload is not None:
                    values[location] = numbers_of(payload, tail, array.dtype)
            return values
        except (ValueError, RuntimeError) as error:
            raise self._damage(name, error) from error

    def read_texts(self, name: str, row: int) -> list[bytes]:
        """T byte strings of one row, b"" where it is not there.

        Raises ValueError when its chunk does not match its checksum.
        """
        array: Any = self.array(name)
        try:
            if not self.is_direct:
                return [bytes(item) for item in array[row]]
            payload = read_chunk(self._file(name, row))
            return [b""] * array.shape[1] if payload is None else texts_of(payload)
        except (ValueError, RuntimeError) as error:
            raise self._damage(name, error) from error

    def stamp(self, *names: str) -> str:
        """Twelve hex digits of which chunks these arrays have and when one was last written.

        On a disk the latter is the folder's own time of change, and, for disks that do not keep it, the
        videos' sizes and times: asking 18,000 files costs as long as reading a third of what they hold.
        """
        digest = hashlib.sha256(f"{self.num_clips}".encode())
        for column in ("source_size", "source_mtime_ns"):
            digest.update(read_column(self.group, column, self.num_clips).tobytes())
        for name in sorted(set(names)):
            digest.update(f"{name} {chunks_identity(self.location, name)}".encode())
        return digest.hexdigest()[:12]

    def _write(self, name: str, row: int, values: np.ndarray) -> None:
        if self.is_direct:
            retried(write_chunk, self._file(name, row), values)
        else:
            retried(self.array(name).__setitem__, row, values)

    def _file(self, name: str, row: int) -> Path:
        assert self.location.folder is not None
        return self.location.folder / chunk_key(name, row, ROW_ARRAYS[name])

    def _damage(self, name: str, error: Exception) -> ValueError:
        return ValueError(
            f"{self.location.text}: {name} cannot be read ({error}); see python -m features verify"
        )
