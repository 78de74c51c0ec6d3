"""A command of ours, run in the test's own process: that spares the seconds of its imports."""

import contextlib
import io
import os
import subprocess
from collections.abc import Iterator
from importlib import import_module


def run_here(package: str, *words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """As `python -m PACKAGE WORDS` with these variables in the environment: exit code, stdout and stderr."""
    arguments = [str(word) for word in words]
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
    """The environment with these variables, as it was afterwards."""
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
