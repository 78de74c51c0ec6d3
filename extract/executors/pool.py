"""Extraction in worker processes on one machine; the workers share the cores.

`run_jobs` sends one video at a time to each worker and yields the result of every window. Workers write their
rows themselves; the parent only counts. If a worker dies or hangs, only its video is affected: the parent
kills a worker that is over its time limit and starts another.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from extract.executors.worker import Event, events, work
from extract.pipeline.extractor import open_extractor
from extract.pipeline.types import ExtractorConfig, Job, Window
from extract.pipeline.writer import StoreWriteError
from features.cli import STOPS, UserError, log_warning
from features.cpu import usable_cores
from features.files import signals_held
from features.store.store import FeatureStore

START_LIMIT_S = 600.0
"""A worker that is not ready after this time hangs and is killed. A start takes seconds, or minutes if many
workers read their packages from a slow network disk."""
MAX_FAILED_STARTS = 3
"""After this many failed starts in a row, no more are tried: the other workers go on, or the run ends."""
HANG_GRACE_S = 60.0
"""A worker this long over its video's time limit hangs (it cannot check the time itself) and is killed."""
MAX_DEATHS_IN_A_ROW = 8
"""If more workers die without any row in between, the videos are not the cause, and the run ends."""
STOP_WAIT_S = 20.0
"""Time that a worker gets to finish its window after Ctrl-C."""


