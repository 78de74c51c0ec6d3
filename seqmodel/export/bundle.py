"""A bundle: an exported run for machines without torch, as one folder that can be copied.

    export.json            source run, differences from torch, format and precision
    card.json              the run's card, without paths, subjects or metrics
    statistics.safetensors mean and standard deviation of the training features, by stream
    encoder.xml + .bin, head.xml + .bin    format openvino
    encoder.onnx, head.onnx                format onnx
    detector/              the face detector files (and landmarker) by name

The bundle of a run that reads no embeddings has no encoder.*. The encoder maps one uint8 RGB crop (1, H, W,
3) to (1, D) float32. The head takes for each stream its values (1, T, D) float32 and its validity (1, T)
bool, and returns logits (1, O).

This module reads bundles and imports no torch; the command `export` writes them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from features.cli import UserError
from seqmodel.encoders.engine import (
    Engine,
    Precision,
    compile_file,
    frame_by_frame,
    import_openvino,
    precision_of,
    resolve_precision,
)
from seqmodel.encoders.model_files import sha256_of
from seqmodel.runs.card import Card
from seqmodel.runs.files import WEIGHTS, read_json

Format = Literal["openvino", "onnx"]
FORMATS: tuple[Format, ...] = ("openvino", "onnx")
MANIFEST = "export.json"
SUFFIX: dict[Format, str] = {"openvino": ".xml", "onnx": ".onnx"}

Head = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], np.ndarray]
"""(streams {name: (T, D)}, valid {name: (T,) bool}) -> (O,) float32 logits of one window."""


@dataclass(frozen=True)
class Bundle:
    """The manifest of a bundle (export.json)."""

    folder: Path
    format: Format
    run_weights_sha256: str
    """sha256 of the weights.safetensors that it was made from."""
    max_difference: dict[str, float]
    """Largest differences from torch, as verified at export."""


def bundle_folder(run: Path, form: Format) -> Path:
    """Folder of a run's own bundle in this format."""
    return run / "export" / form


def find_bundle(run: Path) -> Bundle | None:
    """The bundle to use for a run: the folder itself if it is a bundle, else the run's current export; None
    without one."""
    if (run / MANIFEST).is_file():
        return read_manifest(run)
    for form in FORMATS:
        folder = bundle_folder(run, form)
        if (folder / MANIFEST).is_file():
            bundle = read_manifest(folder)
            # After a new training the old export is not valid. The calibration always comes from the run.
            if bundle.run_weights_sha256 == sha256_of(run / WEIGHTS):
                return bundle
    return None


def read_manifest(folder: Path) -> Bundle:
    """The manifest of a bundle. Raises UserError if it cannot be read."""
    path = folder / MANIFEST
    try:
        plain = read_json(path)
        return Bundle(folder, plain["format"], plain["run_weights_sha256"], plain["max_difference"])
    except KeyError as error:
        raise UserError(f"{path} cannot be read: {error!r}") from error


def open_bundle(
    bundle: Bundle, card: Card, threads: int = 1, precision: Precision | None = None
) -> tuple[Engine | None, Head]:
    """Encoder (None if the head reads no embeddings) and head of a bundle; OpenVINO runs both formats.

    `precision` is that of the encoder; default: as in the run's store. Raises UserError if a file is
    missing.
    """
    head = _runs_head(compile_file(_file(bundle, "head"), "f32", threads), card)
    if "embeddings" not in card.dims:
        return None, head
    wanted, identity = resolve_precision(precision or precision_of(card.numerics)), card.recipe.encoder
    encoder = compile_file(_file(bundle, "encoder"), wanted, threads)
    numerics = {
        "backend": "openvino",
        "device": "cpu",
        "precision": wanted,
        "export": bundle.format,
        "version": import_openvino().__version__.partition("-")[0],
    }
    return Engine(identity, numerics, frame_by_frame(encoder, identity.dim)), head


def head_inputs(card: Card) -> list[str]:
    """Names of the head's inputs, in order: for each stream its values, then its validity."""
    return [name for stream in card.dims for name in (stream, f"{stream}_valid")]


def _file(bundle: Bundle, name: str) -> Path:
    path = bundle.folder / f"{name}{SUFFIX[bundle.format]}"
    if not path.is_file():
        raise UserError(f"{bundle.folder} has no {path.name}: export the run again")
    return path


def _runs_head(compiled: Any, card: Card) -> Head:
    request = compiled.create_infer_request()

    def logits(x: Mapping[str, np.ndarray], valid: Mapping[str, np.ndarray]) -> np.ndarray:
        inputs: list[np.ndarray] = []
        for stream in card.dims:
            values, mask = x[stream][None], valid[stream][None]
            inputs += [np.ascontiguousarray(values, np.float32), np.ascontiguousarray(mask, bool)]
        request.infer(inputs)
        return np.array(request.get_output_tensor().data[0], np.float32)

    return logits
