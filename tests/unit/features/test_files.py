"""Atomic file writes, and detection of running processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from features.files import SAME_START_S, atomic_write, cache_dir, is_alive, this_process

SIGNED = "import json; from features.files import this_process; print(json.dumps(this_process()), flush=True)"


def test_file_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "파일.txt"
    with atomic_write(path, durable=True) as partial:
        partial.write_text("old", encoding="utf-8")
        assert not path.exists()

    def fails_half_way() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half", encoding="utf-8")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_half_way()
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["파일.txt"]


def test_two_writers_of_one_file_share_no_name(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "first", "the last writer wins"


def test_cache_folder_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("BRAINBUDDY_CACHE")
    assert cache_dir().name == "brainbuddy"


def test_another_process_with_the_same_id_does_not_count_as_alive() -> None:
    own = this_process()
    assert is_alive(own)
    assert not is_alive(own | {"started": own["started"] - 10})
    assert not is_alive(own | {"pid": 2**22 + 1})


def test_ended_process_is_not_alive_before_and_after_its_parent_waits() -> None:
    """In between it is a zombie, which still has its process id."""
    with subprocess.Popen([sys.executable, "-c", f"{SIGNED}; input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        process = json.loads(child.stdout.readline())
        assert is_alive(process)
        child.kill()
        deadline = time.monotonic() + 60
        while is_alive(process) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_alive(process)
        assert os.name != "posix" or psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert not is_alive(process)


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere a process's start does not move with the clock")
def test_a_process_is_the_same_after_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux the start time is measured from the boot of the machine; only the boot time moves with the
    clock."""
    own, boot_time = this_process(), psutil._psplatform.boot_time
    created_s = psutil.Process().create_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time() + 3600)
    assert psutil.Process().create_time() == pytest.approx(created_s + 3600, abs=SAME_START_S)
    assert is_alive(own)


@pytest.mark.skipif(os.name != "posix", reason="/proc and signals")
def test_hidden_process_does_not_count_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of another user, with /proc mounted with hidepid."""

    def refused(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert is_alive(this_process() | {"pid": 2**22 + 1})
