"""The objective of a trial: one configuration, cross-fitted, and its out-of-fold score."""

import time
from collections.abc import Callable

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy.stats import wilcoxon

from seqmodel.metrics.calibration import probabilities
from seqmodel.training.cross_fit import (
    CrossFit,
    FoldFit,
    FoldInputs,
    Objective,
    combined,
    fit_folds,
    scores_by_fold,
)
from seqmodel.training.loop import Epoch, resolve_metric
from seqmodel.training.select import out_of_fold_score
from tune.search_space import Space, suggest

NEVER_STOPPED = 2
"""The first trials of a family run to their end: the others are compared with them."""
UNDEFINED = -1.0
"""Score of a trial if the metric is undefined, below any other: Optuna fails a trial without a number."""
MIN_FOLDS, P_VALUE = 3, 0.15
"""A trial is stopped after so many folds if it is worse than the best one of its family (Wilcoxon's
signed-rank test over folds). With three folds, the smallest p is .125."""


def objective(
    trial: optuna.Trial,
    inputs: FoldInputs,
    space: Space,
    goal: Objective,
    *,
    seed: int,
    device: str,
    prunes: bool = True,
    is_alive: Callable[[], bool] = lambda: True,
    keep: Callable[[CrossFit], None] = lambda fit: None,
) -> float:
    """The trial's out-of-fold score, the mean over folds; reports each fold, or with one fold each epoch.

    Starting points are never stopped. Raises optuna.TrialPruned if the trial falls behind its family, and
    KeyboardInterrupt if `is_alive` returns False (the parent process has ended). keep: called with the heads
    of a complete trial.
    """
    config, started = suggest(trial, space), time.perf_counter()
    trial.set_user_attr("family", config.family)
    trial.set_user_attr("curve_of", "epochs" if len(inputs.numbers) == 1 else "folds")
    prunes = prunes and "start" not in trial.user_attrs
    complete = family_scores(trial.study, config.family) if prunes else []
    one_fold = len(inputs.numbers) == 1
    curve: list[float] = []

    def stop_if_behind() -> None:
        trial.report(curve[-1], len(curve) - (not one_fold))  # epochs are counted from 1, folds from 0
        if falls_behind(curve, complete, by_epoch=one_fold):
            note(trial, curve, started)
            raise optuna.TrialPruned

    def on_epoch(epoch: Epoch) -> None:
        if not is_alive():
            raise KeyboardInterrupt
        if one_fold:
            curve.append(epoch.val_score)
            stop_if_behind()

    fits = list[FoldFit]()
    for fitted in fit_folds(inputs, config, goal, seed=seed, device=device, on_epoch=on_epoch):
        fits.append(fitted)
        if not one_fold:
            curve += score_of(fitted, inputs, goal)
            if len(curve) < len(inputs.numbers):  # after the last fold, stopping saves nothing
                stop_if_behind()
    note(trial, curve, started)
    complete_fit = combined(fits, inputs, config, goal)
    keep(complete_fit)
    found = out_of_fold_score(complete_fit.logits, inputs, goal)
    trial.set_user_attr("val_loss", round(found.loss, 5))
    return found.score if np.isfinite(found.score) else UNDEFINED


def score_of(fitted: FoldFit, inputs: FoldInputs, goal: Objective) -> tuple[float, ...]:
    """The score of one fold, alone in a tuple; NaN if its clips are of one class."""
    labels = inputs.samples.labels[fitted.held_out]
    p, metric = probabilities(fitted.logits, goal.task), resolve_metric(goal.metric, goal.task)
    return scores_by_fold(p, labels, np.zeros(len(labels), int), metric)


def note(trial: optuna.Trial, curve: list[float], started: float) -> None:
    """Store the scores of folds or epochs, and the time."""
    trial.set_user_attr("seconds", round(time.perf_counter() - started, 2))
    trial.set_user_attr("val_curve", [round(score, 5) for score in curve])


def family_scores(study: optuna.Study, family: str) -> list[list[float]]:
    """The curves of the family's complete trials, best first."""
    complete = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.user_attrs.get("family") == family
    ]
    best = sorted(complete, key=lambda trial: -(trial.value or 0.0))
    return [list(trial.user_attrs["val_curve"]) for trial in best]


def falls_behind(curve: list[float], complete: list[list[float]], *, by_epoch: bool) -> bool:
    """Whether a trial with these scores so far is to be stopped. complete: those of others, best first.

    By epoch: at epochs 4, 8 and 16, below the median of the others at the same epoch of the common schedule.
    """
    step = len(curve)
    if len(complete) < NEVER_STOPPED or not np.isfinite(curve).all():
        return False
    if by_epoch:
        others = [each[step - 1] for each in complete if len(each) >= step]
        return step in (4, 8, 16) and bool(others) and curve[-1] < float(np.median(others))
    difference = np.subtract(curve, complete[0][:step])
    if step < MIN_FOLDS or len(difference) != step or not difference.any():
        return False
    return bool(wilcoxon(difference, alternative="less").pvalue <= P_VALUE)
