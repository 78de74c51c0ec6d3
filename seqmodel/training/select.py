"""Choice of the members of an ensemble among the best candidate of each family."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from seqmodel.config import MemberConfig
from seqmodel.metrics.calibration import probabilities
from seqmodel.training.cross_fit import CrossFit, FoldInputs, Objective, cross_fit, fold_score
from seqmodel.training.loop import resolve_metric

MIN_SHARE = 0.75
"""Smallest share of the best candidate's score above chance. On six made-up data sets a mean of all four
families was better than smaller choices by out-of-fold scores (docs/log.md); this value keeps nearly all of
them there. It was not tuned, and on real faces not measured."""
MAX_MEMBERS = 4


def fit_ensemble(
    inputs: FoldInputs,
    configs: Sequence[MemberConfig],
    objective: Objective,
    *,
    seed: int,
    device: str = "cpu",
    on_fit: Callable[[], None] = lambda: None,
) -> tuple[CrossFit, ...]:
    """Cross-fit each configuration, and choose the members among the best of each family.

    on_fit: called after each configuration.
    """
    metric, best = resolve_metric(objective.metric, objective.task), dict[Any, tuple[float, CrossFit]]()
    for config in configs:
        found = cross_fit(inputs, config, objective, seed=seed, device=device)
        p = probabilities(found.logits, objective.task)
        value = fold_score(p, inputs.samples.labels, inputs.folds, metric)
        if family_of(config) not in best or value > best[family_of(config)][0]:
            best[family_of(config)] = value, found
        on_fit()
    candidates = [found for _, found in best.values()]
    chosen = select_members(candidates, inputs.samples.labels, inputs.folds, objective)
    return tuple(candidates[index] for index in chosen)


def family_of(config: MemberConfig) -> tuple[str, bool]:
    """Family of a configuration: its stream, and whether it is a forest."""
    return config.stream, config.head.kind == "trees"


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
