"""The extract doors: `python -m extract`, `… demo`, `… check`."""

import sys
from collections.abc import Sequence

from extract.config import CheckConfig, DemoConfig, ExtractConfig
from features.cli import parse, run_door

DESCRIPTION = (
    "Turn labelled face videos into a store of embeddings. "
    "Also: `python -m extract demo` writes demo videos, `python -m extract check` looks at this machine."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a door and give its exit code: 0 all done, 1 something could not be done, 2 wrong input."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["demo"]:
        return _demo(words[1:])
    if words[:1] == ["check"]:
        return _check(words[1:])
    config = parse(ExtractConfig, words, prog="python -m extract", description=DESCRIPTION)

    def body() -> tuple[dict[str, object], int]:
        from extract.run import extract_all

        return extract_all(config)

    return run_door(body, as_json=config.json)


def _demo(words: Sequence[str]) -> int:
    config = parse(DemoConfig, words, prog="python -m extract demo", description=DemoConfig.__doc__ or "")

    def body() -> tuple[dict[str, object], int]:
        from extract.demo.generate import make_demo

        make_demo(config.out, clips=config.clips, seed=config.seed)
        return {"out": str(config.out), "clips": config.clips}, 0

    return run_door(body, as_json=config.json)


def _check(words: Sequence[str]) -> int:
    config = parse(CheckConfig, words, prog="python -m extract check", description=CheckConfig.__doc__ or "")

    def body() -> tuple[dict[str, object], int]:
        from extract.check import check_machine

        return check_machine(config)

    return run_door(body, as_json=config.json)


if __name__ == "__main__":
    sys.exit(main())
