"""The journal file of a study: its lock works on every disk."""

import errno
import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

from tune.study.storage import open_storage
from tune.study.study import StudySpec, create_study, num_done, work

makes_links = pytest.mark.skipif(os.name == "nt", reason="symbolic links need special rights on Windows")
Lock = JournalFileOpenLock | JournalFileSymlinkLock


def spec_at(path: Path | str, trials: int = 2) -> StudySpec:
    return StudySpec(str(path), "study", trials=trials, seed=0, epochs=4, pruning=False, folds=0)


def run_trials(spec: StudySpec) -> int:
    """Number of finished trials of a study, after the same command ran (again)."""
    study = create_study(spec, [], {})
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    return num_done(study)


def lock_of(path: Path | str) -> Lock:
    """The lock that a search holds while it appends."""
    storage = open_storage(str(path))
    assert isinstance(storage, JournalStorage)
    lock: Lock = storage._backend._lock  # type: ignore[attr-defined]
    return lock


def test_a_folder_without_symbolic_links_can_hold_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT, exFAT and SMB."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    assert run_trials(spec_at(tmp_path / "study.log")) == 2


@makes_links
@pytest.mark.parametrize("is_ours_first", [False, True])
def test_locks_of_this_and_earlier_versions_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ours_first: bool
) -> None:
    locks: list[Lock] = [lock_of(tmp_path / "study.log"), JournalFileSymlinkLock(str(tmp_path / "study.log"))]
    first, second = locks if is_ours_first else locks[::-1]
    first.acquire()
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        first.release()

    monkeypatch.setattr("optuna.storages.journal._file.time.sleep", wait)
    second.acquire()
    assert len(waits) == 1


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the path is relative."""
    monkeypatch.chdir(tmp_path)
    lock_of("runs/study.log").acquire()  # and never released
    seconds = itertools.count()

    def clock() -> float:
        now_s = next(seconds)
        assert now_s < 1000, "waits for ever"
        return now_s

    fake = SimpleNamespace(monotonic=clock, sleep=lambda seconds: None)
    monkeypatch.setattr("optuna.storages.journal._file.time", fake)
    assert run_trials(spec_at("runs/study.log")) == 2


@makes_links
def test_lock_that_an_earlier_version_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A symbolic link to nothing has no time, so Optuna would wait for ever."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    JournalFileSymlinkLock("runs/study.log").acquire()
    with pytest.raises(
        ValueError, match=r"study.log.lock is the lock of an earlier version .*delete the file"
    ):
        create_study(spec_at("runs/study.log"), [], {})
