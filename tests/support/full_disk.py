"""Simulates a disk that is nearly full."""

import contextlib
import sys
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Limit every file that this process writes to 50 kB inside the block."""
    if sys.platform == "win32":
        pytest.skip("Windows has no file size limits")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
