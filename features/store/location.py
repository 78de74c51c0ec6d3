"""The location of a store: a folder, or a prefix on object storage (`s3://bucket/prefix`).

Also file operations next to reading and writing arrays: list chunks, delete them, delete what killed writers
left. Settings for object storage (endpoint, region, keys) come from the environment variables of the AWS
tools.
"""

import contextlib
import datetime
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore

from features.cli import StoreNotFoundError, UserError

PARTIAL_AGE_S = 2.0
"""Chunks are written within milliseconds: an older `*.partial` was left by a killed writer. If the writer
still runs, it finds the file missing and writes the chunk again (`retried`)."""
WRITE_TRIES = 5
OBJECT_TRIES, OBJECT_TIMEOUT = 5, datetime.timedelta(seconds=60)
"""Retries and time limit of one request: enough for a short outage, but a wrong address fails soon."""
_SHARING_ERRORS = (5, 32)  # Windows: access denied, sharing violation (a virus scanner or indexer reads it)

Result = TypeVar("Result")


def _no_lock() -> None:
    """Does nothing. Not a lambda, which could not be pickled."""


@dataclass(frozen=True)
class StoreLocation:
    """A folder or a prefix on object storage."""

    text: str
    """The path or address, for messages and for opening the store again."""
    folder: Path | None
    """The folder; None on object storage."""
    objects: Any = None
    """The obstore store; None for a folder."""
    require_lock: Callable[[], None] = _no_lock
    """Raises UserError when the planner lock, which gave this location, is lost. Call it before a write."""

    def zarr_store(self, *, read_only: bool) -> Store:
        """A zarr store for this location."""
        if self.folder is not None:
            return LocalStore(self.folder, read_only=read_only)
        return ObjectStore(self.objects, read_only=read_only)


def location_of(path: Path | str) -> StoreLocation:
    """The location of a path, or of an address such as `s3://bucket/prefix`.

    Raises UserError for object storage that cannot be used.
    """
    text = str(path)
    scheme, slash, rest = text.partition(":/")
    if not slash or len(scheme) < 2:  # a one-letter scheme is a Windows drive
        return StoreLocation(text, Path(text))
    if scheme == "file":
        return StoreLocation(rest, Path("/" + rest.lstrip("/")))
    address = f"{scheme}://{rest.lstrip('/')}"  # pathlib folds the double slash
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise UserError(f"{address} needs obstore: pip install 'brainbuddy[s3]'") from error
    options: Any = {"allow_http": True} if os.environ.get("AWS_ALLOW_HTTP") else None
    retries: Any = {"max_retries": OBJECT_TRIES, "retry_timeout": OBJECT_TIMEOUT}
    with object_errors(address):
        return StoreLocation(address, None, from_url(address, client_options=options, retry_config=retries))


@contextlib.contextmanager
def object_errors(where: str) -> Iterator[None]:
    """Turn object storage errors into one-line UserErrors. Does not import obstore if it is not in use."""
    exceptions = sys.modules.get("obstore.exceptions")
    known = (exceptions.BaseError,) if exceptions else ()
    try:
        yield
    except known as error:
        text = " ".join(str(error).split())
        raise UserError(f"{where}: {text[:300]}{'…' if len(text) > 300 else ''}") from error


def read_bytes(location: StoreLocation, key: str) -> bytes | None:
    """The bytes of one file or object; None if it does not exist."""
    if location.folder is not None:
        try:
            return (location.folder / key).read_bytes()
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise UserError(f"{location.text} is a file, expected a folder") from error
    with object_errors(location.text):
        buffer = sync(location.zarr_store(read_only=True).get(key, default_buffer_prototype()))
    return None if buffer is None else buffer.to_bytes()


def root_names(location: StoreLocation) -> list[str]:
    """Names of the files in the store's folder, without those in its arrays.

    Raises UserError when the bucket does not exist; OSError when the folder does not.
    """
    if location.folder is not None:
        return os.listdir(location.folder)
    try:
        with object_errors(location.text):
            items = location.objects.list_with_delimiter()["objects"]
    except ValueError as error:
        if "NoSuchBucket" in str(error):
            raise UserError(f"{location.text}: no such bucket") from error
        raise
    return [item["path"].rpartition("/")[2] for item in items]


def chunk_names(location: StoreLocation, array_name: str) -> list[str]:
    """File names of the existing chunks of an array, for example `c.17.0.0`."""
    if location.folder is None:
        return list(_tagged_chunks(location, array_name))
    try:
        names = os.listdir(location.folder / array_name)
    except FileNotFoundError:
        return []
    return [name for name in names if name.startswith("c.") and not name.endswith(".partial")]


def chunks_identity(location: StoreLocation, array_name: str) -> str:
    """A text that changes when a chunk of an array is written, rewritten or deleted.

    On a disk: the names and the folder's modification time, which a rename into the folder changes. On object
    storage: the entity tags.
    """
    if location.folder is None:
        return repr(sorted(_tagged_chunks(location, array_name).items()))
    names = sorted(chunk_names(location, array_name))
    changed_ns = (location.folder / array_name).stat().st_mtime_ns if names else 0
    return f"{changed_ns} {' '.join(names)}"


