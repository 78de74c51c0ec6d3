"""The packed copy of a store for fast reading: one `.npy` per stream, read by memory map. It can be deleted.

    packed/<stream>-<stamp>/x.npy      (N, T, D), 0 for invalid frames
    packed/<stream>-<stamp>/valid.npy  (N, T) bool
    packed/<stream>-<stamp>/sums.json  CRC-32 of both files

The stamp is a hash of the chunks that the copy was made from, so an outdated copy is not found. Many
processes share one copy in memory. For stores on object storage, and for read-only stores, the copy is in the
user's cache folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from features.files import cache_dir
from features.store.location import StoreLocation

STALE_S = 3600.0
"""An unfinished copy older than this was left by a killed process."""
_READ_BYTES = 1 << 22


def packed_folders(location: StoreLocation) -> list[Path]:
    """Possible folders of a store's packed copies: in the store, then in the user's cache.

    The cache folder's name is a hash of the store's resolved path or address.
    """
    address = location.text.rstrip("/") if location.folder is None else location.folder.resolve()
    cached = cache_dir() / "packed" / hashlib.sha256(os.fsencode(address)).hexdigest()[:12]
    return [cached] if location.folder is None else [location.folder / "packed", cached]


def open_packed(location: StoreLocation, name: str, stamp: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(x (N,T,D), valid (N,T) bool) as read-only memory maps; None if there is no copy with this stamp."""
    for root in packed_folders(location):
        folder = root / f"{name}-{stamp}"
        try:
            x = np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False)
            valid = np.load(folder / "valid.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):  # missing or truncated: a new copy can be made
            continue
        return x, valid
    return None


def write_packed(
    location: StoreLocation,
    name: str,
    stamp: str,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    blocks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
) -> None:
    """Write a copy under a temporary name, rename it, and delete the older ones.

    blocks: yields (x (n,T,D), valid (n,T)) in row order until all rows are covered. If the store is read-only
    or its disk is full, the copy goes to the user's cache.

    Raises OSError when neither can be written to.
    """
    roots = packed_folders(location)
    for root in roots:
        try:
            _write(root, name, stamp, shape, dtype, blocks())
            break
        except OSError:
            if root == roots[-1]:
                raise
    drop_packed(location, name, keep=f"{name}-{stamp}")


def _write(
    root: Path,
    name: str,
    stamp: str,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> None:
    shutil.rmtree(root / f"{name}-{stamp}", ignore_errors=True)  # a truncated copy, which cannot be opened
    temporary = root / f"{name}.{uuid.uuid4().hex}.partial"
    temporary.mkdir(parents=True)
    try:
        # Plain writes, because writing to a memory map on a full disk ends the process with SIGBUS.
        with open(temporary / "x.npy", "wb") as values, open(temporary / "valid.npy", "wb") as masks:
            for stream, of, extent in ((values, dtype, shape), (masks, np.dtype(bool), shape[:2])):
                header = {"descr": np.lib.format.dtype_to_descr(of), "fortran_order": False, "shape": extent}
                np.lib.format.write_array_header_1_0(stream, header)
            for block, mask in blocks:
                values.write(np.ascontiguousarray(block, dtype).data)
                masks.write(np.ascontiguousarray(mask, bool).data)
        sums = {file: _crc32(temporary / file) for file in ("x.npy", "valid.npy")}
        (temporary / "sums.json").write_text(json.dumps(sums), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process has written the same copy
            temporary.rename(root / f"{name}-{stamp}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def drop_packed(location: StoreLocation, name: str | None = None, keep: str = "") -> None:
    """Delete the copies of one stream, except `keep` and copies being written; without `name`, all copies."""
    for root in packed_folders(location):
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            stream = folder.name.rpartition("-")[0] or folder.name.partition(".")[0]
            in_progress = folder.suffix == ".partial" and time.time() - folder.stat().st_mtime < STALE_S
            if (name is None or stream == name) and folder.name != keep and (name is None or not in_progress):
                shutil.rmtree(
                    folder, ignore_errors=True
                )  # Windows cannot delete a mapped file: try next time
        if name is None:
            with contextlib.suppress(OSError):
                root.rmdir()


def verify_packed(location: StoreLocation) -> list[str]:
    """Names of copies that do not match their checksums."""
    return [
        folder.name
        for root in packed_folders(location)
        if root.is_dir()
        for folder in sorted(root.iterdir())
        if folder.suffix != ".partial" and not _is_whole(folder)
    ]


def _is_whole(folder: Path) -> bool:
    """Whether a copy's files match their checksums."""
    try:
        sums = json.loads((folder / "sums.json").read_text(encoding="utf-8"))
        return all(_crc32(folder / file) == total for file, total in sums.items()) and len(sums) == 2
    except (OSError, ValueError, AttributeError):
        return False


def _crc32(file: Path) -> int:
    total = 0
    with open(file, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            total = zlib.crc32(block, total)
    return total
