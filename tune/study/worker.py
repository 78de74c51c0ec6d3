"""Worker processes of a search: loading of clips, and trials."""

import signal
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import optuna
import torch

from features.cli import STOPS, log_error
from features.files import has_parent
from seqmodel.runs.writer import resolve_device
from seqmodel.training.cross_fit import FoldInputs, Objective
from seqmodel.training.task import (
    LearningClips,
    LearningTask,
    build_task,
    learning_clips,
    load_learning,
)
from tune.config import TuneArgs
from tune.objective import objective
from tune.search_space import EPOCHS, FEW_PEOPLE, MANY_CLIPS, Space
from tune.study.kept_fits import save_fit
from tune.study.storage import storage_errors_in_one_line
from tune.study.study import StudySpec, is_interruption, note_seen, work

Pairs = Sequence[tuple[int, int]]
"""Pairs of rows of nearly equal clips."""


@dataclass(frozen=True)
class SearchContext:
    """The data of a worker: task, clips in their folds, and search space."""

    args: TuneArgs
    learning_task: LearningTask
    inputs: FoldInputs
    clips: LearningClips
    space: Space
    objective: Objective
    device: str


def set_up(
    args: TuneArgs, learning_task: LearningTask | None = None, known_pairs: Pairs | None = None
) -> SearchContext:
    """Load the clips; the same call in every process gives the same folds.

    known_pairs: the nearly equal clips, if another process has found them. Raises UserError if training is
    not possible in any fold.
    """
    learning_task = learning_task or build_task(
        args.store,
        args.label,
        args.inputs,
        seed=args.seed,
        splits_from=args.splits_from,
        design=args.design,
        known_pairs=known_pairs,
    )
    samples = load_learning(learning_task)
    clips = learning_clips(learning_task, args.seed)
    inputs = FoldInputs(samples, clips.folds)
    task = learning_task.labelling.task
    many = len(samples) >= MANY_CLIPS
    few = len(np.unique(clips.groups)) < FEW_PEOPLE
    space = Space(task, tuple(samples.x), args.epochs or EPOCHS[many], many, few)
    goal = Objective(task, learning_task.num_classes, args.metric)
    clips = replace(clips, folds=inputs.folds)
    return SearchContext(args, learning_task, inputs, clips, space, goal, resolve_device(args.device))


def trial_value(context: SearchContext, trial: optuna.Trial) -> float:
    """The score of a trial in this context."""

    def is_alive() -> bool:
        note_seen(trial)
        return has_parent()

    return objective(
        trial,
        context.inputs,
        context.space,
        context.objective,
        seed=context.args.seed,
        device=context.device,
        prunes=context.args.pruning == "on",
        is_alive=is_alive,
        keep=lambda fit: save_fit(context.args.out, trial.study, trial, fit),
    )


def worker(args: TuneArgs, known_pairs: Pairs, spec: StudySpec, threads: int, index: int) -> None:
    """Main function of a worker process: runs trials until there are enough; ends without an error on a
    signal."""
    _on_signals(_interrupt)
    torch.set_num_threads(threads)
    try:
        context = set_up(args, known_pairs=known_pairs)
        with storage_errors_in_one_line(spec.storage):
            work(spec, lambda trial: trial_value(context, trial), index)
    except KeyboardInterrupt:
        return
    except ConnectionError as error:
        _on_signals(_ignore_signal)  # the parent gets the same error and ends its workers
        log_error(str(error))
        sys.exit(1)
    except ValueError as error:
        if not is_interruption(error):  # it got a signal, and then the storage was not available
            raise


def _interrupt(signum: int, frame: types.FrameType | None) -> None:
    """Raise KeyboardInterrupt on the first signal only. A second signal may follow (from the terminal or
    SLURM, then from the parent) and must not interrupt the enqueueing of the trial."""
    _on_signals(_ignore_signal)
    raise KeyboardInterrupt


def _on_signals(handler: Callable[[int, types.FrameType | None], None]) -> None:
    for number in (signal.SIGINT, *STOPS):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # under nohup
            signal.signal(number, handler)


def _ignore_signal(signum: int, frame: types.FrameType | None) -> None:
    """Ignore a signal. Unlike SIG_IGN, it gives no error for a signal that is already pending."""
