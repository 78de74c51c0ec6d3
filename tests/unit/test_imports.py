"""Which module may import which, what stays light, and that nothing is a pickle.

Every import counts, also one inside a function or for type checkers only.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("features", "seqmodel", "extract", "tune", "live")

LEVELS: dict[str, tuple[set[str], ...]] = {
    "features": (
        {"config", "cli", "cpu", "files", "recipe", "labels", "manifest", "face_signals"},
        {"store"},
        {"splits", "datasets", "window_statistics"},
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
        {"loop", "commands", "batch"},
        {"app"},
        {"__main__"},
    ),
}
"""The parts of a package (modules and sub-packages), lowest first. A part imports those of lower levels, and
plain modules those of their own level."""

OTHERS: dict[str, tuple[str, ...]] = {
    "features": (),
    "seqmodel": ("features",),
    "extract": ("features", "seqmodel.encoders"),
    "tune": ("features", "seqmodel"),
    "live": (
        "features.recipe",
        "features.labels",
        "features.manifest",
        "features.cli",
        "features.files",
        "features.face_signals",
        "features.window_statistics",
        "seqmodel",
        "extract.video",
        "extract.face",
        "extract.pipeline",
        "extract.executors",
    ),
}
"""What a package may import of others."""

EXCEPTIONS: set[tuple[str, str]] = set()
"""(module, module it imports) that break the order. It only shrinks: one that is needed no longer fails."""

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
    """Every module of ours by its dotted name; a package by its own name."""
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(module: str) -> frozenset[str]:
    """Modules of ours that a module imports, anywhere in it."""
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
        return not any(other == name or other.startswith(name + ".") for name in OTHERS[package])
    part, other_part = inner[0], (other_inner or [""])[0]
    if part == other_part:
        return False
    place = {name: level for level, names in enumerate(LEVELS[package]) for name in names}
    plain = f"{package}.{part}" == module and f"{package}.{other_part}" == other
    return place[part] < place[other_part] or (place[part] == place[other_part] and not plain)


def test_imports_follow_the_order_of_levels() -> None:
    pairs = {(module, other) for module in modules() for other in imports_of(module)}
    found = {pair for pair in pairs if breaks_the_order(*pair)}
    assert found - EXCEPTIONS == set()
    assert EXCEPTIONS - found == set(), "no longer needed: take it out of the list"


def test_the_diagram_of_the_packages_is_true() -> None:
    """docs/architecture.md names just the packages that each of them imports."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = {name: set(others.split()) for name, others in re.findall(r"^(\w+) +-> (.+)$", text, re.MULTILINE)}
    found = {
        package: {
            other.split(".")[0] for m in modules() if m.split(".")[0] == package for other in imports_of(m)
        }
        for package in PACKAGES
    }
    assert told == {package: others - {package} for package, others in found.items() if others - {package}}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """No cycle of any kind."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports_of(module)):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(modules()):
        visit(module, ())


def test_no_folder_is_full() -> None:
    """At most twelve modules in a folder: a stranger finds a line in one guess."""
    folders = [path.parent for name, path in modules().items() if path.name != "__init__.py"]
    assert {str(folder.relative_to(ROOT)) for folder in folders if folders.count(folder) > 12} == set()


def test_init_files_hold_a_docstring_and_nothing_else() -> None:
    """Re-exports are where import cycles come from."""
    for path in modules().values():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert [isinstance(node, ast.Expr) for node in body] == [True], path


@pytest.mark.parametrize("package", PACKAGES)
def test_main_imports_nothing_heavy(package: str) -> None:
    """`--help` answers at once because a command's module and its options load no library that takes long."""
    code = f"import sys, {package}.__main__; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == ""


def test_no_pickle_anywhere() -> None:
    """Nothing that the project reads or writes is a pickle."""
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


def test_no_test_imports_another_test() -> None:
    """What two tests need lies in tests/support/."""
    files = [path for folder in ("unit", "integration") for path in (ROOT / "tests" / folder).rglob("*.py")]
    assert files
    pattern = re.compile(r"^\s*from (\.|tests\.(unit|integration))", re.MULTILINE)
    assert [str(path) for path in files if pattern.search(path.read_text(encoding="utf-8"))] == []
