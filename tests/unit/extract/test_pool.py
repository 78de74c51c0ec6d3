"""Worker processes of an extraction that die or hang.

The workers are real processes, but without models: they report every window as done. Files in a folder (given
in place of the store) say what has happened already.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest

from extract.executors import pool, worker
from extract.executors.worker import Event
from extract.pipeline.types import ExtractorConfig, Job, Window
from extract.pipeline.writer import StoreWriteError
from features.cli import STOPS
from features.recipe import EncoderId, Recipe

NO_MODELS = ExtractorConfig(Recipe(None, EncoderId("none", "none", "", 1), None), ())
JOBS = [Job(Path(name), (Window(row, 0.0, 2.0),), 10.0) for row, name in enumerate("abc")]
LATER_S = 1e6
Target = Callable[[Connection, ExtractorConfig, str], None]

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows has no such signals")


def is_first(folder: str, moment: str) -> bool:
    """Whether this moment happens for the first time, in any process."""
    try:
        os.close(os.open(Path(folder) / moment, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def end_by(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def serve(pipe: Connection) -> None:
    """Report every window as done, until the parent closes the pipe."""
    try:
        pipe.send("ready")
        while True:
            job = pipe.recv()
            for window in job.windows:
                pipe.send(Event(job.path, window.row))
            pipe.send(Event(job.path))
    except (EOFError, OSError):
        return


def first_is_stopped(pipe: Connection, _: ExtractorConfig, folder: str) -> None:
    if is_first(folder, "stopped"):
        end_by(signal.SIGSTOP)
    serve(pipe)


def first_is_killed(pipe: Connection, _: ExtractorConfig, folder: str) -> None:
    if is_first(folder, "killed"):
        end_by(signal.SIGKILL)
    serve(pipe)


def stopped_on_its_first_video(pipe: Connection, config: ExtractorConfig, folder: str) -> None:
    pipe.send("ready")
    pipe.poll(None)
    first_is_stopped(pipe, config, folder)


def one_of_two_works(pipe: Connection, _: ExtractorConfig, folder: str) -> None:
    """One worker dies on its video, and no later worker starts. The other waits until the parent knows it."""
    number = next(number for number in itertools.count() if is_first(folder, f"worker {number}"))
    if number > 1:
        end_by(signal.SIGKILL)
    pipe.send("ready")
    job = pipe.recv()
    if number == 1:
        end_by(signal.SIGKILL)
    while not (Path(folder) / "warning 2").exists() and not pipe.poll(0.005):  # until the parent gives up
        pass
    pipe.send(Event(job.path, job.windows[0].row))
    pipe.send(Event(job.path))
    serve(pipe)


def never_starts(pipe: Connection, _: ExtractorConfig, folder: str) -> None:
    end_by(signal.SIGKILL)


def refuses(pipe: Connection, _: ExtractorConfig, folder: str) -> None:
    pipe.send(("start", "the weights changed after planning"))


def work_with(events: Callable[[Job], Iterator[Event]], pipe: Connection, folder: str) -> None:
    """The main function of a worker without models; `events` gives the events of a video."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "open_extractor", lambda config: SimpleNamespace(close=lambda: None))
        patch.setattr(worker, "FeatureStore", SimpleNamespace(open=lambda *_: None))
        patch.setattr(worker, "events", lambda store, job, *_: events(job))
        worker.work(pipe, NO_MODELS, folder)


def full_disk(pipe: Connection, _: ExtractorConfig, folder: str) -> None:
    """The disk is full for two workers: one says it, then the parent closes the pipe of the other."""

    def events(_: Job) -> Iterator[Event]:
        if is_first(folder, "working"):
            while not (Path(folder) / "both working").exists() and not pipe.poll(0.005):
                pass
        else:
            is_first(folder, "both working")
            pipe.poll(None)
        raise StoreWriteError("the store cannot be written: no space")
        yield

    work_with(events, pipe, folder)


