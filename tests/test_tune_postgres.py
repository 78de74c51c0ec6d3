"""A study in a real PostgreSQL server: two workers, one killed, nothing lost."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tune.storage import open_storage
from tune.study import StudySpec, close_study, create_study, num_done, run_workers, work

STUCK = 2
"""Number of the trial that never ends by itself."""
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if os.name == "posix" else []
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server here (Debian: apt install postgresql)"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a fresh server on loopback, run by an ordinary user (it refuses root)."""
    pytest.importorskip("psycopg", reason="needs the postgres extra: pip install brainbuddy[postgres]")
    binaries = BINARIES[-1]
    folder = Path("/tmp") / f"brainbuddy-pg-{os.getpid()}"
    folder.mkdir(mode=0o755)
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*words: str) -> None:
        done = subprocess.run(
            [*as_user, *words], capture_output=True, text=True, encoding="utf-8", cwd="/", timeout=120
        )
        assert done.returncode == 0, done.stderr or done.stdout

    try:
        run(
            str(binaries / "initdb"),
            "-D",
            f"{folder}/data",
            "-U",
            "tuner",
            "--auth=trust",
            "-N",
            "-E",
            "UTF8",
        )
        options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder} -c fsync=off"
        run(
            str(binaries / "pg_ctl"),
            "-D",
            f"{folder}/data",
            "-l",
            f"{folder}/log",
            "-w",
            "-o",
            options,
            "start",
        )
        try:
            yield f"postgresql+psycopg://tuner@127.0.0.1:{port}/postgres"
        finally:
            with warnings.catch_warnings():
                # Optuna's heartbeat threads leave their sessions to the garbage collector.
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
            run(str(binaries / "pg_ctl"), "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def square(trial: optuna.Trial) -> float:
    value = trial.suggest_float("a", -1, 1)
    if trial.number == STUCK:
        time.sleep(600)  # until somebody kills it
    return -(value**2)


def slow_worker(spec: StudySpec, index: int) -> None:
    work(spec, square, index)


def test_two_workers_one_killed_its_trial_tried_again_and_nothing_lost(server: str) -> None:
    spec = StudySpec(server, "killed", trials=10, seed=0, epochs=4, pruning=False, folds=0)
    study = create_study(spec, {"a": 0.5}, {})
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
    assert num_done(study) >= spec.trials
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.FAIL}
    close_study(study)


def test_a_silent_worker_of_another_machine_is_found_by_its_heartbeat(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune.storage.HEARTBEAT_S", 1)
    monkeypatch.setattr("tune.storage.GRACE_S", 2)
    spec = StudySpec(server, "silent", trials=2, seed=0, epochs=4, pruning=False, folds=0)
    study = create_study(spec, {"a": 0.25}, {})
    # As a machine that was switched off leaves it: running, its last heartbeat long ago.
    with pytest.warns(UserWarning, match="Heartbeat"):  # optimize would go on to finish it
        lost = study.ask()
    lost.suggest_float("a", -1, 1)
    lost.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": "1"})
    study._storage.record_heartbeat(lost._trial_id)  # type: ignore[attr-defined]
    time.sleep(3)
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    trials = study.trials
    assert trials[lost.number].state == TrialState.FAIL
    assert any(t.params == {"a": 0.25} and t.state == TrialState.COMPLETE for t in trials)
    assert num_done(study) >= 2
    close_study(study)


def test_a_server_that_does_not_answer_is_one_clear_line_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ValueError, match=r"--storage postgresql\+psycopg://me:…@127\.0\.0\.1:9/x: "):
        open_storage("postgresql+psycopg://me:secret@127.0.0.1:9/x")
