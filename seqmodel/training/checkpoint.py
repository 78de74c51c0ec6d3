"""Checkpoints of a training job: tensors and a JSON note in one safetensors file, which cannot run code.

Written atomically: after a kill, the file is the last complete checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from features.files import atomic_write


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-ready note, atomically."""
    content = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"note": json.dumps(note, ensure_ascii=False)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, durable=True) as partial:
        partial.write_bytes(content)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the note of a checkpoint, or None if there is no complete file."""
    if not path.is_file():
        return None
    content = path.read_bytes()  # bytes, because safetensors cannot open every path
    try:
        tensors = load(content)
    except SafetensorError:
        return None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, json.loads(header["__metadata__"]["note"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of each parameter, with flat names."""
    return {
        f"optimizer.{index}.{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors` into an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
