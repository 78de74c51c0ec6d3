"""The arrows between rooms: which package may import which, and what stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("features", "seqmodel", "extract", "tune", "live")

ALLOWED: dict[str, tuple[str, ...]] = {
    "features": (),
    "seqmodel": ("features",),
    "extract": ("features", "seqmodel.engine", "seqmodel.assets"),
    "tune": ("features", "seqmodel"),
    "live": (
        "features.recipe",
        "features.labels",
        "features.manifest",
        "features.door",
        "seqmodel",
        "extract.video",
        "extract.face",
        "extract.geometry",
    ),
}

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


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with what it takes from one of ours."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module in ROOMS else {module}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_no_arrow_runs_back(room: str) -> None:
    """A room imports only what the design allows."""
    wrong = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for name in imported_modules(path):
            head = name.split(".")[0]
            allowed = (room, *ALLOWED[room])
            if head in ROOMS and not any(name == place or name.startswith(place + ".") for place in allowed):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


@pytest.mark.parametrize("room", ROOMS)
def test_init_files_hold_a_docstring_and_nothing_else(room: str) -> None:
    """Re-exports are where import cycles come from."""
    body = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("room", ROOMS)
def test_door_imports_nothing_heavy(room: str) -> None:
    """`--help` answers at once because a door's module and its options load no library that takes long."""
    code = f"import sys, {room}.__main__; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == ""


def test_no_pickle_anywhere() -> None:
    """Nothing that the project reads or writes is a pickle."""
    unsafe = re.compile(r"(c?[pP]ickle|joblib|dill)\.(load|dump)s?$")
    found = []
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and unsafe.search(ast.unparse(node.func)):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.keyword) and ast.unparse(node) in (
                "allow_pickle=True",
                "weights_only=False",
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, found
