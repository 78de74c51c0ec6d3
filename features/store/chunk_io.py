"""Chunks of one clip on a local disk, read and written without zarr's event loop: the very bytes zarr writes.

A chunk is the row's little-endian numbers in C order (or the length-prefixed byte strings of zarr's
`vlen-bytes`), then the CRC-32C of that. Going through zarr costs a few switches between threads for each
chunk, which on a busy machine is many times the work itself; a test holds the two equal.
"""

import sys
from pathlib import Path

import numpy as np
from google_crc32c import value as crc32c
from numcodecs.vlen import VLenBytes

from features.files import atomic_write

CHECKSUM_BYTES = 4
IS_NATIVE = sys.byteorder == "little"
"""Elsewhere everything goes through zarr."""


def write_chunk(file: Path, values: np.ndarray) -> None:
    """Write a row, whole or not at all. values: numbers, or an object array of bytes.

    The temporary name ends in `.partial`, as zarr's do.
    """
    is_texts = values.dtype == object
    payload = bytes(VLenBytes().encode(values)) if is_texts else np.ascontiguousarray(values).tobytes()
    checksum = crc32c(payload).to_bytes(CHECKSUM_BYTES, "little")
    with atomic_write(file) as partial:
        partial.write_bytes(payload + checksum)


def read_chunk(file: Path) -> bytes | None:
    """The payload of a chunk; None where there is none.

    Raises ValueError when it does not match its checksum.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    payload, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if len(content) < CHECKSUM_BYTES or crc32c(payload).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        raise ValueError(f"{file.parent.name}/{file.name} does not match its checksum")
    return payload


def numbers_of(payload: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The row as an array that cannot be written to.

    Raises ValueError when the length does not fit.
    """
    return np.frombuffer(payload, dtype).reshape(shape)


def texts_of(payload: bytes) -> list[bytes]:
    """The byte strings of a row.

    Raises ValueError when the payload is not what `write_chunk` wrote.
    """
    return [bytes(item) for item in VLenBytes().decode(payload)]
