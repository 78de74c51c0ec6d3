"""Comparison of runs, calibration for a new domain, and cross-validation with few subjects."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.datasets import Samples, load_samples
from features.splits import known_rows
from features.store.data_statement import DataStatement
from features.store.store import FeatureStore
from seqmodel.__main__ import main
from seqmodel.commands.calibrate import choose_fit_subjects
from seqmodel.commands.compare import GATE_MARGIN, gate_passes
from seqmodel.config import MemberConfig, TrainConfig
from seqmodel.evaluation import folds
from seqmodel.metrics.bootstrap import Estimate, PairedDifference
from seqmodel.metrics.calibration import Calibration, moved_band
from seqmodel.metrics.classification import within_fold_auroc
from seqmodel.runs.card import calibration_clips, load_card, save_card
from seqmodel.runs.files import load_split
from seqmodel.runs.predict import eval_subset, read_predictions
from seqmodel.runs.settings import save_settings
from seqmodel.training.cross_fit import FoldInputs
from tests.support.trained_run import NAMES, WITH_GEOMETRY, make_run, make_store

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> Path:
    """A trained run `good`, and a run `poor` whose features in training did not depend on the labels, on one
    store and split."""
    root = tmp_path_factory.mktemp("compare")
    store = make_store(root / "s.zarr", signal=0.8, num_subjects=40)
    make_run(root / "good", store, epochs=12)
    card = make_run(root / "poor", make_store(root / "noise.zarr", signal=0, num_subjects=40), epochs=1)
    save_card(root / "poor", replace(card, store=str(store.path), store_fingerprint=store.fingerprint()))
    return root


@pytest.mark.draws
def test_runs_are_compared_on_their_shared_test_clips(two_runs, capsys):
    assert (
        main(
            [
                "compare",
                "--runs",
                str(two_runs / "poor"),
                str(two_runs / "good"),
                "--bootstrap-rounds",
                "200",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    clips = [row for row in read_predictions(two_runs / "good/predictions.csv") if row["split"] == "test"]
    assert found["shared_clips"] == len(clips)
    assert found["runs"][0]["difference_from_first"] == {}
    gain = found["runs"][1]["difference_from_first"]["auroc"]
    first, second = (run["metrics"]["auroc"]["value"] for run in found["runs"])
    assert gain["value"] == pytest.approx(second - first)
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert Path(found["plot"]).stat().st_size > 1000


def test_comparison_of_runs_on_synthetic_data_says_so(two_runs, tmp_path, capsys):
    shutil.copytree(two_runs / "good", tmp_path / "made")
    statement = DataStatement(synthetic=True, recruitment="drawn")
    save_card(tmp_path / "made", replace(load_card(tmp_path / "made"), data_statement=statement))
    argv = ["compare", "--runs", str(two_runs / "good"), str(tmp_path / "made"), "--bootstrap-rounds", "20"]
    assert main(argv) == 0
    assert "warning: SYNTHETIC DATA: drawn\n" in capsys.readouterr().err
    assert main([*argv[:2], str(two_runs / "good"), str(two_runs / "good"), *argv[4:]]) == 0
    assert "SYNTHETIC" not in capsys.readouterr().err


def test_the_gate_stops_a_worse_run_and_lets_an_equal_one_pass(two_runs):
    good, poor = str(two_runs / "good"), str(two_runs / "poor")
    assert main(["compare", "--runs", good, poor, "--gate", "--bootstrap-rounds", "200"]) == 1
    assert main(["compare", "--runs", good, good, "--gate", "--bootstrap-rounds", "200"]) == 0


def test_gate_uses_the_requested_metric_for_every_task(two_runs, capsys):
    """qwk can be requested for classes that are not levels; by default it is not used for them."""
    good, poor = str(two_runs / "good"), str(two_runs / "poor")
    argv = ["compare", "--gate", "--bootstrap-rounds", "50", "--json", "--runs"]
    assert main([*argv, good, poor, "--metric", "qwk"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "qwk"
    first, second = (run["metrics"]["qwk"]["value"] for run in found["runs"])
    assert found["runs"][1]["difference_from_first"]["qwk"]["value"] == pytest.approx(second - first)
    assert "mae" not in found["runs"][1]["metrics"]
    assert main([*argv, good, good, "--metric", "qwk"]) == 0
    capsys.readouterr()
    assert main([*argv, good, good]) == 0
    assert "qwk" not in json.loads(capsys.readouterr().out)["runs"][1]["metrics"]


def test_gate_fails_on_significant_or_large_drops():
    def moved(value: float, low: float, high: float) -> PairedDifference:
        return PairedDifference(Estimate(value, low, high), 0.5)

    assert gate_passes(moved(0.0, -0.1, 0.1))
    assert gate_passes(moved(-0.01, -0.05, 0.03))
    assert not gate_passes(moved(-0.01, -0.019, -0.001))
    assert not gate_passes(moved(-GATE_MARGIN - 0.01, -0.2, 0.1))
    assert not gate_passes(moved(float("nan"), float("nan"), float("nan")))


def test_runs_without_shared_clips_or_with_other_classes_are_rejected(two_runs, tmp_path, capsys):
    strangers = make_store(tmp_path / "t.zarr", clip_prefix="t")
    make_run(tmp_path / "stranger", strangers, epochs=1)
    assert main(["compare", "--runs", str(two_runs / "good"), str(tmp_path / "stranger")]) == 2
    assert "share no test clip" in capsys.readouterr().err
    other = make_store(tmp_path / "u.zarr", names=("a", "b", "c"))
    make_run(tmp_path / "three", other, epochs=1)
    assert main(["compare", "--runs", str(two_runs / "good"), str(tmp_path / "three")]) == 2
    assert "cannot be compared" in capsys.readouterr().err
    assert main(["compare", "--runs", str(two_runs / "good")]) == 2


def test_equal_class_names_with_other_label_mappings_are_rejected(two_runs, tmp_path, capsys):
    """A label of another class or another column is rejected; labels that only one run has are allowed."""

    def asks(name: str, **changes) -> str:
        copy = Path(shutil.copytree(two_runs / "good", tmp_path / name))
        card = load_card(copy)
        save_card(copy, replace(card, labelling=replace(card.labelling, **changes)))
        return str(copy)

    def refusal(first: str, second: str) -> str:
        assert main(["compare", "--runs", first, second, "--bootstrap-rounds", "20"]) == 2
        return " ".join(capsys.readouterr().err.split())

    at_1 = asks("at 1", sources=(("distracted",), ("2", "1", "engaged")))
    at_2 = asks("at 2", sources=(("1", "distracted"), ("engaged", "2")))
    predicted = refusal(at_1, at_2)
    assert f"{at_1} predicts distracted = distracted, engaged = 2+1+engaged of column 'label'" in predicted
    assert f"{at_2} predicts distracted = 1+distracted, engaged = engaged+2 of column 'label'" in predicted
    assert "they cannot be compared" in predicted
    predicted = refusal(at_1, asks("mood", column="mood"))
    assert "of column 'label'" in predicted
    assert "of column 'mood'" in predicted
    wider = asks("wider", sources=(("distracted", "away"), ("engaged",)))
    assert main(["compare", "--runs", str(two_runs / "good"), wider, "--bootstrap-rounds", "20"]) == 0


def test_calibration_recovers_accuracy_in_a_shifted_domain(two_runs, tmp_path, capsys):
    home = FeatureStore.open(two_runs / "s.zarr")
    run = tmp_path / "moved"
    make_run(run, home, epochs=12)
    before = load_card(run)
    # All clips there look engaged: the same features, moved along the direction that separates the classes.
    # apart.
    make_store(tmp_path / "new.zarr", signal=0.8, num_subjects=24, clip_prefix="n", shift=1.2)
    assert main(["calibrate", "--run", str(run), "--store", str(tmp_path / "new.zarr")]) == 0
    after = load_card(run)
    assert after.calibration != before.calibration
    assert after.stages[-1]["stage"] == "calibrate"
    found = json.loads((run / "cross/new/calibration.json").read_text(encoding="utf-8"))
    assert found["test"]["difference"]["balanced_accuracy"]["value"] > 0.1
    assert found["test"]["difference"]["auroc"]["value"] == pytest.approx(0.0, abs=0.02)
    assert len(after.test_evaluations) == len(before.test_evaluations) + 1
    # Subjects whose labels chose the threshold are not in later evaluations.
    assert (
        main(
            ["evaluate", "--run", str(run), "--store", str(tmp_path / "new.zarr"), "--bootstrap-rounds", "50"]
        )
        == 0
    )
    evaluated = read_predictions(run / "cross/new/predictions.csv")
    calibrated = set(calibration_clips(run, load_card(run)))
    assert calibrated
    assert not calibrated & {row["clip_id"] for row in evaluated}
    assert len({row["subject"] for row in evaluated}) == found["subjects_test"]
    page = (run / "cross/new/report.html").read_text(encoding="utf-8")
    assert f"{found['subjects_fit']} subjects of new.zarr" in page
    assert main(["evaluate", "--run", str(run), "--abstain", "0.2"]) == 2
    assert "calibrated for" in capsys.readouterr().err


def test_calibrate_rejects_the_runs_own_test_subjects(two_runs, tmp_path, capsys):
    run = tmp_path / "home"
    make_run(run, FeatureStore.open(two_runs / "s.zarr"), epochs=1)
    assert main(["calibrate", "--run", str(run), "--store", str(two_runs / "s.zarr")]) == 2
    assert "a store with clips of the new domain only" in capsys.readouterr().err


def test_an_abstain_band_moves_with_the_threshold_and_keeps_its_width_in_logits():
    def logit(p):
        return np.log(p / (1 - p))

    old = Calibration(temperature=2.0, threshold=0.5, abstain=(0.4, 0.7))
    new = Calibration(temperature=1.0, threshold=0.8)
    low, high = moved_band(old, new, "binary")
    assert logit(0.8) - logit(low) == pytest.approx(2 * (logit(0.5) - logit(0.4)))
    assert logit(high) - logit(0.8) == pytest.approx(2 * (logit(0.7) - logit(0.5)))
    assert moved_band(Calibration(), new, "binary") is None
    assert moved_band(Calibration(abstain=(0.0, 0.6)), new, "multiclass") == (0.0, 0.6)


def test_data_sets_with_equal_file_names_are_distinguished_by_subjects(two_runs, tmp_path):
    """Clips with the run's names but other subjects are another data set."""
    run = tmp_path / "home"
    make_run(run, FeatureStore.open(two_runs / "s.zarr"), epochs=1)
    table = FeatureStore.open(two_runs / "s.zarr").table()
    strangers = replace(table, subject=np.char.add("other ", table.subject))
    subsets = load_split(run)
    assert known_rows(table, subsets).any()
    assert not known_rows(strangers, subsets).any()
    labels = np.zeros(len(table.state), np.int64)
    assert (
        len(eval_subset(strangers, labels, subsets, "test", known_rows(strangers, subsets)).rows)
        == (table.state != 0).sum()
    )
    one_renamed = replace(table, subject=np.where(np.arange(len(table.state)) == 0, "x", table.subject))
    assert known_rows(one_renamed, subsets).sum() == known_rows(table, subsets).sum()


