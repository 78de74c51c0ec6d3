"""The same jobs on a Ray cluster: one actor a worker, replaced when it dies. Needs `pip install .[ray]`.

Knows nothing about videos; the store must be reachable from every node (a shared disk, or s3://).
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from extract.pipeline import Job, Setup, open_kernels
from extract.workers import Event, events


def run_jobs_on_ray(
    jobs: Sequence[Job], setup: Setup, store_path: str, workers: int | None = None
) -> Iterator[Event]:
    """Do the jobs on the cluster at RAY_ADDRESS (else one on this machine) and give their events.

    Each actor takes one core; there are `workers` of them, or as many as the cluster has cores. A job whose
    actor died is tried three times more. Raises ValueError when ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import: no reporting
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs ray: pip install 'brainbuddy[ray]'") from error
    with contextlib.redirect_stdout(sys.stderr):  # Ray reports on stdout, which belongs to the summary
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(log_to_driver=False, include_dashboard=False)
        try:
            yield from _run(ray, jobs, setup, store_path, workers)
        finally:
            if started_here:
                ray.shutdown()


def _run(
    ray: Any, jobs: Sequence[Job], setup: Setup, store_path: str, workers: int | None
) -> Iterator[Event]:
    class Worker:
        def __init__(self, setup: Setup, store_path: str) -> None:
            from features.store import FeatureStore

            self.setup, self.kernels = setup, open_kernels(setup)
            self.store = FeatureStore.open(store_path, "r+")

        def do(self, job: Job) -> list[Event]:
            return list(events(self.store, job, self.kernels, self.setup))

    count = min(workers or int(ray.cluster_resources().get("CPU", 1)), max(1, len(jobs)))
    remote = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=3)(Worker)
    pool: list[Any] = [remote.remote(setup, store_path) for _ in range(count)]
    waiting = list(reversed(jobs))
    running: dict[Any, Any] = {}
    for actor in pool:
        if waiting:
            running[actor.do.remote(waiting.pop())] = actor
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor = running.pop(done)
        if waiting:
            running[actor.do.remote(waiting.pop())] = actor
        yield from ray.get(done)
