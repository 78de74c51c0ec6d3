"""`python -m live`: engagement estimates on this machine. The first word selects the command."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from features.cli import parse, run_command
from live.config import LiveConfig, PredictConfig, ReportConfig

COMMANDS: dict[str, tuple[type, str, str]] = {
    "": (LiveConfig, "live.app", "watch"),
    "predict": (PredictConfig, "live.batch", "predict"),
    "report": (ReportConfig, "live.output.report", "report"),
}
"""First word -> class of options, module and function; the module is imported only when it is used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    command = arguments.pop(0) if arguments[:1] in (["predict"], ["report"]) else ""
    config_class, module, function = COMMANDS[command]
    config: Any = parse(
        config_class,
        arguments,
        prog=f"python -m live {command}".strip(),
        description=(config_class.__doc__ or "")
        + ("" if command else "\n\nOther commands: live predict, live report."),
    )
    return run_command(lambda: getattr(import_module(module), function)(config), as_json=config.json)


if __name__ == "__main__":
    sys.exit(main())
