"""The commands `python -m extract`, `python -m extract demo` and `python -m extract check`."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from extract.config import CheckConfig, DemoConfig, ExtractConfig
from features.cli import STOPPED, parse, run_command

DESCRIPTION = (
    "Turn labelled face videos into a store of embeddings. "
    "Also: `python -m extract demo` writes demo videos, `python -m extract check` checks this machine."
)
COMMANDS: dict[str, tuple[type, str, str, str]] = {
    "": (ExtractConfig, DESCRIPTION, "extract.run", "extract_all"),
    "demo": (DemoConfig, DemoConfig.__doc__ or "", "extract.demo.generate", "demo"),
    "check": (CheckConfig, CheckConfig.__doc__ or "", "extract.check", "check_machine"),
}
"""Command -> (options, `--help` text, module, function); the module is imported only when it is needed."""


ON_STOP = {
    "": "stopped; finished clips are saved: run the same command again to continue",
    "demo": "stopped before labels.csv was written: the same command writes all videos again",
}
"""Messages after an interruption."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 = all done, 1 = some items failed, 2 = wrong input."""
    args = sys.argv[1:] if argv is None else list(argv)
    command = args.pop(0) if args[:1] in (["demo"], ["check"]) else ""
    config_class, description, module, function = COMMANDS[command]
    config: Any = parse(
        config_class, args, prog=f"python -m extract {command}".strip(), description=description
    )
    writes_nothing = not command and (config.dry_run or config.verify_sample)
    return run_command(
        lambda: getattr(import_module(module), function)(config),
        as_json=config.json,
        on_stop=STOPPED if writes_nothing else ON_STOP.get(command, STOPPED),
    )


if __name__ == "__main__":
    sys.exit(main())