def hit_by_signals(pipe: Connection, _: ExtractorConfig, folder: str) -> None:
    """Gets each signal while it starts and during its first video."""

    def get_all() -> None:
        for number in (signal.SIGINT, *STOPS):
            end_by(number)

    def events(job: Job) -> Iterator[Event]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, *STOPS})
        get_all()
        yield Event(job.path, job.windows[0].row)
        yield Event(job.path)

    get_all()
    work_with(events, pipe, folder)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Event]]:
    """A function that runs JOBS with this main function of the workers; returns the events of windows.

    Time stands still until a worker is stopped, and then jumps over all limits.
    """

    monkeypatch.setattr(pool, "MAX_FAILED_STARTS", 2)

    def events(work: Target, workers: int = 1) -> list[Event]:
        monkeypatch.setattr(pool, "work", work)
        clock = lambda: LATER_S if (tmp_path / "stopped").exists() else 0.0  # noqa: E731
        found = pool.run_jobs(JOBS, NO_MODELS, str(tmp_path), workers, clock)
        return [event for event in found if event.row is not None]

    return events


@pytest.fixture
def warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings of the parent; for each there is a file `warning N` too."""
    found: list[str] = []

    def warn(text: str) -> None:
        found.append(text)
        (tmp_path / f"warning {len(found)}").touch()

    monkeypatch.setattr(pool, "log_warning", warn)
    return found


def rows(events: list[Event]) -> list[int | None]:
    assert {event.reason for event in events} <= {""}
    return sorted(event.row for event in events if event.row is not None)


def test_a_worker_that_hangs_before_it_is_ready_is_replaced(
    run: Callable[..., list[Event]], warnings: list[str]
) -> None:
    assert rows(run(first_is_stopped)) == [0, 1, 2]
    assert warnings == ["a worker could not start: it was not ready after 600 s; starting another"]


def test_a_worker_that_hangs_on_a_video_fails_this_video_only(
    run: Callable[..., list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: dict[int, str] = {}
    store = SimpleNamespace(write_failure=failures.__setitem__)
    monkeypatch.setattr(pool, "FeatureStore", SimpleNamespace(open=lambda *_: store))
    assert [(event.row, event.reason) for event in run(stopped_on_its_first_video)] == [
        (0, "stuck for more than 10 s"),
        (1, ""),
        (2, ""),
    ]
    assert failures == {0: "stuck for more than 10 s"}


def test_a_worker_that_is_killed_before_its_first_video_is_replaced(
    run: Callable[..., list[Event]], warnings: list[str]
) -> None:
    assert rows(run(first_is_killed)) == [0, 1, 2]
    assert warnings == [
        "a worker could not start: the worker process was killed by SIGKILL; starting another"
    ]


def test_failed_restarts_do_not_end_a_run_while_another_worker_works(
    run: Callable[..., list[Event]], warnings: list[str]
) -> None:
    assert rows(run(one_of_two_works, workers=2)) == [0, 1, 2]
    text = "a worker could not start: the worker process was killed by SIGKILL"
    assert warnings == [f"{text}; starting another", f"{text}; going on with the other workers"]


def test_a_run_whose_workers_never_start_ends_in_one_line(
    run: Callable[..., list[Event]], warnings: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"^2 workers in a row could not start: .* killed by SIGKILL$"):
        run(never_starts)
    assert len(warnings) == 1


def test_a_user_error_at_the_first_start_ends_the_run_at_once(
    run: Callable[..., list[Event]], warnings: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"^the weights changed after planning$"):
        run(refuses, workers=2)
    assert not warnings


def test_a_full_disk_ends_all_workers_without_a_traceback(
    run: Callable[..., list[Event]], capfd: pytest.CaptureFixture[str]
) -> None:
    """The second worker has nobody to tell its error."""
    with pytest.raises(StoreWriteError, match=r"^the store cannot be written: no space$"):
        run(full_disk, workers=2)
    stderr = capfd.readouterr().err
    assert "Traceback" not in stderr
    assert "Error" not in stderr


def test_signals_to_a_worker_do_not_end_it(run: Callable[..., list[Event]], warnings: list[str]) -> None:
    """Ctrl-C, SLURM's SIGTERM and a closed terminal reach the parent too, which ends its workers."""
    assert rows(run(hit_by_signals)) == [0, 1, 2]
    assert warnings == []