def test_fit_and_test_subjects_are_disjoint():
    people = np.repeat([f"p{k}" for k in range(10)], 6)
    labels = np.tile([0, 1], 30)
    fits = choose_fit_subjects(people, labels, 0.3, seed=0)
    assert len(set(people[fits])) == 3
    assert not set(people[fits]) & set(people[~fits])
    for few, share in ((1, 0.5), (8, 0.5), (10, 0.6)):
        with pytest.raises(ValueError, match="at least 6 are needed to tell better from worse"):
            choose_fit_subjects(people[: 6 * few], labels[: 6 * few], share, seed=0)
    with pytest.raises(ValueError, match="found no way to divide"):
        choose_fit_subjects(people, np.repeat([0, 1], [6, 54]), 0.4, seed=0)


def test_every_stream_of_the_store_has_its_baseline_in_folds(tmp_path):
    store = make_store(tmp_path / "s.zarr", num_subjects=8, clips_each=6, recipe=WITH_GEOMETRY)
    make_run(tmp_path / "run", store, epochs=1, inputs="embeddings")
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--folds", "2", "--bootstrap-rounds", "50"]) == 0
    page = (tmp_path / "run/folds-2/report.html").read_text(encoding="utf-8")
    assert "Logistic regression, embeddings" in page
    assert "Logistic regression, geometry" in page
    assert "new models trained in 2 folds on the store's features, as this run's was" in page.replace(
        "&#x27;", "'"
    ).replace("&#39;", "'")


