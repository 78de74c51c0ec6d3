"""Code shared by all command lines: parsing, progress bars, one-line errors, exit codes, `--json`.

A command is `main(argv) -> int`. It parses a frozen dataclass, runs a handler and returns the exit code:
0 = all done, 1 = some items failed (they are listed), 2 = wrong usage or unusable input.
Messages go to stderr. stdout holds only the summary of `--json`.
"""

import contextlib
import io
import json
import os
import shlex
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Config = TypeVar("Config")
Answer = tuple[dict[str, Any], int]
"""(summary that `--json` prints, exit code)."""

STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""Signals that end a command: a SLURM time limit, a closed terminal, Ctrl-Break on Windows."""
STOPPED = "stopped before the end"
"""Message of a command that was interrupted, if it cannot continue later."""
MAX_LISTED = 30
"""Maximum number of failures that are printed."""


class UserError(ValueError):
    """An error that a user can fix, with its reason and, where there is one, the way on, as one line.

    It is raised on purpose. A ValueError of a library is a bug and keeps its traceback.
    """


class StoreNotFoundError(UserError):
    """There is no store at that path or address. An object storage that does not respond is another error."""


USER_ERRORS = (UserError, OSError)
"""Errors that are shown as one line."""


def parse(config: type[Config], argv: Sequence[str] | None, *, prog: str, description: str) -> Config:
    """Parse command-line arguments into a frozen dataclass; its docstrings are the help texts.

    If the config has a field `command`, the full shell command is stored there. Exits with 2 and a hint for
    an unknown argument or a wrong value, and with 0 after `--help`.
    """
    import tyro

    args = sys.argv[1:] if argv is None else list(argv)
    with _without_checks(config) as check:
        options = tyro.cli(
            config, args=args, prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,)
        )
    try:
        check(options)
    except UserError as error:
        log_error(f"{error} ({prog} --help shows the options)")
        sys.exit(2)
    if hasattr(options, "command"):
        # Bytes of a file name that are not UTF-8 cannot be written into a card.
        command = shlex.join([*prog.split(), *args]).encode(errors="replace").decode()
        object.__setattr__(options, "command", command)  # the dataclass is frozen
    return options


@contextlib.contextmanager
def _without_checks(config: Any) -> Iterator[Callable[[Any], None]]:
    """Make instances of a dataclass without its `__post_init__`, and give that function: tyro would print its
    errors in a box, broken into lines."""
    check = getattr(config, "__post_init__", lambda options: None)
    config.__post_init__ = lambda options: None
    try:
        yield check
    finally:
        config.__post_init__ = check


def dispatch(
    package: str,
    commands: Mapping[str, type],
    argv: Sequence[str] | None,
    handler: Callable[[str, Any], Answer],
    *,
    width: int,
    on_stop: Mapping[str, str] | None = None,
) -> int:
    """Run the command that the first argument names, and return its exit code.

    commands: command name -> its options dataclass. handler: called with the name and the parsed options.
    width: characters of the name column in the list of commands. on_stop: messages after an interruption, by
    command name.
    """
    args = sys.argv[1:] if argv is None else list(argv)
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: python -m {package} COMMAND [OPTIONS]   (COMMAND --help shows its options)\n")
        for name, config in commands.items():
            print(f"  {name:{width}} {(config.__doc__ or '').splitlines()[0]}")
        return 0 if args else 2
    if args[0] not in commands:
        log_error(f"unknown command {args[0]!r}; the commands are {', '.join(commands)}")
        return 2
    config = commands[args[0]]
    options: Any = parse(
        config, args[1:], prog=f"python -m {package} {args[0]}", description=config.__doc__ or ""
    )
    message = (on_stop or {}).get(args[0], STOPPED)
    return run_command(lambda: handler(args[0], options), as_json=options.json, on_stop=message)


def run_command(handler: Callable[[], Answer], *, as_json: bool = False, on_stop: str = STOPPED) -> int:
    """Run a command's handler and return the exit code. on_stop: message after an interruption.

    The signals in `STOPS` end it like Ctrl-C, except those that are ignored (nohup). Errors that a user can
    fix become one line on stderr and exit code 2; BRAINBUDDY_TRACEBACK=1 shows the traceback instead.
    """
    with contextlib.suppress(ValueError):  # outside the main thread, no signal handlers can be set
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _raise_interrupt)
    try:
        summary, code = handler()
    except KeyboardInterrupt:
        console().print(on_stop, style="yellow")
        return 130
    except USER_ERRORS as error:
        if os.environ.get("BRAINBUDDY_TRACEBACK"):
            raise
        log_error(str(error) or type(error).__name__)
        return 2
    if as_json and summary:  # with several processes, only the main one has a summary
        if isinstance(sys.stdout, io.TextIOWrapper):
            # JSON is UTF-8, whatever the terminal's encoding is. What UTF-8 cannot encode (bytes of a file
            # name that are not text) becomes an escape, which JSON reads as the same character.
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        sys.stdout.write(json.dumps(summary, ensure_ascii=False, default=_plain) + "\n")
        sys.stdout.flush()
    return code


def console() -> "Console":
    """A console on stderr. Markup is off, because paths and names may look like markup."""
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
    """Print (item, reason) pairs on stderr: MAX_LISTED lines, then the number of others, and `more`."""
    from rich.text import Text

    pairs = list(failures)
    for what, reason in pairs[:MAX_LISTED]:
        console().print(Text.assemble((what, "red"), f": {reason}"))
    if len(pairs) > MAX_LISTED:
        echo(f"… and {len(pairs) - MAX_LISTED} more{more}")


def print_counts(column: str, splits: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> None:
    """Print a table on stderr: number of clips by split and label name, for one label column."""
    from rich.table import Table

    table = Table(title=f"label column {column}", title_justify="left")
    for heading in ("split", *names):
        table.add_column(heading)
    for split, counts in splits.items():
        table.add_row(split, *(str(counts.get(name, 0)) for name in names))
    console().print(table)


def echo_notes(notes: Sequence[Mapping[str, str]]) -> None:
    """Print a warning with clips and their notes (`clip_id`, `notes`) on stderr."""
    _warn_with_list(
        f"clips that were extracted, but whose features may be wrong: {len(notes)}. Look at the videos:",
        [f"{item['clip_id']}: {item['notes']}" for item in notes],
    )


def echo_near_duplicates(lines: Sequence[str]) -> None:
    """Print a warning with pairs of nearly equal clips, one line each, on stderr."""
    _warn_with_list(
        f"pairs of nearly equal clips of different subjects or videos: {len(lines)}. If they are copies, "
        "delete one; if they show one subject, give them one name:",
        lines,
    )


def _warn_with_list(headline: str, lines: Sequence[str]) -> None:
    """Print a warning and at most MAX_LISTED lines below it; nothing without lines."""
    if not lines:
        return
    log_warning(headline)
    for line in lines[:MAX_LISTED]:
        echo(f"  {line}")
    if len(lines) > MAX_LISTED:
        echo(f"  and {len(lines) - MAX_LISTED} more (--json lists all)")


def progress(unit: str = "clips") -> "Progress":
    """A progress bar on stderr: count, rate in `unit` per second, and remaining time."""
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
    """A JSON-ready value for NumPy arrays and scalars (lists, numbers), and for paths (text)."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
