"""Extraction jobs on a Ray cluster: one actor per worker, replaced if it dies. Needs `pip install .[ray]`."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from extract.executors.pool import HANG_GRACE_S, MAX_FAILED_STARTS, recover_job, stuck
from extract.executors.worker import Event, events
from extract.pipeline.extractor import open_extractor
from extract.pipeline.types import ExtractorConfig, Job
from extract.pipeline.writer import StoreWriteError
from features.cli import UserError, log_warning
from features.store.store import FeatureStore


def run_jobs_on_ray(
    jobs: Sequence[Job], extractor_config: ExtractorConfig, store: str, workers: int | None
) -> Iterator[Event]:
    """Run the jobs on the cluster at RAY_ADDRESS (else on a local one) and yield their events.

    Each actor uses one core (and an eighth of a GPU with CUDA). Their number is `workers`, or the number of
    cores. A job whose actor dies or fails is tried once more; a job that hangs is not. An actor that does not
    start is replaced, up to MAX_FAILED_STARTS in a row; one that waits for a free core may wait. Raises
    StoreWriteError when the store cannot be written, UserError without ray or when no actor starts.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import: no reporting
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs ray: pip install 'brainbuddy[ray]'") from error
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints to stdout, which is for the summary only
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(log_to_driver=False, include_dashboard=False)
        try:
            yield from _run(ray, jobs, extractor_config, store, workers)
        finally:
            if started_here:
                ray.shutdown()


def _run(
    ray: Any, jobs: Sequence[Job], extractor_config: ExtractorConfig, store: str, workers: int | None
) -> Iterator[Event]:
    class Worker:
        def __init__(self) -> None:
            self.extractor, self.store = open_extractor(extractor_config), FeatureStore.open(store, "r+")

        def do(self, job: Job | None) -> list[Event]:
            return list(events(self.store, job, self.extractor, extractor_config)) if job else []

    running: dict[Any, tuple[Any, Job | None, bool, float]] = {}
    remote = ray.remote(num_cpus=1, num_gpus=0.125 * extractor_config.device.startswith("cuda"))(Worker)

    def begin(actor: Any, job: Job | None = None, is_retry: bool = False) -> None:
        running[actor.do.remote(job)] = (actor, job, is_retry, time.monotonic())

    for _ in range(min(workers or int(ray.cluster_resources().get("CPU", 1)), len(jobs))):
        begin(remote.remote())  # first without a job: the time limit of a video starts after the models load
    waiting = deque((job, False) for job in jobs)
    failed_starts = 0
    while waiting or any(job for _, job, *_ in running.values()):
        ray.wait(list(running), timeout=1.0)
        for ref, (actor, job, is_retry, since_s) in list(running.items()):
            is_stuck = job is not None and time.monotonic() - since_s > job.time_limit_s + HANG_GRACE_S
            try:
                yield from ray.get(ref, timeout=0)
            except ray.exceptions.RayError as error:
                if isinstance(error, ray.exceptions.GetTimeoutError) and not is_stuck:
                    continue
                reason = _reason(ray, error, job, is_stuck)
                ray.kill(actor)
                actor = None
                if job is None:
                    failed_starts += 1
                    if failed_starts >= MAX_FAILED_STARTS and len(running) == 1:
                        text = f"{failed_starts} workers in a row could not start: {reason}"
                        raise UserError(text) from None
                    log_warning(f"a worker could not start: {reason}")
                else:
                    found, rest = recover_job(store, job, reason, is_last=is_retry or is_stuck)
                    yield from found
                    waiting += [(rest, True)] if rest.windows else []
            else:
                failed_starts = failed_starts if job else 0
            del running[ref]
            if waiting and (job or actor or failed_starts < MAX_FAILED_STARTS):
                begin(actor, *waiting.popleft()) if actor else begin(remote.remote())


def _reason(ray: Any, error: Exception, job: Job | None, is_stuck: bool) -> str:
    """Why an actor failed on its job, or at its start (None). Raises StoreWriteError if that is the cause."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
    if isinstance(cause, StoreWriteError):
        raise cause from None
    if job is None:
        return str(error).splitlines()[-1]
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    return stuck(job) if is_stuck else "the worker process died on this video"