def test_inner_folds_of_a_fold_divide_its_training_people(tmp_path, monkeypatch):
    """In five parts, without the held-out person."""
    store = make_store(tmp_path / "s.zarr", num_subjects=10, clips_each=4, broken=False)
    card = make_run(tmp_path / "run", store, epochs=1)
    samples = load_samples(store, card.labelling, np.arange(40))
    inner = []

    def noted(*args):
        inner.append(args)
        return FoldInputs(*args)

    monkeypatch.setattr(folds, "FoldInputs", noted)
    train, held_out = folds.split_folds("loso", samples.labels, samples.subjects, 0)[3]
    folds.run_fold(card, card.members, samples, np.ones(40, bool), train, held_out, seed=0)
    ((given, numbers),) = inner
    assert given.rows.tolist() == train.tolist()
    parts = [set(given.subjects[numbers == number]) for number in range(5)]
    assert sorted(map(len, parts)) == [1, 2, 2, 2, 2]
    assert set.union(*parts) == set(samples.subjects) - set(samples.subjects[held_out])


def test_fold_without_a_possible_inner_fold_is_not_trained(tmp_path):
    """If two people are left and each has one class; with a third one, both classes can be learned."""
    store = make_store(tmp_path / "s.zarr", num_subjects=4, clips_each=5, broken=False)
    card = make_run(tmp_path / "run", store, epochs=1)
    samples = load_samples(store, card.labelling, np.arange(20))
    samples = replace(samples, labels=np.repeat([0, 1, 1, 0], 5))
    measured, held_out = np.ones(20, bool), np.arange(15, 20)
    for people, is_trained in ((2, False), (3, True)):
        fold = np.arange(5 * people), held_out
        result = folds.run_fold(card, card.members, samples, measured, *fold, seed=0)
        assert bool(result.setting) == is_trained
        assert len(result.indices) == 5 * is_trained
    alone = folds.run_fold(card, card.members, samples, measured, np.arange(5), held_out, seed=0)
    assert alone.setting == "", "one class"


