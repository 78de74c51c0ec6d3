"""The result of one fold of `evaluate --folds`, and its file, with which the same command continues.

The file's name is the fingerprint of all that the result depends on: inputs, labels, clips, seed, settings
and code. So a result is used for the same fold only. n clips of the fold, O logits, C classes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqmodel.config import HeadConfig
from seqmodel.heads.recurrent import LstmHead
from seqmodel.metrics.calibration import Calibration
from seqmodel.training.checkpoint import load_checkpoint, save_checkpoint

ARRAYS = ("indices", "logits", "probabilities", "predicted")


@dataclass(frozen=True)
class FoldResult:
    """Predictions of one fold for its held-out clips."""

    indices: np.ndarray
    """(n,) int64 indices into the evaluated clips."""
    logits: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    candidate: str
    """Name of the chosen candidate; '' if training was not possible or no clip was left out."""
    heads: tuple[LstmHead, ...] = ()
    """Heads of the chosen candidate, one per part."""
    calibration: Calibration = Calibration()


def fingerprint_of(settings: Mapping[str, Any], arrays: Iterable[Any]) -> str:
    """SHA-256, as hex digits, of JSON-ready settings and of arrays with their types and shapes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=False).encode())
    for values in map(np.ascontiguousarray, arrays):
        digest.update(f"{values.dtype}{values.shape}".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save_fold(path: Path, result: FoldResult) -> None:
    """Write the file of a fold, atomically."""
    tensors = {name: torch.from_numpy(getattr(result, name)) for name in ARRAYS}
    for index, head in enumerate(result.heads):
        tensors |= {f"head{index}.{name}": tensor for name, tensor in head.state_dict().items()}
    note = {
        "candidate": result.candidate,
        "calibration": asdict(result.calibration),
        "heads": [asdict(head.config) for head in result.heads],
    }
    save_checkpoint(path, tensors, note)


def load_fold(path: Path, dims: Mapping[str, int], num_outputs: int) -> FoldResult | None:
    """The result in the file of a fold; None if there is no complete file."""
    found = load_checkpoint(path)
    if found is None:
        return None
    tensors, note = found
    heads = []
    for index, config in enumerate(note["heads"]):
        head, part = LstmHead(HeadConfig(**config), dims, num_outputs), f"head{index}."
        weights = {name.removeprefix(part): t for name, t in tensors.items() if name.startswith(part)}
        head.load_state_dict(weights)
        heads.append(head)
    arrays: dict[str, Any] = {name: tensors[name].numpy() for name in ARRAYS}
    return FoldResult(
        **arrays, **note | {"heads": tuple(heads), "calibration": Calibration(**note["calibration"])}
    )
