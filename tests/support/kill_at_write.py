"""Commands that are killed (SIGKILL) at a chosen write, so that a test does not depend on timing.

`KillableCommands` starts one helper process, which has imported what the commands need. For each command it
forks a child. The child is killed just before it renames the n-th file below a folder. A Python audit hook
counts the renames of all libraries.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = ("extract.run", "openvino", "av", "cv2", "zarr", "tests.support.small_store")
CRASHED = 70
"""Exit code of a command that raised."""


class KillableCommands:
    """The helper process; a context manager."""

    def __init__(self) -> None:
        self._stderr = tempfile.TemporaryFile(mode="w+", encoding="utf-8")
        self._helper = subprocess.Popen(
            [sys.executable, "-m", "tests.support.kill_at_write"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> "KillableCommands":
        return self

    def __exit__(self, *_: object) -> None:
        self._helper.communicate()
        self._stderr.close()

    def run(self, module: str, folder: Path, *commands: tuple[int, Sequence[str]]) -> list[int]:
        """Run `module.main(argv)` for each (n, argv) in parallel and return the exit codes.

        A code is -9 if the command was killed at its n-th write below `folder`; n = 0 kills none.

        Raises RuntimeError with the traceback when a command raised.
        """
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        request = [module, str(folder), [[number, list(argv)] for number, argv in commands]]
        self._helper.stdin.write(json.dumps(request) + "\n")
        self._helper.stdin.flush()
        response = self._helper.stdout.readline()
        codes: list[int] = json.loads(response) if response else [CRASHED]
        if CRASHED in codes:
            self._stderr.seek(0)
            raise RuntimeError(f"the helper or a command raised: {self._stderr.read()[-2000:]}")
        return codes


def kill_at(folder: str, number: int) -> None:
    """Kill this process just before it renames the `number`-th file below a folder, counted from 1."""
    left = [number]

    def count(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename" and os.fspath(args[1]).startswith(folder):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def main() -> None:
    """Read one line per call of `KillableCommands.run`, and write the exit codes."""
    # Not torch: a converted encoder does not need it, and its threads do not survive a fork.
    for name in IMPORTED:
        import_module(name)
    response_pipe = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        module, folder, commands = json.loads(line)
        children = []
        for number, argv in commands:
            child = os.fork()
            if child == 0:
                code = CRASHED
                try:
                    kill_at(folder, number)
                    code = int(import_module(module).main(argv) or 0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        codes: dict[int, int] = {}
        # In the order in which they end: a zombie, which no parent has waited for, looks alive to the others.
        while len(codes) < len(children):
            child, status = os.wait()
            if child in children:  # an import may have started another process
                codes[child] = os.waitstatus_to_exitcode(status)
        os.write(response_pipe, (json.dumps([codes[child] for child in children]) + "\n").encode())


if __name__ == "__main__":
    main()
