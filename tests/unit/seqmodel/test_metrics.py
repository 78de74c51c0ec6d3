"""Metrics: the fast ones equal those of scikit-learn, and undefined ones are NaN."""

import numpy as np
import pytest
from sklearn import metrics as sk

from seqmodel.metrics.classification import (
    compute_metrics,
    confusion,
    count_metrics,
    ece,
    macro_auroc,
    minority_class,
    ranking_metrics,
    score,
    within_fold_auroc,
)


def _random_predictions(seed: int, num_classes: int, num_clips: int = 120):
    rng = np.random.default_rng(seed)
    labels = rng.choice(num_classes, num_clips, p=rng.dirichlet(np.ones(num_classes)))
    # Rounded, so that some scores are equal.
    p = np.round(rng.dirichlet(np.ones(num_classes), num_clips), 1) + 1e-3
    p /= p.sum(1, keepdims=True)
    return labels, p, p.argmax(1)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_fast_metrics_equal_scikit_learn(seed, num_classes):
    labels, p, predicted = _random_predictions(seed, num_classes)
    minority = minority_class(labels, num_classes)
    point = compute_metrics(labels, p, predicted, minority)
    fast = {k: float(v) for k, v in count_metrics(confusion(labels, predicted, num_classes)).items()}
    fast["auroc"] = float(macro_auroc(labels, p))
    fast["average_precision"] = float(ranking_metrics(labels == minority, p[:, minority])[1])
    for name, value in fast.items():
        assert value == pytest.approx(point[name], nan_ok=True), name
    recalls = sk.recall_score(labels, predicted, labels=np.unique(labels), average=None, zero_division=0.0)
    assert point["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert point["macro_f1"] == pytest.approx(
        sk.f1_score(labels, predicted, average="macro", zero_division=0.0)
    )


def test_weights_count_clips_as_often_as_repeating_them():
    labels, p, _ = _random_predictions(7, 2)
    weights = np.random.default_rng(1).integers(0, 4, (5, len(labels)))
    fast = ranking_metrics(labels == 1, p[:, 1], weights)
    for k, w in enumerate(weights):
        again, scores = np.repeat(labels, w), np.repeat(p[:, 1], w)
        assert fast[0][k] == pytest.approx(sk.roc_auc_score(again, scores))
        assert fast[1][k] == pytest.approx(sk.average_precision_score(again, scores))


def test_auroc_of_one_class_is_undefined():
    labels = np.ones(5, np.int64)
    p = np.tile([0.4, 0.6], (5, 1))
    assert np.isnan(macro_auroc(labels, p))
    assert np.isnan(compute_metrics(labels, p, labels, 1)["auroc"])


def test_unlabelled_clips_do_not_count():
    labels, p, _ = _random_predictions(2, 3)
    more = np.concatenate([labels, [-1, -1]])
    padded = np.concatenate([p, p[:2]])
    for metric in ("auroc", "macro_f1", "balanced_accuracy", "qwk"):
        assert score(metric, more, padded) == score(metric, labels, p)


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="metric must be auroc"):
        score("beauty", np.array([0, 1]), np.eye(2))


def test_ordinal_metrics_depend_on_distance():
    counts = np.zeros((3, 3))
    counts[0, 0] = counts[1, 1] = counts[2, 2] = 10
    near, far = counts.copy(), counts.copy()
    near[0, 1] += 5
    far[0, 2] += 5
    assert count_metrics(near)["qwk"] > count_metrics(far)["qwk"]
    assert count_metrics(near)["mae"] < count_metrics(far)["mae"]


def test_ece_is_zero_if_predicted_and_observed_agree():
    p = np.array([[0.75, 0.25]] * 4 + [[0.25, 0.75]] * 4)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    assert ece(labels, p) == pytest.approx(0.0)


def test_the_minority_class_is_the_rarest_that_occurs():
    assert minority_class(np.array([0, 0, 0, 2, 2]), 3) == 2


def test_auroc_within_folds_ignores_a_level_that_differs_between_folds():
    """Two heads rank their own clips perfectly, and one gives higher probabilities. The fold with more pairs
    weighs more."""
    positive = np.array([False, False, True, True] * 2)
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    folds = [np.arange(4), np.arange(4, 8)]
    assert within_fold_auroc(positive, scores, folds) == 1.0
    assert macro_auroc(positive.astype(int), np.stack([1 - scores, scores], axis=1)) < 0.8
    uneven = [np.array([0, 3, 1, 2]), np.array([4, 6]), np.array([5])]
    scores[6] = 0.0
    assert within_fold_auroc(positive, scores, uneven) == pytest.approx(4 / 5)
    assert np.isnan(within_fold_auroc(positive, scores, [np.arange(2)]))
