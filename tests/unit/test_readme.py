"""The README speaks of what is there: its commands parse."""

import re
from functools import lru_cache
from pathlib import Path

import pytest

from tests.support.commands import run_here

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ("features", "seqmodel", "extract", "tune", "live")


def commands() -> list[str]:
    """Every `python -m` line of ours in the README's code blocks, without comments."""
    blocks = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(rf"python -m ({'|'.join(ROOMS)})\b", line)]


@lru_cache
def help_of(words: tuple[str, ...]) -> str:
    """What a door says to `--help`."""
    return run_here(*words, "--help").stdout


def test_there_are_commands_for_every_room() -> None:
    """The README shows each door at least once."""
    assert {line.split()[2] for line in commands()} == set(ROOMS)


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_option_in_the_readme_exists(line: str) -> None:
    """Each --option of a shown command is in that command's help."""
    words = line.split()[2:]
    cli = tuple(words[:2]) if len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]) else (words[0],)
    for option in re.findall(r"(?<=\s)--[a-z0-9-]+", line):
        assert option in help_of(cli), f"{option} is no option of python -m {' '.join(cli)}"
