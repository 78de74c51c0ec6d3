"""The extract doors: `python -m extract`, `… demo`, `… check`."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from extract.config import CheckConfig, DemoConfig, ExtractConfig
from features.cli import parse, run_command

DESCRIPTION = (
    "Turn labelled face videos into a store of embeddings. "
    "Also: `python -m extract demo` writes demo videos, `python -m extract check` looks at this machine."
)
COMMANDS: dict[str, tuple[type, str, str, str]] = {
    "": (ExtractConfig, DESCRIPTION, "extract.run", "extract_all"),
    "demo": (DemoConfig, DemoConfig.__doc__ or "", "extract.demo.generate", "demo"),
    "check": (CheckConfig, CheckConfig.__doc__ or "", "extract.check", "check_machine"),
}
"""First word -> its options, what `--help` says, and the module and function that do it (imported only
then)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a door and give its exit code: 0 all done, 1 something could not be done, 2 wrong input."""
    words = sys.argv[1:] if argv is None else list(argv)
    word = words.pop(0) if words[:1] in (["demo"], ["check"]) else ""
    config_class, description, module, function = COMMANDS[word]
    config: Any = parse(
        config_class, words, prog=f"python -m extract {word}".strip(), description=description
    )
    return run_command(lambda: getattr(import_module(module), function)(config), as_json=config.json)


if __name__ == "__main__":
    sys.exit(main())
