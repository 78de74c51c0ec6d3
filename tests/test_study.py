"""Claims about the study: nothing is lost when workers die, and every pruner stops what falls behind."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tune import liveness
from tune.config import SEED_ROLE
from tune.storage import MAX_RETRIES
from tune.study import StudySpec, create_study, load_study, num_done, reclaim, run_workers, work

STUCK = 2
"""Number of the trial that never ends by itself."""


def spec_at(path: Path, trials: int = 6) -> StudySpec:
    return StudySpec(str(path), "study", trials=trials, seed=0, epochs=4, pruning=False, folds=0)


def square(trial: optuna.Trial) -> float:
    value = trial.suggest_float("a", -1, 1)
    if trial.number == STUCK:
        time.sleep(600)  # until somebody kills it
    return -(value**2)


def slow_worker(spec: StudySpec, index: int) -> None:
    work(spec, square, index)


def test_a_killed_workers_trial_is_tried_again_and_nothing_is_lost(tmp_path: Path) -> None:
    spec = spec_at(tmp_path / "study.log")
    study = create_study(spec, [{"a": 0.5}], {})
    killed: int | None = None
    for trials in run_workers(study, spec, slow_worker, (spec,), jobs=2):
        stuck = [t for t in trials if t.number == STUCK and "worker" in t.user_attrs and t.params]
        if killed is None and stuck and num_done(study) >= 3:
            killed = STUCK
            os.kill(stuck[0].user_attrs["worker"]["pid"], signal.SIGKILL)
    trials = study.trials
    assert killed is not None
    assert trials[killed].state == TrialState.FAIL
    assert [t.params for t in trials if t.user_attrs.get("retry_of") == killed] == [trials[killed].params]
    assert all(t.state in (TrialState.COMPLETE, TrialState.FAIL) for t in trials)
    assert num_done(study) >= spec.trials


def killed_worker(spec: StudySpec, index: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing_worker(spec: StudySpec, index: int) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (killed_worker, r"was killed \(out of memory, perhaps\): use fewer --jobs; the same command goes on"),
        (failing_worker, r"exit code 3\); see their messages above"),
    ],
    ids=["killed", "failed"],
)
def test_workers_that_keep_dying_are_said_in_one_line(
    tmp_path: Path, target: Callable[..., None], said: str
) -> None:
    spec = spec_at(tmp_path / "study.log")
    study = create_study(spec, [{"a": 0.5}], {})
    with pytest.raises(ValueError, match="workers keep dying.*" + said):
        list(run_workers(study, spec, target, (spec,), jobs=1))


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"namespace": "another container"}])
def test_a_restarted_search_reclaims_the_trials_of_dead_workers_alone(
    tmp_path: Path, other: dict[str, str]
) -> None:
    """Machines and containers may share a host name."""
    spec = spec_at(tmp_path / "study.log")
    study = create_study(spec, [{"a": 0.25}], {})
    dead, mine, foreign, silent = study.ask(), study.ask(), study.ask(), study.ask()
    here, now = liveness.this_worker(), time.time()
    elsewhere = here | other | {"pid": 2**22 + 1}
    for trial, worker, seen in (
        (dead, here | {"pid": 2**22 + 1}, now),
        (mine, here, now - 2 * liveness.SILENT_S),
        (foreign, elsewhere, now),
        (silent, elsewhere, now - 2 * liveness.SILENT_S),
    ):
        trial.suggest_float("a", -1, 1)
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("seen", seen)
    assert reclaim(load_study(spec)) == [dead.number, silent.number]
    states = [trial.state for trial in study.trials]
    failed, running, waiting = TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING
    assert states == [failed, running, running, failed, waiting, waiting]
    retried = study.ask()
    assert retried.suggest_float("a", -1, 1) == 0.25


def test_a_dead_workers_trial_does_not_count_as_done(tmp_path: Path) -> None:
    """Without looking again, a search would end one short."""
    spec = spec_at(tmp_path / "study.log", trials=2)
    study = create_study(spec, [{"a": 0.25}], {})
    dead = study.ask()
    dead.suggest_float("a", -1, 1)
    dead.set_user_attr("worker", liveness.this_worker() | {"pid": 2**22 + 1})
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    assert num_done(study) == 2
    assert 0.25 in [t.params["a"] for t in study.get_trials(states=(TrialState.COMPLETE,))]


def test_a_worker_that_was_taken_for_dead_goes_on_with_the_next_trial(tmp_path: Path) -> None:
    spec = spec_at(tmp_path / "study.log", trials=2)
    study = create_study(spec, [{"a": 0.25}], {})

    def slow(trial: optuna.Trial) -> float:
        value = trial.suggest_float("a", -1, 1)
        if trial.number == 0:
            study.tell(0, state=TrialState.FAIL)
        if trial.number == 1:
            study.tell(1, state=TrialState.FAIL)
            trial.report(0.0, 1)
        return value

    work(spec, slow)
    assert num_done(study) == 2

    def broken(trial: optuna.Trial) -> float:
        raise ValueError("our own mistake")

    with pytest.raises(ValueError, match="our own mistake"):
        work(dataclasses.replace(spec, trials=3), broken)


def test_a_process_number_that_came_round_again_is_not_the_same_worker() -> None:
    worker = liveness.this_worker()
    assert liveness.is_alive(worker)
    assert not liveness.is_alive(worker | {"started": "1"})


def test_ctrl_c_leaves_a_study_that_goes_on_with_the_same_trial(tmp_path: Path) -> None:
    spec = spec_at(tmp_path / "study.log", trials=2)
    study = create_study(spec, [{"a": 0.5}], {})

    def interrupted(trial: optuna.Trial) -> float:
        trial.suggest_float("a", -1, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(spec, interrupted)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    assert [t.params["a"] for t in study.trials][:2] == [0.5, 0.5]
    assert num_done(study) == 2


def test_an_interruption_amid_a_storages_work_is_one_too(tmp_path: Path) -> None:
    """As when Optuna's lock is being given back: tidying up, it finds the file gone and says so instead."""
    spec = spec_at(tmp_path / "study.log", trials=2)
    study = create_study(spec, [{"a": 0.5}], {})

    def interrupted(trial: optuna.Trial) -> float:
        trial.suggest_float("a", -1, 1)
        try:
            raise KeyboardInterrupt
        finally:
            (tmp_path / "gone.lock").unlink()

    with pytest.raises(KeyboardInterrupt):
        work(spec, interrupted)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def two_numbers(trial: optuna.Trial) -> float:
    return trial.suggest_float("a", -1, 1) + trial.suggest_float("b", -1, 1)


