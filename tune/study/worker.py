"""Worker processes of a search: what each loads, and what it does with one trial."""

import signal
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

from features.cli import STOPS, log_error
from features.files import end_with_parent, has_parent
from seqmodel.heads.person_baseline import with_centering
from seqmodel.heads.recurrent import LstmHead
from seqmodel.runs.writer import resolve_device
from seqmodel.training.loop import Epoch, Fitted, best_of, predict_logits
from seqmodel.training.task import LearningTask, build_task, load_train_val
from tune.config import TuneArgs
from tune.objective import (
    Fold,
    make_folds,
    objective,
    only_streams,
    scored_folds,
    train_config,
    untrained_head,
)
from tune.search_space import MANY_CLIPS, Space, TrialConfig, trial_config_of
from tune.study.checkpoints import keep_checkpoint, load_checkpoint
from tune.study.storage import lost_is_one_line
from tune.study.study import StudySpec, is_interruption, note_seen, work


@dataclass(frozen=True)
class SearchContext:
    """What a worker has at hand: the clips and how they are judged."""

    args: TuneArgs
    learning_task: LearningTask
    whole: Fold
    """Train and validation, of which the winner is made."""
    folds: list[Fold]
    """What a trial is scored by: the same, or those folds of people over both that have a say."""
    space: Space
    device: str


def set_up(args: TuneArgs, learning_task: LearningTask | None = None) -> SearchContext:
    """Load the clips; the same call in every process gives the same folds.

    Raises ValueError when no fold has a say.
    """
    learning_task = learning_task or build_task(
        args.store, args.label, args.inputs, seed=args.seed, splits_from=args.splits_from
    )
    train, val = (
        with_centering(side, args.center, learning_task.store) for side in load_train_val(learning_task)
    )
    fixed, many = args.inputs is not None, len(train) >= MANY_CLIPS
    space = Space(learning_task.labelling.task, tuple(train.x), fixed, args.epochs, many)
    folds = whole = make_folds(train, val, 0, args.seed)
    if args.folds > 1:
        folds = scored_folds(make_folds(train, val, args.folds, args.seed))
        if not folds:
            raise ValueError(
                f"--folds {args.folds}: none of them has a say: each holds out or learns from clips of one "
                "class only; take fewer folds, or add recordings of others"
            )
    return SearchContext(args, learning_task, whole[0], folds, space, resolve_device(args.device))


def trial_value(context: SearchContext, trial: optuna.Trial) -> float:
    """The objective on this bench."""

    def keep(head: LstmHead, fitted: Fitted, value: float) -> None:
        if context.args.folds < 2:  # a head of one fold alone is nobody's checkpoint
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


def worker(args: TuneArgs, spec: StudySpec, threads: int, index: int) -> None:
    """The body of a worker process: trials until there are enough. Ends quietly when it is told to."""
    _on_signals(_interrupt)
    torch.set_num_threads(threads)
    try:
        context = set_up(args)
        with lost_is_one_line(spec.storage):
            work(spec, lambda trial: trial_value(context, trial), index)
    except KeyboardInterrupt:
        return
    except ConnectionError as error:
        _on_signals(_go_on)  # the parent has met it too and ends its workers
        log_error(str(error))
        sys.exit(1)
    except ValueError as error:
        if not is_interruption(error):  # told to end, and then the storage was gone
            raise


def kept_or_refitted(context: SearchContext, trial: FrozenTrial) -> tuple[LstmHead, Fitted]:
    """A trial's head, as its checkpoint has it; where there is none, with folds or on another machine, fitted
    again under the search's own seed."""
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
    """What epochs came to, without logits and optimizer."""
    names = ("index", "train_loss", "val_loss", "val_score", "lr", "seconds")
    return [{name: getattr(epoch, name) for name in names} for epoch in history]


def _fitted(
    context: SearchContext, fold: Fold, trial_config: TrialConfig, seed: int
) -> tuple[LstmHead, Fitted]:
    """The chosen head on a fold under a seed."""
    return train_config(
        trial_config,
        fold,
        task=context.space.task,
        num_classes=context.learning_task.num_classes,
        metric=context.args.metric,
        seed=seed,
        device=context.device,
    )


def _interrupt(signum: int, frame: types.FrameType | None) -> None:
    """Once: the terminal or SLURM tells every process, then the parent each worker. The second must not stop
    what the first began, enqueueing the trial again."""
    _on_signals(_go_on)
    raise KeyboardInterrupt


def _on_signals(handler: Callable[[int, types.FrameType | None], None]) -> None:
    for number in (signal.SIGINT, *STOPS):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # under nohup
            signal.signal(number, handler)


def _go_on(signum: int, frame: types.FrameType | None) -> None:
    """Instead of SIG_IGN, with which Python complains about a signal that has arrived already."""


_bench: SearchContext | None = None


def start_refitting(args: TuneArgs, threads: int) -> None:
    """Set a pool's process up once, for `score_seed`."""
    global _bench
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _bench = set_up(args)


def score_seed(trial_config: TrialConfig, seed: int) -> float:
    """Validation score (mean over folds) of a choice under another seed, in a process that was set up."""
    assert _bench is not None
    return seed_score(_bench, trial_config, seed)


def seed_score(context: SearchContext, trial_config: TrialConfig, seed: int) -> float:
    """Validation score (mean over folds) of a choice under a seed."""
    scores = [_fitted(context, fold, trial_config, seed)[1].best.val_score for fold in context.folds]
    return sum(scores) / len(scores)
