"""Storage of a study: a journal file, a database, or a gRPC proxy of one."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

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


def open_storage(storage: str) -> BaseStorage:
    """The storage for a URL or the path of a journal file.

    Raises ValueError for sqlite on a shared disk, an unknown type of URL, or a database or proxy that does
    not respond.
    """
    if "://" not in storage:
        return _open_journal(Path(storage))
    if storage.startswith("grpc://"):
        host, _, port = storage.removeprefix("grpc://").rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--storage {storage} must be grpc://HOST:PORT")
        try:
            from grpc import RpcError  # type: ignore[import-untyped]
        except ImportError as error:
            raise ValueError(f"--storage {storage} needs grpcio: pip install 'brainbuddy[grpc]'") from error
        with ignore_experimental_warnings():
            proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
        try:
            proxy.get_all_studies()  # the first call connects
        except RpcError as error:
            proxy.close()
            raise ValueError(f"--storage {storage}: {_one_line(error.details())}") from error
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
        raise ValueError(f"--storage {without_password(storage)}: {_one_line(error)}") from error


def _open_journal(path: Path) -> JournalStorage:
    """The storage of a journal file, which is made if it is missing.

    The lock is a file that is made with O_EXCL. Optuna's default is a symbolic link of the same name, which
    FAT, exFAT, SMB and Windows refuse, and which never counts as stale if `path` is relative. The two kinds
    exclude each other.

    Raises ValueError if a process of an earlier version was killed while it held such a link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    link = Path(f"{path}.lock")
    if link.is_symlink() and not link.exists():
        raise ValueError(
            f"{link} is the lock of an earlier version whose process was killed: if no search of that "
            "version runs, delete the file and run the same command again"
        )
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


@contextmanager
def storage_errors_in_one_line(storage: str) -> Iterator[None]:
    """Raises ConnectionError, with a text of one line, if a database or proxy no longer responds."""
    try:
        yield
    except ValueError:  # has a text of one line already, for example if the storage never responded
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
    """Raises ValueError if an sqlite file is on a network disk."""
    path = Path(url.partition("///")[2] or ".").absolute()
    try:
        mounts = mounts_file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    pairs = [line.split()[1:3] for line in mounts]
    above = [pair for pair in pairs if path.is_relative_to(pair[0].replace("\\040", " "))]
    where, kind = max(reversed(above), key=lambda pair: len(pair[0]), default=("", ""))
    if kind in SHARED_DISKS:
        raise ValueError(
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
