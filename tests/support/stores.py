"""Compares the bytes of two stores, and finds open files and written rows."""

from pathlib import Path

from features.maintenance.verify import verify_store
from features.store.lock import LOCK_NAME
from features.store.store import FeatureStore


def has_open(pid: int, prefix: str) -> bool:
    """Whether a process has a file open now whose name begins with `prefix`."""
    try:
        return any(link.readlink().name.startswith(prefix) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def all_files(path: Path) -> dict[str, bytes]:
    """Relative name -> bytes of every file of a store, without the planner lock, which counts the plans."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(LOCK_NAME)]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def require_equal_stores(path: Path, reference: Path) -> None:
    """Require the same files with the same bytes, and that `verify_store` finds no problem."""
    files, expected = all_files(path), all_files(reference)
    assert files.keys() == expected.keys()
    assert [name for name in files if files[name] != expected[name]] == []
    assert not verify_store(FeatureStore.open(path))


def rows_written(store: Path) -> list[Path]:
    """Chunk files of the rows that are written so far."""
    return list((store / "frames").glob("c.*.0.0"))
