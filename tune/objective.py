"""The objective of a trial: folds, training of its head on each fold, and validation score."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from features.datasets import RowView, Samples, only_streams, sample_groups, select_samples, streams_of
from features.labels import Task
from features.splits import grouped_folds, joined_groups
from seqmodel.config import Metric, TrialConfig
from seqmodel.heads.recurrent import LstmHead, build_head, num_outputs, stream_statistics
from seqmodel.runs.writer import count_parameters
from seqmodel.training.loop import Epoch, Fitted, fit, fit_best
from tune.search_space import Space, may_prune, suggest


@dataclass(frozen=True)
class Fold:
    """Training and validation clips, with the feature statistics of the training clips."""

    train: Samples
    val: Samples
    statistics: dict[str, tuple[np.ndarray, np.ndarray]]


Train = Callable[[Fold, Callable[[Epoch], None]], tuple[LstmHead, Fitted]]
"""Trains a head on a fold and calls a function after each epoch."""
RecordScores = Callable[[list[float], int], None]
"""Records the scores of epochs or folds, and the number of epochs, in the trial."""


def make_folds(
    train: Samples,
    val: Samples,
    num_folds: int,
    seed: int,
    near_duplicates: Sequence[tuple[int, int]] = (),
    units: np.ndarray | None = None,
) -> list[Fold]:
    """One fold of train and validation, or `num_folds` folds by subject over both together.

    near_duplicates: pairs of rows that must be in one fold. units: (rows of the store,) str, what stays in
    one fold if that is not the subject.
    """
    if num_folds < 2:
        return [_fold(train, val)]
    both = join(train, val)
    groups = joined_groups(
        sample_groups(both) if units is None else units[both.rows], both.rows, near_duplicates
    )
    parts = grouped_folds(both.labels, groups, num_folds, seed)
    return [
        _fold(select_samples(both, train_rows), select_samples(both, val_rows))
        for train_rows, val_rows in parts
    ]


def _fold(train: Samples, val: Samples) -> Fold:
    return Fold(train, val, stream_statistics(train, tuple(train.x)))


def scored_folds(folds: list[Fold]) -> list[Fold]:
    """The folds with two classes or more in both training and validation; only these give a score."""
    return [
        fold
        for fold in folds
        if all(len(np.unique(samples.labels)) > 1 for samples in (fold.train, fold.val))
    ]


def join(first: Samples, second: Samples) -> Samples:
    """The clips of both; memory maps are not loaded."""

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


def untrained_head(
    trial_config: TrialConfig, fold: Fold, task: Task, num_classes: int, seed: int
) -> LstmHead:
    """A head with initial weights and the feature statistics of a fold."""
    dims: dict[str, int] = {name: fold.train.x[name].shape[-1] for name in streams_of(trial_config.inputs)}
    head = build_head(trial_config.head, dims, num_outputs(task, num_classes), seed=seed)
    head.put_statistics(fold.statistics)
    return head


def train_head(
    trial_config: TrialConfig,
    fold: Fold,
    *,
    task: Task,
    num_classes: int,
    metric: Metric,
    seed: int,
    device: str,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[LstmHead, Fitted]:
    """One head, trained on a fold."""
    head = untrained_head(trial_config, fold, task, num_classes, seed)
    train, val = (only_streams(samples, tuple(head.dims)) for samples in (fold.train, fold.val))
    epochs = fit(
        head,
        train,
        val,
        trial_config.train,
        task=task,
        num_classes=num_classes,
        seed=seed,
        device=device,
        metric=metric,
    )
    return head, fit_best(head, epochs, trial_config.train.patience, on_epoch=on_epoch)


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

    The starting points of a study are never pruned. Raises optuna.TrialPruned if the pruner stops the trial,
    and KeyboardInterrupt if `is_alive` returns False (the parent process has ended).
    """
    trial_config = suggest(trial, space)
    prunable = may_prune(trial, space, len(folds))
    record_scores = functools.partial(_record_scores, trial, time.perf_counter())

    def train(fold: Fold, on_epoch: Callable[[Epoch], None]) -> tuple[LstmHead, Fitted]:
        def on_epoch_while_alive(epoch: Epoch) -> None:
            if not is_alive():
                raise KeyboardInterrupt
            on_epoch(epoch)

        return train_head(
            trial_config,
            fold,
            task=space.task,
            num_classes=num_classes,
            metric=metric,
            seed=seed,
            device=device,
            on_epoch=on_epoch_while_alive,
        )

    head, fitted, value = (_by_epoch if len(folds) == 1 else _by_fold)(
        trial, folds, train, record_scores, prunable
    )
    trial.set_user_attr("parameters", count_parameters(head))
    trial.set_user_attr("val_loss", round(fitted.best.val_loss, 5))
    if on_head is not None:
        on_head(head, fitted, value)
    return value


def _record_scores(trial: optuna.Trial, started: float, curve: list[float], epochs: int) -> None:
    trial.set_user_attr("epochs", epochs)
    trial.set_user_attr("seconds", round(time.perf_counter() - started, 2))
    trial.set_user_attr("val_curve", [round(score, 5) for score in curve])


def _by_epoch(
    trial: optuna.Trial, folds: list[Fold], train: Train, record_scores: RecordScores, prunable: bool
) -> tuple[LstmHead, Fitted, float]:
    """The head of the only fold, and the score of its best epoch; the pruner gets the best score so far."""
    curve: list[float] = []

    def report(epoch: Epoch) -> None:
        curve.append(epoch.val_score)
        trial.report(max(-math.inf, *curve), epoch.index + 1)
        # Always called: successive halving compares a trial with earlier calls.
        if trial.should_prune() and prunable:
            record_scores(curve, len(curve))
            raise optuna.TrialPruned

    head, fitted = train(folds[0], report)
    record_scores(curve, len(fitted.history))
    return head, fitted, fitted.best.val_score


def _by_fold(
    trial: optuna.Trial, folds: list[Fold], train: Train, record_scores: RecordScores, prunable: bool
) -> tuple[LstmHead, Fitted, float]:
    """The head of the last fold, and the mean score over folds; the pruner gets the score of each fold."""
    scores: list[float] = []
    epochs = 0
    for index, fold in enumerate(folds):
        head, fitted = train(fold, lambda epoch: None)
        scores.append(fitted.best.val_score)
        epochs += len(fitted.history)
        trial.report(scores[-1], index)
        # After the last fold, pruning saves nothing.
        if prunable and index < len(folds) - 1 and trial.should_prune():
            record_scores(scores, epochs)
            raise optuna.TrialPruned
    record_scores(scores, epochs)
    return head, fitted, float(np.mean(scores))
