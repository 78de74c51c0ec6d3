"""A study behind Optuna's real gRPC proxy on loopback, with workers of this and of another machine that are
killed."""

import contextlib
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.support.commands import run_here
from tests.support.killed_worker import require_retry
from tests.support.toy_sequences import write_toy_store
from tune.__main__ import main
from tune.study.storage import open_storage
from tune.study.study import StudySpec, create_study, num_done, work

pytest.importorskip("grpc", reason="needs the grpc extra: pip install brainbuddy[grpc]")


def serve(journal: str, port: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.storages.run_grpc_proxy_server(open_storage(journal), host="127.0.0.1", port=port)


def start_proxy(journal: Path, port: int) -> SpawnProcess:
    """Start a proxy of a journal file, and wait until it listens."""
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(str(journal), port), daemon=True
    )
    server.start()
    deadline = time.monotonic() + 120
    while True:
        assert server.is_alive()
        assert time.monotonic() < deadline
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return server
        except OSError:
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a proxy."""
    port = free_port()
    server = start_proxy(tmp_path_factory.mktemp("대리") / "study.log", port)
    yield f"grpc://127.0.0.1:{port}"
    server.terminate()
    server.join(10)


def test_trial_of_a_killed_worker_of_two_is_run_again(proxy: str) -> None:
    require_retry(StudySpec(proxy, "killed", trials=8, seed=0))


def test_trial_of_a_silent_worker_on_another_machine_is_run_again(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune.study.study.SILENT_S", 0)
    spec = StudySpec(proxy, "silent", trials=2, seed=0)
    study = create_study(spec, [{"a": 0.25}], {})
    lost = study.ask()
    lost.suggest_float("a", -1, 1)
    lost.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": "1"})
    lost.set_user_attr("seen", time.time())
    work(spec, lambda trial: trial.suggest_float("a", -1, 1))
    trials = study.trials
    assert trials[lost.number].state == TrialState.FAIL
    assert any(t.params == {"a": 0.25} and t.state == TrialState.COMPLETE for t in trials)
    assert num_done(study) == 2


@pytest.mark.usefixtures("no_drawing")
def test_lost_proxy_gives_a_one_line_error_and_the_same_command_resumes(tmp_path: Path) -> None:
    store = write_toy_store(tmp_path, num_clips=120)
    port, journal = free_port(), tmp_path / "study.log"
    argv = [sys.executable, "-m", "tune", "--store", str(store), "--out", str(tmp_path / "run")]
    argv += ["--storage", f"grpc://127.0.0.1:{port}", "--workers", "2", "--epochs", "2"]
    server = start_proxy(journal, port)

    def finished() -> int:
        storage = open_storage(str(journal))
        names = optuna.get_all_study_names(storage)
        return sum(num_done(optuna.load_study(study_name=name, storage=storage)) for name in names)

    with subprocess.Popen([*argv, "--trials", "500"], stderr=subprocess.PIPE, encoding="utf-8") as search:
        try:
            deadline = time.monotonic() + 120
            while not (before := finished()):
                assert search.poll() is None, search.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            server.kill()
            stderr = search.communicate(timeout=120)[1]
        finally:
            search.kill()
    assert (search.returncode, "Traceback" in stderr) == (2, False), stderr
    assert f"error: --storage grpc://127.0.0.1:{port}: " in stderr.replace("\n", " ")
    server = start_proxy(journal, port)
    done = run_here("tune", *argv[3:], "--trials", str(before + 1), "--workers", "1")
    server.kill()
    assert done.returncode == 0, done.stderr
    assert finished() > before


def answer_as_web_server(listener: socket.socket) -> None:
    """Answer every connection like a web server without gRPC, until the listener is closed."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("listens", [False, True], ids=["nothing listens", "another server"])
def test_proxy_without_a_response_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listens: bool
) -> None:
    """Also if the port belongs to a server without gRPC."""
    store = write_toy_store(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listens:
            other.listen()
            threading.Thread(target=answer_as_web_server, args=(other,), daemon=True).start()
        address = f"grpc://127.0.0.1:{other.getsockname()[1]}"
        argv = [
            "--store",
            str(store),
            "--out",
            str(tmp_path / "run"),
            "--storage",
            address,
            "--workers",
            "1",
        ]
        assert main(argv) == 2
        if listens:
            other.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread, which then ends
    stderr = capsys.readouterr().err.splitlines()[-1]
    assert stderr.startswith(f"error: --storage {address}: ")
    assert "run the same command" not in stderr, "no search was started"
    assert "127.0.0.1" in stderr.removeprefix(f"error: --storage {address}: ")
