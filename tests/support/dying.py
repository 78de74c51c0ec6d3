"""Commands that die by `kill -9` at a chosen write, so that a test says when and nothing waits for luck.

`Mortals` is one helper process that has imported what commands need. For each command it forks a child, which
is killed as it is about to give the n-th file below a folder its name: Python's audit hooks see every rename,
whoever asks for it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = ("extract.run", "openvino", "av", "cv2", "zarr", "tests.support.small_store")


class Mortals:
    """The helper process; use as a context."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile(mode="w+", encoding="utf-8")
        self._helper = subprocess.Popen(
            [sys.executable, "-m", "tests.support.dying"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> "Mortals":
        return self

    def __exit__(self, *_: object) -> None:
        self._helper.communicate()
        self._said.close()

    def run(self, module: str, folder: Path, *commands: tuple[int, Sequence[str]]) -> list[int]:
        """Exit codes of `module.main(words)` for each (n, words), all at once; -9 where it died at its n-th
        write below `folder`."""
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        told = [module, str(folder), [[number, list(words)] for number, words in commands]]
        self._helper.stdin.write(json.dumps(told) + "\n")
        self._helper.stdin.flush()
        answer = self._helper.stdout.readline()
        if not answer:
            self._said.seek(0)
            raise RuntimeError(f"the helper ended with {self._helper.wait()}: {self._said.read()[-2000:]}")
        return list(json.loads(answer))


def die_at(folder: str, number: int) -> None:
    """Kill this process as it is about to rename the `number`-th file below a folder, counted from 1."""
    left = [number]

    def count(event: str, given: tuple[Any, ...]) -> None:
        if event == "os.rename" and os.fspath(given[1]).startswith(folder):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def main() -> None:
    """Read a line for each call of `Mortals.run`, and answer with the exit codes."""
    # torch is not among them: a converted encoder needs none, and threads would not survive a fork.
    for name in IMPORTED:
        import_module(name)
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        module, folder, commands = json.loads(line)
        children = []
        for number, words in commands:
            child = os.fork()
            if child == 0:
                code = 70
                try:
                    die_at(folder, number)
                    code = int(import_module(module).main(words) or 0)
                finally:
                    os._exit(code)
            children.append(child)
        codes: dict[int, int] = {}
        while len(codes) < len(
            children
        ):  # whoever ends first: a dead process that nobody waited for looks alive
            child, status = os.wait()
            if child in children:  # an import may have left a process of its own
                codes[child] = os.waitstatus_to_exitcode(status)
        os.write(answers, (json.dumps([codes[child] for child in children]) + "\n").encode())


if __name__ == "__main__":
    main()
