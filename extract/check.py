"""What this machine has and what it lacks, said before hours of work."""

import importlib
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from extract.config import CheckConfig
from features.cli import console
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
OPENED = {"torch": "torch", "openvino": "openvino", "opencv-contrib-python": "cv2", "av": "av"}
"""Modules by package, of those that are asked about the machine; an installed one may lack a library."""
CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg")
FILES: dict[str, Callable[[bool], Path]] = {
    "face detector (short range)": lambda fetch: detector_file("short", fetch),
    "face landmarker": lambda fetch: landmarker_file(fetch),
    "weights of mobilenet_v3_large": lambda fetch: encoder_weights("mobilenet_v3_large", "imagenet", fetch),
    "weights of efficientnet_lite0": lambda fetch: encoder_weights("efficientnet_lite0", "imagenet", fetch),
    "face detector (full range, --detector full)": lambda fetch: detector_file("full", fetch),
}
NEEDED = tuple(FILES)[:2]
"""Without these nothing can be extracted; of the encoders, one is enough."""


def check_machine(config: CheckConfig) -> tuple[dict[str, Any], int]:
    """Look, print, and return what was found; the code is 1 when extraction could not run."""
    unusable = {name: reason for name, module in OPENED.items() if (reason := _import_error(module))}
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
        "files": {name: _file(get, config.fetch) for name, get in FILES.items()},
    }
    missing = [name for name in NEEDED if found["files"][name]["path"] is None]
    if not any(item["path"] for name, item in found["files"].items() if name.startswith("weights")):
        missing.append("weights of an encoder")
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
    except ValueError as error:
        return {"path": None, "reason": str(error)}


def _import_error(module: str) -> str | None:
    """Why a module cannot be imported."""
    try:
        if module == "openvino":
            import_openvino()
        else:
            importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library that torch lacks on Windows
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _codecs() -> dict[str, bool]:
    import av

    return {name: name in av.codecs_available for name in CODECS}


def _cameras(count: int) -> list[int]:
    """Indices of the cameras that open, the light of each off again at once."""
    import cv2

    from extract.face.mediapipe_tasks import silenced_stderr

    working = []
    with silenced_stderr():  # cv2 complains from C about every index that is not there
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
        row("GPU", found["gpu"] or "none; the CPU will do")
    for name, version in found["packages"].items():
        if version and name in found["unusable"]:
            row(name, f"{version}, but it cannot be imported: {found['unusable'][name]}", False)
        else:
            row(name, version or "not installed", version is not None)
    if found["codecs"] is not None:
        absent = [name for name, there in found["codecs"].items() if not there]
        row("video codecs", "lacking " + ", ".join(absent) if absent else "all that are common", not absent)
    if found["cameras"] is not None:
        row("cameras", ", ".join(map(str, found["cameras"])) or "none")
    for name, item in found["files"].items():
        row(name, item["path"] or item["reason"], item["path"] is not None)
    row("cache of model files", found["cache"])
    console().print(table)
    if found["missing"]:
        console().print(f"missing: {', '.join(found['missing'])}", style="red")
        console().print("python -m extract check --fetch gets the model files")
