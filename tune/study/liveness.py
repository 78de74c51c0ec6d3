"""Whether the process that works on a trial still runs."""

import os
import sys
import threading
import time
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from features.store.lock import here

SILENT_S = 600
"""A worker of another machine or container that has said nothing for that long is dead; epochs take
seconds."""


def this_worker() -> dict[str, Any]:
    """Who works on a trial: where, which process and when it started (process numbers come round again)."""
    return {**here(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_alive(worker: dict[str, Any]) -> bool:
    """Whether a worker that `is_here` still runs."""
    started = _started(int(worker["pid"]))
    return started is not None and started == worker["started"]


def is_silent(seen_s: float) -> bool:
    """Whether a worker that was last heard of at this time (seconds, `time.time()`) has been silent too long.

    Clocks of machines differ by seconds, which does not matter here.
    """
    return time.time() - seen_s > SILENT_S


def has_parent() -> bool:
    """Whether the process that started this one still runs; true for one that was not started by us."""
    parent = parent_process()
    return parent is None or parent.is_alive()


def end_with_parent() -> None:
    """End this process at once when the one that started it is gone, by `kill -9` say; for one that waits for
    work, and so never asks `has_parent`."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="waits for the parent's end", daemon=True).start()


def _started(pid: int) -> str | None:
    """When a process started, in whatever unit the system has; '' where it cannot say; None when there
    is none."""
    if sys.platform == "linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    if sys.platform == "win32":
        import ctypes

        # From the documentation, not run: 0x1000 asks for limited information, 259 means still active.
        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)
        if not handle:
            return None
        code = ctypes.c_ulong()
        ctypes.windll.kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
        ctypes.windll.kernel32.CloseHandle(handle)
        return "" if code.value == 259 else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
