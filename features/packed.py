"""The disposable fast copy of a store: one plain `.npy` a stream, read by memory map.

    packed/<stream>-<stamp>/x.npy      (N, T, D), 0 where not valid
    packed/<stream>-<stamp>/valid.npy  (N, T) bool
    packed/<stream>-<stamp>/sums.json  CRC-32 of both files

The stamp says which chunks it was made from, so that a copy of an older state is simply not found. Many
processes share one copy in memory. Stores on object storage keep theirs in the user's cache.

Knows nothing about what is packed: it is handed a stamp and blocks of rows.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from features.storage import Place

STALE_S = 3600.0
"""A half-written copy older than this belongs to nobody who is alive."""
_READ_BYTES = 1 << 22


def packed_folder(place: Place) -> Path:
    """Where a store's packed copies lie."""
    if place.folder is not None:
        return place.folder / "packed"
    cache = os.environ.get("BRAINBUDDY_CACHE")
    if cache:
        root = Path(cache)
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "brainbuddy"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches" / "brainbuddy"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brainbuddy"
    return root / "packed" / hashlib.sha256(place.text.encode()).hexdigest()[:12]


def open_packed(place: Place, name: str, stamp: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(x (N,T,D), valid (N,T) bool) as read-only memory maps; None where there is no copy of this state."""
    folder = packed_folder(place) / f"{name}-{stamp}"
    try:
        x = np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False)
        valid = np.load(folder / "valid.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # not there, or cut short: it is disposable
        return None
    return x, valid


def write_packed(
    place: Place,
    name: str,
    stamp: str,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    blocks: Iterable[tuple[int, np.ndarray, np.ndarray]],
) -> None:
    """Write a copy under a temporary name, then rename it and drop the older ones.

    blocks: (first row, x (n,T,D), valid (n,T)) until all rows are covered.
    """
    root = packed_folder(place)
    ready = root / f"{name}-{stamp}"
    temporary = root / f"{name}.{uuid.uuid4().hex}.partial"
    temporary.mkdir(parents=True)
    try:
        x = np.lib.format.open_memmap(temporary / "x.npy", mode="w+", dtype=dtype, shape=shape)
        valid = np.lib.format.open_memmap(temporary / "valid.npy", mode="w+", dtype=bool, shape=shape[:2])
        for first, block, mask in blocks:
            x[first : first + len(block)] = block
            valid[first : first + len(block)] = mask
        x.flush()
        valid.flush()
        del x, valid
        sums = {file: _crc32(temporary / file) for file in ("x.npy", "valid.npy")}
        (temporary / "sums.json").write_text(json.dumps(sums), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was first: its copy is the same
            temporary.rename(ready)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    drop_packed(place, name, keep=ready.name)


def drop_packed(place: Place, name: str | None = None, keep: str = "") -> None:
    """Delete the copies of one stream, or of all, but for `keep` and what somebody is just writing."""
    root = packed_folder(place)
    if not root.is_dir():
        return
    for folder in root.iterdir():
        stream = folder.name.rpartition("-")[0] or folder.name.partition(".")[0]
        in_progress = folder.suffix == ".partial" and time.time() - folder.stat().st_mtime < STALE_S
        if (name is None or stream == name) and folder.name != keep and (name is None or not in_progress):
            shutil.rmtree(folder, ignore_errors=True)  # Windows keeps a mapped file: the next one tries again
    if name is None:
        with contextlib.suppress(OSError):
            root.rmdir()


def verify_packed(place: Place) -> list[str]:
    """Names of copies whose bytes are not those that were written."""
    root = packed_folder(place)
    broken = []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.suffix == ".partial":
            continue
        try:
            sums = json.loads((folder / "sums.json").read_text(encoding="utf-8"))
            if any(_crc32(folder / file) != total for file, total in sums.items()) or len(sums) != 2:
                broken.append(folder.name)
        except (OSError, ValueError, AttributeError):
            broken.append(folder.name)
    return broken


def _crc32(file: Path) -> int:
    total = 0
    with open(file, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            total = zlib.crc32(block, total)
    return total
