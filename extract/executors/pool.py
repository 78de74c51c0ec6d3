"""Extraction in worker processes on one machine; the workers share the cores.

`run_jobs` sends one video at a time to each worker and yields the result of every window. Workers write their
rows themselves; the parent only counts. If a worker dies or hangs, only its video is affected.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from extract.executors.worker import Event, events, work
from extract.pipeline.extractor import open_extractor
from extract.pipeline.types import ExtractorConfig, Job, Window
from extract.pipeline.writer import StoreWriteError
from features.cpu import usable_cores
from features.store.store import FeatureStore

HANG_GRACE_S = 60.0
"""A worker this long over its video's time limit hangs (it cannot check the time itself) and is killed."""
MAX_DEATHS_IN_A_ROW = 8
"""If more workers die without any row in between, the videos are not the cause, and the run ends."""
STOP_WAIT_S = 20.0
"""Time that a worker gets to finish its window after Ctrl-C."""


def run_jobs(
    jobs: Sequence[Job], extractor_config: ExtractorConfig, store_path: str, workers: int
) -> Iterator[Event]:
    """Run the jobs in `workers` processes (0 = in this process); yields an event for every window and video.

    After the generator is closed (or its consumer raises), the workers finish their current window and stop.
    Raises StoreWriteError when the store cannot be written, ValueError when a worker cannot start.
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
    pool = _Pool(replace(extractor_config, threads=max(1, cores // workers)), store_path)
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
    job: Job | None = None
    is_retry: bool = False
    since_s: float = 0.0
    open_rows: dict[int, Window] = field(default_factory=dict)
    is_ready: bool = False
    last_error: str = ""
    """The error that it sent before it died."""

    def is_overdue(self) -> bool:
        """Whether it is over the time limit of its video plus HANG_GRACE_S; time counts once it is ready."""
        elapsed_s = time.monotonic() - self.since_s
        return self.job is not None and self.is_ready and elapsed_s > self.job.time_limit_s + HANG_GRACE_S


class _Pool:
    """The workers as the parent process sees them: assigns jobs, receives events, replaces dead workers."""

    def __init__(self, extractor_config: ExtractorConfig, store_path: str) -> None:
        self._setup, self._store_path = extractor_config, store_path
        self._workers: list[_Worker] = []
        self._deaths_in_a_row = self._num_started = 0
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
        with _thread_limits(self._setup.threads), _signals_held():
            process.start()
        self._num_started += 1
        worker_end.close()
        self._workers.append(_Worker(process, parent_end))

    def is_busy(self) -> bool:
        return any(worker.job is not None for worker in self._workers)

    def hand_out(self, waiting: "deque[tuple[Job, bool]]") -> None:
        for worker in self._workers:
            if worker.job is None and waiting:
                worker.job, worker.is_retry = waiting.popleft()
                worker.open_rows = {window.row: window for window in worker.job.windows}
                worker.since_s = time.monotonic()
                # If it died while idle, collect() notices it and gives the job to another worker.
                with contextlib.suppress(OSError):
                    worker.pipe.send(worker.job)

    def collect(self, waiting: "deque[tuple[Job, bool]]") -> Iterator[Event]:
        """Wait up to a second for messages and yield their events."""
        ready = wait([worker.pipe for worker in self._workers], timeout=1.0)
        for worker in list(self._workers):
            if worker.pipe in ready:
                yield from self._receive(worker, waiting)
            elif worker.is_overdue():
                worker.process.kill()
                worker.process.join()
                yield from self._replace_worker(worker, waiting, stuck(worker.job) if worker.job else "stuck")

    def _receive(self, worker: _Worker, waiting: "deque[tuple[Job, bool]]") -> Iterator[Event]:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            reason = worker.last_error or _death_reason(worker.process.exitcode)
            yield from self._replace_worker(worker, waiting, reason)
            return
        if message == "ready":
            worker.is_ready, worker.since_s = True, time.monotonic()
        elif isinstance(message, Event):
            if message.row is None:
                worker.job = None
            else:
                self._deaths_in_a_row = 0
                worker.open_rows.pop(message.row, None)
            yield message
        else:
            kind, text = message
            if kind != "crash":
                raise StoreWriteError(text) if kind == "store" else ValueError(text)
            worker.last_error = text

    def _replace_worker(
        self, worker: _Worker, waiting: "deque[tuple[Job, bool]]", reason: str
    ) -> Iterator[Event]:
        """Replace a dead worker; its video is tried once more, because it may not be the cause."""
        self._workers.remove(worker)
        worker.pipe.close()
        if not worker.is_ready:
            raise ValueError(f"a worker could not start: {reason}")
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > MAX_DEATHS_IN_A_ROW:
            raise ValueError(f"{self._deaths_in_a_row} workers died in a row without a result: {reason}")
        if worker.job is not None and worker.open_rows:
            rest = replace(worker.job, windows=tuple(worker.open_rows.values()))
            if worker.is_retry or reason.startswith("stuck"):
                self._deaths_in_a_row = 0  # rows that failed finally are a result too
                yield from give_up(self._store_path, rest, reason)
            else:
                waiting.append((rest, True))
        self.start()

    def stop(self) -> None:
        for worker in self._workers:
            worker.pipe.close()  # the worker notices between two windows
        deadline = time.monotonic() + STOP_WAIT_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
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


def _death_reason(exit_code: int | None) -> str:
    name = next((number.name for number in signal.Signals if exit_code == -number), "")
    verb = f"was killed by {name}" if name else f"ended with code {exit_code}"
    return f"the worker process {verb} on this video"


def _worker_device(device: str, index: int) -> str:
    """The device of the `index`-th worker; with several GPUs, workers take turns."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{index % torch.cuda.device_count()}"


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM in a process that is started in the `with` block.

    `work` would ignore them too late: a signal during the imports would end in a traceback. The mask is only
    for this thread, so another thread may get the signal: a handler stores it until the process is started,
    then it is raised again. Windows has no signal mask.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it later would remove the mask
    pending: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, lambda number, _: pending.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        for blocked in pending:
            signal.raise_signal(blocked)


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
