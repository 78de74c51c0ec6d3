"""Checks that a trial is run again if its worker is killed, for any storage."""

import os
import signal
import time

import optuna
from optuna.trial import TrialState

from tune.study.study import StudySpec, close_study, create_study, num_done, work
from tune.study.worker_pool import run_workers

STUCK = 2
"""Number of the trial that does not end by itself."""


def square(trial: optuna.Trial) -> float:
    value = trial.suggest_float("a", -1, 1)
    if trial.number == STUCK:
        time.sleep(600)  # until the process is killed
    return -(value**2)


def slow_worker(spec: StudySpec, index: int) -> None:
    work(spec, square, index)


def require_retry(spec: StudySpec) -> None:
    """Of two workers, kill the one that runs trial STUCK. Require that the trial is run again once and that
    no other trial is lost."""
    study = create_study(spec, [{"a": 0.5}], {})
    killed = False
    for trials in run_workers(study, spec, slow_worker, (spec,), num_workers=2):
        stuck = [t for t in trials if t.number == STUCK and "worker" in t.user_attrs and t.params]
        if not killed and stuck and num_done(study) >= 3:
            killed = True
            os.kill(stuck[0].user_attrs["worker"]["pid"], signal.SIGKILL)
    trials = study.trials
    assert killed
    assert trials[STUCK].state == TrialState.FAIL
    assert [t.params for t in trials if t.user_attrs.get("retry_of") == STUCK] == [trials[STUCK].params]
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.FAIL}
    assert num_done(study) >= spec.trials
    close_study(study)
