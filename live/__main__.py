"""python -m live: an engagement signal on this machine. Dispatches on the first word."""

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
"""First word -> its options, and the module and function that do it (imported only then)."""


def main(argv: Sequence[str] | None = None) -> int:
    """The door; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    word = words.pop(0) if words[:1] in (["predict"], ["report"]) else ""
    config_class, module, function = COMMANDS[word]
    config: Any = parse(
        config_class,
        words,
        prog=f"python -m live {word}".strip(),
        description=(config_class.__doc__ or "") + ("" if word else "\n\nAlso: live predict, live report."),
    )
    return run_command(lambda: getattr(import_module(module), function)(config), as_json=config.json)


if __name__ == "__main__":
    sys.exit(main())
