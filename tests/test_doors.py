"""Every door answers: help, typos, exit codes, clean errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOORS = [
    ("extract",),
    ("extract", "demo"),
    ("extract", "check"),
    ("features",),
    ("features", "info"),
    ("features", "import"),
    ("tune",),
    ("seqmodel",),
    ("seqmodel", "train"),
    ("seqmodel", "finetune"),
    ("seqmodel", "evaluate"),
    ("seqmodel", "calibrate"),
    ("seqmodel", "compare"),
    ("seqmodel", "export"),
    ("live",),
    ("live", "predict"),
    ("live", "report"),
]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A door as a process; stdout and stderr as text."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "COLUMNS": "120"},
    )


@pytest.mark.parametrize("words", DOORS, ids=" ".join)
def test_help_answers(words: tuple[str, ...]) -> None:
    """`--help` exits with 0 and shows usage."""
    done = run(*words, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_help_uses_little_processor_time() -> None:
    """Well under half a second: processor time of the fastest of three, so that a busy machine may pass."""
    spent = []
    for _ in range(3):
        before = os.times()
        run("extract", "--help")
        after = os.times()
        spent.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(spent) < 1.0  # .4 s on a quiet machine; the margin is for shared ones


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("extract", "--data", "no/such.csv", "--out", "/tmp/never.zarr"), "no/such.csv"),
        (("tune", "--store", "no/such.zarr", "--out", "/tmp/never"), "no/such.zarr"),
        (("features", "info", "no/such.zarr"), "no/such.zarr"),
        (("seqmodel", "evaluate", "--run", "no/such"), "no/such"),
        (("seqmodel", "finetune", "--run", "no/such"), "no/such"),
        (("live", "--run", "no/such", "--headless"), "no/such"),
        (("seqmodel", "nonsense"), "nonsense"),
        (("extract", "--dota", "x"), "--data"),
    ],
)
def test_user_errors_are_one_clear_line_and_exit_2(words: tuple[str, ...], said: str) -> None:
    """What a user can cause shows no traceback, names the culprit and exits with 2."""
    done = run(*words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
