"""The commands in the README and the docs exist, and so do their options."""

import re
from functools import lru_cache
from pathlib import Path

import pytest

from tests.support.commands import run_here

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("features", "seqmodel", "extract", "tune", "live")
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("architecture", "data", "finetune", "live", "search")))
COMMANDS = (
    *((package,) for package in PACKAGES),
    *(("extract", name) for name in ("demo", "check")),
    *(("features", name) for name in ("info", "verify", "pack", "label", "delete", "import")),
    *(("seqmodel", name) for name in ("train", "finetune", "evaluate", "calibrate", "compare", "export")),
    *(("live", name) for name in ("predict", "report")),
)


def commands(page: str) -> list[str]:
    """Every `python -m` line for the five packages in a page's code blocks, without comments."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(rf"python -m ({'|'.join(PACKAGES)})\b", line)]


@lru_cache
def help_of(command: tuple[str, ...]) -> str:
    """The output of a command's `--help`."""
    return run_here(*command, "--help").stdout


def test_the_readme_shows_a_command_of_each_package() -> None:
    assert {line.split()[2] for line in commands("README.md")} == set(PACKAGES)


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page)}))
def test_each_option_of_a_shown_command_exists(line: str) -> None:
    argv = line.split()[2:]
    command = tuple(argv[:2]) if tuple(argv[:2]) in COMMANDS else (argv[0],)
    for option in re.findall(r"(?<=\s)--[a-z0-9-]+", line):
        assert re.search(rf"{option}\b(?!-)", help_of(command)), (
            f"{option} is no option of python -m {' '.join(command)}"
        )


@pytest.mark.parametrize("page", PAGES)
def test_each_option_named_in_a_text_exists_in_some_command(page: str) -> None:
    known = {option for command in COMMANDS for option in re.findall(r"--[a-z0-9-]+", help_of(command))}
    named = re.findall(r"`(--[a-z0-9-]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert set(named) <= known


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_each_file_of_the_repository_named_in_a_text_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|docs|features|seqmodel|extract|tune|live)/[\w/]+\.\w+)`", text)
    named += re.findall(r"\]\(((?:docs|tests)/[\w/]+\.\w+)\)", text)
    assert [name for name in named if not (ROOT / name).is_file()] == []
