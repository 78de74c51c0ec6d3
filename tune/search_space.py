"""What is searched: the space of heads and trainings, and what one trial is worth.

The space is flat (the sampler models all parameters jointly) and its first point is always the seed project's
own settings.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import distribution_to_json

from features.datasets import Inputs, RowView, Samples, sample_groups, streams_of, subset
from features.labels import Task
from features.splits import grouped_folds
from seqmodel.config import HeadConfig, Metric, TrainConfig
from seqmodel.heads.recurrent import LstmHead, build_head, num_outputs, stream_statistics
from seqmodel.runs.writer import complete_head, count_parameters
from seqmodel.training.loop import Epoch, Fitted, fit, fit_best
from tune.config import SEED_ROLE

MANY_CLIPS = 1000
"""Training clips of which one epoch says enough to prune by. From here on batches are not small either: 8
clips a step take two to three times as long as 32 and learn no more."""
LEAST_BATCH_OF_MANY = 32
TO_THE_END = 8
"""Of many clips one trial in so many, once the sampler knows a little, is never stopped: it then sees where
slow starters end. Of few clips Hyperband's milder brackets see to that."""
PATIENCE_OF_FEW = 5
"""Of searched trials, where epochs are short and scores coarse; else the seed project's 4."""


@dataclass(frozen=True)
class Space:
    """What a trial may choose from."""

    task: Task
    streams: tuple[str, ...]
    """Streams at hand."""
    fixed_inputs: bool
    """True when the user said which streams to use."""
    epochs: int
    many: bool = False
    """Whether there are so many clips (`MANY_CLIPS`) that the slowest choices are left out."""


@dataclass(frozen=True)
class Choice:
    """What a trial chose."""

    head: HeadConfig
    train: TrainConfig
    inputs: Inputs


@dataclass(frozen=True)
class Fold:
    """Clips to learn from and to judge by, with the statistics of the former."""

    train: Samples
    val: Samples
    statistics: dict[str, tuple[np.ndarray, np.ndarray]]


Train = Callable[[Fold, Callable[[Epoch], None]], tuple[LstmHead, Fitted]]
"""A head of a fold, with what to do after each epoch."""
Note = Callable[[list[float], int], None]
"""Put the scores of epochs or folds, and the epochs that were run, on record."""


def suggest(trial: optuna.trial.BaseTrial, space: Space) -> Choice:
    """Ask the sampler for one point of the space."""
    trial.suggest_categorical("kind", ["lstm", "gru"])
    # 256 costs two to four times as much as 128.
    trial.suggest_categorical("hidden", [32, 64, 128] if space.many else [32, 64, 128, 256])
    trial.suggest_int("layers", 1, 2)
    trial.suggest_categorical("bidirectional", [True, False])
    # Without a projection a head of 960-wide embeddings costs some five times as much, so it is not offered.
    trial.suggest_categorical("projection", [32, 64, 128, 256])
    trial.suggest_float("dropout", 0.0, 0.6)
    trial.suggest_categorical("pooling", ["mean", "max", "last", "attention"])
    trial.suggest_categorical("centre", [False, True])
    trial.suggest_categorical("dynamics", [False, True])
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    trial.suggest_float("weight_decay", 1e-4, 0.3, log=True)
    if space.many:
        least = 8 if trial.user_attrs.get("role") == SEED_ROLE else LEAST_BATCH_OF_MANY
        trial.suggest_int("batch_size", least, 128, log=True)
    else:
        trial.suggest_categorical("batch_size", [8, 16, 32, 64, 128])
    trial.suggest_categorical("scheduler", ["cosine", "plateau", "none"])
    trial.suggest_float("label_smoothing", 0.0, 0.2)
    trial.suggest_categorical("class_weighting", [True, False])
    trial.suggest_float("noise", 0.0, 0.5)
    trial.suggest_float("frame_dropout", 0.0, 0.4)
    trial.suggest_float("subsample", 0.0, 1.0)
    if space.task != "ordinal":
        trial.suggest_categorical("loss", ["cross_entropy", "focal"])
    if len(space.streams) > 1:
        trial.suggest_float("stream_dropout", 0.0, 0.3)
        if not space.fixed_inputs:
            trial.suggest_categorical("inputs", ["both", "embeddings", "geometry"])
    return choice_of(trial.params, space)


def seed_point(space: Space) -> dict[str, Any]:
    """The seed project's settings as a point of the space: the first trial of every study."""
    head, train = HeadConfig(), TrainConfig()
    point: dict[str, Any] = {
        "kind": "lstm",
        "hidden": head.hidden,
        "layers": head.layers,
        "bidirectional": head.bidirectional,
        "projection": head.projection,
        "dropout": head.dropout,
        "pooling": head.pooling,
        "centre": False,
        "dynamics": False,
        "lr": train.lr,
        "weight_decay": train.weight_decay,
        "batch_size": train.batch_size,
        "scheduler": train.scheduler,
        "label_smoothing": 0.0,
        "class_weighting": True,
        "noise": 0.0,
        "frame_dropout": 0.0,
        "subsample": 0.0,
    }
    if space.task != "ordinal":
        point["loss"] = "cross_entropy"
    if len(space.streams) > 1:
        # It knew the embeddings alone.
        point |= {"stream_dropout": 0.0} | ({} if space.fixed_inputs else {"inputs": "embeddings"})
    return point


