"""The study: no trial is lost when workers end."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from features.files import is_alive, this_process
from tests.support.killed_worker import require_retry
from tune.config import BASELINE_ROLE
from tune.study.storage import MAX_RETRIES, ignore_experimental_warnings
from tune.study.study import (
    SEEN_EVERY_S,
    SILENT_S,
    UNSIGNED_S,
    Noticed,
    StudySpec,
    create_study,
    enqueue_again,
    load_study,
    note_seen,
    num_done,
    reclaim,
    work,
)
from tune.study.worker_pool import run_workers

POINTS = ({"a": 0.5}, {"a": 0.25}, {"a": -0.5})
SETTINGS = {"metric": "auroc"}
KILLED_AT = [("set_user_attr", 0), ("set_metric_names", 0), *(("enqueue_trial", call) for call in range(3))]
"""When another process may come, or a kill, while a study is made: before which call of what."""


def spec_at(path: Path, trials: int = 6) -> StudySpec:
    return StudySpec(str(path), "study", trials=trials, seed=0)


def test_trial_of_a_killed_worker_is_run_again(tmp_path: Path) -> None:
    require_retry(spec_at(tmp_path / "study.log"))


def before_the(call: int, step: str, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Call a function once, before the call with this number of a step."""
    own = getattr(optuna.Study, step)
    left = [call]

    def taken(study: optuna.Study, *args: Any, **kwargs: Any) -> None:
        left[0] -= 1
        if left[0] == -1:
            happens()
        own(study, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, step, taken)


def starts_of(study: optuna.Study) -> list[dict[str, Any]]:
    """Starting points of a study that are not failed, in the order of their trials."""
    failed = TrialState.FAIL
    return [trial.system_attrs["fixed_params"] for trial in study.trials if trial.state != failed]


@pytest.mark.parametrize("also_works", [False, True])
@pytest.mark.parametrize(("step", "call"), KILLED_AT)
def test_processes_that_start_together_begin_with_each_point_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int, also_works: bool
) -> None:
    """Wherever the first process was when the second started; points keep their order."""
    spec = spec_at(tmp_path / "study.log", trials=len(POINTS))

    def other() -> None:
        create_study(spec, POINTS, SETTINGS)
        if also_works:
            work(spec, square_of)

    before_the(call, step, monkeypatch, other)
    study = create_study(spec, POINTS, SETTINGS)
    work(spec, square_of)
    assert starts_of(study) == list(POINTS)
    assert [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))] == list(POINTS)
    first = next(trial for trial in study.trials if trial.state == TrialState.COMPLETE)
    assert first.user_attrs["role"] == BASELINE_ROLE


def square_of(trial: optuna.Trial) -> float:
    return float(trial.suggest_float("a", -1, 1) ** 2)


def test_duplicate_of_a_running_starting_point_is_dropped(tmp_path: Path) -> None:
    """For example if a worker took it before it was dropped; the worker continues with the next trial."""
    spec = spec_at(tmp_path / "study.log", trials=3)
    study = create_study(spec, POINTS[:1], SETTINGS)
    study.enqueue_trial(POINTS[0], user_attrs={"start": 0})

    def value(trial: optuna.Trial) -> float:
        a = trial.suggest_float("a", -1, 1)
        if trial.number == 1:
            create_study(spec, POINTS[:1], SETTINGS)
        return a

    work(spec, value)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_retried_starting_point_is_not_a_duplicate(tmp_path: Path) -> None:
    """Optuna's heartbeat enqueues it with all attributes of the failed trial."""
    spec = spec_at(tmp_path / "study.log")
    study = create_study(spec, POINTS[:1], SETTINGS)
    failed = study.ask()
    study.tell(failed, state=TrialState.FAIL)
    with ignore_experimental_warnings():
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[0])
    assert study.trials[1].user_attrs == study.trials[0].user_attrs
    create_study(spec, POINTS[:1], SETTINGS)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


