"""Files that are there whole or not at all, and the folder of caches."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path beside `path` to write a file to; the file takes the name `path` at the end. Its own name is
    unique, so that two writers never share one. durable: the content is on the disk before the file takes the
    name.

    An error inside leaves `path` as it was, and nothing beside it.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        if durable:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def cache_dir() -> Path:
    """Folder of fetched and converted model files, and of packed copies: $BRAINBUDDY_CACHE, else the
    platform's."""
    explicit = os.environ.get("BRAINBUDDY_CACHE")
    return Path(explicit or platformdirs.user_cache_dir("brainbuddy", appauthor=False, opinion=False))
