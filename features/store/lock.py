"""One planner of a store at a time: a lock file, made only where there is none.

Not the file system's own locks: those of shared disks often do nothing, and object storage has none. Its
holder renews it while it plans. A planner that was killed is noticed by its process and its process's start,
and from another machine or container by a lock that nobody renews; whoever waits measures that by its own
clock, for machines do not agree on the time.
"""

import contextlib
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from features.cli import log_warning
from features.files import is_alive, is_here, this_process
from features.store.location import PARTIAL_AGE_S, StoreLocation, delete_keys, object_errors, read_bytes

LOCK_NAME = "planner.lock"
RENEW_S = 15.0
LOCK_STALE_S = 120.0
"""A lock that is not renewed for so long belongs to nobody alive: eight renewals of a slow network disk."""
NOTICE_S = 10.0
"""Planning mostly takes seconds; who waits longer is told for whom."""


@contextlib.contextmanager
def planner_lock(location: StoreLocation, wait_s: float = math.inf) -> Iterator[None]:
    """Be the only planner of a store; wait for another as long as that one lives.

    A planner that died here is noticed at once, one of another machine or container after LOCK_STALE_S.

    Raises ValueError naming the holder when the lock does not come free within `wait_s`.
    """
    token = uuid.uuid4().hex
    _acquire(location, token, wait_s)
    is_done = threading.Event()
    renewing = threading.Thread(
        target=_renew, args=(location, token, is_done), name="lock-renewal", daemon=True
    )
    renewing.start()
    try:
        yield
    finally:
        is_done.set()
        renewing.join()
        if token.encode() in (read_bytes(location, LOCK_NAME) or b""):
            delete_keys(location, [LOCK_NAME])


def _acquire(location: StoreLocation, token: str, wait_s: float) -> None:
    began_s = seen_s = time.monotonic()
    seen: bytes | None = None
    is_told = False
    while not _put_if_absent(location, _body(token)):
        held, now_s = read_bytes(location, LOCK_NAME), time.monotonic()
        if held != seen:
            seen, seen_s = held, now_s
        if held is not None and (now_s - seen_s > LOCK_STALE_S or _is_dead(location, held)):
            _break_lock(location, held)
        elif now_s - began_s > wait_s:
            raise ValueError(
                f"{location.text} is being planned by another process ({_describe(held)}); "
                f"if that is gone, delete {LOCK_NAME} in it"
            )
        else:
            if now_s - began_s > NOTICE_S and not is_told:
                log_warning(f"waiting for {_describe(held)}, which plans {location.text}")
                is_told = True
            time.sleep(min(1.0, 0.05 + (now_s - began_s) / 10))  # many may wait on one slow disk


def _renew(location: StoreLocation, token: str, is_done: threading.Event) -> None:
    """Write the time anew until it is done. In place: a lock that somebody took away stays away."""
    while not is_done.wait(RENEW_S):
        with contextlib.suppress(OSError, ValueError):  # the disk is full or away: next time, then
            if token.encode() not in (read_bytes(location, LOCK_NAME) or b""):
                return
            if location.folder is None:
                location.objects.put(LOCK_NAME, _body(token))
            else:
                with open(location.folder / LOCK_NAME, "r+b") as file:
                    file.write(_body(token))


def _body(token: str) -> bytes:
    """What a lock says; as long each time, so that it can be written over."""
    return json.dumps({**this_process(), "token": token, "time": f"{time.time():.3f}"}).encode()


def _put_if_absent(location: StoreLocation, body: bytes) -> bool:
    if location.folder is not None:
        try:  # O_EXCL, not a hard link: exFAT disks have none
            with open(location.folder / LOCK_NAME, "xb") as file:
                file.write(body)
        except FileExistsError:
            return False
        return True
    from obstore.exceptions import AlreadyExistsError

    try:
        with object_errors(location.text):
            location.objects.put(LOCK_NAME, body, mode="create")
    except ValueError as error:
        if isinstance(error.__cause__, AlreadyExistsError):
            return False
        raise
    except FileNotFoundError as error:
        raise ValueError(f"{location.text}: there is no such bucket") from error
    return True


def _is_dead(location: StoreLocation, held: bytes) -> bool:
    try:
        holder = json.loads(held)
        return not is_alive(holder) and is_here(holder)
    except (ValueError, KeyError, TypeError):  # killed between creating and writing it
        return location.folder is None or _age_s(location.folder / LOCK_NAME) > PARTIAL_AGE_S


def _age_s(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _break_lock(location: StoreLocation, held: bytes) -> None:
    """Take a dead planner's lock away, but not the one that somebody made meanwhile."""
    if location.folder is None:
        if read_bytes(location, LOCK_NAME) == held:
            delete_keys(location, [LOCK_NAME])
        return
    aside = location.folder / f"{LOCK_NAME}.{uuid.uuid4().hex}.partial"
    with contextlib.suppress(FileNotFoundError):
        (location.folder / LOCK_NAME).rename(aside)
        if aside.read_bytes() != held:
            with contextlib.suppress(OSError):
                os.link(aside, location.folder / LOCK_NAME)
        aside.unlink()


def _describe(held: bytes | None) -> str:
    try:
        holder = json.loads(held or b"")
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"
