"""The number of usable cores follows the control groups of this process."""

from pathlib import Path

import pytest

from features.cpu import _cgroup_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/../elsewhere\n", {"cpu.max": "200000 100000"}, 2),
        ("", {"cpu.max": "max 100000"}, None),
        (
            "4:memory:/m\n3:cpu,cpuacct:/job\n",
            {"cpu/job/cpu.cfs_quota_us": "250000", "cpu/job/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("3:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
    ids=["own", "parent", "smallest", "root", "none", "v1", "v1 none", "v1 root"],
)
def test_smallest_quota_of_own_group_and_parents(
    tmp_path: Path, own: str, files: dict[str, str], cores: float | None
) -> None:
    write(tmp_path / "own", own)
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    assert _cgroup_cores(tmp_path / "cgroup", tmp_path / "own") == cores
