"""The storage of a study: a journal's lock works on every disk, and a damaged file is repaired or named.

URLs that do not work are refused in one line, and passwords are never shown.
"""

import errno
import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

from tune.study import storage
from tune.study.storage import open_storage, refuse_shared_disk, without_password
from tune.study.study import StudySpec, create_study, num_done, work

makes_links = pytest.mark.skipif(os.name == "nt", reason="symbolic links need special rights on Windows")
Lock = JournalFileOpenLock | JournalFileSymlinkLock


def spec_at(path: Path | str, trials: int = 2) -> StudySpec:
    return StudySpec(str(path), "study", trials=trials, seed=0)


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


def test_search_goes_on_after_its_lock_was_taken_over_in_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_half_line, taken = storage._cut_half_line, []

    def pause(journal: Path) -> None:
        Path(f"{journal}.lock").unlink()  # by another process, after 30 s
        taken.append(journal)
        cut_half_line(journal)

    monkeypatch.setattr(storage, "_cut_half_line", pause)
    assert run_trials(spec_at(tmp_path / "study.log")) == 2
    assert taken


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


HALF = b'{"op_code":8,"worker_id":"a-1","trial_'


def append(path: Path, end: bytes) -> bytes:
    """Append to a file without the lock; returns the file's content."""
    with open(path, "ab") as file:
        file.write(end)
    return path.read_bytes()


def test_half_a_line_at_the_end_of_a_journal_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study continues with all its trials, and a warning names the copy of the damaged file."""
    path = tmp_path / "study.log"
    assert run_trials(spec_at(path)) == 2
    damaged = append(path, HALF)
    assert run_trials(spec_at(path, trials=3)) == 3
    assert run_trials(spec_at(path, trials=4)) == 4
    assert HALF not in path.read_bytes()
    (copy,) = tmp_path.glob("*.damaged")
    assert copy.read_bytes() == damaged
    warning = " ".join(capsys.readouterr().err.split())
    assert warning.count("ended with half a line") == 1
    assert str(copy) in warning


@pytest.mark.parametrize("half", [HALF, b"\0" * 5000])
def test_half_a_line_of_another_machine_is_removed_before_the_next_append(
    tmp_path: Path, half: bytes
) -> None:
    """By a worker that runs already; a power cut may also leave zeros."""
    path = tmp_path / "study.log"
    study = create_study(spec_at(path), [], {})
    append(path, half)
    study.set_user_attr("first", 1)
    study.set_user_attr("second", 2)
    assert create_study(spec_at(path), [], {}).user_attrs == {"settings": {}, "first": 1, "second": 2}


def test_line_that_another_process_is_writing_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one holds the lock, and finishes its line while this one waits."""
    path = tmp_path / "study.log"
    create_study(spec_at(path), [], {})
    other = lock_of(path)
    other.acquire()
    append(path, b'{"op_code":2,"worker_id":"a-1",')

    def finish(seconds: float) -> None:
        append(path, b'"study_id":0,"user_attr":{"other":1}}\n')
        other.release()

    monkeypatch.setattr("optuna.storages.journal._file.time.sleep", finish)
    assert create_study(spec_at(path), [], {}).user_attrs == {"settings": {}, "other": 1}
    assert not list(tmp_path.glob("*.damaged"))


@pytest.mark.parametrize("step", ["atomic_write", "os.truncate"])
def test_a_repair_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """For example because the disk is full. The lock is free again, and a later command repairs the file."""
    path = tmp_path / "study.log"
    create_study(spec_at(path), [], {})
    damaged = append(path, HALF)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"tune.study.storage.{step}", fail)
        with pytest.raises(OSError, match="No space left"):
            create_study(spec_at(path), [], {})
    assert path.read_bytes() == damaged
    assert not Path(f"{path}.lock").exists()
    assert run_trials(spec_at(path)) == 2


@pytest.mark.parametrize("line", [b"{}", b'{"op_code":77}', b'{"op_code":4}', b"[]", b"7", b"\xff\xfe", HALF])
@pytest.mark.parametrize("is_last", [False, True])
def test_line_that_is_no_record_is_named_in_one_line(tmp_path: Path, line: bytes, is_last: bool) -> None:
    path = tmp_path / "study.log"
    create_study(spec_at(path), [], {})
    lines = path.read_bytes().splitlines()
    number = len(lines) if is_last else 2
    lines.insert(number, line)
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ValueError, match=rf"damaged: line {number + 1} is not a record .*another --out") as e:
        create_study(spec_at(path), [], {})
    assert "\n" not in str(e.value)
    assert not Path(f"{path}.lock").exists()


def test_sqlite_on_a_shared_disk_is_refused_with_a_hint(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"sqlite on a shared disk \(nfs4 at /home\).*postgresql"):
        refuse_shared_disk("sqlite:////home/me/study.db", mounts)
    refuse_shared_disk("sqlite:////var/study.db", mounts)


def test_storage_that_cannot_be_opened_is_a_one_line_error() -> None:
    with pytest.raises(ValueError, match="must be grpc://HOST:PORT"):
        open_storage("grpc://nowhere")
    with pytest.raises(ValueError, match="--storage mongodb://x: "):
        open_storage("mongodb://x")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:se:cr/e?t@host:5432/db", "postgresql+psycopg://me:…@host:5432/db"),
        ("postgresql://me@host/db?password=s@cr:et", "postgresql://me@host/db?password=…"),
        (
            "postgresql://me:secret@host/db?sslmode=a&password=secret&b=c",
            "postgresql://me:…@host/db?sslmode=a&password=…&b=c",
        ),
        ("mysql+pymysql://host/db?user=me&PASSWD=secret", "mysql+pymysql://host/db?user=me&PASSWD=…"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("grpc://host:13000", "grpc://host:13000"),
        ("folder/me:and@you?password=1.log", "folder/me:and@you?password=1.log"),
        ("--storage=postgresql://me:secret@host/db", "--storage=postgresql://me:…@host/db"),
        ("--labels=a:b@c", "--labels=a:b@c"),
        ("", ""),
    ],
)
def test_a_password_is_left_out_wherever_a_url_has_it(url: str, shown: str) -> None:
    """The path of a journal is not a URL and does not change."""
    assert without_password(url) == shown
