"""Direct reading and writing of one-clip chunks on a local disk, with the same bytes that zarr writes.

A chunk is the row's little-endian numbers in C order (or the length-prefixed byte strings of zarr's
`vlen-bytes`), then their CRC-32C. zarr itself switches threads a few times per chunk, which takes much
longer than the work when the machine is busy. A test checks that both give the same bytes.
"""

import sys
from pathlib import Path

import numpy as np
from google_crc32c import value as crc32c
from numcodecs.vlen import VLenBytes

from features.cli import UserError
from features.files import atomic_write

CHECKSUM_BYTES = 4
IS_NATIVE = sys.byteorder == "little"
"""On big-endian machines all chunks are read and written through zarr."""


def write_chunk(file: Path, values: np.ndarray) -> None:
    """Write a row atomically. values: numbers, or an object array of bytes.

    The temporary name ends in `.partial`, as zarr's do.
    """
    is_texts = values.dtype == object
    payload = bytes(VLenBytes().encode(values)) if is_texts else np.ascontiguousarray(values).tobytes()
    checksum = crc32c(payload).to_bytes(CHECKSUM_BYTES, "little")
    with atomic_write(file) as partial:
        partial.write_bytes(payload + checksum)


def read_chunk(file: Path) -> bytes | None:
    """The payload of a chunk; None if the file does not exist.

    Raises UserError when the payload does not match its checksum.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    payload, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if len(content) < CHECKSUM_BYTES or crc32c(payload).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        raise UserError(f"{file.parent.name}/{file.name} does not match its checksum")
    return payload


def numbers_of(payload: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The row as a read-only array of this shape and dtype.

    Raises UserError when the length of the payload does not match.
    """
    return np.frombuffer(payload, dtype).reshape(shape)


def texts_of(payload: bytes) -> list[bytes]:
    """The byte strings of a row.

    Raises UserError when the payload is not what `write_chunk` wrote.
    """
    return [bytes(item) for item in VLenBytes().decode(payload)]
