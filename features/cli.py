"""What every door shares: parsing, progress, one-line errors, exit codes, `--json`.

A door is `main(argv) -> int`: it parses a frozen dataclass, runs a body and returns the exit code: 0 all
done, 1 something could not be done (and was listed), 2 wrong usage or input that cannot be used at all.
Messages go to stderr; stdout carries nothing but the summary of `--json`.
"""

import contextlib
import io
import json
import os
import shlex
import signal
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Config = TypeVar("Config")
Answer = tuple[dict[str, Any], int]
"""What `--json` prints, and the exit code."""

STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""What asks a command to end: a SLURM time limit, a terminal that is closed, Ctrl-Break on Windows."""
MAX_LISTED = 30
"""Failures that are printed one by one."""
USER_ERRORS = (ValueError, OSError)
"""What a user can cause and mend: shown as one line. Anything else is our bug and keeps its traceback."""


def parse(config: type[Config], argv: Sequence[str] | None, *, prog: str, description: str) -> Config:
    """Command-line words as an instance of a frozen dataclass, whose docstrings are the help.

    A config with a field `command` gets the words there, as a shell takes them. Exits with 2 and a hint on a
    word it does not know, and with 0 after `--help`.
    """
    import tyro

    words = sys.argv[1:] if argv is None else list(argv)
    asked = tyro.cli(
        config, args=words, prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,)
    )
    if hasattr(asked, "command"):
        # A file name's bytes that are no text could not be written into a card.
        command = shlex.join([*prog.split(), *words]).encode(errors="replace").decode()
        object.__setattr__(asked, "command", command)  # frozen for all who get it from here
    return asked


def dispatch(
    package: str,
    commands: Mapping[str, type],
    argv: Sequence[str] | None,
    answer: Callable[[str, Any], Answer],
    *,
    width: int,
) -> int:
    """The door of a package of several commands, which the first word tells apart; gives the exit code.

    commands: word -> its options. answer: of a word and its options as they were given. width: of the words'
    column in the list of commands.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m {package} COMMAND [OPTIONS]   (COMMAND --help shows its options)\n")
        for word, options in commands.items():
            print(f"  {word:{width}} {(options.__doc__ or '').splitlines()[0]}")
        return 0 if words else 2
    if words[0] not in commands:
        log_error(f"no command {words[0]!r}; there are {', '.join(commands)}")
        return 2
    options = commands[words[0]]
    args: Any = parse(
        options, words[1:], prog=f"python -m {package} {words[0]}", description=options.__doc__ or ""
    )
    return run_command(lambda: answer(words[0], args), as_json=args.json)


def run_command(handler: Callable[[], Answer], *, as_json: bool = False) -> int:
    """Run a door's body and give its exit code.

    Turns `STOPS` into the same clean end as Ctrl-C, but what is ignored (nohup). Errors that a user can mend
    become one line on stderr and exit code 2; set BRAINBUDDY_TRACEBACK=1 to see where they rose.
    """
    with contextlib.suppress(ValueError):  # not the main thread: whoever owns it handles signals
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _raise_interrupt)
    try:
        summary, code = handler()
    except KeyboardInterrupt:
        console().print("stopped; what was done is saved, the same command goes on", style="yellow")
        return 130
    except USER_ERRORS as error:
        if os.environ.get("BRAINBUDDY_TRACEBACK"):
            raise
        log_error(str(error) or type(error).__name__)
        return 2
    if as_json and summary:  # of a team of processes, one has a summary
        if isinstance(sys.stdout, io.TextIOWrapper):
            # JSON is UTF-8, whatever the terminal would like. What UTF-8 cannot say (bytes of a file name
            # that are no text) becomes an escape, which JSON reads as the same character.
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        sys.stdout.write(json.dumps(summary, ensure_ascii=False, default=_plain) + "\n")
        sys.stdout.flush()
    return code


def console() -> "Console":
    """The one console, on stderr. Text is shown as it is: paths and names may look like markup."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def echo(text: str) -> None:
    """Print a line on stderr."""
    console().print(text)


def log_warning(text: str) -> None:
    """Print a warning line on stderr."""
    from rich.text import Text

    console().print(Text.assemble(("warning:", "yellow"), f" {text}"))


def log_error(text: str) -> None:
    """Print an error line on stderr."""
    from rich.text import Text

    console().print(Text.assemble(("error:", "bold red"), f" {' '.join(text.split())}"))


def echo_failures(failures: Iterable[tuple[str, str]], more: str = " (--json lists all)") -> None:
    """Print (what, why it failed) on stderr, a line each; of many the first, and `more` on where all are."""
    from rich.text import Text

    pairs = list(failures)
    for what, reason in pairs[:MAX_LISTED]:
        console().print(Text.assemble((what, "red"), f": {reason}"))
    if len(pairs) > MAX_LISTED:
        echo(f"… and {len(pairs) - MAX_LISTED} more{more}")


def say_counts(column: str, splits: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> None:
    """Print a table on stderr: for each split, how many clips have each of these labels of a column."""
    from rich.table import Table

    table = Table(title=f"label column {column}", title_justify="left")
    for heading in ("split", *names):
        table.add_column(heading)
    for split, counts in splits.items():
        table.add_row(split, *(str(counts.get(name, 0)) for name in names))
    console().print(table)


def progress(unit: str = "clips") -> "Progress":
    """A progress bar on stderr with the count, the rate in `unit` a second and the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {unit}/s" if speed else "", style="progress.data.speed")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=console(),
        transient=False,
    )


def _raise_interrupt(signum: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def _plain(value: Any) -> Any:
    """JSON for what numpy and pathlib bring along."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
