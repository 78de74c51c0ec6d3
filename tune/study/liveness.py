"""Whether the process that works on a trial goes on: how long it was silent, and whether its parent lives."""

import time
from multiprocessing import parent_process

SILENT_S = 600
"""A worker of another machine or container that has said nothing for that long is dead; epochs take
seconds."""


def is_silent(seen_s: float) -> bool:
    """Whether a worker that was last heard of at this time (seconds, `time.time()`) has been silent too long.

    Clocks of machines differ by seconds, which does not matter here.
    """
    return time.time() - seen_s > SILENT_S


def has_parent() -> bool:
    """Whether the process that started this one still runs; true for one that was not started by us."""
    parent = parent_process()
    return parent is None or parent.is_alive()
