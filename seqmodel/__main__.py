"""python -m seqmodel: train, fine-tune, judge and export. Dispatches on the first word."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from features.cli import fail, parse, run_door
from seqmodel import config

COMMANDS: dict[str, tuple[type, str]] = {
    "train": (config.TrainArgs, "seqmodel.commands.train"),
    "finetune": (config.FinetuneArgs, "seqmodel.commands.finetune"),
    "evaluate": (config.EvaluateArgs, "seqmodel.commands.evaluate"),
    "calibrate": (config.CalibrateArgs, "seqmodel.commands.calibrate"),
    "compare": (config.CompareArgs, "seqmodel.commands.compare"),
    "export": (config.ExportArgs, "seqmodel.commands.export"),
}
"""Word -> its options, and the module whose function of that name does it (imported only then)."""


def main(argv: Sequence[str] | None = None) -> int:
    """The door; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        _print_commands()
        return 0 if words else 2
    if words[0] not in COMMANDS:
        fail(f"no command {words[0]!r}; there are {', '.join(COMMANDS)}")
        return 2
    args_class, module = COMMANDS[words[0]]
    args: Any = parse(
        args_class, words[1:], prog=f"python -m seqmodel {words[0]}", description=args_class.__doc__ or ""
    )

    def body() -> tuple[dict[str, Any], int]:
        summary, code = getattr(import_module(module), words[0])(args)
        if summary and words[0] in ("train", "finetune"):  # of a team, only one process has a summary
            from seqmodel.commands.export import export_for_live

            export_for_live(args.run)
        return summary, code

    return run_door(body, as_json=args.json)


def _print_commands() -> None:
    print("usage: python -m seqmodel COMMAND [OPTIONS]   (COMMAND --help shows its options)\n")
    for word, (args_class, _) in COMMANDS.items():
        print(f"  {word:10} {(args_class.__doc__ or '').splitlines()[0]}")


if __name__ == "__main__":
    sys.exit(main())
