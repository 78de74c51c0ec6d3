"""The options of a command, as words that give them again: what a run's card keeps of how it was asked for.

Knows nothing about what any option does.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any


def options_of(args: Any) -> str:
    """The words that `features.door.parse` reads as this frozen dataclass, quoted for a shell: every option
    that is not its default, without those that must be given (where it is read and written) and --json."""
    return shlex.join(_words(args))


def _words(args: Any) -> Sequence[str]:
    words: list[str] = []
    for field in dataclasses.fields(args):
        value, flag = getattr(args, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            words += _words(value)
        elif field.default in (dataclasses.MISSING, value) or field.name == "json":
            continue
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words
