"""The study: where it is stored, how it is worked on, and how it goes on after workers stop or die.

A worker takes one trial after the other from the shared storage until there are enough. Each trial names its
worker (where it runs, its process and when that started), so whoever starts the study again can tell a trial
that is being worked on from one whose worker is dead; the latter is failed and enqueued again. On another
machine or in another container a process cannot be looked for: there a database's heartbeat tells, or else
how long the trial was silent.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from features.files import has_parent, in_same_namespace, is_alive, this_process
from tune.config import BASELINE_ROLE
from tune.study.storage import MAX_RETRIES, experimental_is_fine, open_storage, without_password

UNSIGNED_S = 60
"""A running trial that names no worker for that long has none."""
SEEN_EVERY_S, WAIT_S = 30, 1.0
"""Seconds between signs of life of a trial, and between looks at trials of others that are waited for."""
SILENT_S = 600
"""A worker of another machine or container that has said nothing for that long is dead. Epochs take seconds;
clocks of machines differ by seconds."""
Objective = Callable[[optuna.Trial], float]
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class StudySpec:
    """Everything a process needs to join a study; travels to worker processes."""

    storage: str
    """Optuna URL, `grpc://HOST:PORT`, or the path of a journal file."""
    name: str
    trials: int
    """Finished trials that are enough."""
    seed: int
    epochs: int
    """Most epochs of a trial: what Hyperband divides."""
    pruning: bool
    folds: int
    eager: bool = False
    """Whether one epoch says enough to stop a trial by: half go on at each look, after 1, 2, 4 and 8
    epochs; else Hyperband, from the second epoch on."""


def create_study(spec: StudySpec, points: Sequence[dict[str, Any]], facts: dict[str, Any]) -> optuna.Study:
    """The study, created with the points that it begins with enqueued, or found with the same facts.

    points: the first is the seed project's settings, and its trial says so.
    facts: what the study is about (metric, split, labels …): a study is not continued on other ground.
    Raises ValueError naming the facts that differ.
    """
    study = optuna.create_study(
        storage=open_storage(spec.storage),
        study_name=spec.name,
        direction="maximize",
        load_if_exists=True,
        pruner=pruner_of(spec),
    )
    known = study.user_attrs.get("facts")
    if known is None:
        _enqueue_starts(study, points)
        if "metric" in facts:
            with experimental_is_fine():
                study.set_metric_names([facts["metric"]])
        study.set_user_attr("facts", facts)  # last: a study that has them is whole
    else:
        different = [
            f"{key}: {known.get(key)!r} there, {facts[key]!r} here"
            for key in facts
            if known.get(key) != facts[key]
        ]
        if different:
            raise ValueError(
                f"study {spec.name!r} in {without_password(spec.storage)} was made otherwise ("
                + "; ".join(different)
                + "): use another --out or --study"
            )
    _drop_copies(study)
    return study


def _enqueue_starts(study: optuna.Study, points: Sequence[dict[str, Any]]) -> None:
    """Enqueue the points that a study begins with, each marked with its place, but those that are there."""
    there = {trial.user_attrs.get("start") for trial in study.get_trials(deepcopy=False)}
    for place, point in enumerate(points):
        if place not in there:
            role = {"role": BASELINE_ROLE} if place == 0 else {}
            study.enqueue_trial(point, user_attrs={"start": place} | role)


def _drop_copies(study: optuna.Study) -> None:
    """Fail what is a copy of an earlier starting point: processes that make a study at the same time may all
    enqueue them. Whoever came second sees the first here; a worker that has taken a copy finds it failed."""
    seen = set()
    for trial in study.get_trials(deepcopy=False):
        place = trial.user_attrs.get("start")
        # What is tried again, a heartbeat marks like the trial that failed.
        if place is None or trial.state == TrialState.FAIL:
            continue
        if place in seen and not trial.state.is_finished():
            with suppress(UpdateFinishedTrialError):  # it ended just now
                # `tell` would refuse one that waits.
                study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        seen.add(place)


def load_study(spec: StudySpec) -> optuna.Study:
    """The study that `create_study` made."""
    return optuna.load_study(study_name=spec.name, storage=open_storage(spec.storage), pruner=pruner_of(spec))


def close_study(study: optuna.Study) -> None:
    """Give a database its connections back; nothing to do for a journal."""
    if (database := _database(study)) is not None:
        database.remove_session()
        database.engine.dispose()


def _database(study: optuna.Study) -> RDBStorage | None:
    """The database behind a study: it alone knows heartbeats."""
    storage = getattr(study._storage, "_backend", study._storage)
    return storage if isinstance(storage, RDBStorage) else None


def pruner_of(spec: StudySpec) -> optuna.pruners.BasePruner:
    """Hyperband over epochs; successive halving, its most eager bracket, alone; Wilcoxon's signed-rank test
    over folds; or none."""
    if not spec.pruning:
        return optuna.pruners.NopPruner()
    if spec.folds > 1:
        # After K − 1 folds, all of them worse, p is 0.5 to that power: with few folds .1 is out of reach.
        # With two folds nothing is pruned, as one pair says nothing.
        with experimental_is_fine():
            return optuna.pruners.WilcoxonPruner(p_threshold=max(0.1, 1.2 * 0.5 ** (spec.folds - 1)))
    if spec.eager:
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.pruners.HyperbandPruner(min_resource=2, max_resource=max(2, spec.epochs))


def num_done(study: optuna.Study) -> int:
    """Finished trials, pruned ones included."""
    return len(study.get_trials(deepcopy=False, states=DONE))


def num_taken(study: optuna.Study) -> int:
    """Finished trials and those being worked on."""
    return len(study.get_trials(deepcopy=False, states=(*DONE, TrialState.RUNNING)))


def note_seen(trial: optuna.Trial) -> None:
    """Say that a trial is being worked on, for those who cannot look for its process."""
    now = time.time()
    if now - trial.user_attrs.get("seen", 0.0) >= SEEN_EVERY_S:
        trial.set_user_attr("seen", now)


def reclaim(study: optuna.Study) -> list[int]:
    """Fail the running trials of dead workers and enqueue them again; returns the numbers of those that this
    call found."""
    has_heartbeat = _database(study) is not None
    if has_heartbeat:
        with experimental_is_fine():
            optuna.storages.fail_stale_trials(study)
    reclaimed = []
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in (trial for trial in running if _is_lost(trial, has_heartbeat)):
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError):
            continue  # somebody else was faster
        enqueue_again(study, trial)
        reclaimed.append(trial.number)
    return reclaimed


def _is_lost(trial: FrozenTrial, has_heartbeat: bool) -> bool:
    """Whether nobody works on a running trial any more."""
    worker, began = trial.user_attrs.get("worker"), trial.datetime_start
    if worker is None:  # it died between taking the trial and signing it; a living worker signs at once
        return began is not None and (datetime.now() - began).total_seconds() >= UNSIGNED_S
    if in_same_namespace(worker):
        return not is_alive(worker)
    return not has_heartbeat and time.time() - trial.user_attrs.get("seen", time.time()) > SILENT_S


def enqueue_again(study: optuna.Study, trial: FrozenTrial, *, is_interrupted: bool = False) -> None:
    """Enqueue a failed trial's parameters, unless it has failed too often already; no interruption counts.

    It may have ended before it had taken all that it was enqueued with.
    """
    times = int(trial.user_attrs.get("retries", 0)) + (not is_interrupted)
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    if times <= MAX_RETRIES and params:
        role = {key: value for key, value in trial.user_attrs.items() if key == "role"}
        study.enqueue_trial(params, user_attrs={"retry_of": trial.number, "retries": times} | role)


def work(
    spec: StudySpec,
    objective: Objective,
    index: int = 0,
    while_waiting: Callable[[list[FrozenTrial]], None] = lambda trials: None,
) -> None:
    """Do trials until enough are finished. `index` tells workers of one call apart, for their samplers.

    While the last ones are worked on elsewhere it waits, and does those over whose worker dies. The sampler
    is seeded anew for every trial from (seed, trial number, index), so that one job alone gives the same
    study again, also when it was stopped and restarted between trials.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, current = load_study(spec), list[int]()
    try:
        while num_done(study) < spec.trials:
            if num_taken(study) < spec.trials:
                study.sampler = _sampler(spec, study, index)
                _work_on_one(study, objective, current)
                continue
            if not reclaim(study):
                while_waiting(study.get_trials(deepcopy=False))
                time.sleep(WAIT_S)
            if not has_parent():
                return
    except BaseException as error:
        if not is_interruption(error):
            raise
        _leave(spec, current)
        raise KeyboardInterrupt from error
    finally:
        close_study(study)


