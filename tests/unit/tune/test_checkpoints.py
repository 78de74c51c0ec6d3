"""Checkpoints of trials: which files are deleted at the end of a search."""

from pathlib import Path

import optuna
from optuna.trial import TrialState, create_trial

from seqmodel.runs.files import ARTIFACTS
from tune.study.checkpoints import MAX_CHECKPOINTS, drop_checkpoints


def test_only_checkpoints_of_the_best_and_of_running_trials_are_kept(tmp_path: Path) -> None:
    """A killed worker leaves the file of a failed trial, also one that was not finished. Other files, for
    example from the dashboard, are kept."""
    study = optuna.create_study(direction="maximize")
    for number in range(MAX_CHECKPOINTS + 1):
        attrs = {"checkpoint": f"complete {number}"}
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=number / 10, user_attrs=attrs))
    for state in (TrialState.FAIL, TrialState.RUNNING):
        study.add_trial(create_trial(state=state, user_attrs={"checkpoint": state.name}))
    failed, running = (f"trial-{MAX_CHECKPOINTS + 1 + index}.safetensors" for index in range(2))
    names = {f"complete {number}" for number in range(MAX_CHECKPOINTS + 1)}
    names |= {"FAIL", "RUNNING", failed, running, "notes.txt"}
    (tmp_path / ARTIFACTS).mkdir()
    for name in names:
        (tmp_path / ARTIFACTS / name).touch()
    drop_checkpoints(study, tmp_path)
    kept = {path.name for path in (tmp_path / ARTIFACTS).iterdir()}
    assert names - kept == {"complete 0", "FAIL", failed}