@pytest.mark.parametrize(("step", "call"), KILLED_AT)
def test_search_killed_during_study_creation_has_each_starting_point_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    spec = spec_at(tmp_path / "study.log")

    def killed() -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        before_the(call, step, patch, killed)
        with pytest.raises(SystemExit):
            create_study(spec, POINTS, SETTINGS)
    study = create_study(spec, POINTS, SETTINGS)
    assert starts_of(study) == list(POINTS)
    assert study.user_attrs["settings"] == SETTINGS


def killed_worker(spec: StudySpec, index: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing_worker(spec: StudySpec, index: int) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            killed_worker,
            r"was killed \(perhaps out of memory\): use fewer --workers; run the same command again",
        ),
        (failing_worker, r"exit code 3\); see their messages above"),
    ],
    ids=["killed", "failed"],
)
def test_repeatedly_failing_workers_give_a_one_line_error(
    tmp_path: Path, target: Callable[..., None], message: str
) -> None:
    spec = spec_at(tmp_path / "study.log")
    study = create_study(spec, [{"a": 0.5}], {})
    with pytest.raises(ValueError, match="workers end without finishing a trial.*" + message):
        list(run_workers(study, spec, target, (spec,), num_workers=1))


def interrupted_worker(spec: StudySpec, index: int) -> None:
    """Like a worker that got SIGTERM: it ends without an error."""


def test_a_search_whose_workers_were_interrupted_is_not_finished(tmp_path: Path) -> None:
    spec = spec_at(tmp_path / "study.log", trials=2)
    study = create_study(spec, [{"a": 0.5}], {})
    with pytest.raises(KeyboardInterrupt):
        list(run_workers(study, spec, interrupted_worker, (spec,), num_workers=2))
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    list(run_workers(study, spec, interrupted_worker, (spec,), num_workers=1))


@pytest.mark.parametrize("clock_error_s", [0, -86_400, 86_400])
@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"namespace": "another container"}])
def test_restarted_search_reclaims_only_trials_of_ended_workers(
    tmp_path: Path, other: dict[str, str], clock_error_s: int
) -> None:
    """Machines and containers may share a host name, and the clock of a machine may be wrong."""
    spec = spec_at(tmp_path / "study.log")
    study = create_study(spec, [{"a": 0.25}], {})
    dead, mine, foreign, silent = study.ask(), study.ask(), study.ask(), study.ask()
    here = this_process()
    elsewhere = here | other | {"pid": 2**22 + 1}
    for trial, worker in (
        (dead, here | {"pid": 2**22 + 1}),
        (mine, here),
        (foreign, elsewhere),
        (silent, elsewhere),
    ):
        trial.suggest_float("a", -1, 1)
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("seen", time.time() + clock_error_s)
    noticed: Noticed = {}
    assert reclaim(load_study(spec), noticed, lambda: 0.0) == [dead.number]
    foreign.set_user_attr("seen", time.time() + clock_error_s)
    assert reclaim(load_study(spec), noticed, lambda: SILENT_S - 1.0) == []
    assert reclaim(load_study(spec), noticed, lambda: SILENT_S + 1.0) == [silent.number]
    states = [trial.state for trial in study.trials]
    failed, running, waiting = TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING
    assert states == [failed, running, running, failed, waiting, waiting]
    retried = study.ask()
    assert retried.suggest_float("a", -1, 1) == 0.25


