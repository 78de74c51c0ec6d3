"""Files that are there whole or not at all, processes that others look for, and the folder of caches."""

import multiprocessing
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
import psutil

SAME_START_S = 1.5
"""Two answers to when a process started differ by no more. On Linux the system's clock may step to its next
second between the two readings of which one is made."""


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


def here() -> dict[str, str]:
    """Where this process runs: its machine's name, and the namespace in which its number means something.

    Containers and machines may share a name. So the namespace is the machine since it was started, and the
    container's own processes within it; where the system has no such things (no /proc), the machine alone.
    """
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        namespace = f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        namespace = f"{uuid.getnode():x}"
    return {"host": socket.gethostname(), "namespace": namespace}


def this_process() -> dict[str, Any]:
    """Who this process is, for others to look for: where it runs, its number and when it started, as numbers
    come round again."""
    return {**here(), "pid": os.getpid(), "started": _started_s(psutil.Process())}


def is_here(process: Mapping[str, Any]) -> bool:
    """Whether a process, as it signed itself with `here`, can be looked for by its number."""
    return here().items() <= process.items()


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process that signed itself as `this_process`, and `is_here`, still runs. One that has ended
    does not, also where its parent has not asked for it yet (a zombie) or another has its number by now."""
    pid, started_s = int(process["pid"]), float(process["started"])
    try:
        found = psutil.Process(pid)
        is_same = abs(_started_s(found) - started_s) <= SAME_START_S
        return is_same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return os.name == "posix" and _is_hidden(pid)


def _started_s(process: psutil.Process) -> float:
    """When a process started, in seconds since an instant that stays where it is when the clock is set."""
    created_s = process.create_time()
    return created_s - psutil.boot_time() if psutil.LINUX else created_s  # both move with the clock there


def _is_hidden(pid: int) -> bool:
    """Whether somebody else's process has that number; a /proc mounted with `hidepid` does not show it."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def has_parent() -> bool:
    """Whether the process that started this one still runs; true for one that was not started by us."""
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


def end_with_parent() -> None:
    """End this process at once when the one that started it is gone, also by `kill -9`. Does nothing in a
    process that multiprocessing did not start."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="waits for the parent's end", daemon=True).start()


def cache_dir() -> Path:
    """Folder of fetched and converted model files, and of packed copies: $BRAINBUDDY_CACHE, else the
    platform's."""
    return Path(
        os.environ.get("BRAINBUDDY_CACHE")
        or platformdirs.user_cache_dir("brainbuddy", appauthor=False, opinion=False)
    )
