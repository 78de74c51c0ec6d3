"""The command line of every command: help, unknown options, exit codes, error messages, JSON."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from extract import check
from extract.__main__ import main as extract_main
from features.cli import (
    MAX_LISTED,
    UserError,
    echo,
    echo_failures,
    log_error,
    log_warning,
    parse,
    run_command,
)
from seqmodel.config import EvaluateArgs
from tests.support.commands import run_here

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
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


def run(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command as a process; stdout and stderr as text. `env` is added to the environment."""
    return subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "COLUMNS": "120", **(env or {})},
    )


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_help_of_each_command_prints_usage(argv: tuple[str, ...]) -> None:
    """`--help` exits with 0 and prints the usage."""
    done = run_here(*argv, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.parametrize("package", ["extract", "features", "seqmodel", "tune", "live"])
def test_help_of_each_package_as_a_process_prints_usage(package: str) -> None:
    """Started with `python -m`, as a user does."""
    done = run(package, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.serial
def test_help_uses_little_processor_time() -> None:
    """Less than a second of processor time for the fastest of three, so that a busy machine passes too."""
    spent = []
    for _ in range(3):
        before = os.times()
        run("extract", "--help")
        after = os.times()
        spent.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(spent) < 1.0  # .4 s on an idle machine; the margin is for shared machines


@pytest.mark.parametrize(
    ("argv", "expected"),
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
def test_a_user_error_is_named_without_a_traceback_and_exits_2(argv: tuple[str, ...], expected: str) -> None:
    """The message names the wrong value."""
    done = run_here(*argv)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_command_line_is_stored_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell splits it into the same arguments, except bytes that are not text; it is not an option."""
    argv = ["--run=runs/첫째 것", "--label-map", "a b=$c", "it's=d", "--json"]

    def stored_command(*more: str) -> str:
        return parse(EvaluateArgs, [*argv, *more], prog="python -m x", description="").command

    assert shlex.split(stored_command()) == ["python", "-m", "x", *argv]
    assert shlex.split(stored_command("--store", os.fsdecode(b"\xff")))[-1] == "?"
    for more, code in (("--help", 0), ("--command=x", 2)):
        with pytest.raises(SystemExit) as stop:
            stored_command(more)
        assert stop.value.code == code
    assert "--command" not in capsys.readouterr().out


def test_a_user_error_in_a_process_prints_one_line_and_exits_2() -> None:
    no_warnings = {"PYTHONWARNDEFAULTENCODING": ""}  # torch reads files without naming an encoding
    done = run("tune", "--store", "no/such.zarr", "--out", "/tmp/never", env=no_warnings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["error: no store at no/such.zarr"]


def test_hangul_is_escaped_on_a_console_without_hangul(tmp_path: Path) -> None:
    """JSON stays UTF-8; messages and errors are printed with escapes, one line each."""
    np.savez(tmp_path / "f.npz", x=np.zeros((2, 3, 4), np.float32), y=np.arange(2))
    latin, store = {"PYTHONIOENCODING": "cp1252"}, str(tmp_path / "수업 특징.zarr")
    argv = ("features", "import", str(tmp_path / "f.npz"), "--out", store, "--name", "영상")
    done = run(*argv, "--json", env=latin)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["store"] == store
    assert r"\uc218\uc5c5" in done.stderr
    again = run(*argv, env=latin)
    assert again.returncode == 2
    assert len(again.stderr.splitlines()) == 1
    assert r"\uc218\uc5c5" in again.stderr


def test_a_file_name_that_is_not_utf8_survives_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux allows any byte in a file name; Python represents such a byte by a lone surrogate."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run_command(lambda: ({"file": "수업\udcff.mp4"}, 0), as_json=True) == 0
    assert json.loads(written.getvalue().decode("utf-8")) == {"file": "수업\udcff.mp4"}


def test_check_names_an_installed_package_that_cannot_be_imported(tmp_path: Path) -> None:
    """The reason here is a missing system library, as on a bare server; the whole table is printed."""
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


def test_check_warns_of_a_mediapipe_that_reports_usage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It also names a cache that cannot be written, and fails without the default encoder's weights."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(check, "_version", lambda name: "1.2.3" if name == "mediapipe" else "1.0")

    def no_weights(name: str, weights: str, fetch: bool) -> Path:
        raise UserError("not on this machine")

    monkeypatch.setattr(check, "encoder_weights", no_weights)
    assert extract_main(["check", "--json"]) == 1
    captured = capsys.readouterr()
    assert "this MediaPipe sends usage data to Google" in captured.err
    found = json.loads(captured.out)
    assert found["cache_error"]
    assert "weights of mobilenet_v3_large" in found["missing"]


def test_text_that_looks_like_markup_is_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich's tags and emoji codes can be folder names."""
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


def test_only_the_first_of_many_failures_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    echo_failures((str(number), "broken") for number in range(MAX_LISTED + 2))
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (MAX_LISTED + 1, "… and 2 more (--json lists all)")


def test_a_library_error_is_a_bug_and_a_user_error_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Only errors that are raised for the user are shown as one line; others keep their traceback."""

    def fail(error: Exception) -> tuple[dict, int]:
        raise error

    assert run_command(lambda: fail(UserError("no such clip"))) == 2
    assert capsys.readouterr().err == "error: no such clip\n"
    with pytest.raises(ValueError, match="broadcast"):
        run_command(lambda: fail(ValueError("could not broadcast input array")))
