"""Worker processes of a search: loading of clips, trials, and training with new seeds."""

import signal
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial

from features.cli import STOPS, UserError, log_error
from features.datasets import only_streams
from features.files import end_with_parent, has_parent
from seqmodel.config import TrialConfig
from seqmodel.heads.centering import with_centering
from seqmodel.heads.recurrent import LstmHead
from seqmodel.runs.writer import resolve_device
from seqmodel.training.design import units_of
from seqmodel.training.loop import Epoch, Fitted, best_of, predict_logits
from seqmodel.training.task import LearningTask, build_task, load_train_val
from tune.config import TuneArgs
from tune.objective import (
    Fold,
    make_folds,
    objective,
    scored_folds,
    train_head,
    untrained_head,
)
from tune.search_space import MANY_CLIPS, Space, trial_config_of
from tune.study.checkpoints import keep_checkpoint, load_checkpoint
from tune.study.storage import storage_errors_in_one_line
from tune.study.study import StudySpec, is_interruption, note_seen, work

Pairs = Sequence[tuple[int, int]]
"""Pairs of rows of nearly equal clips."""


@dataclass(frozen=True)
class SearchContext:
    """The data of a worker: task, clips, folds and search space."""

    args: TuneArgs
    learning_task: LearningTask
    whole: Fold
    """Train and validation, on which the winner is trained."""
    folds: list[Fold]
    """The folds that give a trial's score: train and validation, or folds by subject over both."""
    space: Space
    device: str


def set_up(
    args: TuneArgs, learning_task: LearningTask | None = None, known_pairs: Pairs | None = None
) -> SearchContext:
    """Load the clips; the same call in every process gives the same folds.

    known_pairs: the nearly equal clips, if another process has found them. Raises UserError if no fold has
    two classes in training and in validation.
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
    train, val = (
        with_centering(samples, args.center, learning_task.store) for samples in load_train_val(learning_task)
    )
    fixed, many = args.inputs is not None, len(train) >= MANY_CLIPS
    space = Space(learning_task.labelling.task, tuple(train.x), fixed, args.epochs, many)
    folds = whole = make_folds(train, val, 0, args.seed)
    if args.folds > 1:
        pairs = learning_task.near_duplicates
        table = learning_task.table
        units = units_of(table, np.arange(len(table.subject)), learning_task.design.unit)
        folds = scored_folds(make_folds(train, val, args.folds, args.seed, pairs, units))
        if not folds:
            raise UserError(
                f"--folds {args.folds}: every fold has clips of one class only, in training or in "
                "validation; use fewer folds, or add recordings of more subjects"
            )
    return SearchContext(args, learning_task, whole[0], folds, space, resolve_device(args.device))


def trial_value(context: SearchContext, trial: optuna.Trial) -> float:
    """The score of a trial in this context; saves its checkpoint."""

    def keep(head: LstmHead, fitted: Fitted, value: float) -> None:
        if context.args.folds < 2:  # with folds, a head is trained on one fold only
            keep_checkpoint(trial, head, value, _as_numbers(fitted.history), context.args.out)

    def is_alive() -> bool:
        note_seen(trial)
        return has_parent()

    return objective(
        trial,
        context.folds,
        context.space,
        num_classes=context.learning_task.num_classes,
        metric=context.args.metric,
        seed=context.args.seed,
        device=context.device,
        on_head=keep,
        is_alive=is_alive,
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


def kept_or_refitted(context: SearchContext, trial: FrozenTrial) -> tuple[LstmHead, Fitted]:
    """A trial's head from its checkpoint; without one (with folds, or from another machine), trained again
    with the seed of the search."""
    trial_config, seed = trial_config_of(trial.params, context.space), context.args.seed
    head = untrained_head(
        trial_config, context.whole, context.space.task, context.learning_task.num_classes, seed
    )
    epochs = load_checkpoint(trial, head, context.args.out)
    if not epochs:
        return _fitted(context, context.whole, trial_config, seed)
    head.to(context.device)
    logits = predict_logits(head, only_streams(context.whole.val, tuple(head.dims)), device=context.device)
    history = tuple(Epoch(val_logits=logits, **epoch) for epoch in epochs)
    return head, Fitted(best_of(history), history)


def _as_numbers(history: Sequence[Epoch]) -> list[dict[str, Any]]:
    """Epochs as JSON-ready dictionaries, without logits."""
    names = ("index", "train_loss", "val_loss", "val_score", "lr", "seconds")
    return [{name: getattr(epoch, name) for name in names} for epoch in history]


def _fitted(
    context: SearchContext, fold: Fold, trial_config: TrialConfig, seed: int
) -> tuple[LstmHead, Fitted]:
    """The head of a trial, trained on a fold with this seed."""
    return train_head(
        trial_config,
        fold,
        task=context.space.task,
        num_classes=context.learning_task.num_classes,
        metric=context.args.metric,
        seed=seed,
        device=context.device,
    )


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


_context: SearchContext | None = None


def start_refitting(args: TuneArgs, known_pairs: Pairs | None, threads: int) -> None:
    """Initialise a process of the pool, for `score_seed`."""
    global _context
    end_with_parent()
    for number in {signal.SIGINT, *STOPS} - {signal.SIGTERM}:  # the parent gets them too, and sends SIGTERM
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _context = set_up(args, known_pairs=known_pairs)


def score_seed(trial_config: TrialConfig, seed: int) -> float:
    """`seed_score` in a process of the pool."""
    assert _context is not None
    return seed_score(_context, trial_config, seed)


def seed_score(context: SearchContext, trial_config: TrialConfig, seed: int) -> float:
    """Validation score (mean over folds) of a trial's config with a seed."""
    scores = [_fitted(context, fold, trial_config, seed)[1].best.val_score for fold in context.folds]
    return sum(scores) / len(scores)
