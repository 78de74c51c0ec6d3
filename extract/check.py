"""`python -m extract check`: the packages, codecs, cameras, GPU and model files of this machine."""

import importlib
import platform
import re
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from extract.config import CheckConfig
from features.cli import UserError, console, log_warning
from features.cpu import usable_cores
from features.files import cache_dir
from seqmodel.encoders.engine import import_openvino, resolve_precision
from seqmodel.encoders.model_files import detector_file, encoder_weights, landmarker_file

PACKAGES = (
    "brainbuddy",
    "torch",
    "torchvision",
    "openvino",
    "mediapipe",
    "opencv-contrib-python",
    "av",
    "zarr",
    "optuna",
)
IMPORTED = {"torch": "torch", "openvino": "openvino", "opencv-contrib-python": "cv2", "av": "av"}
"""Module by package, for packages that are imported as a test: a system library may be missing."""
CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg")
FILES: dict[str, Callable[[bool], Path]] = {
    "face detector (short range)": lambda fetch: detector_file("short", fetch),
    "face landmarker": lambda fetch: landmarker_file(fetch),
    "weights of mobilenet_v3_large": lambda fetch: encoder_weights("mobilenet_v3_large", "imagenet", fetch),
    "weights of efficientnet_lite0": lambda fetch: encoder_weights("efficientnet_lite0", "imagenet", fetch),
    "face detector (full range, --detector full)": lambda fetch: detector_file("full", fetch),
}
REQUIRED_FILES = tuple(FILES)[:3]
"""Files that an extraction with the default options needs."""
REPORTING_MEDIAPIPE = (0, 10, 35)
"""MediaPipe from this version on sends usage data to Google and cannot be told not to."""


def check_machine(config: CheckConfig) -> tuple[dict[str, Any], int]:
    """Check the machine and print the result; returns (summary, exit code), 1 if extraction cannot run."""
    unusable = {name: reason for name, module in IMPORTED.items() if (reason := _import_error(module))}
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": usable_cores(),
        "packages": {name: _version(name) for name in PACKAGES},
        "unusable": unusable,
        "gpu": None if "torch" in unusable else _gpu(),
        "bf16": None if "openvino" in unusable else resolve_precision("auto") == "bf16",
        "codecs": None if "av" in unusable else _codecs(),
        "cameras": None if "opencv-contrib-python" in unusable else _cameras(config.cameras),
        "cache": str(cache_dir()),
        "cache_error": _write_error(cache_dir()),
        "files": {name: _file(get, config.fetch) for name, get in FILES.items()},
    }
    missing = [name for name in REQUIRED_FILES if found["files"][name]["path"] is None]
    missing += [
        name
        for name, version in found["packages"].items()
        if (version is None and name != "brainbuddy") or name in unusable
    ]
    found["missing"] = missing
    _print(found)
    return found, 1 if missing else 0


def _file(get: Callable[[bool], Path], fetch: bool) -> dict[str, str | None]:
    try:
        return {"path": str(get(fetch)), "reason": None}
    except UserError as error:
        return {"path": None, "reason": str(error)}


def _import_error(module: str) -> str | None:
    """Why a module cannot be imported; None if it can."""
    try:
        if module == "openvino":
            import_openvino()
        else:
            importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library that torch needs is missing on Windows
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _write_error(folder: Path) -> str | None:
    """Why no file can be written into a folder; None if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _reports(version: str | None) -> bool:
    """Whether a MediaPipe version sends usage data."""
    return version is not None and tuple(map(int, re.findall(r"\d+", version)[:3])) >= REPORTING_MEDIAPIPE


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _codecs() -> dict[str, bool]:
    import av

    return {name: name in av.codecs_available for name in CODECS}


def _cameras(count: int) -> list[int]:
    """Indices of the cameras that can be opened; each is closed at once."""
    import cv2

    from extract.face.mediapipe_tasks import silenced_stderr

    working = []
    with silenced_stderr():  # cv2 prints a C-level error for every index without a camera
        for index in range(count):
            camera = cv2.VideoCapture(index)
            if camera.isOpened():
                working.append(index)
            camera.release()
    return working


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _print(found: dict[str, Any]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("", "", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0))

    def row(name: str, text: str, good: bool = True) -> None:
        table.add_row(Text("✓", "green") if good else Text("✗", "red"), name, text)

    row("python", f"{found['python']} on {found['system']}")
    row("usable cores", str(found["cores"]))
    if found["bf16"] is not None:
        row("bfloat16", "yes: --precision auto uses it" if found["bf16"] else "no: --precision auto is f32")
    if "torch" not in found["unusable"]:
        row("GPU", found["gpu"] or "none: the CPU is used")
    for name, version in found["packages"].items():
        if version and name in found["unusable"]:
            row(name, f"{version}, cannot be imported: {found['unusable'][name]}", False)
        else:
            row(name, version or "not installed", version is not None)
    if found["codecs"] is not None:
        absent = [name for name, is_available in found["codecs"].items() if not is_available]
        row("video codecs", "missing: " + ", ".join(absent) if absent else ", ".join(CODECS), not absent)
    if found["cameras"] is not None:
        row("cameras", ", ".join(map(str, found["cameras"])) or "none")
    for name, item in found["files"].items():
        row(name, item["path"] or item["reason"], item["path"] is not None)
    note = f", cannot be written ({found['cache_error']}): set BRAINBUDDY_CACHE to another folder"
    row(
        "cache of model files",
        found["cache"] + (note if found["cache_error"] else ""),
        not found["cache_error"],
    )
    console().print(table)
    if _reports(found["packages"]["mediapipe"]):
        log_warning("this MediaPipe sends usage data to Google: pip install mediapipe==0.10.33")
    if found["missing"]:
        console().print(f"missing: {', '.join(found['missing'])}", style="red")
        console().print("to download the model files: python -m extract check --fetch")
