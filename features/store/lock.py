"""The planner lock of a store: numbered lock files that allow one planner at a time.

The lock is the file `planner.lock.<n>` with the highest number. A process takes it by creating the next
number, if the highest one is released, or its holder is dead. Only one process can create a number, and the
highest file is never deleted, so **a number that was passed is never the highest again**: a process that was
paused cannot delete or overwrite another one's lock. It looks for a higher number before each write, and
stops. (Only a pause between that look and its write, of a holder that is stale already, goes unnoticed.)

File system locks are not used: on shared disks they often do nothing, and object storage has none. The holder
renews its file while it plans. A killed planner is detected by its process id and start time; from another
machine or container, by a lock that is no longer renewed. The waiting process measures that with its own
clock, because clocks of different machines differ.
"""

import contextlib
import dataclasses
import functools
import json
import math
import threading
import time
import uuid
from collections.abc import Iterator

from features.cli import UserError, log_warning
from features.files import in_same_namespace, is_alive, this_process
from features.store.location import StoreLocation, delete_keys, object_errors, read_bytes, root_names

LOCK_NAME = "planner.lock"
RELEASED = b"{}"
RENEW_S = 15.0
LOCK_STALE_S = 120.0
"""A lock not renewed for this long is stale: eight missed renewals, enough for a slow network disk."""
NOTICE_S = 10.0
"""After this wait a warning names the holder; planning usually takes seconds."""


@contextlib.contextmanager
def planner_lock(location: StoreLocation, wait_s: float = math.inf) -> Iterator[StoreLocation]:
    """Hold the planner lock of a store; wait while another process holds it.

    Gives the location to write with: its `require_lock` raises UserError when another process has taken the
    lock, because this one was paused for more than LOCK_STALE_S. A planner killed on this machine is detected
    at once, one on another machine or container after LOCK_STALE_S.

    Raises UserError naming the holder when the lock is not released within `wait_s` seconds.
    """
    token = uuid.uuid4().hex
    number = _acquire(location, token, wait_s)
    is_done = threading.Event()
    renewing = threading.Thread(
        target=_renew, args=(location, number, token, is_done), name="lock-renewal", daemon=True
    )
    renewing.start()
    try:
        yield dataclasses.replace(
            location, require_lock=functools.partial(_require_lock, location, number, token)
        )
    finally:
        is_done.set()
        renewing.join()
        if _is_held(location, number, token):
            _overwrite(location, number, RELEASED)


def _acquire(location: StoreLocation, token: str, wait_s: float) -> int:
    """Wait for the lock and take it; returns its number."""
    began_s = seen_s = time.monotonic()
    seen: tuple[int, bytes] | None = None
    has_warned = False
    while True:
        number, held = latest = _latest(location)
        now_s = time.monotonic()
        if latest != seen:
            seen, seen_s = latest, now_s
        if _is_free(held) or now_s - seen_s > LOCK_STALE_S:
            _create(location, number + 1, _body(token))
            if _is_held(location, number + 1, token):
                delete_keys(location, [_key(lower) for lower in _numbers(location) if lower <= number])
                return number + 1
        if now_s - began_s > wait_s:
            raise UserError(
                f"{location.text} is locked by another process ({_describe(held)}); "
                f"if that process no longer runs, delete {_key(number)} in the store"
            )
        if now_s - began_s > NOTICE_S and not has_warned:
            log_warning(f"waiting for {_describe(held)}, which holds the lock of {location.text}")
            has_warned = True
        time.sleep(min(1.0, 0.05 + (now_s - began_s) / 10))  # many processes may poll one slow disk


def _renew(location: StoreLocation, number: int, token: str, is_done: threading.Event) -> None:
    """Rewrite the time in the lock until `is_done`, or until another process has taken the lock."""
    while not is_done.wait(RENEW_S):
        with contextlib.suppress(OSError, ValueError):  # the disk is full or offline: try again next time
            if not _is_held(location, number, token):
                return
            _overwrite(location, number, _body(token))


def _require_lock(location: StoreLocation, number: int, token: str) -> None:
    if not _is_held(location, number, token):
        raise UserError(
            f"{location.text} is locked by another process now, because this one was paused for more than "
            f"{LOCK_STALE_S:.0f} s; nothing more was written: run the same command again"
        )


def _body(token: str) -> bytes:
    """The content of a lock that is held."""
    return json.dumps({**this_process(), "token": token, "time": f"{time.time():.3f}"}).encode()


def _key(number: int) -> str:
    return f"{LOCK_NAME}.{number}"


def _numbers(location: StoreLocation) -> list[int]:
    parts = (name.rpartition(".") for name in root_names(location))
    return [int(end) for stem, _, end in parts if stem == LOCK_NAME and end.isdecimal()]


def _latest(location: StoreLocation) -> tuple[int, bytes]:
    """(number, content) of the lock with the highest number; (0, RELEASED) if there is none."""
    number = max(_numbers(location), default=0)
    return number, RELEASED if number == 0 else read_bytes(location, _key(number)) or b""


def _is_held(location: StoreLocation, number: int, token: str) -> bool:
    """Whether that number is this process's and still the highest. The listing comes last: no process has
    begun to plan with a higher number before it."""
    return (token.encode() in (read_bytes(location, _key(number)) or b"")) and (
        max(_numbers(location), default=0) == number
    )


def _create(location: StoreLocation, number: int, body: bytes) -> None:
    """Create a lock file; does nothing if another process has created that number."""
    if location.folder is not None:
        with contextlib.suppress(FileExistsError):  # O_EXCL, not a hard link: exFAT disks have none
            with open(location.folder / _key(number), "xb") as file:
                file.write(body)
        return
    from obstore.exceptions import AlreadyExistsError

    try:
        with object_errors(location.text):
            location.objects.put(_key(number), body, mode="create")
    except ValueError as error:
        if not isinstance(error.__cause__, AlreadyExistsError):
            raise


def _overwrite(location: StoreLocation, number: int, body: bytes) -> None:
    """Rewrite this process's own lock file; in place, so that a deleted lock is not created again."""
    if location.folder is None:
        with object_errors(location.text):
            location.objects.put(_key(number), body)
        return
    with contextlib.suppress(FileNotFoundError):  # lost and deleted: there is a higher number
        with open(location.folder / _key(number), "r+b") as file:
            file.write(body)
            file.truncate()


def _is_free(held: bytes) -> bool:
    """Whether the lock was released, or its holder ran on this machine and has ended."""
    try:
        holder = json.loads(held)
        return not holder or (in_same_namespace(holder) and not is_alive(holder))
    except (ValueError, KeyError, TypeError):  # half written; if its writer was killed, it becomes stale
        return False


def _describe(held: bytes) -> str:
    try:
        holder = json.loads(held)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"
