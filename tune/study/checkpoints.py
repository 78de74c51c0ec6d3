"""Checkpoints of the best trials, stored as artifacts of the study; the dashboard shows them.

Each is a safetensors file with a head's weights and feature statistics, and its epochs as metadata. The
trial's parameters define the architecture.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import FrozenTrial, TrialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from features.cli import log_warning
from seqmodel.heads.recurrent import LstmHead
from seqmodel.runs.files import ARTIFACTS

MAX_CHECKPOINTS = 5
"""Number of checkpoints to keep."""


def keep_checkpoint(
    trial: optuna.Trial, head: LstmHead, value: float, epochs: Sequence[dict[str, Any]], out: Path
) -> None:
    """Save a trial's head and its epochs, unless `MAX_CHECKPOINTS` complete trials are at least as good."""
    if sum((other.value or 0.0) >= value for other in _complete(trial.study)) >= MAX_CHECKPOINTS:
        return
    folder = out / ARTIFACTS
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / _temporary_name(trial.number)
    save_file(
        {key: tensor.detach().cpu().contiguous() for key, tensor in head.state_dict().items()},
        temporary,
        {"epochs": json.dumps(list(epochs))},
    )
    artifact = upload_artifact(
        artifact_store=FileSystemArtifactStore(str(folder)),
        file_path=str(temporary),
        study_or_trial=trial,
        mimetype="application/octet-stream",
    )
    temporary.unlink()
    trial.set_user_attr("checkpoint", artifact)


def load_checkpoint(trial: FrozenTrial, head: LstmHead, out: Path) -> list[dict[str, Any]] | None:
    """Load a trial's weights into `head`; returns its epochs. Without a readable checkpoint in this folder it
    returns None and does not change the head."""
    name = trial.user_attrs.get("checkpoint")
    if name is None or not (path := out / ARTIFACTS / name).is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            epochs = json.loads((file.metadata() or {}).get("epochs", "null"))
            weights = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        log_warning(
            f"the checkpoint of trial {trial.number} cannot be read; training the head again: {error}"
        )
        return None
    if epochs:
        head.load_state_dict(weights)
    return epochs


def drop_checkpoints(study: optuna.Study, out: Path) -> None:
    """Delete the checkpoints of trials that are not among the best, also of trials whose worker was
    killed. Other processes may still write those of running trials."""
    best = sorted(_complete(study), key=lambda trial: -(trial.value or 0.0))[:MAX_CHECKPOINTS]
    for trial in study.get_trials(deepcopy=False):
        if trial.state != TrialState.RUNNING and trial not in best:
            temporary = _temporary_name(trial.number)
            for name in (temporary, trial.user_attrs.get("checkpoint", temporary)):
                (out / ARTIFACTS / name).unlink(missing_ok=True)


def _temporary_name(number: int) -> str:
    return f"trial-{number}.safetensors"


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