def _sampler(spec: StudySpec, study: optuna.Study, index: int) -> optuna.samplers.BaseSampler:
    """Of the next trial, for the worker of that index."""
    numbers = [spec.seed, len(study.get_trials(deepcopy=False)), index]
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    with experimental_is_fine():
        # The liar keeps workers off points that others are at.
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _work_on_one(study: optuna.Study, objective: Objective, current: list[int]) -> None:
    """Do one trial, whose number stands in `current` as long as it is not finished.

    A trial that somebody took for a dead worker's is being tried again already: it is left.
    """
    raised: list[Exception] = []

    def signed(trial: optuna.Trial) -> float:
        current[:] = [trial.number]
        note_seen(trial)
        trial.set_user_attr("worker", this_process())
        try:
            value = objective(trial)
        except UpdateFinishedTrialError:
            raise
        except Exception as error:
            raised.append(error)
            raise
        if study.get_trials(deepcopy=False)[trial.number].state.is_finished():
            raise UpdateFinishedTrialError(f"trial {trial.number} was failed by somebody else")
        return value

    try:
        study.optimize(signed, n_trials=1)
    except (ValueError, UpdateFinishedTrialError) as error:
        states = {t.number: t.state for t in study.get_trials(deepcopy=False)}
        if error in raised or not any(states[number] == TrialState.FAIL for number in current):
            raise
    current.clear()


def is_interruption(error: BaseException | None) -> bool:
    """Whether Ctrl-C or SIGTERM is behind an error. They may come in the middle of a storage's work, whose
    tidying up then fails with an error of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _leave(spec: StudySpec, numbers: Sequence[int]) -> None:
    """Enqueue unfinished trials again, by way of a fresh storage: the interrupted one may have lost count."""
    study = load_study(spec)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL)):
        if trial.number in numbers:
            if not trial.state.is_finished():
                study.tell(trial.number, state=TrialState.FAIL)
            enqueue_again(study, trial, is_interrupted=True)
    close_study(study)