def starting_points(space: Space) -> tuple[dict[str, Any], ...]:
    """Where every study begins: the seed project's settings, then two heads that are held back.

    Much noise, dropout and decay hold the second back, a narrow projection the third as well. Such heads
    start slowly and end well, so that looks at early epochs stop them and a short search does not find them.
    Most values are what real faces chose in folds; cell and projection were chosen on made-up clips, and
    the rate is the seed's (docs/log.md).
    """
    held_back = seed_point(space) | {
        "kind": "gru",
        "bidirectional": False,
        "dropout": 0.5,
        "pooling": "attention",
        "weight_decay": 0.3,
        "batch_size": 64 if space.many else 8,
        "noise": 0.5,
    }
    if len(space.streams) > 1:
        held_back |= {"stream_dropout": 0.1} | ({} if space.fixed_inputs else {"inputs": "both"})
    return seed_point(space), held_back, held_back | {"projection": 32}


def space_hash(space: Space) -> str:
    """Changes whenever what a trial may choose from does."""
    trial = optuna.trial.FixedTrial(seed_point(space) | {"batch_size": 64})
    suggest(trial, space)
    offered = {name: distribution_to_json(offer) for name, offer in trial.distributions.items()}
    return hashlib.sha256(json.dumps(offered, sort_keys=True).encode()).hexdigest()[:16]


def is_seed(params: Mapping[str, Any], space: Space) -> bool:
    """Whether a trial is the seed project's settings, which are judged with the best at the end."""
    return dict(params) == seed_point(space)


def may_prune(trial: optuna.trial.BaseTrial, space: Space, num_folds: int = 1) -> bool:
    """Whether a trial may be stopped early: not those that every study begins with, nor later one in
    `TO_THE_END`, unless it is judged by whole folds, of which no start is slow."""
    late = trial.number >= 2 * TO_THE_END and (trial.number + 1) % TO_THE_END == 0
    if late and space.many and num_folds == 1:
        return False
    return trial.params not in starting_points(space)


def choice_of(params: Mapping[str, Any], space: Space) -> Choice:
    """The configs that a trial's parameters stand for."""
    names = {"kind", "hidden", "layers", "bidirectional", "projection", "dropout", "pooling"}
    names |= {"centre", "dynamics", "stream_dropout"}
    head = HeadConfig(**{key: value for key, value in params.items() if key in names})
    rest = {key: value for key, value in params.items() if key not in names and key != "inputs"}
    seed, theirs = TrainConfig(), is_seed(params, space)
    train = TrainConfig(
        **rest,
        epochs=min(seed.epochs, space.epochs) if theirs else space.epochs,
        patience=seed.patience if theirs or space.many else PATIENCE_OF_FEW,
    )
    every: Inputs = (
        "both" if len(space.streams) > 1 else "geometry" if "geometry" in space.streams else "embeddings"
    )
    return Choice(complete_head(head, space.task), train, params.get("inputs", every))


def make_folds(train: Samples, val: Samples, num_folds: int, seed: int) -> list[Fold]:
    """The one fold of train and validation, or `num_folds` of people over both together."""
    streams = tuple(train.x)
    if num_folds < 2:
        return [Fold(train, val, stream_statistics(train, streams))]
    both = join(train, val)
    folds = []
    for learned, held in grouped_folds(both.labels, sample_groups(both), num_folds, seed):
        part = subset(both, learned)
        folds.append(Fold(part, subset(both, held), stream_statistics(part, streams)))
    return folds


def scored_folds(folds: list[Fold]) -> list[Fold]:
    """The folds that trials, fresh seeds and baselines are scored by: with two classes to learn from, and two
    held out."""

    def tells_classes_apart(samples: Samples) -> bool:
        return len(np.unique(samples.labels)) > 1

    return [fold for fold in folds if tells_classes_apart(fold.train) and tells_classes_apart(fold.val)]


def join(first: Samples, second: Samples) -> Samples:
    """The clips of both; memory maps stay maps."""

    def joined(a: Any, b: Any) -> Any:
        if isinstance(a, RowView) and isinstance(b, RowView):
            return RowView(a.base, np.concatenate([a.rows, b.rows]))
        return np.concatenate([np.asarray(a), np.asarray(b)])

    return Samples(
        x={name: joined(first.x[name], second.x[name]) for name in first.x},
        valid={name: joined(first.valid[name], second.valid[name]) for name in first.valid},
        labels=np.concatenate([first.labels, second.labels]),
        clip_ids=np.concatenate([first.clip_ids, second.clip_ids]),
        subjects=np.concatenate([first.subjects, second.subjects]),
        rows=np.concatenate([first.rows, second.rows]),
    )


