"""Heads of complete trials, in files of the run's folder until the run is written: finalists are not fitted
again.

A file that is missing, because another machine ran the trial, or that belongs to another study, is not used.
"""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from seqmodel.config import MemberConfig
from seqmodel.runs.files import OUT_OF_FOLD
from seqmodel.training.checkpoint import load_checkpoint, save_checkpoint
from seqmodel.training.cross_fit import CrossFit, FoldInputs, Objective, new_head
from seqmodel.training.loop import Epoch

NUMBERS = ("index", "train_loss", "val_loss", "val_score", "lr", "seconds")
"""What is kept of an epoch."""


def save_fit(run: Path, study: optuna.Study, trial: Any, fit: CrossFit) -> None:
    """Write the heads, out-of-fold logits and epochs of a trial, atomically."""
    tensors = {"logits": torch.from_numpy(fit.logits)}
    for fold, head in enumerate(fit.heads):
        tensors |= {f"{fold}.{name}": tensor for name, tensor in head.state_dict().items()}
    histories = [[[getattr(e, name) for name in NUMBERS] for e in history] for history in fit.histories]
    note = {"origin": _origin(study, trial), "histories": histories}
    save_checkpoint(_file(run, trial), tensors, note)


def load_fit(
    run: Path, study: optuna.Study, trial: Any, config: MemberConfig, inputs: FoldInputs, objective: Objective
) -> CrossFit | None:
    """The kept heads of a trial; None without a file of this trial of this study."""
    found = load_checkpoint(_file(run, trial))
    if found is None or found[1]["origin"] != _origin(study, trial):
        return None
    tensors, histories = found[0], found[1]["histories"]
    heads = []
    for fold in range(len(histories)):
        head, start = new_head(inputs, config, objective, seed=0), f"{fold}."
        state = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        head.load_state_dict(state)
        heads.append(head)
    none = np.zeros((0, tensors["logits"].shape[1]), np.float32)
    epochs = tuple(
        tuple(Epoch(**dict(zip(NUMBERS, numbers, strict=True)), val_logits=none) for numbers in history)
        for history in histories
    )
    return CrossFit(config, tuple(heads), tensors["logits"].numpy(), epochs)


def _file(run: Path, trial: Any) -> Path:
    return run / OUT_OF_FOLD / f"{trial.number}.safetensors"


def _origin(study: optuna.Study, trial: Any) -> dict[str, Any]:
    """What the heads depend on."""
    return {"settings": study.user_attrs["settings"], "params": trial.params}
