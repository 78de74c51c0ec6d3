"""The pool of worker processes of a study: start, monitoring and replacement."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from features.cli import UserError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext
from tune.study.study import StudySpec, num_done, reclaim

KILLED = "was killed (perhaps out of memory): use fewer --workers; run the same command again to resume"
"""Message about a process that a signal ended."""


def process_context() -> "SpawnContext | ForkServerContext":
    """The multiprocessing context of worker processes. On Linux, a server with the imports done forks them.

    That saves the seconds of importing torch in each process, and memory. The server forks before any process
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
    repeatedly.

    A worker that ends with an error is replaced, and its trial is enqueued again. Raises UserError if
    workers end one after the other without a finished trial, and KeyboardInterrupt if signals ended all of
    them too early. Closing the generator ends the workers.
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
                    code = process.exitcode or 0
                    exited = f" (exit code {code}); see their messages above"
                    last = f": the last one {KILLED}" if code < 0 else exited
                    raise UserError(f"workers end without finishing a trial{last}")
                reclaim(study, {})
                start()
            yield study.get_trials(deepcopy=False)
        if num_done(study) < spec.trials:  # a worker that got a signal ends without an error
            raise KeyboardInterrupt
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join(10)
            process.kill()
