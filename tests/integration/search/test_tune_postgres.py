"""A study in a real PostgreSQL server: of two workers or machines one is killed, and no trial is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from seqmodel.runs.card import load_card
from tests.support.killed_worker import require_retry
from tests.support.postgres import BINARIES, postgres_server
from tests.support.toy_sequences import write_toy_store
from tune.study.storage import open_storage
from tune.study.study import StudySpec, close_study, create_study, num_done, work

pytestmark = [
    pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server here (Debian: apt install postgresql)"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a new server on loopback."""
    pytest.importorskip("psycopg", reason="needs the postgres extra: pip install brainbuddy[postgres]")
    with postgres_server() as server:
        yield server.url


def test_trial_of_a_killed_worker_of_two_is_run_again(server: str) -> None:
    require_retry(StudySpec(server, "killed", trials=10, seed=0))


def test_two_commands_search_together_and_one_is_killed(server: str, tmp_path: Path) -> None:
    """As on two machines: each command writes its own run from the shared study."""
    store = write_toy_store(tmp_path, num_clips=300, num_steps=30)
    options = ["--storage", server, "--study", "shared", "--trials", "8", "--workers", "1"]
    options += ["--epochs", "3", "--pruning", "off"]
    environment = os.environ | {"SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "1"}

    def start(out: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "tune", "--store", str(store), "--out", str(tmp_path / out), *options]
        return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment)

    def trials() -> list[optuna.trial.FrozenTrial]:
        storage = open_storage(server)
        try:
            return optuna.load_study(study_name="shared", storage=storage).trials
        except KeyError:  # does not exist yet
            return []
        finally:
            storage.engine.dispose()  # type: ignore[attr-defined]

    def running_of(process: subprocess.Popen[str]) -> list[optuna.trial.FrozenTrial]:
        return [
            t
            for t in trials()
            if t.state == TrialState.RUNNING
            and t.user_attrs.get("worker", {}).get("pid") == process.pid
            and t.intermediate_values  # so that all its parameters are suggested
        ]

    def wait_for(process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 240
        while not running_of(process):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop_in_a_trial(process: subprocess.Popen[str]) -> int:
        """Stop the process in a trial and return the trial's number; its writes have reached the server."""
        while True:
            wait_for(process)
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            if found := running_of(process):
                return found[0].number
            process.send_signal(signal.SIGCONT)  # that trial has just ended

    first = start("first")
    try:
        killed = stop_in_a_trial(first)
        second = start("second")
        wait_for(second)
    finally:
        first.kill()
        first.communicate()
    stderr = second.communicate(timeout=600)[1]
    assert second.returncode == 0, stderr
    done = trials()
    assert done[killed].state == TrialState.FAIL
    again = [t.params for t in done if t.params == done[killed].params and t.state == TrialState.COMPLETE]
    assert len(again) == 1, "the other command finished the killed trial"
    assert len([t for t in done if t.state == TrialState.COMPLETE]) >= 8
    assert not [t for t in done if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert load_card(tmp_path / "second").stages[0]["study"] == "shared"
    assert f"optuna-dashboard {server}" in stderr.replace("\n", " "), (
        "a URL without a password is printed unchanged"
    )


@pytest.mark.parametrize("trials", [1, 2])
def test_ended_worker_of_another_machine_is_found_by_its_heartbeat(server: str, trials: int) -> None:
    """Also if its trial is the last one, so that no other trial is started."""
    spec = StudySpec(server, f"silent {trials}", trials=trials, seed=0)
    study = create_study(spec, [{"a": 0.25}], {})
    # As after a power failure: the trial is running, and its last heartbeat is old.
    with pytest.warns(UserWarning, match="Heartbeat"):  # study.optimize would finish the trial
        lost = study.ask()
    lost.suggest_float("a", -1, 1)
    lost.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": "1"})
    study._storage.record_heartbeat(lost._trial_id)  # type: ignore[attr-defined]
    database = study._storage._backend.engine  # type: ignore[attr-defined]
    with database.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 hour'"))
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    found = study.trials
    assert found[lost.number].state == TrialState.FAIL
    assert any(t.params == {"a": 0.25} and t.state == TrialState.COMPLETE for t in found)
    assert num_done(study) >= trials
    close_study(study)


def test_server_without_a_response_is_a_one_line_error_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ValueError, match=r"--storage postgresql\+psycopg://me:…@127\.0\.0\.1:9/x: "):
        open_storage("postgresql+psycopg://me:secret@127.0.0.1:9/x")
