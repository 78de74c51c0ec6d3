"""Where a study is stored: a journal file, a database, or a proxy of one."""

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
"""A trial of a database whose worker has been silent that long is failed and tried again."""
MAX_RETRIES = 2
"""A trial that killed its worker three times (memory, say) would kill the next one too."""
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
"""Mount types on which sqlite's locks cannot be trusted."""


def open_storage(storage: str) -> BaseStorage:
    """The storage that a URL or a journal file's path names.

    Raises ValueError for sqlite on a shared disk, an unknown kind of URL, or a database or proxy that does
    not answer.
    """
    if "://" not in storage:
        path = Path(storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The default lock is a symbolic link, which needs rights on Windows (from the documentation, not
        # run).
        lock = JournalFileOpenLock(str(path)) if sys.platform == "win32" else None
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    if storage.startswith("grpc://"):
        host, _, port = storage.removeprefix("grpc://").rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--storage {storage}: wanted grpc://HOST:PORT")
        try:
            from grpc import RpcError  # type: ignore[import-untyped]
        except ImportError as error:
            raise ValueError(f"--storage {storage} needs grpcio: pip install 'brainbuddy[grpc]'") from error
        with experimental_is_fine():
            proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
        try:
            proxy.get_all_studies()  # it connects at the first question
        except RpcError as error:
            proxy.close()
            raise ValueError(f"--storage {storage}: {_one_line(error.details())}") from error
        return proxy
    if storage.startswith("sqlite"):
        refuse_shared_disk(storage)
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with experimental_is_fine():
            return RDBStorage(
                storage,
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES),
            )
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise ValueError(f"--storage {without_password(storage)}: {_one_line(error)}") from error


@contextmanager
def lost_is_one_line(storage: str) -> Iterator[None]:
    """Raises ConnectionError where a database or proxy no longer answers, instead of errors of three
    libraries."""
    try:
        yield
    except ValueError:  # a storage that never answered, among others: said in one line already
        raise
    except Exception as error:
        names = (("grpc", "RpcError"), ("sqlalchemy.exc", "SQLAlchemyError"))
        # What was not imported was not asked.
        others = [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]
        lost: BaseException | None = error
        # Optuna's tidying up after it may fail in its own way.
        while lost is not None and not isinstance(lost, (optuna.exceptions.StorageInternalError, *others)):
            lost = lost.__context__
        if lost is None:
            raise
        reason = _one_line(lost.details() if hasattr(lost, "details") else lost.__cause__ or lost)
        raise ConnectionError(
            f"--storage {without_password(storage)}: {reason}; finished trials are kept, the same command "
            "goes on"
        ) from error


@contextmanager
def experimental_is_fine() -> Iterator[None]:
    """Without the warning that Optuna gives with each heartbeat, Wilcoxon pruner and the like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def refuse_shared_disk(url: str, mounts_file: Path = Path("/proc/mounts")) -> None:
    """Raise ValueError when an sqlite file lies on a network disk."""
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
            f"--storage {without_password(url)}: sqlite on a shared disk ({kind} at {where}) loses "
            "trials; leave --storage out (a journal file) or use postgresql+psycopg://USER@HOST/NAME"
        )


def without_password(url: str) -> str:
    """The URL, or the word --storage=URL, as it may be shown: without the password before its @ or in an
    option (`?password=…`), read as `sqlalchemy.engine.make_url` reads it. Anything else stays as it is."""
    if "://" not in url:
        return url
    url = re.sub(r"^((?:--storage=)?[\w+]+://[^:/]*):[^@]*@", r"\1:…@", url)
    return re.sub(r"([?&][^=&]*passw[^=&]*=)[^&]*", r"\1…", url, flags=re.IGNORECASE)


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:300]
