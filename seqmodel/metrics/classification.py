"""Classification metrics, for one confusion matrix or for thousands at once.

Metrics that count (accuracy, recall, F1, MCC, kappa, ...) are functions of a confusion matrix (..., C, C)
and metrics that rank (AUROC, average precision) are functions of weighted, sorted scores, so that the
bootstrap (bootstrap.py) can compute all its rounds in one call. The point values in a report come from
scikit-learn (`compute_metrics`); a test checks that both are equal.

Shapes: N clips, C classes. labels and predictions (N,) int64, probabilities (N, C) float with rows that sum
to one. The last class is the positive one. An undefined metric (AUROC of one class, ...) is NaN.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.cli import UserError

# Fifteen equal bins, as in Guo et al. 2017.
NUM_BINS = 15


def score(
    metric: str, labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray | None = None
) -> float:
    """One metric for a search or early stopping, higher is better; labels of -1 are skipped.

    `auroc` is that of the positive class for two classes, else the mean one-vs-rest AUROC over the classes
    present. The others use the (N,) predicted classes, by default the most probable ones. NaN if undefined.
    Raises UserError for an unknown metric.
    """
    keep = labels >= 0
    y, p = labels[keep], probabilities[keep]
    if len(y) == 0:
        return float("nan")
    if metric == "auroc":
        return float(macro_auroc(y, p))
    counts = confusion(y, p.argmax(axis=1) if predicted is None else predicted[keep], p.shape[1])
    if metric not in ("macro_f1", "balanced_accuracy", "qwk"):
        raise UserError(f"metric must be auroc, macro_f1, balanced_accuracy or qwk, got {metric!r}")
    return float(count_metrics(counts)[metric])


def confusion(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) int64; row = actual class, column = predicted class."""
    flat = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def count_metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of a confusion matrix, for counts (..., C, C): name -> (...) float64.

    A class without clips is left out of the averages, as in scikit-learn's balanced_accuracy (macro-F1 leaves
    out classes that neither occur nor are predicted). `qwk` and `mae` treat classes as equally spaced levels.
    """
    counts = np.asarray(counts, np.float64)
    num_classes = counts.shape[-1]
    total = counts.sum((-2, -1))
    true, predicted = counts.sum(-1), counts.sum(-2)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall, precision = hit / true, np.where(predicted > 0, hit / predicted, 0.0)
        f1 = 2.0 * hit / (true + predicted)
        accuracy = hit.sum(-1) / total
        distance = np.abs(np.subtract.outer(np.arange(num_classes), np.arange(num_classes))).astype(float)
        by_chance = true[..., :, None] * predicted[..., None, :] / total[..., None, None]
        qwk = 1.0 - (counts * distance**2).sum((-2, -1)) / (by_chance * distance**2).sum((-2, -1))
        out = {
            "accuracy": accuracy,
            "balanced_accuracy": _mean_present(recall, true > 0),
            "macro_f1": _mean_present(f1, true + predicted > 0),
            "weighted_f1": np.where(true > 0, true * np.nan_to_num(f1), 0.0).sum(-1) / total,
            "mcc": _mcc(hit.sum(-1), total, true, predicted),
            "qwk": qwk,
            "mae": (counts * distance).sum((-2, -1)) / total,
        }
    precision = np.where(true + predicted > 0, precision, np.nan)
    for k in range(num_classes):
        out |= {f"recall_{k}": recall[..., k], f"precision_{k}": precision[..., k], f"f1_{k}": f1[..., k]}
    return out


def _mean_present(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    return np.where(present, values, 0.0).sum(-1) / present.sum(-1)


def _mcc(hits: np.ndarray, total: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    # Gorodkin's R_K; 0 if only one class is predicted or present, as in scikit-learn.
    covariance = hits * total - (true * predicted).sum(-1)
    spread = np.sqrt((total**2 - (true**2).sum(-1)) * (total**2 - (predicted**2).sum(-1)))
    return np.where(spread > 0, covariance / np.where(spread > 0, spread, 1.0), 0.0)


def macro_auroc(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """AUROC of the positive class for C = 2, else the mean one-vs-rest AUROC over the classes present.

    weights (..., N) counts each clip; the result has the leading shape of weights (() without). NaN where
    undefined.
    """
    if probabilities.shape[1] == 2:
        return ranking_metrics(labels == 1, probabilities[:, 1], weights)[0]
    each = [
        ranking_metrics(labels == k, probabilities[:, k], weights)[0]
        for k in range(probabilities.shape[1])
        if (labels == k).any()
    ]
    if not each:
        return np.array(np.nan)
    values = np.stack(each)
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0.0).sum(0) / present.sum(0)


def within_fold_auroc(positive: np.ndarray, scores: np.ndarray, folds: Sequence[np.ndarray]) -> float:
    """Mean AUROC over folds of (N,) scores against (N,) bool, weighted by the folds' pairs; NaN without a
    pair. Scores of models of different folds are not compared with each other (Airola et al., 2011).

    folds: the indices of each fold's held-out clips.
    """
    pairs = np.array([positive[fold].sum() * (~positive[fold]).sum() for fold in folds], np.float64)
    values = [float(ranking_metrics(positive[fold], scores[fold])[0]) for fold in folds]
    return float(np.average(np.nan_to_num(values), weights=pairs)) if pairs.any() else float("nan")


def ranking_metrics(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(AUROC, average precision) of (N,) scores against (N,) bool, each clip counted weights (..., N) times.

    Ties count half in AUROC and are one step in average precision, as in scikit-learn. NaN if a class is
    missing (average precision: if there is no positive).
    """
    order = np.argsort(-scores, kind="stable")
    ordered, is_positive = scores[order], positive[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    w = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    w = w[..., order]
    tp = np.cumsum(w * is_positive, axis=-1)[..., last_of_tie]
    fp = np.cumsum(w * ~is_positive, axis=-1)[..., last_of_tie]
    num_pos, num_neg = tp[..., -1], fp[..., -1]
    tp_step = np.diff(tp, axis=-1, prepend=0.0)
    fp_step = np.diff(fp, axis=-1, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = (fp_step * (tp - 0.5 * tp_step)).sum(-1) / (num_pos * num_neg)
        average_precision = (tp_step * np.where(tp + fp > 0, tp / (tp + fp), 0.0)).sum(-1) / num_pos
    return np.where(num_pos * num_neg > 0, auroc, np.nan), np.where(num_pos > 0, average_precision, np.nan)


def brier_terms(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,) squared errors whose mean is the Brier score; for two classes that of the positive class alone (0
    to 1)."""
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] - (labels == 1)) ** 2
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)


def calibration_bins(
    labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((N,) bin, (N,) probability, (N,) outcome) for the calibration error and the reliability diagram.

    Two classes: p(positive), and 1 if the label is positive. More: the largest probability, and 1 if the
    label is that class.
    """
    if probabilities.shape[1] == 2:
        p, outcome = probabilities[:, 1], labels == 1
    else:
        p, outcome = probabilities.max(axis=1), labels == probabilities.argmax(axis=1)
    return np.minimum((p * NUM_BINS).astype(np.int64), NUM_BINS - 1), p, outcome.astype(np.float64)


def ece_from_sums(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error from (..., NUM_BINS, 3) sums of (count, probability, outcome)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(sums[..., 1] - sums[..., 2]).sum(-1) / sums[..., 0].sum(-1)


def calibration_line(labels: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) of a logistic regression of labels (N,) on the log-odds of p(positive) (N,): 1 and 0
    if the probabilities are calibrated, a slope below 1 if they are too extreme (Cox, 1958). NaN with one
    class."""
    from sklearn.linear_model import LogisticRegression

    p = np.clip(positive, 1e-4, 1 - 1e-4)
    if len(np.unique(labels)) < 2:
        return float("nan"), float("nan")
    model = LogisticRegression(C=1e6).fit(np.log(p / (1 - p))[:, None], labels)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def minority_class(labels: np.ndarray, num_classes: int) -> int:
    """The rarest class that occurs (the first of equal ones); average precision is computed for it."""
    counts = np.bincount(labels, minlength=num_classes).astype(float)
    counts[counts == 0] = np.inf
    return int(counts.argmin())


def compute_metrics(
    labels: np.ndarray, probabilities: np.ndarray, predictions: np.ndarray, minority: int
) -> dict[str, float]:
    """Values of every metric, by scikit-learn; `recall_0` is the recall of class 0. NaN if undefined."""
    from sklearn import metrics as sk

    classes = list(range(probabilities.shape[1]))
    present = [k for k in classes if (labels == k).any() or (predictions == k).any()]
    occurs = [k for k in classes if (labels == k).any()]
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=0.0
    )
    out: dict[str, Any] = {
        "accuracy": sk.accuracy_score(labels, predictions),
        "balanced_accuracy": float(np.mean([recall[k] for k in occurs])),
        "macro_f1": float(np.mean([f1[k] for k in present])),
        "weighted_f1": sk.f1_score(labels, predictions, average="weighted", zero_division=0.0),
        # scikit-learn warns about a single class, for which MCC is undefined.
        "mcc": sk.matthews_corrcoef(labels, predictions) if len(present) > 1 else 0.0,
        "qwk": sk.cohen_kappa_score(labels, predictions, weights="quadratic", labels=classes)
        if len(present) > 1
        else float("nan"),
        "mae": sk.mean_absolute_error(labels, predictions),
        "auroc": _auroc(labels, probabilities, occurs),
        "average_precision": sk.average_precision_score(labels == minority, probabilities[:, minority])
        if len(occurs) > 1 and minority in occurs
        else float("nan"),
        "brier": float(brier_terms(labels, probabilities).mean()),
        "ece": ece(labels, probabilities),
    }
    for k in classes:
        out |= {
            f"recall_{k}": recall[k] if k in occurs else float("nan"),
            f"precision_{k}": precision[k] if k in present else float("nan"),
            f"f1_{k}": f1[k] if k in present else float("nan"),
            f"support_{k}": float(support[k]),
        }
    return {name: float(value) for name, value in out.items()}


def ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error over NUM_BINS equal bins, in [0, 1]."""
    bins, p, outcome = calibration_bins(labels, probabilities)
    sums = np.stack([np.bincount(bins, w, minlength=NUM_BINS) for w in (np.ones_like(p), p, outcome)], axis=1)
    return float(ece_from_sums(sums))


def _auroc(labels: np.ndarray, probabilities: np.ndarray, occurs: list[int]) -> float:
    from sklearn.metrics import roc_auc_score

    if len(occurs) < 2:
        return float("nan")
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in occurs]))


def class_frequencies(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(C,) relative frequency of each class; uniform if there is no label."""
    counts = np.bincount(labels[labels >= 0], minlength=num_classes).astype(np.float64)
    return counts / counts.sum() if counts.sum() else np.full(num_classes, 1.0 / num_classes)
