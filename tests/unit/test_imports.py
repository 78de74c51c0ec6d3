"""The order of imports, the import time of commands, and the absence of pickle.

Every import counts, also one inside a function or for type checkers only.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import SLOWEST_FILES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("features", "seqmodel", "extract", "tune", "live")

LEVELS: dict[str, tuple[set[str], ...]] = {
    "features": (
        {"config", "cli", "cpu", "files", "recipe", "labels", "tables", "manifest", "face_signals"},
        {"store"},
        {"splits", "datasets"},
        {"maintenance"},
        {"__main__"},
    ),
    "seqmodel": (
        {"config"},
        {"encoders", "metrics"},
        {"heads"},
        {"training"},
        {"runs"},
        {"finetuning", "evaluation", "export"},
        {"reporting"},
        {"commands"},
        {"__main__"},
    ),
    "extract": (
        {"config"},
        {"video", "face", "datasets"},
        {"pipeline"},
        {"executors"},
        {"run", "dry_run", "check", "summary", "demo"},
        {"__main__"},
    ),
    "tune": ({"config"}, {"search_space", "objective"}, {"study"}, {"finalists"}, {"run"}, {"__main__"}),
    "live": (
        {"config"},
        {"sources", "inference"},
        {"ui"},
        {"output"},
        {"session"},
        {"web"},
        {"commands", "loop", "batch"},
        {"app"},
        {"__main__"},
    ),
}
"""The modules and sub-packages of a package, lowest level first. Each may import lower levels; a module may
also import modules of its own level."""

IMPORTABLE: dict[str, tuple[str, ...]] = {
    "features": (),
    "seqmodel": ("features",),
    "extract": ("features", "seqmodel.encoders"),
    "tune": ("features", "seqmodel"),
    "live": (
        "features.recipe",
        "features.labels",
        "features.tables",
        "features.manifest",
        "features.cli",
        "features.files",
        "features.face_signals",
        "seqmodel",
        "extract.video",
        "extract.face",
        "extract.pipeline",
        "extract.executors",
    ),
}
"""The packages, sub-packages and modules of other packages that a package may import."""

EXCEPTIONS: set[tuple[str, str]] = set()
"""(module, imported module) that may break the order. A pair that no longer breaks it makes the test fail."""

HEAVY = {
    "torch",
    "torchvision",
    "cv2",
    "mediapipe",
    "zarr",
    "optuna",
    "sklearn",
    "matplotlib",
    "openvino",
    "umap",
    "av",
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the project; a package goes by its own name."""
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(module: str) -> frozenset[str]:
    """The modules of the project that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in modules() else str(node.module))
    return frozenset(name for name in names if name in modules() and name != module)


def breaks_the_order(module: str, other: str) -> bool:
    """Whether one module may not import the other."""
    package, *inner = module.split(".")
    other_package, *other_inner = other.split(".")
    if package != other_package:
        return not any(other == name or other.startswith(name + ".") for name in IMPORTABLE[package])
    part, other_part = inner[0], (other_inner or [""])[0]
    if part == other_part:
        return False
    level_of = {name: level for level, names in enumerate(LEVELS[package]) for name in names}
    both_are_modules = f"{package}.{part}" == module and f"{package}.{other_part}" == other
    return level_of[part] < level_of[other_part] or (
        level_of[part] == level_of[other_part] and not both_are_modules
    )


def test_imports_follow_the_order_of_levels() -> None:
    pairs = {(module, other) for module in modules() for other in imports_of(module)}
    found = {pair for pair in pairs if breaks_the_order(*pair)}
    assert found - EXCEPTIONS == set()
    assert EXCEPTIONS - found == set(), "these exceptions are no longer needed: remove them from the list"


def test_the_package_list_of_the_docs_equals_the_imports() -> None:
    """docs/architecture.md names exactly the packages that each package imports."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    documented = {
        name: set(others.split()) for name, others in re.findall(r"^(\w+) +-> (.+)$", text, re.MULTILINE)
    }
    found = {
        package: {
            other.split(".")[0] for m in modules() if m.split(".")[0] == package for other in imports_of(m)
        }
        for package in PACKAGES
    }
    assert documented == {
        package: others - {package} for package, others in found.items() if others - {package}
    }


def test_no_module_is_in_an_import_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports_of(module)):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(modules()):
        visit(module, ())


def test_no_folder_has_more_than_twelve_modules() -> None:
    """A short folder listing makes code easy to find."""
    folders = [path.parent for name, path in modules().items() if path.name != "__init__.py"]
    assert {str(folder.relative_to(ROOT)) for folder in folders if folders.count(folder) > 12} == set()


def test_init_files_hold_only_a_docstring() -> None:
    """Re-exports cause import cycles."""
    for path in modules().values():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert [isinstance(node, ast.Expr) for node in body] == [True], path


@pytest.mark.parametrize("package", PACKAGES)
def test_main_imports_no_heavy_library(package: str) -> None:
    """`--help` is fast because a command's module and its options import no library that loads slowly."""
    code = f"import sys, {package}.__main__; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == ""


def test_no_module_uses_pickle() -> None:
    """The project neither reads nor writes pickle files: loading one can run any code."""
    unsafe = re.compile(r"(c?[pP]ickle|joblib|dill)\.(load|dump)s?$")
    found = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and unsafe.search(ast.unparse(node.func)):
                found.append(f"{module}:{node.lineno}")
            if isinstance(node, ast.keyword) and ast.unparse(node) in (
                "allow_pickle=True",
                "weights_only=False",
            ):
                found.append(f"{module}:{node.lineno}")
    assert not found, found


def test_the_slowest_test_files_exist() -> None:
    """tests/conftest.py lists them by name, to start them first."""
    assert set(SLOWEST_FILES) <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def test_no_test_imports_another_test() -> None:
    """Code that several tests use is in tests/support/."""
    files = [path for folder in ("unit", "integration") for path in (ROOT / "tests" / folder).rglob("*.py")]
    assert files
    pattern = re.compile(r"^\s*from (\.|tests\.(unit|integration))", re.MULTILINE)
    assert [str(path) for path in files if pattern.search(path.read_text(encoding="utf-8"))] == []
