"""Confidence intervals, baselines and paired differences on data with known results."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqmodel.evaluation.baselines import identity
from seqmodel.evaluation.subgroups import all_slices, wilson
from seqmodel.metrics.bootstrap import bootstrap_metrics, interval, paired, resample_subjects
from seqmodel.metrics.classification import compute_metrics, macro_auroc, minority_class
from seqmodel.reporting.console import print_estimates
from seqmodel.reporting.text import best_baseline, forest, headline, metrics_intro
from tests.support.trained_run import evaluated, subject_ids


def test_bootstrap_equals_scikit_learn_on_repeated_clips():
    rng = np.random.default_rng(0)
    subjects = np.array([f"s{k}" for k in rng.integers(0, 9, 150)])
    for num_classes in (2, 3):
        labels = rng.integers(0, num_classes, 150)
        p = np.round(rng.dirichlet(np.ones(num_classes), 150), 1) + 0.01
        p /= p.sum(1, keepdims=True)
        predicted = p.argmax(1)
        resamples = resample_subjects(subjects, 6, seed=1)
        minority = minority_class(labels, num_classes)
        fast = bootstrap_metrics(labels, p, predicted, resamples, minority)
        for r in range(len(resamples.weights)):
            again = np.repeat(np.arange(150), resamples.weights[r][resamples.unit_index].astype(int))
            slow = compute_metrics(labels[again], p[again], predicted[again], minority)
            for name, rounds in fast.items():
                assert rounds[r] == pytest.approx(slow[name], nan_ok=True), (name, r)


def test_constant_model_equals_the_majority_and_its_interval_contains_one_half():
    rng = np.random.default_rng(1)
    labels = (rng.random(200) < 0.7).astype(np.int64)
    found = evaluated(labels, np.full(200, 0.7), subject_ids(20, 10))
    auroc = found.estimates["auroc"]
    assert auroc.value == 0.5
    assert auroc.low <= 0.5 <= auroc.high
    best = found.comparisons[0]
    assert best.baseline.name == "majority"
    assert np.isnan(best.estimates.pop("ece").value), "a constant is calibrated, and tells nothing"
    for name in best.estimates:
        figure = found.estimates[name]
        assert figure.value == pytest.approx(best.estimates[name].value, nan_ok=True)


def test_shuffled_labels_give_nothing_significant_in_17_of_20_seeds():
    quiet = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = evaluated(
            rng.integers(0, 2, 240), rng.random(240), subject_ids(24, 10), rounds=200, seed=seed
        )
        auroc = found.estimates["auroc"]
        better = found.comparisons[0].paired["auroc"].is_higher
        quiet += auroc.low <= 0.5 <= auroc.high and not better
    assert quiet >= 17


def test_identity_baseline_reveals_a_model_that_recognises_subjects():
    rng = np.random.default_rng(3)
    subjects = subject_ids(24, 12)
    habit = rng.beta(0.6, 0.6, 24)
    labels = (rng.random(len(subjects)) < np.repeat(habit, 12)).astype(np.int64)
    found = evaluated(labels, np.repeat(habit, 12), subjects)
    comparisons = {b.baseline.name: b for b in found.comparisons}
    assert found.estimates["auroc"].value > 0.8
    assert comparisons["majority"].paired["auroc"].is_higher
    assert comparisons["identity"].estimates["auroc"].value > 0.75
    gain = comparisons["identity"].paired["auroc"].difference
    assert gain.value < 0.06
    assert comparisons["identity"].baseline.is_leak


def test_identity_baseline_is_constant_if_subjects_do_not_differ():
    rng = np.random.default_rng(4)
    subjects = subject_ids(12, 10)
    labels = np.tile([0, 1], 60)
    known = identity(labels, subjects, np.array([0.5, 0.5]), seed=0)
    assert known is not None
    assert np.ptp(known.probabilities[:, 1]) == pytest.approx(0.0)
    assert identity(labels, np.full(120, ""), np.array([0.5, 0.5]), seed=0) is None
    del rng


@pytest.mark.parametrize("num_subjects", [20, 40])
def test_intervals_cover_the_true_value_in_nine_of_ten_data_sets(num_subjects):
    covered = 0
    trials = 200
    for seed in range(trials):
        rng = np.random.default_rng(1000 + seed)
        # Each subject has its own accuracy around .7: clips of one subject are alike.
        own = np.repeat(rng.beta(7, 3, num_subjects), 8)
        labels = rng.integers(0, 2, 8 * num_subjects)
        predicted = np.where(rng.random(len(labels)) < own, labels, 1 - labels)
        resamples = resample_subjects(subject_ids(num_subjects, 8), 400, seed)
        p = np.stack([1.0 - predicted, predicted], axis=1).astype(float)
        rounds = bootstrap_metrics(labels, p, predicted, resamples, 0)["accuracy"]
        low, high = interval(rounds, resamples.num_units)
        covered += low <= 0.7 <= high
    assert covered / trials >= 0.9


def test_few_or_no_subjects_give_a_warning():
    rng = np.random.default_rng(5)
    labels, positive = rng.integers(0, 2, 60), rng.random(60)
    assert any("only 6 subjects" in w for w in evaluated(labels, positive, subject_ids(6, 10)).warnings)
    assert any("by clip" in w for w in evaluated(labels, positive, np.full(60, "")).warnings)
    assert evaluated(rng.integers(0, 2, 240), rng.random(240), subject_ids(24, 10)).warnings == ()


def test_difference_of_equal_models_is_zero():
    rounds = np.random.default_rng(0).random(100)
    same = paired(0.8, 0.8, rounds, rounds, 30)
    assert (same.difference.value, same.difference.low, same.difference.high) == (0.0, 0.0, 0.0)
    assert same.p_value == 1.0
    assert not same.is_higher


def test_fewer_than_six_subjects_are_never_significant():
    """All of n subjects differ in the same direction by chance in 2^(1 − n) of the cases: 1/16 for five, 1/32
    for six."""
    high, low = np.full(1000, 0.9), np.full(1000, 0.5)
    by_count = {n: paired(0.9, 0.5, high, low, n) for n in (2, 5, 6, 40)}
    assert [bool(np.isnan(pair.p_value)) for pair in by_count.values()] == [True, True, False, False]
    assert [pair.is_higher for pair in by_count.values()] == [False, False, True, True]
    assert [paired(0.5, 0.9, low, high, n).is_lower for n in by_count] == [False, False, True, True]
    assert by_count[40].p_value == 2 / 1001
    lows = [pair.difference.low for pair in by_count.values()]
    assert lows == pytest.approx([np.nan, np.nan, 0.4, 0.4], nan_ok=True)


def test_difference_from_the_best_baseline_with_few_subjects_is_inconclusive():
    rng = np.random.default_rng(4)
    labels = np.tile([0, 1], 120)
    scores = labels + rng.normal(0, 0.4, 240)
    found = {
        n: best_baseline(evaluated(labels, scores, subject_ids(n, 240 // n)), "auroc") for n in (1, 3, 24)
    }
    conclusions = {n: best["conclusion"] for n, best in found.items() if best}
    assert conclusions == {1: "inconclusive (1 subject)", 3: "inconclusive (3 subjects)", 24: "better"}


def test_clips_without_a_subject_do_not_count_as_subjects():
    """For any number of them: two subjects are too few, and unknown subjects may have been in training."""
    rng = np.random.default_rng(4)
    labels = np.tile([0, 1], 75)
    scores = labels + rng.normal(0, 0.4, 150)
    found = evaluated(labels, scores, np.concatenate([subject_ids(2, 50), np.full(50, "")]))
    assert (found.resamples.num_subjects, found.resamples.num_units) == (2, 52)
    assert headline(found).startswith("On 100 clips of 2 subjects and 50 of unknown subjects: AUROC ")
    assert (best_baseline(found, "auroc") or {})["conclusion"] == "inconclusive (2 subjects)"
    assert [w.partition(":")[0] for w in found.warnings] == [
        "only 2 subjects",
        "50 of 150 clips have no subject",
    ]
    assert np.isnan(found.comparisons[0].paired["auroc"].difference.low)
    assert np.isnan(found.estimates["auroc"].low)
    assert not found.comparisons[0].paired["auroc"].is_higher
    assert "which need 6 subjects" in metrics_intro(found)
    more = evaluated(labels, scores, np.concatenate([subject_ids(20, 5), np.full(50, "")]))
    assert "by subject, and by clip where the subject is unknown" in metrics_intro(more)


def test_headline_names_unseen_subjects_if_all_are_known():
    labels, scores = np.tile([0, 1], 75), np.linspace(0, 1, 150)
    by_count = {
        n: replace(evaluated(labels, scores, subject_ids(n, 150 // n)), is_unseen=True) for n in (25, 75)
    }
    assert all(f"150 clips of {n} subjects not seen in training" in headline(f) for n, f in by_count.items())
    of_nobody = evaluated(labels, scores, np.full(150, ""))
    assert headline(of_nobody).startswith("On 150 clips: AUROC ")
    assert len(of_nobody.warnings) == 1


def test_one_subject_has_no_confidence_interval():
    low, high = interval(np.array([0.1, 0.9]), 1)
    assert np.isnan(low)
    assert np.isnan(high)


def test_slices_are_worst_first_and_small_ones_stay():
    rng = np.random.default_rng(6)
    subjects = np.concatenate([subject_ids(3, 20), np.full(4, "rare")])
    labels = rng.integers(0, 2, 64)
    positive = np.where(subjects == "p01", 1 - labels, labels) * 0.8 + 0.1
    found = evaluated(labels, positive, subjects)
    by_subject = all_slices(found.predictions, found.resamples, 2)[0]
    assert by_subject.rows[0].name == "p01"
    assert by_subject.rows[-1].name == "rare"
    assert by_subject.rows[-1].small
    assert sum(row.clips for row in by_subject.rows) == 64


def test_wilson_interval_contains_the_proportion():
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.490, abs=0.001)
    assert high == pytest.approx(0.943, abs=0.001)


@pytest.mark.parametrize("num_subjects", [6, 12, 24])
def test_a_model_without_skill_is_called_better_than_chance_in_8_of_100_runs_at_most(num_subjects):
    """200 runs. Scores differ by person and by clip; the labels are permuted within each person."""
    better = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        subjects, base = np.repeat(np.arange(num_subjects), 10), rng.beta(4, 4, num_subjects)
        labels = rng.permuted(rng.random((num_subjects, 10)) < base[:, None], axis=1).ravel().astype(np.int64)
        positive = rng.uniform(0.2, 0.8, num_subjects)[subjects] + rng.uniform(-0.2, 0.2, len(labels))
        p = np.stack([1 - positive, positive], axis=1)
        resamples = resample_subjects(subjects.astype(str), 200, seed)
        rounds = macro_auroc(labels, p, resamples.weights[:, resamples.unit_index])
        better += paired(float(macro_auroc(labels, p)), 0.5, rounds, rounds * 0 + 0.5, num_subjects).is_higher
    assert better <= 0.08 * 200


def test_below_six_subjects_each_subject_is_shown_instead_of_an_interval(capsys):
    labels = np.tile([0, 1], 40)
    scores = np.where(labels == 1, 0.8, 0.2)
    scores[:20:2] = 0.9  # all clips of class 0 of the first subject are wrong
    found = evaluated(labels, scores, subject_ids(4, 20))
    assert not any(np.isfinite(e.low) for e in found.estimates.values())
    by_metric = {row["title"]: row for row in forest(found)}
    assert [one["value"] for one in by_metric["Accuracy"]["people"]] == [0.5, 1, 1, 1]
    assert [one["value"] for one in by_metric["AUROC"]["people"]] == [0, 1, 1, 1]
    assert by_metric["MCC"]["people"] == []
    assert "no confidence intervals and no p-values" in found.warnings[0]
    print_estimates(found, Path("report.html"))
    text = capsys.readouterr().err
    assert "each subject" in text
    assert ".50, 1.00," in text
    assert "95 % interval" not in text
    ten = evaluated(labels, scores, subject_ids(10, 8))
    assert forest(ten)[0]["people"] == []
    assert "95 % intervals hold the true value in 94 % of cases" in ten.warnings[0]


def test_one_subject_is_not_a_subgroup_and_few_subjects_have_no_interval():
    labels, subjects = np.tile([0, 1], 60), subject_ids(12, 10)
    light = np.where(subjects == "p00", "night", np.where(subjects < "p04", "dim", "bright"))
    found = evaluated(labels, np.where(labels, 0.7, 0.3), subjects)
    with_light = replace(found.predictions, slices={"light": light})
    by_column = {part.column: part for part in all_slices(with_light, found.resamples, 2)}
    assert {row.name for row in by_column["light"].rows} == {"dim", "bright"}
    assert by_column["light"].note == "Left out, because they have clips of one subject only: 1. "
    lows = {row.name: row.accuracy.low for row in by_column["light"].rows}
    assert np.isnan(lows["dim"])
    assert lows["bright"] == 1.0
    assert all(np.isnan(row.accuracy.low) for row in by_column["subject"].rows)
