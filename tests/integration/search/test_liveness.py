"""Processes of a search: which ones can be checked by their id, and how they end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from features.files import in_same_namespace, is_alive, process_namespace, this_process
from features.store.location import location_of
from features.store.lock import planner_lock
from tests.support.toy_sequences import write_toy_store
from tune.study.study import StudySpec, load_study

IN_A_CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
"""Processes numbered anew under the same host name, as in a container that shares its host's network."""
PLAN = """
import json, sys, time
from features.store.lock import planner_lock
from features.store.location import location_of
from features.files import this_process
with planner_lock(location_of(sys.argv[1])):
    print(json.dumps(this_process()), flush=True)
    time.sleep(600)
"""


def has_containers() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True).returncode == 0


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


# Processes that can be checked


def test_process_of_this_host_and_namespace_can_be_checked() -> None:
    assert in_same_namespace(this_process())
    assert not in_same_namespace(process_namespace() | {"host": "elsewhere"})
    assert not in_same_namespace(process_namespace() | {"namespace": "another"})


@pytest.mark.skipif(not has_containers(), reason="no user namespaces here (unshare --user --pid)")
def test_running_process_of_another_container_counts_as_running(tmp_path: Path) -> None:
    """Neither as a worker nor as a planner."""
    location, argv = location_of(tmp_path), [*IN_A_CONTAINER, sys.executable, "-c", PLAN, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, encoding="utf-8") as planner:
        try:
            assert planner.stdout is not None
            worker = json.loads(planner.stdout.readline())
            assert worker["host"] == process_namespace()["host"]
            assert not is_alive(worker), "its process id is not visible here"
            assert not in_same_namespace(worker)
            with pytest.raises(ValueError, match=f"process {worker['pid']} on"):
                with planner_lock(location, wait_s=0.5):
                    pass
        finally:
            planner.kill()


# Processes that end


@pytest.mark.skipif(os.name != "posix", reason="signals of a process group")
def test_signal_to_every_process_loses_no_trial(tmp_path: Path) -> None:
    """As with Ctrl-C in a terminal and SLURM's SIGTERM, which reach the workers too: running trials are
    enqueued again."""
    store = write_toy_store(tmp_path, num_clips=600, num_steps=30)
    argv = [sys.executable, "-m", "tune", "--store", str(store), "--out", str(tmp_path / "run")]
    argv += ["--study", "s", "--trials", "20", "--workers", "2", "--epochs", "40", "--pruning", "off"]
    spec = StudySpec(str(tmp_path / "run" / "study.log"), "s", 20, 0)

    def trials(*states: TrialState) -> list[FrozenTrial]:
        return load_study(spec).get_trials(states=states or None)

    def working() -> list[FrozenTrial]:
        try:
            begun = [trial for trial in trials(TrialState.RUNNING) if trial.params]
            return [t for t in begun if "worker" in t.user_attrs and is_alive(t.user_attrs["worker"])]
        except KeyError:  # does not exist yet
            return []

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        search = subprocess.Popen(
            argv, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
        )
        try:
            deadline = time.monotonic() + 120
            while len(working()) < 2:
                assert search.poll() is None, search.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(search.pid, number)
            stderr = search.communicate(timeout=60)[1]
        finally:
            search.kill()
            search.communicate()
        assert (search.returncode, "Traceback" in stderr) == (130, False), stderr
    failed, waiting = trials(TrialState.FAIL), trials(TrialState.WAITING)
    followed = [trial.user_attrs["retry_of"] for trial in trials() if "retry_of" in trial.user_attrs]
    assert sorted(followed) == [trial.number for trial in failed]
    assert trials(TrialState.RUNNING) == []
    assert {trial.user_attrs["retries"] for trial in waiting if "retries" in trial.user_attrs} == {0}
