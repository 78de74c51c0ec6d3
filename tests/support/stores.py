"""Whether two stores hold the same bytes, and who reads or writes files now."""

from pathlib import Path

from features.maintenance.verify import verify_store
from features.store.store import FeatureStore


def has_open(pid: int, beginning: str) -> bool:
    """Whether a process has a file whose name begins so open at this moment."""
    try:
        return any(link.readlink().name.startswith(beginning) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def everything(path: Path) -> dict[str, bytes]:
    """Every file of a store, to compare two stores by."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def require_equal_stores(path: Path, reference: Path) -> None:
    """The same files of the same bytes, and all of them sound."""
    ours, theirs = everything(path), everything(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert not verify_store(FeatureStore.open(path))


def rows_written(store: Path) -> list[Path]:
    return list((store / "frames").glob("c.*.0.0"))
