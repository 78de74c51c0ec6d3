"""Rows of a store: which exist, and their reading and writing, on a disk or on object storage.

On a local disk, chunks are read and written directly (features/store/chunk_io.py); elsewhere through zarr.

N clips, T frames.
"""

import hashlib
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from features.cli import UserError
from features.store.chunk_io import IS_NATIVE, numbers_of, read_chunk, texts_of, write_chunk
from features.store.location import StoreLocation, chunks_identity, delete_keys, retried
from features.store.schema import ROW_ARRAYS, array_of, chunk_key, read_column, rows_present

MAX_TEXT = 500
"""Maximum length in characters: error messages of libraries start with the reason; some go on for pages."""


DAMAGED = "its text cannot be read, because its file is damaged"
"""Stands for a text that cannot be read: the row still counts as failed, and `--retry-failed` extracts it."""


class Rows:
    """The arrays of an open store that workers write."""

    def __init__(self, location: StoreLocation, group: zarr.Group, num_clips: int, rows_per_chunk: int):
        self.location, self.group, self.num_clips = location, group, num_clips
        self.is_direct = IS_NATIVE and location.folder is not None and rows_per_chunk == 1
        """Whether chunks are read and written without zarr (the bytes are the same)."""
        self._arrays: dict[str, zarr.Array] = {}

    def array(self, name: str) -> zarr.Array:
        """The zarr array of that name."""
        if name not in self._arrays:
            self._arrays[name] = array_of(self.group, name)
        return self._arrays[name]

    def present(self, name: str) -> np.ndarray:
        """(N,) bool: which rows have a chunk of that array on the disk now."""
        return rows_present(self.location, self.group, name, self.num_clips)

    def texts(self, name: str) -> np.ndarray:
        """(N,) str objects: the text of each row in `failure` or `notes`; '' = none, DAMAGED = unreadable."""
        texts = np.full(self.num_clips, "", dtype=object)
        for row in np.flatnonzero(self.present(name)):
            try:
                texts[row] = str(self.array(name)[int(row)])
            except (ValueError, RuntimeError):
                texts[row] = DAMAGED
        return texts

    def write_text(self, name: str, row: int, text: str) -> None:
        """Write the text of a row in `failure` or `notes`, at most MAX_TEXT characters."""
        shown = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
        retried(self.array(name).__setitem__, row, shown)

    def forget_texts(self, row: int, *names: str) -> None:
        """Delete the texts of a row in these arrays."""
        delete_keys(self.location, [chunk_key(name, row, 1) for name in names])

    def write_numbers(self, name: str, row: int, values: np.ndarray, fill: np.ndarray) -> None:
        """Write (t, …) numbers of one row; frames after t are set to `fill` (…).

        Raises UserError for another width, or more frames than the array has.
        """
        array = self.array(name)
        tail = array.shape[1:]
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != tail[1] or len(values) > tail[0]:
            raise UserError(f"{name} has shape {values.shape}, but the store holds at most {tail} per clip")
        padded = np.full(tail, fill, array.dtype)
        padded[: len(values)] = values
        self._write(name, row, padded)

    def write_bytes(self, name: str, row: int, texts: list[bytes]) -> None:
        """Write up to T byte strings of one row; the remaining ones are set to b"".

        Raises UserError for more than T.
        """
        (num_frames,) = self.array(name).shape[1:]
        if len(texts) > num_frames:
            raise UserError(f"{name} has {len(texts)} frames, but the store holds at most {num_frames}")
        padded = np.full(num_frames, b"", object)
        padded[: len(texts)] = texts
        self._write(name, row, padded)

    def read_numbers(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(n, …) numbers of some rows; NaN for missing rows.

        Raises UserError when a chunk does not match its checksum.
        """
        array = self.array(name)
        try:
            if not self.is_direct:
                return np.asarray(array.oindex[rows])
            tail = array.shape[1:]
            values = np.full((len(rows), *tail), np.nan, array.dtype)
            for index, row in enumerate(rows.tolist()):
                payload = read_chunk(self._file(name, row))
                if payload is not None:
                    values[index] = numbers_of(payload, tail, array.dtype)
            return values
        except (ValueError, RuntimeError) as error:
            raise self._read_error(name, error) from error

    def read_texts(self, name: str, row: int) -> list[bytes]:
        """T byte strings of one row, all b"" if the row is missing.

        Raises UserError when its chunk does not match its checksum.
        """
        array: Any = self.array(name)
        try:
            if not self.is_direct:
                return [bytes(item) for item in array[row]]
            payload = read_chunk(self._file(name, row))
            return [b""] * array.shape[1] if payload is None else texts_of(payload)
        except (ValueError, RuntimeError) as error:
            raise self._read_error(name, error) from error

    def stamp(self, *names: str) -> str:
        """Twelve hex digits: a hash of which chunks these arrays have and when one was last written.

        On a disk, the time is the folder's modification time, plus the videos' sizes and times for disks that
        do not keep it. Chunk files are not checked one by one: for 18,000 files, that takes as long as
        reading a third of their content.
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

    def _read_error(self, name: str, error: Exception) -> UserError:
        return UserError(
            f"{self.location.text}: {name} cannot be read ({error}); to list and reset the broken clips, run "
            f"python -m features verify {shlex.quote(self.location.text)} --repair"
        )
