"""Files are there whole or not at all."""

from pathlib import Path

import pytest

from features.files import atomic_write, cache_dir


def test_a_file_appears_whole_and_an_error_leaves_the_old_one(tmp_path: Path) -> None:
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
    assert (tmp_path / "a").read_text(encoding="utf-8") == "first", "who ends last"


def test_the_cache_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("BRAINBUDDY_CACHE")
    assert cache_dir().name == "brainbuddy"
