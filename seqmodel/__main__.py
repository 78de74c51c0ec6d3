"""python -m seqmodel: train, fine-tune, evaluate, calibrate, compare and export runs."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from features.cli import Answer, dispatch
from seqmodel import config

COMMANDS: dict[str, tuple[type, str]] = {
    "train": (config.TrainArgs, "seqmodel.commands.train"),
    "finetune": (config.FinetuneArgs, "seqmodel.commands.finetune"),
    "evaluate": (config.EvaluateArgs, "seqmodel.commands.evaluate"),
    "calibrate": (config.CalibrateArgs, "seqmodel.commands.calibrate"),
    "compare": (config.CompareArgs, "seqmodel.commands.compare"),
    "export": (config.ExportArgs, "seqmodel.commands.export"),
}
"""Command -> its options, and the module with the function of that name (imported when it is called)."""

ON_STOP = {
    "train": "stopped before the end: the same command starts from the beginning",
    "finetune": "stopped: the same command continues from the last checkpoint",
    "evaluate": "stopped before the end: with --folds, the same command continues after the last finished "
    "fold; without, it starts again",
}
"""Command -> message after an interruption."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names; returns the exit code."""

    def handler(command: str, args: Any) -> Answer:
        summary, code = getattr(import_module(COMMANDS[command][1]), command)(args)
        # Of several processes, only the main one has a summary.
        # Of several processes, only the main one has a summary.
        if summary and command in (
            "train",
            "finetune",
        ):
            from seqmodel.commands.export import export_for_live

            export_for_live(args.run)
        return summary, code

    options = {command: args_class for command, (args_class, _) in COMMANDS.items()}
    return dispatch("seqmodel", options, argv, handler, width=10, on_stop=ON_STOP)


if __name__ == "__main__":
    sys.exit(main())
