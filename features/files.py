"""Atomic file writes, identification of running processes, and the cache folder."""

import multiprocessing
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import platformdirs
import psutil

SAME_START_S = 1.5
"""Maximum difference between two readings of one process's start time. On Linux the reading combines two
values, and the system clock may step to the next second between them."""


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary path next to `path` to write to; at the end the file is renamed to `path`.

    The temporary name is unique, so two writers never share a file. durable: the content is flushed to disk
    (fsync) before the rename. After an error, `path` is unchanged and the temporary file is deleted.
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


def process_namespace() -> dict[str, str]:
    """The host name, and the PID namespace of this process: process ids are unique only within it.

    Containers and machines may share a host name. So the namespace is the machine's boot id and the
    container's PID namespace; on systems without /proc it is the machine's MAC address only.
    """
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        namespace = f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        namespace = f"{uuid.getnode():x}"
    return {"host": socket.gethostname(), "namespace": namespace}


def this_process() -> dict[str, Any]:
    """The identity of this process: host, namespace, process id and start time (process ids are reused)."""
    return {**process_namespace(), "pid": os.getpid(), "started": _started_s(psutil.Process())}


def in_same_namespace(process: Mapping[str, Any]) -> bool:
    """Whether `process` (a record of `this_process`) can be found from here by its process id."""
    return process_namespace().items() <= process.items()


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether `process` (a record of `this_process`) still runs. Valid only if `in_same_namespace`.

    False for a zombie (its parent has not collected it yet), and if another process has its id now.
    """
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
    """Start time of a process in seconds. On Linux since boot, so it does not move when the clock is set."""
    created_s = process.create_time()
    return created_s - psutil.boot_time() if psutil.LINUX else created_s  # both move with the clock there


def _is_hidden(pid: int) -> bool:
    """Whether another user's process has that id; a /proc mounted with `hidepid` does not show it."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def has_parent() -> bool:
    """Whether the parent process still runs; true if multiprocessing did not start this process."""
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


def end_with_parent() -> None:
    """End this process at once when its parent ends, also by `kill -9`. Does nothing in a process that
    multiprocessing did not start."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="waits for the parent's end", daemon=True).start()


@contextmanager
def signals_held(*numbers: int) -> Iterator[None]:
    """Block these signals in a process that is started in the `with` block.

    The process itself would ignore them too late: Ctrl-C during its imports would end in a traceback. The
    mask is only for this thread, so another thread may get the signal: a handler stores it until the process
    is started, then it is raised again. Windows has no signal mask.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it later would remove the mask
    pending: list[int] = []
    handlers = {number: signal.getsignal(number) for number in numbers}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, lambda number, _: pending.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        for blocked in pending:
            signal.raise_signal(blocked)


def cache_dir() -> Path:
    """Folder of downloaded and converted model files and of packed copies: $BRAINBUDDY_CACHE, else the
    platform's cache folder."""
    return Path(
        os.environ.get("BRAINBUDDY_CACHE")
        or platformdirs.user_cache_dir("brainbuddy", appauthor=False, opinion=False)
    )
