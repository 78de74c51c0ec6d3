"""Calibration: from logits to predictions, and the choice of temperature and threshold on validation."""

import subprocess
import sys

import numpy as np
import pytest

from seqmodel.metrics.calibration import (
    Calibration,
    abstain_band,
    choose_threshold,
    decide,
    decide_probabilities,
    fit_calibration,
    fit_scaling,
    parse_threshold_metric,
    probabilities,
    threshold_counts,
)
from seqmodel.metrics.classification import calibration_line

NAMES = ("distracted", "engaged")


def _calibrated_binary(seed: int, num_clips: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.5, 2.0, (num_clips, 1))
    labels = (rng.random(num_clips) < 1 / (1 + np.exp(-logits[:, 0]))).astype(np.int64)
    return logits, labels


@pytest.mark.parametrize(
    ("task", "width", "num_classes"), [("binary", 1, 2), ("multiclass", 4, 4), ("ordinal", 3, 4)]
)
def test_probabilities_sum_to_one_and_stay_in_range(task, width, num_classes):
    logits = np.random.default_rng(0).normal(0, 30, (50, width))
    p = probabilities(logits, task, Calibration(temperature=0.3, bias=1.0))
    assert p.shape == (50, num_classes)
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(1), 1.0)


def test_the_last_class_is_positive():
    p = probabilities(np.array([[-3.0], [3.0]]), "binary")
    assert p[0, 1] < 0.1
    assert p[1, 1] > 0.9


def test_crossing_ordinal_logits_give_no_negative_probability():
    p = probabilities(np.array([[-1.0, 2.0, 0.0]]), "ordinal")
    assert (p >= 0).all()


def test_a_threshold_moves_the_decision_and_not_the_probability():
    logits = np.array([[-0.2], [0.2]])
    low, high = (decide(logits, "binary", Calibration(threshold=t)) for t in (0.4, 0.6))
    assert low.label.tolist() == [1, 1]
    assert high.label.tolist() == [0, 0]
    np.testing.assert_array_equal(low.probabilities, high.probabilities)


def test_the_abstain_band_marks_clips_unsure_and_keeps_their_label():
    decision = decide(np.array([[-3.0], [0.1], [3.0]]), "binary", Calibration(abstain=(0.4, 0.6)))
    assert decision.unsure.tolist() == [False, True, False]
    assert decision.label.tolist() == [0, 1, 1]
    many = decide(np.array([[0.0, 0.1, 0.0], [9.0, 0.0, 0.0]]), "multiclass", Calibration(abstain=(0.0, 0.6)))
    assert many.unsure.tolist() == [True, False]


def test_abstain_band_covers_the_least_certain_clips_with_a_threshold_near_one():
    """Half of the clips are certainly positive, although only .1 above the threshold; those at .6 to .88 are
    not."""
    positive = np.concatenate([np.full(50, 0.999), np.linspace(0.6, 0.88, 30), np.full(20, 0.001)])
    p = np.stack([1 - positive, positive], axis=1)
    low, high = abstain_band(p, "binary", 0.9, 0.2)
    assert low < 0.9 < high < 0.999
    unsure = decide_probabilities(p, "binary", Calibration(threshold=0.9, abstain=(low, high))).unsure
    assert unsure.sum() == 20
    assert positive[unsure].min() > positive[50:60].max()
    assert abstain_band(p, "multiclass", 0.9, 0.1)[1] == pytest.approx(np.quantile(p.max(axis=1), 0.1))
    for share in (0, 1.0):
        with pytest.raises(ValueError, match="fraction of clips without a prediction"):
            abstain_band(p, "binary", 0.9, share)


@pytest.mark.parametrize("seed", range(10))
def test_calibrated_model_is_not_changed(seed):
    logits, labels = _calibrated_binary(seed, 2000)
    fitted = fit_calibration(logits, labels, "binary")
    assert fitted.temperature == 1.0
    assert fitted.bias == 0.0


def test_temperature_of_an_overconfident_model_is_recovered():
    logits, labels = _calibrated_binary(0, 4000)
    fitted = fit_scaling(logits * 3.0 + 1.5, labels, "binary")
    assert fitted.temperature == pytest.approx(3.0, rel=0.15)
    assert fitted.bias == pytest.approx(-0.5, abs=0.2)


def test_multiclass_temperature_is_recovered():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, (4000, 3))
    p = probabilities(logits, "multiclass")
    labels = (p.cumsum(1) < rng.random((4000, 1))).sum(1)
    assert fit_scaling(logits * 2.0, labels, "multiclass").temperature == pytest.approx(2.0, rel=0.1)


def test_separable_validation_set_does_not_give_extreme_probabilities():
    logits = np.concatenate([np.full((20, 1), -1.0), np.full((20, 1), 1.0)])
    labels = np.repeat([0, 1], 20)
    p = probabilities(logits, "binary", fit_calibration(logits, labels, "binary"))
    assert p.max() < 0.9999


