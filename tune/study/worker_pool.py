"""The processes that work on a study: how they are started, and started again when they die."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext
from tune.study.study import StudySpec, num_done, reclaim

KILLED = "was killed (out of memory, perhaps): use fewer --workers; the same command goes on"
"""What is said of a process that a signal ended."""


def process_context() -> "SpawnContext | ForkServerContext":
    """How worker processes are started: forked, on Linux, from one that has imported what they need.

    That spares each the seconds of importing torch, and its memory. The server forks before any of them
    uses a thread or a GPU.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["tune.study.worker", "torch._dynamo"])
    return context


def run_workers(
    study: optuna.Study, spec: StudySpec, target: Callable[..., None], args: tuple[Any, ...], num_workers: int
) -> Iterator[list[FrozenTrial]]:
    """Run `target(*args, index)` in `num_workers` processes until the study is done; yields its trials
    as it goes.

    A worker that dies is replaced and its trial enqueued again. Raises ValueError when workers die one
    after the other without finishing anything. Closing the generator ends the workers.
    """
    context = process_context()
    workers: dict[int, BaseProcess] = {}
    indices, deaths, done_at_death = itertools.count(), 0, -1

    def start() -> None:
        index = next(indices)
        process = context.Process(target=target, args=(*args, index), daemon=True)
        process.start()
        workers[index] = process

    try:
        for _ in range(num_workers):
            start()
        while workers:
            time.sleep(0.3)
            for index, process in list(workers.items()):
                if process.is_alive():
                    continue
                del workers[index]
                if process.exitcode == 0:
                    continue
                deaths = 1 if num_done(study) > done_at_death else deaths + 1
                done_at_death = num_done(study)
                if deaths > 2 + num_workers:
                    if (process.exitcode or 0) < 0:
                        raise ValueError(f"workers keep dying: the last one {KILLED}")
                    raise ValueError(
                        f"workers keep dying (exit code {process.exitcode}); see their messages above"
                    )
                reclaim(study)
                start()
            yield study.get_trials(deepcopy=False)
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join(10)
            process.kill()
