"""Storage of a study: a journal file, a database, or a gRPC proxy of one."""

import json
import os
import re
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalStorageReplayResult

from features.cli import UserError, log_warning
from features.files import atomic_write

HEARTBEAT_S, GRACE_S = 5, 20
"""Seconds between heartbeats of a trial in a database, and without one until it is failed and run again."""
MAX_RETRIES = 2
"""A trial whose worker ended three times (for example, out of memory) is not run again."""
SHARED_DISKS = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "beegfs",
    "gpfs",
    "fuse.sshfs",
    "9p",
    "ceph",
)
"""File systems on which sqlite's locks are not reliable."""
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, AssertionError)
"""Errors that Optuna raises for a line of a journal that is not one of its records."""


class JournalLock(JournalFileOpenLock):
    """The lock of a journal file, taken before each append. It is a file that is made with O_EXCL.

    Optuna's default lock is a symbolic link of the same name, which FAT, exFAT, SMB and Windows refuse, and
    which never counts as stale if the journal's path is relative. The two kinds exclude each other.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal

    def acquire(self) -> bool:
        """Wait for the lock; then repair the journal, so that nothing is appended to half a line."""
        has_lock = super().acquire()
        try:
            _cut_half_line(self._journal)
        except BaseException:
            self.release()
            raise
        return has_lock

    def release(self) -> None:
        """Give the lock back; does nothing if this process was paused for so long (30 s) that another one
        took it over. What it appends then is whole too: a line is written with one call."""
        with suppress(RuntimeError):
            super().release()


def open_storage(storage: str) -> BaseStorage:
    """The storage for a URL or the path of a journal file.

    Raises UserError for sqlite on a shared disk, an unknown type of URL, or a database or proxy that does
    not respond.
    """
    if "://" not in storage:
        return _open_journal(Path(storage))
    if storage.startswith("grpc://"):
        host, _, port = storage.removeprefix("grpc://").rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--storage {storage} must be grpc://HOST:PORT")
        try:
            from grpc import RpcError  # type: ignore[import-untyped]
        except ImportError as error:
            raise UserError(f"--storage {storage} needs grpcio: pip install 'brainbuddy[grpc]'") from error
        with ignore_experimental_warnings():
            proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
        try:
            proxy.get_all_studies()  # the first call connects
        except RpcError as error:
            proxy.close()
            raise UserError(f"--storage {storage}: {_one_line(error.details())}") from error
        return proxy
    if storage.startswith("sqlite"):
        refuse_shared_disk(storage)
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with ignore_experimental_warnings():
            return RDBStorage(
                storage,
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES),
            )
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise UserError(f"--storage {without_password(storage)}: {_one_line(error)}") from error


def _open_journal(path: Path) -> JournalStorage:
    """The storage of a journal file, which is made if it is missing.

    Raises UserError for a line that is not a record of Optuna, or if a process of an earlier version was
    killed while it held its lock, a symbolic link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    link = Path(f"{path}.lock")
    if link.is_symlink() and not link.exists():
        raise UserError(
            f"{link} is the lock of an earlier version whose process was killed: if no search of that "
            "version runs, delete the file and run the same command again"
        )
    lock, replayed = JournalLock(path), JournalStorageReplayResult("check ")
    backend = JournalFileBackend(str(path), lock_obj=lock)
    with get_lock_file(lock):
        lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            replayed.apply_logs([json.loads(line)])
        except UNREADABLE as error:
            raise UserError(
                f"{path} is damaged: line {number} is not a record of Optuna ({line[:60]!r}). Restore an "
                "earlier copy of this file, or begin a new study with another --out or --storage"
            ) from error
    return JournalStorage(backend)


def _cut_half_line(journal: Path) -> None:
    """Remove what follows the last complete line, after a power cut or on a full disk; keep a copy of the
    file and name it in a warning. Only for the holder of the lock: others may be appending."""
    with open(journal, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        if file.read() in (b"", b"\n"):
            return
    content = journal.read_bytes()
    copy = journal.with_name(f"{journal.name}.{uuid.uuid4().hex[:8]}.damaged")
    with atomic_write(copy, durable=True) as partial:
        partial.write_bytes(content)
    os.truncate(journal, content.rfind(b"\n") + 1)
    log_warning(
        f"{journal} ended with half a line (power cut or full disk), which is removed; the file as it was is "
        f"{copy}"
    )


@contextmanager
def storage_errors_in_one_line(storage: str) -> Iterator[None]:
    """Raises ConnectionError, with a text of one line, if a database or proxy no longer responds."""
    try:
        yield
    except UserError:  # has a text of one line already, for example if the storage never responded
        raise
    except Exception as error:
        names = (("grpc", "RpcError"), ("sqlalchemy.exc", "SQLAlchemyError"))
        # A library that is not imported was not used.
        others = [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]
        lost: BaseException | None = error
        # Optuna's cleanup after the error may raise another one.
        while lost is not None and not isinstance(lost, (optuna.exceptions.StorageInternalError, *others)):
            lost = lost.__context__
        if lost is None:
            raise
        reason = _one_line(lost.details() if hasattr(lost, "details") else lost.__cause__ or lost)
        raise ConnectionError(
            f"--storage {without_password(storage)}: {reason}. Finished trials are kept; run the same "
            "command again to resume"
        ) from error


@contextmanager
def ignore_experimental_warnings() -> Iterator[None]:
    """Ignore Optuna's warnings about experimental features, for example heartbeats and the Wilcoxon
    pruner."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def refuse_shared_disk(url: str, mounts_file: Path = Path("/proc/mounts")) -> None:
    """Raises UserError if an sqlite file is on a network disk."""
    path = Path(url.partition("///")[2] or ".").absolute()
    try:
        mounts = mounts_file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    pairs = [line.split()[1:3] for line in mounts]
    above = [pair for pair in pairs if path.is_relative_to(pair[0].replace("\\040", " "))]
    where, kind = max(reversed(above), key=lambda pair: len(pair[0]), default=("", ""))
    if kind in SHARED_DISKS:
        raise UserError(
            f"--storage {without_password(url)}: sqlite on a shared disk ({kind} at {where}) can lose "
            "trials; leave out --storage (a journal file), or use postgresql+psycopg://USER@HOST/NAME"
        )


def without_password(url: str) -> str:
    """The URL, or the argument --storage=URL, without the password before its @ or in an option
    (`?password=…`), parsed as `sqlalchemy.engine.make_url` does. Other texts are returned unchanged."""
    if "://" not in url:
        return url
    url = re.sub(r"^((?:--storage=)?[\w+]+://[^:/]*):[^@]*@", r"\1:…@", url)
    return re.sub(r"([?&][^=&]*passw[^=&]*=)[^&]*", r"\1…", url, flags=re.IGNORECASE)


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:300]
