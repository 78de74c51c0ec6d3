"""A disk that is nearly full."""

import contextlib
import sys
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """The system takes no more than 50 kB into one file, as a disk that is nearly full."""
    if sys.platform == "win32":
        pytest.skip("no limits here")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
