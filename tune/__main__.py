"""python -m tune: search hyperparameters of heads on cached features, and write the best head as a run."""

import sys
from collections.abc import Sequence

from features.cli import parse, run_command
from tune.config import TuneArgs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the search with the options in `argv`; returns the exit code."""
    args = parse(TuneArgs, argv, prog="python -m tune", description=TuneArgs.__doc__ or "")

    def handler() -> tuple[dict[str, object], int]:
        from seqmodel.commands.export import export_for_live
        from tune.run import tune
        from tune.study.storage import storage_errors_in_one_line

        with storage_errors_in_one_line(args.storage):
            summary, code = tune(args)
        export_for_live(args.out)
        return summary, code

    message = "stopped; finished trials are saved: run the same command again to continue"
    return run_command(handler, as_json=args.json, on_stop=message)


if __name__ == "__main__":
    sys.exit(main())