def test_trial_without_a_worker_is_reclaimed_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker was killed at once. The start that a worker in another time zone stored does not matter."""
    spec = spec_at(tmp_path / "study.log")
    create_study(spec, [{"a": 0.25}], {}).ask()
    study, noticed = load_study(spec), Noticed()
    (trial,) = study.trials
    assert trial.datetime_start is not None
    trial.datetime_start -= timedelta(hours=9)
    monkeypatch.setattr(study, "get_trials", lambda **_: [trial])
    assert reclaim(study, noticed, lambda: 100.0) == []
    assert reclaim(study, noticed, lambda: 100.0 + UNSIGNED_S - 1) == []
    assert reclaim(study, noticed, lambda: 100.0 + UNSIGNED_S + 1) == [0]


def test_silent_worker_is_noticed_while_other_trials_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when all other trials are finished. The other machine's clock is a day ahead."""
    spec = spec_at(tmp_path / "study.log", trials=3)
    study = create_study(spec, [{"a": 0.25}], {})
    silent = study.ask()
    silent.set_user_attr("worker", this_process() | {"host": "elsewhere"})
    silent.set_user_attr("seen", time.time() + 86_400)
    monkeypatch.setattr("tune.study.study.SILENT_S", 0)

    def wait(trials: list[FrozenTrial]) -> None:
        raise AssertionError("waits")

    work(spec, square_of, while_waiting=wait)
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[2].params == {"a": 0.25}
    assert num_done(study) == 3


def test_heartbeat_continues_after_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = create_study(spec_at(tmp_path / "study.log"), [], {}).ask()
    for now_s in (1e9, 1e9 + SEEN_EVERY_S / 2, 1e9 - 3600):
        monkeypatch.setattr("tune.study.study.time", SimpleNamespace(time=lambda now_s=now_s: now_s))
        note_seen(trial)
    assert trial.user_attrs["seen"] == 1e9 - 3600


def test_a_dead_workers_trial_does_not_count_as_done(tmp_path: Path) -> None:
    """Otherwise the search would end with one trial too few."""
    spec = spec_at(tmp_path / "study.log", trials=2)
    study = create_study(spec, [{"a": 0.25}], {})
    dead = study.ask()
    dead.suggest_float("a", -1, 1)
    dead.set_user_attr("worker", this_process() | {"pid": 2**22 + 1})
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    assert num_done(study) == 2
    assert 0.25 in [t.params["a"] for t in study.get_trials(states=(TrialState.COMPLETE,))]


def test_trial_of_an_ended_worker_is_run_again_after_another_trial_replaced_it(tmp_path: Path) -> None:
    """Between failing a trial and enqueueing it, another worker may finish the last trial."""
    spec = spec_at(tmp_path / "study.log", trials=2)
    study = create_study(spec, [], {})
    dead = study.ask()
    dead.suggest_float("a", -1, 1)
    study.tell(dead.number, state=TrialState.FAIL)
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    enqueue_again(study, study.trials[dead.number])
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    assert [t.state for t in study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert study.trials[-1].params == dead.params


def test_worker_whose_trial_was_reclaimed_continues_with_the_next_trial(tmp_path: Path) -> None:
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


def test_reused_process_id_is_not_the_same_worker() -> None:
    worker = this_process()
    assert is_alive(worker)
    assert not is_alive(worker | {"started": 1.0})


def test_study_continues_with_the_same_trial_after_ctrl_c(tmp_path: Path) -> None:
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


def test_interruption_during_storage_access_counts_as_interruption(tmp_path: Path) -> None:
    """For example when Optuna releases its lock: its cleanup finds no file and raises another error."""
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
def test_interrupted_trial_is_enqueued_again_any_number_of_times(
    tmp_path: Path, taken: tuple[str, ...]
) -> None:
    """However many parameters it had suggested before the interruption."""
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
    assert (last.user_attrs["role"], last.user_attrs["retries"]) == (BASELINE_ROLE, 0)


def test_trial_killed_before_all_suggestions_is_retried_with_all_parameters(tmp_path: Path) -> None:
    """At most three times."""
    spec, point = spec_at(tmp_path / "study.log", trials=1), {"a": 0.5, "b": 0.25}
    study = create_study(spec, [point], {})
    for taken in ((), ("a",), ("b",)):
        trial = study.ask()
        for name in taken:
            assert trial.suggest_float(name, -1, 1) == point[name]
        trial.set_user_attr("worker", this_process() | {"pid": 2**22 + 1})
        assert reclaim(study, {}) == [trial.number]
    assert [t.system_attrs["fixed_params"] for t in study.trials] == [point] * (MAX_RETRIES + 1)