def run_jobs(
    jobs: Sequence[Job],
    extractor_config: ExtractorConfig,
    store_path: str,
    workers: int,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """Run the jobs in `workers` processes (0 = in this process); yields an event for every window and video.

    After the generator is closed (or its consumer raises), the workers finish their current window and stop.
    `clock` gives the seconds for the time limits of workers. Raises StoreWriteError when the store cannot be
    written, UserError when no worker can start.
    """
    cores = usable_cores()
    if not workers:
        if jobs:
            extractor_config = replace(extractor_config, threads=cores)
            store = FeatureStore.open(store_path, "r+")
            with contextlib.closing(open_extractor(extractor_config)) as extractor:
                for job in jobs:
                    yield from events(store, job, extractor, extractor_config)
        return
    workers = max(1, min(workers, len(jobs)))
    pool = _Pool(replace(extractor_config, threads=max(1, cores // workers)), store_path, clock)
    waiting = deque((job, False) for job in jobs)
    try:
        for _ in range(workers if jobs else 0):
            pool.start()
        while waiting or pool.is_busy():
            pool.hand_out(waiting)
            yield from pool.collect(waiting)
    finally:
        pool.stop()


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    since_s: float
    """Time of its start, or when it was ready, or when it got its video."""
    job: Job | None = None
    is_retry: bool = False
    open_rows: dict[int, Window] = field(default_factory=dict)
    is_ready: bool = False
    last_error: str = ""
    """The error that it sent before it died."""

    def hang(self, now_s: float) -> str:
        """Why it counts as hanging; '' if it does not.

        The limit is START_LIMIT_S until it is ready, then the time limit of its video plus HANG_GRACE_S.
        """
        elapsed_s = now_s - self.since_s
        if not self.is_ready:
            return f"it was not ready after {START_LIMIT_S:.0f} s" if elapsed_s > START_LIMIT_S else ""
        return stuck(self.job) if self.job and elapsed_s > self.job.time_limit_s + HANG_GRACE_S else ""


class _Pool:
    """The workers as the parent process sees them: assigns jobs, receives events, replaces dead workers."""

    def __init__(
        self, extractor_config: ExtractorConfig, store_path: str, clock: Callable[[], float]
    ) -> None:
        self._setup, self._store_path, self._clock = extractor_config, store_path, clock
        self._workers: list[_Worker] = []
        self._deaths_in_a_row = self._failed_starts = self._num_started = self._num_ready = 0
        self._context = multiprocessing.get_context("spawn")

    def start(self) -> None:
        parent_end, worker_end = self._context.Pipe()
        extractor_config = replace(self._setup, device=_worker_device(self._setup.device, self._num_started))
        process = self._context.Process(
            target=work,
            args=(worker_end, extractor_config, self._store_path),
            name="extract-worker",
            daemon=True,
        )
        with _thread_limits(self._setup.threads), signals_held(signal.SIGINT, *STOPS):
            process.start()
        self._num_started += 1
        worker_end.close()
        self._workers.append(_Worker(process, parent_end, self._clock()))

    def is_busy(self) -> bool:
        return any(worker.job is not None for worker in self._workers)

    def hand_out(self, waiting: "deque[tuple[Job, bool]]") -> None:
        for worker in self._workers:
            if worker.is_ready and worker.job is None and waiting:
                worker.job, worker.is_retry = waiting.popleft()
                worker.open_rows = {window.row: window for window in worker.job.windows}
                worker.since_s = self._clock()
                # If it died while idle, collect() notices it and gives the job to another worker.
                with contextlib.suppress(OSError):
                    worker.pipe.send(worker.job)

    def collect(self, waiting: "deque[tuple[Job, bool]]") -> Iterator[Event]:
        """Wait up to a second for messages and yield their events."""
        ready = wait([worker.pipe for worker in self._workers], timeout=1.0)
        for worker in list(self._workers):
            if worker.pipe in ready:
                yield from self._receive(worker, waiting)
            elif reason := worker.hang(self._clock()):
                yield from self._replace_worker(worker, waiting, reason)

    def _receive(self, worker: _Worker, waiting: "deque[tuple[Job, bool]]") -> Iterator[Event]:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            _end(worker.process, STOP_WAIT_S)
            yield from self._replace_worker(worker, waiting, worker.last_error or _death_reason(worker))
            return
        if message == "ready":
            worker.is_ready, worker.since_s = True, self._clock()
            self._num_ready += 1
            self._failed_starts = 0
        elif isinstance(message, Event):
            if message.row is None:
                worker.job = None
            else:
                self._deaths_in_a_row = 0
                worker.open_rows.pop(message.row, None)
            yield message
        else:
            kind, worker.last_error = message
            if kind == "store":
                raise StoreWriteError(worker.last_error)
            if kind == "start" and not self._num_ready:
                raise UserError(worker.last_error)

    def _replace_worker(
        self, worker: _Worker, waiting: "deque[tuple[Job, bool]]", reason: str
    ) -> Iterator[Event]:
        """Replace a worker that died or hangs; its video, which may not be the cause, is tried once more."""
        _end(worker.process, 0)
        self._workers.remove(worker)
        worker.pipe.close()
        if not worker.is_ready and not self._may_start_again(reason):
            return
        self._deaths_in_a_row += worker.is_ready
        if self._deaths_in_a_row > MAX_DEATHS_IN_A_ROW:
            raise UserError(f"{self._deaths_in_a_row} workers died in a row without a result: {reason}")
        if worker.job is not None and worker.open_rows:
            rest = replace(worker.job, windows=tuple(worker.open_rows.values()))
            if worker.is_retry or reason == stuck(worker.job):
                self._deaths_in_a_row = 0  # rows that failed finally are a result too
                yield from give_up(self._store_path, rest, reason)
            else:
                waiting.append((rest, True))
        if waiting:
            self.start()

    def _may_start_again(self, reason: str) -> bool:
        """Count a failed start; raises UserError if there were too many in a row and no worker is left."""
        self._failed_starts += 1
        is_last = self._failed_starts >= MAX_FAILED_STARTS
        if is_last and not self._workers:
            raise UserError(f"{self._failed_starts} workers in a row could not start: {reason}")
        then = "going on with the other workers" if is_last else "starting another"
        log_warning(f"a worker could not start: {reason}; {then}")
        return not is_last

    def stop(self) -> None:
        for worker in self._workers:
            worker.pipe.close()  # the worker notices between two windows
        deadline = time.monotonic() + STOP_WAIT_S
        for worker in self._workers:  # one that is not ready has nothing to finish
            _end(worker.process, max(0.0, deadline - time.monotonic()) if worker.is_ready else 0)
        self._workers.clear()


def stuck(job: Job) -> str:
    """The failure reason of a video on which a worker hangs."""
    return f"stuck for more than {job.time_limit_s:.0f} s"


def recover_job(store_path: str, job: Job, reason: str, *, is_last: bool) -> tuple[list[Event], Job]:
    """(events of a dead worker's job, the job with the windows to try again).

    Windows whose parts are all in the store are done. If this was the last try, the other windows fail.
    """
    store = FeatureStore.open(store_path)
    present = {part: store.present(part) for window in job.windows for part in window.parts}
    done = [window for window in job.windows if all(present[part][window.row] for part in window.parts)]
    remaining = replace(job, windows=tuple(window for window in job.windows if window not in done))
    done_events = [Event(job.path, window.row) for window in done]
    if is_last:
        return [*done_events, *give_up(store_path, remaining, reason)], replace(job, windows=())
    return done_events, remaining


def give_up(store_path: str, job: Job, reason: str) -> Iterator[Event]:
    """Write the windows of a job as failed, and yield their events."""
    store = FeatureStore.open(store_path, "r+")
    for window in job.windows:
        store.write_failure(window.row, reason)
        yield Event(job.path, window.row, reason)
    yield Event(job.path)


def _end(process: BaseProcess, wait_s: float) -> None:
    """Wait for the end of a process, and kill it if it has not ended by then; works for a stopped one too."""
    process.join(wait_s)
    process.kill()
    process.join()


def _death_reason(worker: _Worker) -> str:
    exit_code = worker.process.exitcode
    name = next((number.name for number in signal.Signals if exit_code == -number), "")
    verb = f"was killed by {name}" if name else f"ended with code {exit_code}"
    return f"the worker process {verb}" + (" on this video" if worker.job else "")


def _worker_device(device: str, index: int) -> str:
    """The device of the `index`-th worker; with several GPUs, workers take turns."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{index % torch.cuda.device_count()}"


@contextlib.contextmanager
def _thread_limits(threads: int) -> Iterator[None]:
    """Set the thread count of numeric libraries for processes that are started in the `with` block."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
