"""Runs a command of the project in the test's own process, which saves the time of its imports."""

import contextlib
import io
import os
import subprocess
from collections.abc import Iterator
from importlib import import_module


def run_here(package: str, *argv: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m PACKAGE ARGV` with these environment variables; return exit code, stdout and stderr."""
    arguments = [str(word) for word in argv]
    out, err = io.StringIO(), io.StringIO()
    with variables(COLUMNS="200", **environment):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = int(import_module(f"{package}.__main__").main(arguments))
            except SystemExit as stop:
                code = int(stop.code or 0)
    return subprocess.CompletedProcess([package, *arguments], code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def variables(**environment: str) -> Iterator[None]:
    """Set these environment variables inside the block, and restore the old values after it."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
