"""Simple methods that a model is compared with: logistic regression, extremely randomised trees and gradient
boosting, on statistics of windows instead of sequences of frames.

Each is fitted without one part of the training groups after the other, as the heads of `evaluate --folds`
are. The predictions for the parts left out choose its regularisation, its calibration and its threshold; the
mean logits of the fitted models are its prediction.

N training clips, M target clips, D width of a stream, C classes, O logits.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from features.datasets import Samples
from features.labels import Labelling, Task
from features.splits import grouped_folds
from seqmodel.heads.inputs import StreamInput
from seqmodel.heads.window_statistics import statistics_of
from seqmodel.metrics.calibration import (
    Calibration,
    Decision,
    decide,
    fit_calibration,
    log_odds,
    negative_log_likelihood,
)
from seqmodel.metrics.classification import class_frequencies
from seqmodel.training.cross_fit import FoldInputs, Objective, fold_score
from seqmodel.training.loop import resolve_metric

METHODS = {"logistic": "Logistic regression", "trees": "Extra trees", "boosting": "Gradient boosting"}
"""Method -> its title."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Values of scikit-learn's C; the log loss for the parts left out chooses one."""
NUM_PARTS, NUM_TREES, NUM_ROUNDS = 4, 300, 150
"""Parts of the training groups, as in `evaluate --folds`; trees in all parts together; rounds of boosting."""
WIDEST, BASIS_CLIPS, MAX_CLIPS, MAX_COLUMNS = 64, 200, 1000, 64
"""Limits, for speed. A wider stream is reduced to so many principal components, of the frames of so many
clips: statistics of 960 columns take ten times as long. A forest and a boosting read so many clips, drawn at
random; boosting reads the columns whose class means differ most (8 s for 1,000 clips of all 577 columns).
Logistic regression reads all clips and columns. For 5,400 training clips of 30 x 960 on one core, the
statistics take 2 s of processor time, logistic regression 3 s, trees 2 s and boosting 2 s."""


