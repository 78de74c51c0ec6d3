"""The study: creation, trials of a worker, and recovery of trials whose worker ended.

A worker runs one trial after the other from the shared storage until there are enough. Each trial stores its
worker (host, process and start time). So a later call can find trials whose worker has ended; it fails them
and enqueues them again. Processes of another machine or container cannot be checked: there a database's
heartbeat decides, or else how long the trial's stored heartbeat has not changed. That time is measured with
this process's clock alone, because machines may have wrong clocks and different time zones.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from features.cli import UserError
from features.files import has_parent, in_same_namespace, is_alive, this_process
from tune.config import BASELINE_ROLE
from tune.study.storage import MAX_RETRIES, ignore_experimental_warnings, open_storage, without_password

UNSIGNED_S = 60
"""A running trial without a stored worker for this number of seconds has no worker."""
SEEN_EVERY_S, WAIT_S = 30, 1.0
"""Seconds between heartbeats of a trial, and between checks while waiting for other workers."""
SILENT_S = 600
"""A worker of another machine or container without a new heartbeat for this number of seconds has ended.
Epochs take seconds."""
RANDOM_TRIALS = 10
"""The first trials are starting points and random points: the sampler has not learned from any score yet."""
Noticed = dict[tuple[int, float | None], float]
"""Monotonic time when this process first saw a heartbeat, by trial number and heartbeat (None: none yet)."""
Objective = Callable[[optuna.Trial], float]
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class StudySpec:
    """All that a process needs to join a study; passed to worker processes."""

    storage: str
    """Optuna URL, `grpc://HOST:PORT`, or the path of a journal file."""
    name: str
    trials: int
    """Number of finished trials to reach."""
    seed: int
    turns: tuple[dict[str, Any], ...] = ()
    """Parameters that trials take in turn, by their number, unless they are starting points."""


def create_study(spec: StudySpec, points: Sequence[dict[str, Any]], settings: dict[str, Any]) -> optuna.Study:
    """Create the study and enqueue its starting points, or open an existing study with the same settings.

    points: the first is the seed project's settings; its trial has that role.
    settings: of the search (metric, split, labels …), which must be equal to resume a study.
    Raises UserError with the settings that differ.
    """
    study = optuna.create_study(
        storage=open_storage(spec.storage),
        study_name=spec.name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.NopPruner(),
    )
    known = study.user_attrs.get("settings")
    if known is None:
        _enqueue_starts(study, points)
        if "metric" in settings:
            with ignore_experimental_warnings():
                study.set_metric_names([settings["metric"]])
        study.set_user_attr("settings", settings)  # last: a study with settings is complete
    else:
        different = [
            f"{key}: {known.get(key)!r} in the study, {settings[key]!r} now"
            for key in settings
            if known.get(key) != settings[key]
        ]
        if different:
            raise UserError(
                f"study {spec.name!r} in {without_password(spec.storage)} has other settings ("
                + "; ".join(different)
                + "): use another --out or --study"
            )
    _drop_copies(study)
    return study


def _enqueue_starts(study: optuna.Study, points: Sequence[dict[str, Any]]) -> None:
    """Enqueue the starting points that the study does not have yet, each with its index."""
    present = {trial.user_attrs.get("start") for trial in study.get_trials(deepcopy=False)}
    for index, point in enumerate(points):
        if index not in present:
            role = {"role": BASELINE_ROLE} if index == 0 else {}
            study.enqueue_trial(point, user_attrs={"start": index} | role)


def _drop_copies(study: optuna.Study) -> None:
    """Fail duplicate starting points: processes that create a study at the same time may all enqueue them. A
    worker that already runs a duplicate finds it failed at the end."""
    seen = set()
    for trial in study.get_trials(deepcopy=False):
        index = trial.user_attrs.get("start")
        # Optuna's heartbeat copies this attribute from a failed trial to its retry.
        if index is None or trial.state == TrialState.FAIL:
            continue
        if index in seen and not trial.state.is_finished():
            with suppress(UpdateFinishedTrialError):  # it ended just now
                # `tell` raises for a waiting trial.
                study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        seen.add(index)


def load_study(spec: StudySpec) -> optuna.Study:
    """Open the study that `create_study` created."""
    return optuna.load_study(study_name=spec.name, storage=open_storage(spec.storage))


def close_study(study: optuna.Study) -> None:
    """Close the connections to a database; does nothing for a journal."""
    if (database := _database(study)) is not None:
        database.remove_session()
        database.engine.dispose()


def _database(study: optuna.Study) -> RDBStorage | None:
    """The study's database, which supports heartbeats; None for other storages."""
    storage = getattr(study._storage, "_backend", study._storage)
    return storage if isinstance(storage, RDBStorage) else None


def num_done(study: optuna.Study) -> int:
    """Number of finished trials, pruned ones included."""
    return len(study.get_trials(deepcopy=False, states=DONE))


def num_taken(study: optuna.Study) -> int:
    """Number of finished and running trials."""
    return len(study.get_trials(deepcopy=False, states=(*DONE, TrialState.RUNNING)))