def untrained_head(choice: Choice, fold: Fold, task: Task, num_classes: int, seed: int) -> LstmHead:
    """The chosen head with a fold's statistics and the weights that its training begins with."""
    dims: dict[str, int] = {name: fold.train.x[name].shape[-1] for name in streams_of(choice.inputs)}
    head = build_head(choice.head, dims, num_outputs(task, num_classes), seed=seed)
    head.put_statistics(fold.statistics)
    return head


def train_choice(
    choice: Choice,
    fold: Fold,
    *,
    task: Task,
    num_classes: int,
    metric: Metric,
    seed: int,
    device: str,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[LstmHead, Fitted]:
    """One head as chosen, fitted on a fold."""
    head = untrained_head(choice, fold, task, num_classes, seed)
    train, val = (only_streams(side, tuple(head.dims)) for side in (fold.train, fold.val))
    epochs = fit(
        head,
        train,
        val,
        choice.train,
        task=task,
        num_classes=num_classes,
        seed=seed,
        device=device,
        metric=metric,
    )
    return head, fit_best(head, epochs, choice.train.patience, on_epoch=on_epoch)


def only_streams(samples: Samples, streams: tuple[str, ...]) -> Samples:
    """The same clips with these streams alone."""
    return dataclasses.replace(
        samples,
        x={name: samples.x[name] for name in streams},
        valid={name: samples.valid[name] for name in streams},
    )


def objective(
    trial: optuna.Trial,
    folds: list[Fold],
    space: Space,
    *,
    num_classes: int,
    metric: Metric,
    seed: int,
    device: str,
    on_head: Callable[[LstmHead, Fitted, float], None] | None = None,
    is_alive: Callable[[], bool] = lambda: True,
) -> float:
    """The trial's best validation score (mean over folds); reports every epoch (or fold) to the pruner.

    The points that every study begins with come to their end in any case. Raises optuna.TrialPruned when it
    falls behind, KeyboardInterrupt when `is_alive` says that nobody waits for the answer any more.
    """
    choice = suggest(trial, space)
    prunable, started = may_prune(trial, space, len(folds)), time.perf_counter()

    def train(fold: Fold, on_epoch: Callable[[Epoch], None]) -> tuple[LstmHead, Fitted]:
        def on_epoch_while_alive(epoch: Epoch) -> None:
            if not is_alive():
                raise KeyboardInterrupt
            on_epoch(epoch)

        return train_choice(
            choice,
            fold,
            task=space.task,
            num_classes=num_classes,
            metric=metric,
            seed=seed,
            device=device,
            on_epoch=on_epoch_while_alive,
        )

    def note(curve: list[float], epochs: int) -> None:
        trial.set_user_attr("epochs", epochs)
        trial.set_user_attr("seconds", round(time.perf_counter() - started, 2))
        trial.set_user_attr("val_curve", [round(score, 5) for score in curve])

    if len(folds) == 1:
        head, fitted, value = _by_epoch(trial, folds[0], train, note, prunable)
    else:
        head, fitted, value = _by_fold(trial, folds, train, note, prunable)
    trial.set_user_attr("parameters", count_parameters(head))
    trial.set_user_attr("val_loss", round(fitted.best.val_loss, 5))
    if on_head is not None:
        on_head(head, fitted, value)
    return value


def _by_epoch(
    trial: optuna.Trial, fold: Fold, train: Train, note: Note, prunable: bool
) -> tuple[LstmHead, Fitted, float]:
    """The head of the one fold, and its best epoch's score: the pruner is told the best so far."""
    curve: list[float] = []

    def report(epoch: Epoch) -> None:
        curve.append(epoch.val_score)
        trial.report(max(-math.inf, *curve), epoch.index + 1)
        # Asked in any case: successive halving compares a trial with those that asked before it.
        if trial.should_prune() and prunable:
            note(curve, len(curve))
            raise optuna.TrialPruned

    head, fitted = train(fold, report)
    note(curve, len(fitted.history))
    return head, fitted, fitted.best.val_score


def _by_fold(
    trial: optuna.Trial, folds: list[Fold], train: Train, note: Note, prunable: bool
) -> tuple[LstmHead, Fitted, float]:
    """The head of the last fold, and the mean over folds: the pruner is told the score of each."""
    scores: list[float] = []
    epochs = 0
    for index, fold in enumerate(folds):
        head, fitted = train(fold, lambda epoch: None)
        scores.append(fitted.best.val_score)
        epochs += len(fitted.history)
        trial.report(scores[-1], index)
        # After the last fold there is nothing left to save.
        if prunable and index < len(folds) - 1 and trial.should_prune():
            # It still says what it was worth so far.
            note(scores, epochs)
            raise optuna.TrialPruned
    note(scores, epochs)
    return head, fitted, float(np.mean(scores))