@pytest.mark.parametrize("taken", [(), ("a",), ("a", "b")], ids=["nothing", "half", "all"])
def test_a_point_outlives_any_number_of_interruptions(tmp_path: Path, taken: tuple[str, ...]) -> None:
    """However much of it had been taken when they came."""
    spec, point = spec_at(tmp_path / "study.log", trials=1), {"a": 0.5, "b": 0.25}
    study = create_study(spec, [point], {})

    def interrupted(trial: optuna.Trial) -> float:
        for name in taken:
            trial.suggest_float(name, -1, 1)
        raise KeyboardInterrupt

    for _ in range(MAX_RETRIES + 2):
        with pytest.raises(KeyboardInterrupt):
            work(spec, interrupted)
    work(spec, two_numbers)
    last = study.trials[-1]
    assert (last.state, last.params) == (TrialState.COMPLETE, point)
    assert (last.user_attrs["role"], last.user_attrs["retries"]) == (SEED_ROLE, 0)


def test_a_point_whose_worker_was_killed_before_it_took_all_is_tried_again_whole(tmp_path: Path) -> None:
    """And three times at most."""
    spec, point = spec_at(tmp_path / "study.log", trials=1), {"a": 0.5, "b": 0.25}
    study = create_study(spec, [point], {})
    for taken in ((), ("a",), ("b",)):
        trial = study.ask()
        for name in taken:
            assert trial.suggest_float(name, -1, 1) == point[name]
        trial.set_user_attr("worker", liveness.this_worker() | {"pid": 2**22 + 1})
        assert reclaim(study) == [trial.number]
    assert [t.system_attrs["fixed_params"] for t in study.trials] == [point] * (MAX_RETRIES + 1)


@pytest.mark.parametrize(("folds", "eager"), [(0, False), (0, True), (3, False), (4, False), (5, False)])
def test_each_pruner_stops_what_falls_behind(tmp_path: Path, folds: int, eager: bool) -> None:
    """The first trial is good; the others are worse from their first step on."""
    plain = spec_at(tmp_path / "s.log", 12)
    spec = dataclasses.replace(plain, epochs=20, pruning=True, folds=folds, eager=eager)
    study = create_study(spec, [{"a": 0.5}], {})

    def value(trial: optuna.Trial) -> float:
        trial.suggest_float("a", -1, 1)
        scores = [(0.9 if trial.number == 0 else 0.5 - 0.01 * trial.number) + 0.001 * k for k in range(20)]
        for step, score in enumerate(scores[: folds or None]):
            trial.report(score, step)
            if step < (folds or 20) - 1 and trial.should_prune():
                raise optuna.TrialPruned
        return scores[0]

    work(spec, value)
    states = [trial.state for trial in study.trials]
    assert states[0] == TrialState.COMPLETE
    assert states.count(TrialState.PRUNED) >= 3
