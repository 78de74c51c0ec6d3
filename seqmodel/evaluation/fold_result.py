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

from features.labels import Task
from seqmodel.config import MemberConfig
from seqmodel.heads.ensemble import Ensemble, build_ensemble
from seqmodel.metrics.calibration import Calibration
from seqmodel.runs.card import member_from_json
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
    setting: str
    """The chosen members; '' if training was not possible or no clip was left out."""
    head: Ensemble | None = None
    calibration: Calibration = Calibration()
    members: tuple[MemberConfig, ...] = ()
    """Configurations of the head's members."""


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
    note: dict[str, Any] = {"setting": result.setting, "calibration": asdict(result.calibration)}
    if result.head is not None:
        tensors |= {f"head.{name}": tensor for name, tensor in result.head.state_dict().items()}
        note["members"] = [asdict(member) for member in result.members]
        note["folds"] = result.head.num_folds
    save_checkpoint(path, tensors, note)


def load_fold(path: Path, dims: Mapping[str, int], task: Task, num_classes: int) -> FoldResult | None:
    """The result in the file of a fold; None if there is no complete file."""
    found = load_checkpoint(path)
    if found is None:
        return None
    tensors, note = found
    head, members = None, tuple(member_from_json(each) for each in note.get("members", ()))
    if members:
        head = build_ensemble(members, dims, task, num_classes, note["folds"])
        head.load_state_dict(
            {k.removeprefix("head."): t for k, t in tensors.items() if k.startswith("head.")}
        )
        head.eval()
    arrays: dict[str, Any] = {name: tensors[name].numpy() for name in ARRAYS}
    return FoldResult(
        **arrays,
        setting=note["setting"],
        head=head,
        calibration=Calibration(**note["calibration"]),
        members=members,
    )