def _tagged_chunks(location: StoreLocation, array_name: str) -> dict[str, str]:
    with object_errors(location.text):
        return {
            name: str(item["e_tag"] or item["last_modified"])
            for batch in location.objects.list(prefix=f"{array_name}/")
            for item in batch
            if (name := item["path"].rpartition("/")[2]).startswith("c.")
        }


def delete_keys(location: StoreLocation, keys: Iterable[str]) -> None:
    """Delete files or objects; missing ones are ignored."""
    if location.folder is None:
        with object_errors(location.text):
            location.objects.delete(list(keys))
        return
    for key in keys:
        retried((location.folder / key).unlink, True)


def delete_all(location: StoreLocation) -> None:
    """Delete everything at the location, including the folder.

    `zarr.json` is deleted last, so that an interrupted deletion can be repeated.

    Raises UserError when the folder is a link.
    """
    if location.folder is None:
        with object_errors(location.text):
            for batch in location.objects.list():
                location.objects.delete([item["path"] for item in batch if item["path"] != "zarr.json"])
            location.objects.delete(["zarr.json"])
        return
    if location.folder.is_symlink():
        raise UserError(
            f"{location.text} is a link: delete the store that it points to, {location.folder.resolve()}"
        )
    for item in list(location.folder.iterdir()):
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != "zarr.json":
            retried(item.unlink, True)
    shutil.rmtree(location.folder)


def retried(write: Callable[..., Result], *arguments: Any) -> Result:
    """Call `write`, and retry if another program locks the file or a sweep deletes its `*.partial`."""
    for attempt in range(WRITE_TRIES):
        try:
            with object_errors("object storage"):
                return write(*arguments)
        except OSError as error:
            passing = isinstance(error, FileNotFoundError) or getattr(error, "winerror", 0) in _SHARING_ERRORS
            if not passing or attempt == WRITE_TRIES - 1:
                raise
            time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable")


def sweep(location: StoreLocation, *, include_recent: bool = False) -> int:
    """Delete `*.partial` files that killed writers left; returns the number of deleted files.

    Searches the store's folder, its arrays and its label and slice columns. Unfinished packed copies are left
    to the next `pack`. include_recent: also delete files that may be in writing now.
    """
    if location.folder is None:
        return 0  # objects are written atomically
    arrays = [folder for folder in _folders(location.folder) if folder.name != "packed"]
    columns = [column for array in arrays if array.name in ("labels", "slices") for column in _folders(array)]
    partials = [file for folder in (location.folder, *arrays, *columns) for file in folder.glob("*.partial")]
    orphans = [file for file in partials if include_recent or _is_old(file)]
    for file in orphans:
        retried(file.unlink, True)
    return len(orphans)


def _folders(folder: Path) -> list[Path]:
    return [item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")]


def _is_old(file: Path) -> bool:
    """Whether a partial file is older than PARTIAL_AGE_S; False if it has been renamed in the meantime."""
    with contextlib.suppress(FileNotFoundError):
        return abs(time.time() - file.stat().st_mtime) > PARTIAL_AGE_S
    return False


def temporary_folder(folder: Path) -> Path:
    """A temporary folder next to `folder`: a store is written there and then renamed (atomic)."""
    return folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")


def sweep_temporary_folders(location: StoreLocation, min_age_s: float = 0.0) -> None:
    """Delete temporary folders of `temporary_folder` that were not written to for `min_age_s` seconds."""
    if location.folder is None or not location.folder.parent.is_dir():
        return
    name_pattern = re.compile(re.escape(location.folder.name) + r"\.[0-9a-f]{32}\.partial")
    siblings = location.folder.parent.iterdir()
    found = [item for item in siblings if name_pattern.fullmatch(item.name) and item.is_dir()]
    for folder_left in found:
        with contextlib.suppress(FileNotFoundError):  # its writer has just renamed it
            changed_s = max(item.stat().st_mtime for item in (folder_left, *folder_left.iterdir()))
            if abs(time.time() - changed_s) >= min_age_s:
                shutil.rmtree(folder_left)


def open_group(location: StoreLocation, *, read_only: bool) -> zarr.Group | None:
    """The zarr group at the location; None if there is no store."""
    if read_bytes(location, "zarr.json") is None:
        return None
    return zarr.open_group(
        location.zarr_store(read_only=read_only), mode="r" if read_only else "r+", use_consolidated=False
    )


def existing_group(location: StoreLocation, *, read_only: bool) -> zarr.Group:
    """The zarr group at the location.

    Raises StoreNotFoundError when there is no store.
    """
    group = open_group(location, read_only=read_only)
    if group is None:
        raise StoreNotFoundError(f"no store at {location.text}")
    return group