def principal_components(
    samples: Samples, seed: int, clips: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Stream -> (D, WIDEST) float32 principal components of its frames, for each stream wider than WIDEST.
    Labels are not used. clips: indices of the training clips; default: all."""
    given = np.arange(len(samples)) if clips is None else clips
    chosen = np.sort(np.random.default_rng(seed).permutation(given)[:BASIS_CLIPS])
    x, valid, _ = samples.batch(chosen)
    return {
        name: np.linalg.eigh(np.cov(values[valid[name]].T.astype(np.float32)))[1][:, -WIDEST:].astype(
            np.float32
        )
        for name, values in x.items()
        if values.shape[2] > WIDEST and valid[name].sum() > 1
    }


def stream_statistics(samples: Samples, components: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stream -> (N, columns) float32 window statistics, of its principal components where there are any."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in samples.x}
    for start in range(0, len(samples), 256):
        x, valid, _ = samples.batch(np.arange(start, min(start + 256, len(samples))))
        for name, values in x.items():
            if name in components:
                values = np.where(valid[name][..., None], values, 0).astype(np.float32) @ components[name]
            parts[name].append(statistics_of(values, valid[name]))
    return {name: np.concatenate(each) for name, each in parts.items()}


def predict_simple(
    method: str,
    train: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    target: np.ndarray,
    *,
    task: Task,
    label_names: tuple[str, ...],
    threshold_metric: str = "balanced_accuracy",
    seed: int = 0,
) -> Decision | None:
    """Calibrated probabilities and predicted classes of `target` (M, columns), by a method of METHODS fitted
    and calibrated on `train` (N, columns) with labels (N,), 0 to C - 1, and groups (N,).

    None with fewer than two groups or classes, or where every part leaves a class without training clips.
    """
    num_parts, num_classes, tried = min(NUM_PARTS, len(np.unique(groups))), len(np.unique(labels)), []
    parts = grouped_folds(labels, groups, num_parts, seed) if num_parts > 1 else []
    parts = [part for part in parts if len(np.unique(labels[part[0]])) == num_classes]
    if num_classes < 2 or not parts:
        return None
    left_out = np.concatenate([held_out for _, held_out in parts])
    for strength in STRENGTHS if method == "logistic" else (0.0,):
        found = []
        for fitted, held_out in parts:
            if method != "logistic":
                fitted = np.random.default_rng(seed).permutation(fitted)[:MAX_CLIPS]
            model = _model(method, strength, train.shape[1], seed).fit(train[fitted], labels[fitted])
            found.append([_logits(model, x, task, len(label_names)) for x in (train[held_out], target)])
        inner = np.concatenate([of_held_out for of_held_out, _ in found])
        loss = negative_log_likelihood(inner, labels[left_out], task, Calibration())
        tried.append((loss, inner, np.mean([of_target for _, of_target in found], axis=0)))
    _, inner, logits = min(tried, key=lambda one: one[0])
    calibration = fit_calibration(
        inner,
        labels[left_out],
        task,
        threshold_metric=threshold_metric,
        label_names=label_names,
        always_scale=True,
        groups=groups[left_out],
    )
    return decide(logits, task, calibration)


def baseline_scores(
    inputs: FoldInputs, groups: np.ndarray, labelling: Labelling, objective: Objective
) -> dict[str, float]:
    """Out-of-fold score of each quick baseline by name, on the folds of the model: `majority`,
    `logistic_<stream>`. groups: (N,) str."""
    samples, classes = inputs.samples, objective.num_classes
    names = ["majority", *(f"logistic_{name}" for name in samples.x)]
    predicted = {name: np.full((len(samples), classes), np.nan) for name in names}
    for number in inputs.numbers:
        held_out = inputs.folds == number
        predicted["majority"][held_out] = class_frequencies(samples.labels[~held_out], classes)
        for stream in samples.x:
            train, other = inputs.windows(number, StreamInput(stream, samples.x[stream].shape[-1], WIDEST))
            seen = np.asarray(samples.valid[stream]).any(axis=1) & ~held_out
            of_train, of_other = (statistics_of(part.z, part.valid) for part in (train, other))
            decision = predict_simple(
                "logistic",
                of_train,
                train.labels,
                groups[seen],
                of_other,
                task=objective.task,
                label_names=labelling.names,
            )
            if decision is not None:
                predicted[f"logistic_{stream}"][held_out] = decision.probabilities
    metric = resolve_metric(objective.metric, objective.task)
    scores = {name: fold_score(p, samples.labels, inputs.folds, metric) for name, p in predicted.items()}
    return {name: value for name, value in scores.items() if np.isfinite(value)}


def _model(method: str, strength: float, num_columns: int, seed: int) -> Any:
    """An unfitted scikit-learn classifier."""
    from sklearn import ensemble, feature_selection, linear_model, pipeline, preprocessing

    if method == "logistic":
        return pipeline.make_pipeline(
            preprocessing.StandardScaler(), linear_model.LogisticRegression(C=strength, max_iter=1000)
        )
    if method == "trees":
        return ensemble.ExtraTreesClassifier(
            NUM_TREES // NUM_PARTS, min_samples_leaf=3, class_weight="balanced", random_state=seed
        )
    return pipeline.make_pipeline(
        feature_selection.SelectKBest(_spread_of_means, k=min(MAX_COLUMNS, num_columns)),
        ensemble.HistGradientBoostingClassifier(
            max_iter=NUM_ROUNDS,
            learning_rate=0.06,
            max_leaf_nodes=8,
            min_samples_leaf=10,
            early_stopping=False,
            random_state=seed,
        ),
    )


def _spread_of_means(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(columns,) standard deviation of the class means, in standard deviations of the column."""
    means = [x[labels == k].mean(axis=0) for k in np.unique(labels)]
    return np.asarray(np.std(means, axis=0) / (x.std(axis=0) + 1e-6))


def _logits(model: Any, values: np.ndarray, task: Task, num_classes: int) -> np.ndarray:
    """(M, O) logits of the model's probabilities; a class that it does not know has probability 0."""
    p = np.zeros((len(values), num_classes))
    p[:, model.classes_] = model.predict_proba(values)
    if task == "multiclass":
        return np.log(np.clip(p, 1e-4, 1.0))
    return log_odds(np.cumsum(p[:, :0:-1], axis=1)[:, ::-1])