def has_retry(study: optuna.Study) -> bool:
    """Whether a trial of an ended worker waits to be run again."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    # The second is Optuna's own mark, of a trial that it failed for its missing heartbeat.
    return any("retry_of" in trial.user_attrs or "failed_trial" in trial.system_attrs for trial in waiting)


def note_seen(trial: optuna.Trial) -> None:
    """Store a heartbeat of a running trial, for machines that cannot check its process."""
    now = time.time()
    if abs(now - trial.user_attrs.get("seen", 0.0)) >= SEEN_EVERY_S:  # the clock may be set back
        trial.set_user_attr("seen", now)


def reclaim(study: optuna.Study, noticed: Noticed, clock: Callable[[], float] = time.monotonic) -> list[int]:
    """Fail the running trials whose worker has ended and enqueue them again; returns their numbers.

    noticed: the same dictionary in every call of a process, empty at first. clock: seconds of this process.
    """
    has_heartbeat = _database(study) is not None
    if has_heartbeat:
        with ignore_experimental_warnings():
            optuna.storages.fail_stale_trials(study)
    reclaimed = []
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        heartbeat, now_s = (trial.number, trial.user_attrs.get("seen")), clock()
        if not _is_lost(trial, has_heartbeat, now_s - noticed.setdefault(heartbeat, now_s)):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError):
            continue  # another process was faster
        enqueue_again(study, trial)
        reclaimed.append(trial.number)
    return reclaimed


def _is_lost(trial: FrozenTrial, has_heartbeat: bool, silent_s: float) -> bool:
    """Whether the worker of a running trial has ended. silent_s: seconds without a new heartbeat."""
    worker = trial.user_attrs.get("worker")
    if worker is None:  # it ended before it stored its name, which a worker does at once
        return silent_s > UNSIGNED_S
    if in_same_namespace(worker):
        return not is_alive(worker)
    return not has_heartbeat and silent_s > SILENT_S


def enqueue_again(study: optuna.Study, trial: FrozenTrial, *, is_interrupted: bool = False) -> None:
    """Enqueue a failed trial's parameters again, up to `MAX_RETRIES` times; interruptions do not count.

    The fixed parameters are included, because the trial may have ended before it suggested all of them.
    """
    times = int(trial.user_attrs.get("retries", 0)) + (not is_interrupted)
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    if times <= MAX_RETRIES and params:
        role = {key: value for key, value in trial.user_attrs.items() if key in ("role", "start")}
        study.enqueue_trial(params, user_attrs={"retry_of": trial.number, "retries": times} | role)


def work(
    spec: StudySpec,
    objective: Objective,
    index: int = 0,
    while_waiting: Callable[[list[FrozenTrial]], None] = lambda trials: None,
) -> None:
    """Run trials until enough are finished. `index` is the number of the worker, for the seed of its sampler.

    It takes over trials whose worker ends, and waits while other workers run the last trials. The sampler
    gets a new seed for every trial from (seed, trial number, index). So a single worker always gives the same
    study, also after a stop and restart between trials.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, current, noticed = load_study(spec), list[int](), Noticed()
    try:
        # Another worker may take a failed trial's place before the failed trial is enqueued again.
        while (is_waiting := has_retry(study)) or num_done(study) < spec.trials:
            has_reclaimed = bool(reclaim(study, noticed))
            if is_waiting or num_taken(study) < spec.trials:
                study.sampler = _sampler(spec, study, index)
                _work_on_one(study, objective, current)
                continue
            if not has_reclaimed:
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
    """The sampler of the next trial, for the worker with this index."""
    numbers = [spec.seed, len(study.get_trials(deepcopy=False)), index]
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    with ignore_experimental_warnings():
        # constant_liar: workers avoid points near running trials.
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS, seed=seed, multivariate=True, constant_liar=True
        )
        fixed = spec.turns[numbers[1] % len(spec.turns)] if spec.turns else {}
        return optuna.samplers.PartialFixedSampler(fixed, sampler)


def _work_on_one(study: optuna.Study, objective: Objective, current: list[int]) -> None:
    """Run one trial; `current` has its number until it is finished.

    If another process has already failed and enqueued the trial again (see `reclaim`), its result is dropped.
    """
    raised: list[Exception] = []

    def run_trial(trial: optuna.Trial) -> float:
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
            raise UpdateFinishedTrialError(f"trial {trial.number} was marked as failed by another process")
        return value

    try:
        study.optimize(run_trial, n_trials=1)
    except (ValueError, UpdateFinishedTrialError) as error:
        states = {t.number: t.state for t in study.get_trials(deepcopy=False)}
        if error in raised or not any(states[number] == TrialState.FAIL for number in current):
            raise
    current.clear()


def is_interruption(error: BaseException | None) -> bool:
    """Whether an error was caused by Ctrl-C or SIGTERM, also if the cleanup of a storage then raised another
    error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _leave(spec: StudySpec, numbers: Sequence[int]) -> None:
    """Enqueue unfinished trials again, through a new storage object: the interrupted one may be
    inconsistent."""
    study = load_study(spec)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL)):
        if trial.number in numbers:
            if not trial.state.is_finished():
                study.tell(trial.number, state=TrialState.FAIL)
            enqueue_again(study, trial, is_interrupted=True)
    close_study(study)
