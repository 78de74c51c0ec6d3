"""Finalists: the best trials of a search, trained again with new seeds, and warnings about the winner."""

import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from features.cli import UserError, echo, progress
from features.cpu import usable_cores
from tune.config import TuneArgs
from tune.search_space import is_baseline, trial_config_of
from tune.study.worker import (
    Pairs,
    SearchContext,
    score_seed,
    seed_score,
    start_refitting,
)
from tune.study.worker_pool import KILLED, process_context

FINALISTS = 3
"""Number of trials that are trained again with new seeds, besides the seed project's settings."""


@dataclass(frozen=True)
class Finalist:
    """A trial with its scores for new seeds.

    The mean does not include the score in the search: that is the best of many and too optimistic.
    """

    trial: FrozenTrial
    scores: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean score over new seeds; without any, the score in the search."""
        return statistics.fmean(self.scores) if self.scores else float(self.trial.value or 0.0)

    @property
    def spread(self) -> float:
        """Standard deviation over new seeds; 0 with fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


def choose_finalists(args: TuneArgs, study: optuna.Study, context: SearchContext) -> list[Finalist]:
    """The best trials and the seed project's settings, each scored with new seeds, best mean first. With
    --finetune, only trials that read embeddings, if there are any.

    Raises UserError if no trial is complete.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        raise UserError(f"study {study.study_name!r} has no complete trial; increase --trials")
    ranked = _best_first(complete)
    if args.finetune:
        with_encoder = [t for t in ranked if trial_config_of(t.params, context.space).inputs != "geometry"]
        if with_encoder and with_encoder[0] is not ranked[0]:
            echo(
                f"trial {ranked[0].number} ({ranked[0].value:.4f}) reads geometry only; --finetune uses the "
                "best trial that reads embeddings"
            )
        ranked = with_encoder or ranked
    if args.reseed < 2:
        return [Finalist(ranked[0])]
    best = ranked[:FINALISTS]
    # So that the result is never worse than those settings.
    best += [t for t in ranked[FINALISTS:] if is_baseline(t.params, context.space)][:1]
    tasks = [
        (index, trial_config_of(trial.params, context.space), args.seed + 1 + extra)
        for index, trial in enumerate(best)
        for extra in range(args.reseed)
    ]
    scores: dict[int, list[float]] = {index: [] for index in range(len(best))}
    with progress("fits") as bar:
        row = bar.add_task("new seeds", total=len(tasks))
        if args.workers <= 1:
            for index, trial_config, seed in tasks:
                scores[index].append(seed_score(context, trial_config, seed))
                bar.advance(row)
        else:
            with refitting(args, context.learning_task.near_duplicates) as pool:
                futures = [
                    (index, pool.submit(score_seed, trial_config, seed))
                    for index, trial_config, seed in tasks
                ]
                for index, future in futures:
                    scores[index].append(future.result())
                    bar.advance(row)
    finalists = [Finalist(trial, tuple(scores[index])) for index, trial in enumerate(best)]
    return sorted(finalists, key=lambda finalist: -finalist.mean)


def _best_first(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials by score, then lower validation loss, then number; trials with equal parameters once."""
    ranked = sorted(trials, key=lambda t: (-(t.value or 0.0), t.user_attrs.get("val_loss", 0.0), t.number))
    found: dict[tuple[Any, ...], FrozenTrial] = {}
    for trial in ranked:
        found.setdefault(tuple(sorted(trial.params.items())), trial)
    return list(found.values())


@contextmanager
def refitting(args: TuneArgs, known_pairs: Pairs | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that train heads. On an exception, for example Ctrl-C, queued tasks are cancelled.

    Raises UserError if one of the processes is killed.
    """
    threads = max(1, usable_cores() // args.workers)
    pool = ProcessPoolExecutor(
        args.workers, process_context(), initializer=start_refitting, initargs=(args, known_pairs, threads)
    )
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise UserError(f"training with new seeds: a process {KILLED}") from error
        raise
    pool.shutdown()


def warnings_about_winner(finalists: list[Finalist], baselines: dict[str, float], metric: str) -> list[str]:
    """Warnings about the winner: baselines that it does not beat, and a difference that is not clear."""
    winner = finalists[0]
    notes = [
        f"on validation, the best head is not better than the baseline {name}: {metric} {winner.mean:.4f}, "
        f"baseline {value:.4f}"
        for name, value in baselines.items()
        if value >= winner.mean
    ]
    if len(finalists) > 1:
        margin, spread = winner.mean - finalists[1].mean, max(f.spread for f in finalists[:2])
        if margin < spread:
            notes.append(
                f"the best two trials differ by {margin:.4f} in {metric}, which is less than their standard "
                f"deviation over seeds ({spread:.4f}): there is no clear winner"
            )
    return notes
