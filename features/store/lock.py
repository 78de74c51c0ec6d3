"""The planner lock of a store: a lock file that allows one planner at a time.

File system locks are not used: on shared disks they often do nothing, and object storage has none. The
holder renews the lock file while it plans. A killed planner is detected by its process id and start time;
from another machine or container, by a lock that is no longer renewed. The waiting process measures that
with its own clock, because clocks of different machines differ.
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
from features.files import in_same_namespace, is_alive, this_process
from features.store.location import PARTIAL_AGE_S, StoreLocation, delete_keys, object_errors, read_bytes

LOCK_NAME = "planner.lock"
RENEW_S = 15.0
LOCK_STALE_S = 120.0
"""A lock not renewed for this long is stale: eight missed renewals, enough for a slow network disk."""
NOTICE_S = 10.0
"""After this wait a warning names the holder; planning usually takes seconds."""


@contextlib.contextmanager
def planner_lock(location: StoreLocation, wait_s: float = math.inf) -> Iterator[None]:
    """Hold the planner lock of a store; wait while another process holds it.

    A planner killed on this machine is detected at once, one on another machine or container after
    LOCK_STALE_S.

    Raises ValueError naming the holder when the lock is not released within `wait_s` seconds.
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
    has_warned = False
    while not _put_if_absent(location, _body(token)):
        held, now_s = read_bytes(location, LOCK_NAME), time.monotonic()
        if held != seen:
            seen, seen_s = held, now_s
        if held is not None and (now_s - seen_s > LOCK_STALE_S or _is_dead(location, held)):
            _break_lock(location, held)
        elif now_s - began_s > wait_s:
            raise ValueError(
                f"{location.text} is locked by another process ({_describe(held)}); "
                f"if that process no longer runs, delete {LOCK_NAME} in the store"
            )
        else:
            if now_s - began_s > NOTICE_S and not has_warned:
                log_warning(f"waiting for {_describe(held)}, which holds the lock of {location.text}")
                has_warned = True
            time.sleep(min(1.0, 0.05 + (now_s - began_s) / 10))  # many processes may poll one slow disk


def _renew(location: StoreLocation, token: str, is_done: threading.Event) -> None:
    """Rewrite the time in the lock until `is_done`. In place, so a lock that was deleted is not recreated."""
    while not is_done.wait(RENEW_S):
        with contextlib.suppress(OSError, ValueError):  # the disk is full or offline: try again next time
            if token.encode() not in (read_bytes(location, LOCK_NAME) or b""):
                return
            if location.folder is None:
                location.objects.put(LOCK_NAME, _body(token))
            else:
                with open(location.folder / LOCK_NAME, "r+b") as file:
                    file.write(_body(token))


def _body(token: str) -> bytes:
    """The content of the lock file; always of the same length, so that it can be overwritten in place."""
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
        raise ValueError(f"{location.text}: no such bucket") from error
    return True


def _is_dead(location: StoreLocation, held: bytes) -> bool:
    try:
        holder = json.loads(held)
        return not is_alive(holder) and in_same_namespace(holder)
    except (ValueError, KeyError, TypeError):  # the holder was killed between creating and writing the file
        return location.folder is None or _age_s(location.folder / LOCK_NAME) > PARTIAL_AGE_S


def _age_s(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _break_lock(location: StoreLocation, held: bytes) -> None:
    """Delete a dead planner's lock, but not a new lock that another process has made in the meantime."""
    if location.folder is None:
        if read_bytes(location, LOCK_NAME) == held:
            delete_keys(location, [LOCK_NAME])
        return
    temporary = location.folder / f"{LOCK_NAME}.{uuid.uuid4().hex}.partial"
    with contextlib.suppress(FileNotFoundError):
        (location.folder / LOCK_NAME).rename(temporary)
        if temporary.read_bytes() != held:
            with contextlib.suppress(OSError):
                os.link(temporary, location.folder / LOCK_NAME)
        temporary.unlink()


def _describe(held: bytes | None) -> str:
    try:
        holder = json.loads(held or b"")
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"
