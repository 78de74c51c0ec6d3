"""Checkpoints of the best trials, kept beside the study and shown by the dashboard.

Each is a safetensors file with a head's weights and statistics; how the head is shaped stands in the trial's
own parameters. Knows nothing about how trials are trained.
"""

from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import FrozenTrial, TrialState
from safetensors.torch import save_file

from seqmodel.heads import LstmHead

KEPT = 5
"""Checkpoints that stay."""
FOLDER = "artifacts"


def keep_checkpoint(trial: optuna.Trial, head: LstmHead, value: float, out: Path) -> None:
    """Save a trial's head, unless enough better ones are there already."""
    better = [t for t in _complete(trial.study) if (t.value or 0.0) >= value]
    if len(better) >= KEPT:
        return
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"trial-{trial.number}.safetensors"
    save_file(
        {key: tensor.detach().cpu().contiguous() for key, tensor in head.state_dict().items()}, temporary
    )
    artifact = upload_artifact(
        artifact_store=FileSystemArtifactStore(str(folder)),
        file_path=str(temporary),
        study_or_trial=trial,
        mimetype="application/octet-stream",
    )
    temporary.unlink()
    trial.set_user_attr("checkpoint", artifact)


def drop_checkpoints(study: optuna.Study, out: Path) -> None:
    """Delete the checkpoints of trials that are no longer among the best."""
    ranked = sorted(_complete(study), key=lambda trial: -(trial.value or 0.0))
    for trial in ranked[KEPT:]:
        if name := trial.user_attrs.get("checkpoint"):
            (out / FOLDER / name).unlink(missing_ok=True)


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