def test_threshold_is_in_the_middle_of_those_within_two_clips_of_the_best():
    rng = np.random.default_rng(3)
    labels = (rng.random(200) < 0.8).astype(np.int64)
    p = np.clip(rng.normal(0.55 + 0.2 * labels, 0.15), 0, 1)

    def balanced(t: float) -> float:
        predicted = p >= t
        return float((predicted[labels == 1].mean() + (~predicted[labels == 0]).mean()) / 2)

    chosen = choose_threshold(p, labels, "balanced_accuracy")
    rarer = min((labels == 0).sum(), (labels == 1).sum())
    assert balanced(chosen) >= max(balanced(t) for t in np.linspace(0, 1, 2001)) - 1 / rarer - 1e-9
    apart = choose_threshold(np.array([0.1, 0.2, 0.9, 0.95] * 10), np.array([0, 0, 1, 1] * 10), "accuracy")
    assert 0.2 < apart < 0.9
    assert apart == pytest.approx(0.6, abs=0.01)  # the middle of .2 and .9 in log odds


def test_recall_target_is_reached_with_the_highest_other_recall():
    rng = np.random.default_rng(4)
    labels = (rng.random(300) < 0.7).astype(np.int64)
    p = np.clip(rng.normal(0.4 + 0.25 * labels, 0.2), 0, 1)
    chosen = choose_threshold(p, labels, "recall:distracted=0.8", NAMES)
    predicted = p >= chosen
    recall = float((~predicted[labels == 0]).mean())
    assert recall >= 0.8
    # Any other threshold would miss the recall, or would not increase the recall of the other class.
    candidates, _, _ = threshold_counts(p, labels)
    other = float(predicted[labels == 1].mean())
    for t in candidates:
        if float((p < t)[labels == 0].mean()) >= 0.8:
            assert float((p >= t)[labels == 1].mean()) <= other


def test_threshold_separates_neighbouring_floats():
    low = 0.5
    high = float(np.nextafter(low, 1.0))
    chosen = choose_threshold(np.repeat([low, high], 20), np.repeat([0, 1], 20), "accuracy")
    assert (np.array([low, high]) >= chosen).tolist() == [False, True]


@pytest.mark.parametrize(
    ("threshold_metric", "task", "message"),
    [
        ("sharpness", "binary", "--threshold-metric must be balanced_accuracy"),
        ("recall:asleep=0.8", "binary", "no class 'asleep'"),
        ("recall:distracted=8", "binary", "SHARE must be a number in"),
        ("recall:distracted=much", "binary", "SHARE must be a number in"),
        ("recall:distracted=0.8", "multiclass", "needs a task with two classes"),
    ],
)
def test_wrong_threshold_metric_error_lists_allowed_values(threshold_metric, task, message):
    with pytest.raises(ValueError, match=message):
        parse_threshold_metric(threshold_metric, NAMES, task)


def test_wrong_logits_error_gives_their_shape():
    with pytest.raises(ValueError, match=r"binary logits must be \(N, 1\), got shape \(3, 2\)"):
        probabilities(np.zeros((3, 2)), "binary")


def test_validation_of_one_class_changes_nothing():
    fitted = fit_calibration(np.zeros((5, 1)), np.ones(5, np.int64), "binary")
    assert (fitted.temperature, fitted.threshold) == (1.0, 0.5)


def _of_people(num_people: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibrated logits, labels (85 % positive) and people of ten clips each."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(2.4, 1.5, (10 * num_people, 1))
    labels = (rng.random(len(logits)) < 1 / (1 + np.exp(-logits[:, 0]))).astype(np.int64)
    return logits, labels, np.repeat([f"p{k}" for k in range(num_people)], 10)


def test_threshold_is_one_half_unless_another_is_better_for_new_people():
    """For accuracy of calibrated probabilities no threshold is better than .5; for balanced accuracy of rare
    negatives one is. Chosen on the same clips, another one always seems at least as good."""
    logits, labels, people = _of_people(30)
    assert fit_calibration(logits, labels, "binary", groups=people).threshold > 0.7
    kept = 0
    for seed in range(20):
        logits, labels, people = _of_people(30, seed)
        given = {"threshold_metric": "accuracy", "groups": people}
        kept += fit_calibration(logits, labels, "binary", **given).threshold == 0.5
    assert kept >= 14


def test_fewer_than_six_people_choose_no_threshold_but_a_required_recall_is_kept():
    logits, labels, people = _of_people(5)
    assert fit_calibration(logits, labels, "binary", groups=people).threshold == 0.5
    wanted = "recall:distracted=0.8"
    given = {"threshold_metric": wanted, "label_names": NAMES, "groups": people}
    fitted = fit_calibration(logits, labels, "binary", **given)
    assert fitted.threshold != 0.5
    assert (decide(logits, "binary", fitted).label[labels == 0] == 0).mean() >= 0.8


def test_calibration_line_of_too_extreme_probabilities_has_a_slope_below_one():
    logits, labels = _calibrated_binary(0, 4000)
    p = 1 / (1 + np.exp(-(2 * logits[:, 0] + 1)))
    slope, intercept = calibration_line(labels, p)
    assert slope == pytest.approx(0.5, abs=0.06)
    assert intercept == pytest.approx(-0.5, abs=0.1)
    assert np.isnan(calibration_line(labels * 0, p)).all()


def test_importing_calibration_needs_only_numpy():
    code = "import sys, seqmodel.metrics.calibration as _; "
    code += "print({'scipy','sklearn','torch','zarr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.strip() == "set()"
