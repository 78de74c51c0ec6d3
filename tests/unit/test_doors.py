"""Every door answers: help, typos, exit codes, clean errors, JSON."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from features.cli import MAX_LISTED, echo, echo_failures, log_error, log_warning, parse, run_command
from seqmodel.config import EvaluateArgs
from tests.support.commands import run_here

ROOT = Path(__file__).resolve().parents[2]
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


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A door as a process; stdout and stderr as text. `env` is added to the environment."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "COLUMNS": "120", **(env or {})},
    )


@pytest.mark.parametrize("words", DOORS, ids=" ".join)
def test_help_answers(words: tuple[str, ...]) -> None:
    """`--help` exits with 0 and shows usage."""
    done = run_here(*words, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.parametrize("package", ["extract", "features", "seqmodel", "tune", "live"])
def test_each_command_is_a_process_that_answers(package: str) -> None:
    """By `python -m`, as a user starts it."""
    done = run(package, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.serial
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
    done = run_here(*words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_command_is_kept_as_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell gives the words back, apart from bytes that are no text; it is no option itself."""
    words = ["--run=runs/첫째 것", "--label-map", "a b=$c", "it's=d", "--json"]

    def given(*more: str) -> str:
        return parse(EvaluateArgs, [*words, *more], prog="python -m x", description="").command

    assert shlex.split(given()) == ["python", "-m", "x", *words]
    assert shlex.split(given("--store", os.fsdecode(b"\xff")))[-1] == "?"
    for more, code in (("--help", 0), ("--command=x", 2)):
        with pytest.raises(SystemExit) as stop:
            given(more)
        assert stop.value.code == code
    assert "--command" not in capsys.readouterr().out


def test_a_user_error_is_one_line_and_exit_2_of_a_process() -> None:
    quiet = {"PYTHONWARNDEFAULTENCODING": ""}  # torch reads files without naming an encoding
    done = run("tune", "--store", "no/such.zarr", "--out", "/tmp/never", env=quiet)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["error: no store at no/such.zarr"]


def test_hangul_passes_a_console_that_has_none(tmp_path: Path) -> None:
    """JSON is UTF-8 all the same; what is for people, an error too, stays one line with escapes in it."""
    np.savez(tmp_path / "f.npz", x=np.zeros((2, 3, 4), np.float32), y=np.arange(2))
    latin, store = {"PYTHONIOENCODING": "cp1252"}, str(tmp_path / "수업 특징.zarr")
    words = ("features", "import", str(tmp_path / "f.npz"), "--out", store, "--name", "영상")
    done = run(*words, "--json", env=latin)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["store"] == store
    assert r"\uc218\uc5c5" in done.stderr
    again = run(*words, env=latin)
    assert again.returncode == 2
    assert len(again.stderr.splitlines()) == 1
    assert r"\uc218\uc5c5" in again.stderr


def test_a_file_name_that_is_no_text_comes_back_out_of_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux allows any byte in a name, and Python tells such a one by half a character."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run_command(lambda: ({"file": "수업\udcff.mp4"}, 0), as_json=True) == 0
    assert json.loads(written.getvalue().decode("utf-8")) == {"file": "수업\udcff.mp4"}


def test_check_names_an_installed_package_that_cannot_be_imported(tmp_path: Path) -> None:
    """Here for want of a system library, as on a bare server; the rest of the table is printed."""
    for module, library in (("cv2", "libGL.so.1"), ("av", "libxcb.so.1")):
        text = f"raise ImportError('{library}: cannot open shared object file: No such file or directory')\n"
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    done = run("extract", "check", "--json", env={"PYTHONPATH": str(tmp_path), "COLUMNS": "250"})
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert {"av", "opencv-contrib-python"} <= set(found["missing"])
    assert (found["codecs"], found["cameras"]) == (None, None)
    assert "cannot be imported: libGL.so.1: cannot open shared object file" in done.stderr
    assert "cannot be imported: libxcb.so.1" in done.stderr
    assert "cache of model files" in done.stderr


def test_what_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich's tags and emoji codes are folder names too."""
    for text in ("runs/[old]/x", "[/a]", "a :warning: b", "[bold]"):
        echo(text)
        log_warning(text)
        log_error(text)
        echo_failures([(text, text)])
        assert capsys.readouterr().err.splitlines() == [
            text,
            f"warning: {text}",
            f"error: {text}",
            f"{text}: {text}",
        ]


def test_of_many_failures_the_first_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    echo_failures((str(number), "broken") for number in range(MAX_LISTED + 2))
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (MAX_LISTED + 1, "… and 2 more (--json lists all)")