def test_a_fold_with_one_training_subject_is_divided_by_video():
    videos = np.array([f"v{k // 2}.mp4#{k % 2}" for k in range(12)])
    samples = Samples({}, {}, np.tile([0, 1], 6), videos, np.full(12, "one"), np.arange(12))
    assert folds.inner_groups(samples).tolist() == [f"v{k // 2}.mp4" for k in range(12)]
    two = replace(samples, subjects=np.repeat(["one", "two"], 6))
    assert folds.inner_groups(two).tolist() == ["subject one"] * 6 + ["subject two"] * 6
    windows = np.array([f"v.mp4#{k}" for k in range(12)])
    assert folds.inner_groups(replace(samples, clip_ids=windows)).tolist() == windows.tolist()


@pytest.mark.parametrize("how", ["3", "loso"])
def test_every_clip_is_predicted_by_a_head_not_trained_on_its_subject(tmp_path, how):
    store = make_store(tmp_path / "s.zarr", signal=0.8, num_subjects=6, clips_each=8)
    card = make_run(tmp_path / "run", store, epochs=1)
    save_settings(tmp_path / "run", [MemberConfig("embeddings", card.members[0].head, TrainConfig(6, 1e-2))])
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--folds", how, "--bootstrap-rounds", "50"]) == 0
    folder = tmp_path / f"run/folds-{how}"
    rows = read_predictions(folder / "predictions.csv")
    assert len(rows) == 48
    estimates = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))[f"folds-{how}"]
    assert estimates["auroc"]["value"] > 0.7
    labels = np.array([row["label"] == NAMES[1] for row in rows])
    scores, fold = (np.array([float(row[name]) for row in rows]) for name in (f"p_{NAMES[1]}", "fold"))
    clips = [np.flatnonzero(fold == number) for number in np.unique(fold)]
    within = {"value": pytest.approx(within_fold_auroc(labels, scores, clips)), "low": None, "high": None}
    assert estimates["auroc_within_folds"] == within
    assert len(load_card(tmp_path / "run").test_evaluations) == 1


def test_fold_predictions_do_not_depend_on_held_out_labels(tmp_path):
    store = make_store(tmp_path / "s.zarr", signal=0.5, num_subjects=5, clips_each=6, broken=False)
    card = make_run(tmp_path / "run", store, epochs=1)
    samples = load_samples(store, card.labelling, np.arange(30))
    learn, left_out = folds.split_folds("loso", samples.labels, samples.subjects, 0)[2]
    assert set(samples.subjects[left_out]) == {"사람02"}
    turned = samples.labels.copy()
    turned[left_out] = 1 - turned[left_out]
    measured = np.ones(30, bool)
    (member,) = card.members
    settings = [replace(member, train=replace(member.train, noise=noise)) for noise in (0, 0.5)]
    answers = [
        folds.run_fold(card, settings, part, measured, learn, left_out, seed=0)
        for part in (samples, replace(samples, labels=turned))
    ]
    np.testing.assert_array_equal(answers[0].probabilities, answers[1].probabilities)
    np.testing.assert_array_equal(answers[0].predicted, answers[1].predicted)


def test_folds_must_be_a_number_loso_or_column(two_runs, capsys):
    assert main(["evaluate", "--run", str(two_runs / "good"), "--folds", "many"]) == 2
    assert "a number, loso or column" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(two_runs / "good"), "--folds", "99"]) == 2
