"""Evaluation of a run: which clips count, which files are written, and what stays constant."""

import csv
import json
import re
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from features.maintenance.import_external import read_sequences, write_external
from features.store.store import FeatureStore
from seqmodel.__main__ import main
from seqmodel.commands.evaluate import evaluate
from seqmodel.config import EvaluateArgs, HeadConfig, MemberConfig, TrainConfig
from seqmodel.evaluation import folds
from seqmodel.evaluation.fold_result import FoldResult, load_fold, save_fold
from seqmodel.evaluation.permutation_importance import head_logits
from seqmodel.heads.ensemble import Ensemble
from seqmodel.heads.recurrent import build_head
from seqmodel.heads.trees import TreesHead, fit_trees
from seqmodel.metrics.calibration import Calibration
from seqmodel.reporting import umap_projection
from seqmodel.runs.card import load_card, save_card
from seqmodel.runs.files import read_csv
from seqmodel.runs.predict import read_predictions
from seqmodel.runs.settings import save_settings
from seqmodel.training import select
from seqmodel.training.cross_fit import NUM_FOLDS
from seqmodel.training.design import StudyDesign
from tests.support.trained_run import NAMES, WITH_GEOMETRY, make_run, make_store

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """A run, evaluated on test; its store is in the same folder."""
    root = tmp_path_factory.mktemp("평가 1")
    store = make_store(root / "s.zarr", num_subjects=32, signal=0.6)  # six of them are in test
    make_run(root / "runs/작은", store)
    assert (
        main(["evaluate", "--run", str(root / "runs/작은"), "--split", "test", "--bootstrap-rounds", "200"])
        == 0
    )
    return root / "runs/작은"


def _metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def test_evaluation_writes_every_file(evaluated):
    for name in (
        "metrics.json",
        "predictions.csv",
        "report.html",
        "MODEL_CARD.md",
        "plots/confusion.png",
        "plots/roc.png",
    ):
        assert (evaluated / name).stat().st_size > 100
    assert not list(evaluated.rglob("*.tmp"))


def test_metrics_have_value_and_interval(evaluated):
    for estimates in _metrics(evaluated).values():
        for figure in estimates.values():
            assert set(figure) == {"value", "low", "high"}
    auroc = _metrics(evaluated)["test"]["auroc"]
    assert 0 <= auroc["low"] <= auroc["value"] <= auroc["high"] <= 1


def test_failed_clips_stay_in_the_denominator(evaluated):
    with (evaluated / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    states = [row["state"] for row in rows]
    assert "no face" in states
    assert any(state.startswith("failed") for state in states)
    metrics = _metrics(evaluated)
    assert metrics["test"]["num_clips"]["value"] == len(rows)
    right = np.mean([row["label"] == row["decision"] for row in rows])
    assert metrics["test"]["accuracy"]["value"] == pytest.approx(right)
    measured = [row for row in rows if row["state"] == "ok"]
    right = np.mean([row["label"] == row["decision"] for row in measured])
    assert metrics["test/measured"]["accuracy"]["value"] == pytest.approx(right)


def test_clips_without_prediction_count_as_the_training_majority(evaluated):
    with (evaluated / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    predicted = {row["decision"] for row in rows if row["state"] not in ("ok", "unsure")}
    assert len(predicted) == 1


def test_predictions_without_a_fold_column_are_kept(evaluated, tmp_path):
    """A file of an earlier version has no column `fold`; without folds it is empty."""
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    path = run / "predictions.csv"
    before = read_predictions(path)
    assert {row["fold"] for row in before} == {""}
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n", encoding="utf-8")
    assert main(["evaluate", "--run", str(run), "--split", "train", "--bootstrap-rounds", "20"]) == 0
    assert [row for row in read_predictions(path) if row["split"] != "train"] == [
        row for row in before if row["split"] != "train"
    ]


def test_evaluation_on_test_is_logged_in_card_and_store(evaluated):
    card = load_card(evaluated)
    before = len(card.test_evaluations)
    assert main(["evaluate", "--run", str(evaluated), "--split", "val", "--bootstrap-rounds", "50"]) == 0
    assert len(load_card(evaluated).test_evaluations) == before
    assert main(["evaluate", "--run", str(evaluated), "--split", "test", "--bootstrap-rounds", "200"]) == 0
    assert len(load_card(evaluated).test_evaluations) == before + 1
    assert len(FeatureStore.open(card.store).test_evaluations) == before + 1
    metrics = _metrics(evaluated)
    assert {"test", "val"} <= set(metrics)
    assert "test minus majority" in metrics
    # The head was chosen on validation, so it is not compared with baselines there.
    assert {name for name in metrics if name.startswith("val")} <= {"val", "val/measured"}
    page = (evaluated / "val/report.html").read_text(encoding="utf-8")
    assert "selection scores (optimistic). Baselines are compared on test" in page


def test_missing_store_and_unfinished_run_give_one_line_errors(evaluated, tmp_path, capsys):
    assert main(["evaluate", "--run", str(tmp_path)]) == 2
    assert "is not a finished run" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(evaluated), "--store", str(tmp_path / "gone.zarr")]) == 2
    assert "no store at" in capsys.readouterr().err


def test_threshold_does_not_depend_on_test_labels(tmp_path):
    from seqmodel.commands.evaluate import open_and_predict

    store = make_store(tmp_path / "s.zarr", signal=0.4, broken=False)
    make_run(tmp_path / "run", store)
    threshold_metric = EvaluateArgs(
        run=tmp_path / "run", threshold_metric="recall:distracted=0.8", abstain=0.2
    )
    first, before = open_and_predict(threshold_metric)
    _turn_test_labels(tmp_path / "s.zarr", set(before.clip_ids.tolist()))
    second, after = open_and_predict(threshold_metric)
    assert second.card.calibration == first.card.calibration
    assert first.card.calibration.threshold_metric == "recall:distracted=0.8"
    assert first.card.calibration.abstain is not None
    assert (before.labels == 1 - after.labels).all()
    np.testing.assert_array_equal(before.predicted, after.predicted)


def _turn_test_labels(path: Path, clip_ids: set[str]) -> None:
    import zarr

    group = zarr.open_group(path, mode="r+")
    labels = group["labels/label"]
    turned = labels[:]
    ids = group["clip_id"][:]
    for row, clip_id in enumerate(ids):
        if str(clip_id) in clip_ids:
            turned[row] = 1 - turned[row]
    labels[:] = turned


def test_abstain_marks_about_the_requested_fraction(tmp_path):
    from seqmodel.commands.evaluate import open_and_predict

    store = make_store(tmp_path / "s.zarr", signal=0.3, broken=False, num_subjects=30)
    make_run(tmp_path / "run", store)
    parts = [
        open_and_predict(EvaluateArgs(run=tmp_path / "run", split=split, abstain=0.3))[1].unsure
        for split in ("train", "val")
    ]
    assert np.concatenate(parts).mean() == pytest.approx(0.3, abs=0.03), "of the clips that chose the band"


def test_another_data_set_is_evaluated_as_a_whole_with_mapped_labels(tmp_path, capsys):
    store = make_store(tmp_path / "home.zarr", signal=0.8)
    make_run(tmp_path / "run", store)
    make_store(tmp_path / "other.zarr", names=("away", "here"), seed=5, num_subjects=8, clip_prefix="o")
    argv = [
        "evaluate",
        "--run",
        str(tmp_path / "run"),
        "--store",
        str(tmp_path / "other.zarr"),
        "--bootstrap-rounds",
        "50",
    ]
    assert main(argv) == 2
    assert "map them with --label-map STORE_LABEL=RUN_LABEL" in capsys.readouterr().err
    assert main([*argv, "--label-map", "away=nonsense"]) == 2
    assert main([*argv, "--label-map", "away=distracted", "here=engaged"]) == 0
    folder = tmp_path / "run/cross/other"
    metrics = _metrics(folder)
    assert metrics["other:test"]["num_clips"]["value"] == 48
    assert not (tmp_path / "run/report.html").exists()


def test_a_store_of_another_recipe_is_refused_by_field(tmp_path, capsys):

    from tests.support.trained_run import RECIPE

    store = make_store(tmp_path / "home.zarr")
    make_run(tmp_path / "run", store, epochs=1)
    assert RECIPE.pixels is not None
    other = replace(RECIPE, pixels=replace(RECIPE.pixels, margin=0.4))
    make_store(tmp_path / "other.zarr", recipe=other, clip_prefix="o")
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--store", str(tmp_path / "other.zarr")]) == 2
    assert "pixels.margin: 0.25 vs 0.4" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["multiclass", "ordinal"])
def test_more_than_two_classes_are_evaluated(tmp_path, task):
    store = make_store(tmp_path / "s.zarr", names=("low", "mid", "high"), signal=0.7)
    make_run(tmp_path / "run", store, task=task)
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--bootstrap-rounds", "50"]) == 0
    estimates = _metrics(tmp_path / "run")["test"]
    assert ("qwk" in estimates) == (task == "ordinal")
    assert {"recall:low", "recall:mid", "recall:high", "auroc"} <= set(estimates)


@pytest.mark.slow
@pytest.mark.draws
def test_umap_plot_is_reproducible(tmp_path, monkeypatch):
    """Both evaluations use one worker process, because numba compiles UMAP anew in each process."""
    store = make_store(tmp_path / "s.zarr", signal=0.8)
    make_run(tmp_path / "run", store, epochs=1)
    argv = [
        "evaluate",
        "--run",
        str(tmp_path / "run"),
        "--split",
        "val",
        "--bootstrap-rounds",
        "50",
        "--umap",
    ]
    drawings = []
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        monkeypatch.setattr(umap_projection, "ProcessPoolExecutor", lambda *_: nullcontext(pool))
        for _ in range(2):
            assert main(argv) == 0
            drawings.append((tmp_path / "run/val/plots/umap_label.png").read_bytes())
    assert drawings[0] == drawings[1]
    page = (tmp_path / "run/val/report.html").read_text(encoding="utf-8")
    assert "mobilenet_v3_large (random:0), seed 0" in page
    assert (tmp_path / "run/val/plots/umap_subject.png").is_file()


def test_too_few_clips_for_umap_warn_and_the_report_is_written(tmp_path, capsys):
    store = make_store(tmp_path / "s.zarr", num_subjects=9, clips_each=3)
    make_run(tmp_path / "run", store, epochs=1)
    argv = [
        "evaluate",
        "--run",
        str(tmp_path / "run"),
        "--split",
        "val",
        "--bootstrap-rounds",
        "50",
        "--umap",
    ]
    assert main(argv) == 0
    assert "no UMAP: it needs at least 12 clips with a face" in capsys.readouterr().err
    assert not (tmp_path / "run/val/plots/umap_label.png").exists()


def test_every_stream_of_the_store_has_its_baseline(tmp_path):
    """A run that reads one stream has baselines on both."""
    from seqmodel.commands.evaluate import open_split
    from seqmodel.evaluation.context import fit_baselines, predict, training_clips
    from seqmodel.metrics.classification import score

    store = make_store(tmp_path / "s.zarr", signal=0.5, recipe=WITH_GEOMETRY)
    make_run(tmp_path / "run", store, epochs=1)
    context = open_split(EvaluateArgs(run=tmp_path / "run"))
    found = {
        each.name: score("auroc", context.eval_subset.labels, each.probabilities)
        for each in fit_baselines(context, predict(context), training_clips(context), seed=0)
    }
    fitted = {f"logistic_{inputs}" for inputs in ("embeddings", "geometry", "both")}
    assert set(found) == {"majority", "identity"} | fitted
    assert min(found[name] for name in fitted) > 0.5


def test_imported_frame_with_a_missing_feature_counts_as_no_face(tmp_path):
    from seqmodel.evaluation.context import face_coverage

    x = np.ones((3, 4, 2), np.float32)
    x[1, :2] = np.nan
    x[2] = np.nan
    np.savez(tmp_path / "f.npz", x=x, y=np.array([0, 1, 0]), length=np.array([2, 4, 4]))
    store = write_external(tmp_path / "s.zarr", read_sequences(tmp_path / "f.npz"), "own")
    assert face_coverage(store, np.arange(3)).tolist() == [1.0, 0.5, 0.0]


# Folds


def _relabel(path: Path, label_of: dict[str, int]) -> None:
    """Give every clip of these subjects one label."""
    import zarr

    group = zarr.open_group(path, mode="r+")
    subjects = group["subject"][:]
    labels = group["labels/label"][:]
    for subject, label in label_of.items():
        labels[[str(name) == subject for name in subjects]] = label
    group["labels/label"][:] = labels


@pytest.mark.parametrize("how", ["2", "loso"])
def test_fold_without_training_data_predicts_the_majority(tmp_path, how):
    """A fold has one class for training if only one subject has the other class."""
    num_subjects = 4
    store = make_store(tmp_path / "s.zarr", num_subjects=num_subjects, clips_each=8, broken=False)
    make_run(tmp_path / "run", store, epochs=1)
    _relabel(tmp_path / "s.zarr", {f"사람{s:02d}": 0 for s in (1, 2, 3)})
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--folds", how, "--bootstrap-rounds", "50"]) == 0
    folder = tmp_path / f"run/folds-{how}"
    rows = read_predictions(folder / "predictions.csv")
    idle = [row for row in rows if row["state"] == "no trained fold"]
    labels = [row["label"] for row in rows]
    assert len(rows) == 8 * num_subjects
    assert len(idle) == (16 if how == "2" else 8)
    # Each subject is held out in one fold, and predictions.csv names it.
    pairs = {(row["subject"], row["fold"]) for row in rows}
    assert len(pairs) == num_subjects
    assert {fold for _, fold in pairs} == {str(n + 1) for n in range(2 if how == "2" else num_subjects)}
    assert {row["state"] for row in rows} == {"ok", "no trained fold"}
    share = labels.count(NAMES[1]) / len(labels)
    assert [float(row["p_engaged"]) for row in idle] == pytest.approx([share] * len(idle), abs=1e-6)
    assert {row["decision"] for row in idle} == {NAMES[int(share > 0.5)]}
    assert "사람00" in {row["subject"] for row in idle}
    estimates = _metrics(folder)
    assert estimates[f"folds-{how}"]["num_clips"]["value"] == len(rows)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"1 of {2 if how == '2' else 4} folds could not be trained" in page
    assert f"{len(idle)} of {len(rows)} clips have no prediction" in page


def test_folds_without_training_data_are_rejected_and_not_logged(tmp_path, capsys):
    store = make_store(tmp_path / "s.zarr", num_subjects=3, clips_each=8, broken=False)
    make_run(tmp_path / "run", store, epochs=1)
    argv = ["evaluate", "--run", str(tmp_path / "run"), "--bootstrap-rounds", "50", "--folds"]
    assert main([*argv, "99"]) == 2
    _relabel(tmp_path / "s.zarr", {f"사람{s:02d}": 0 for s in range(3)})
    capsys.readouterr()
    assert main([*argv, "3"]) == 2
    assert "--folds 3: no fold can be trained" in " ".join(capsys.readouterr().err.split())
    assert load_card(tmp_path / "run").test_evaluations == ()
    assert store.test_evaluations == []
    assert not (tmp_path / "run/folds-3").exists()


def _noted_subsets(monkeypatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """The (training, held-out) rows of every fold that will be fitted, and of all its inner folds."""
    subsets = []

    def fold(card, settings, samples, measured, train, held_out, *rest, run_fold=folds.run_fold):
        subsets.append((samples.rows[train], samples.rows[held_out]))
        return run_fold(card, settings, samples, measured, train, held_out, *rest)

    def inner(samples, inner_folds, fold_inputs=folds.FoldInputs):
        found = fold_inputs(samples, inner_folds)
        for number in found.numbers:
            subsets.append((samples.rows[found.folds != number], samples.rows[found.folds == number]))
        return found

    monkeypatch.setattr(folds, "run_fold", fold)
    monkeypatch.setattr(folds, "FoldInputs", inner)
    return subsets


def test_windows_of_one_video_stay_in_one_fold_without_subjects(tmp_path, monkeypatch):
    """In the folds, and in the inner parts of each fold."""
    unknown = {"known_subjects": False, "one_video_each": True, "broken": False}
    store = make_store(tmp_path / "s.zarr", num_subjects=9, clips_each=6, **unknown)
    make_run(tmp_path / "run", store, epochs=1)
    subsets = _noted_subsets(monkeypatch)
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--folds", "3", "--bootstrap-rounds", "50"]) == 0
    videos = store.table().source
    page = (tmp_path / "run/folds-3/report.html").read_text(encoding="utf-8")
    assert re.search(r"AUROC within folds is \d\.\d{3} .* pooled over all folds it is \d\.\d{3}", page)
    assert len(subsets) == 3 * (1 + NUM_FOLDS)
    assert not any(set(videos[one]) & set(videos[other]) for one, other in subsets)


def test_interrupted_folds_continue_and_equal_uninterrupted_ones(tmp_path, monkeypatch, capsys):
    """Finished folds are not trained again, and other settings or labels use none of them."""
    table = make_store(tmp_path / "s.zarr", num_subjects=6, clips_each=4).table()
    card = make_run(tmp_path / "run", FeatureStore.open(tmp_path / "s.zarr"), epochs=1)
    (member,) = card.members
    settings = [replace(member, head=replace(member.head, hidden=4 + k)) for k in range(4)]
    save_settings(tmp_path / "run", settings)
    argv = ["evaluate", "--run", str(tmp_path / "run"), "--folds", "3", "--bootstrap-rounds", "20"]
    results = tmp_path / "run/folds-3"
    fits, last = [], [99]

    def fit_until(*args, fit=select.cross_fit, **options):
        if len(fits) == last[0]:
            raise KeyboardInterrupt
        fits.append(args)
        return fit(*args, **options)

    def fits_until(number: int) -> int:
        """Number of fits of the command, if it is interrupted after `number` fits."""
        fits.clear()
        last[0] = number
        assert main(argv) == (130 if number < 99 else 0)
        return len(fits)

    def files() -> list[bytes]:
        return [(results / name).read_bytes() for name in ("predictions.csv", "metrics.json")]

    monkeypatch.setattr(select, "cross_fit", fit_until)
    assert fits_until(99) == 12
    assert not (results / "finished").exists()
    expected = files()
    shutil.rmtree(results)
    assert fits_until(10) == 10
    interrupted = " ".join(capsys.readouterr().err.split())
    assert fits_until(99) == 4
    assert files() == expected
    assert "with --folds, the same command continues" in interrupted

    fits_until(10)
    save_settings(tmp_path / "run", settings[::-1])
    assert fits_until(9) == 9, "other settings"
    _relabel(tmp_path / "s.zarr", {str(table.subject[0]): 0})
    assert fits_until(9) == 9, "other labels"


def test_two_commands_evaluate_the_folds_of_a_run_one_after_the_other(tmp_path, monkeypatch):
    """When the first saves a fold, the second one starts, and waits or also trains. The first deletes its
    saved folds only when the second does not use them."""
    store = make_store(tmp_path / "s.zarr", num_subjects=6, clips_each=4)
    make_run(tmp_path / "run", store, epochs=1)
    args = EvaluateArgs(tmp_path / "run", folds="3", bootstrap_rounds=20)
    save, running, seconds, overlapping = folds.save_fold, [0], [], []
    waits_or_ended = threading.Event()

    def evaluate_again():
        evaluate(args)
        waits_or_ended.set()

    def save_and_start(path, result):
        running[0] += 1
        if not seconds:
            monkeypatch.setattr("seqmodel.runs.writer.echo", lambda text: waits_or_ended.set())
            seconds.append(threading.Thread(target=evaluate_again))
            seconds[0].start()
            assert waits_or_ended.wait(120)
        overlapping.append(running[0])
        save(path, result)
        running[0] -= 1

    monkeypatch.setattr(folds, "save_fold", save_and_start)
    assert evaluate(args)[1] == 0
    seconds[0].join()
    assert overlapping == [1] * 6, "three folds after the other three"
    assert sorted(path.name for path in (tmp_path / "run/folds-3").iterdir() if path.is_dir()) == ["plots"]


def test_evaluation_by_design_keeps_the_results_of_an_evaluation_with_folds(tmp_path):
    store = make_store(tmp_path / "s.zarr", num_subjects=6, clips_each=4)
    card = make_run(tmp_path / "run", store, epochs=1)
    argv = ["evaluate", "--run", str(tmp_path / "run"), "--bootstrap-rounds", "20"]
    assert main([*argv, "--folds", "5"]) == 0
    save_card(tmp_path / "run", replace(card, design=StudyDesign("5", people=6, count=6)))
    assert main(argv) == 0
    assert (tmp_path / "run/folds-5/report.html").is_file()
    assert (tmp_path / "run/report.html").is_file()
    assert not (tmp_path / "run/folds-5/finished").exists()


def test_saved_fold_has_the_head_for_importance(tmp_path):
    """With members of both kinds, and two inner folds each."""
    members = MemberConfig("geometry", HeadConfig(hidden=4)), MemberConfig("geometry", HeadConfig("trees"))
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(40, 6, 3)).astype(np.float32), np.arange(40) % 2
    recurrent = [build_head(members[0].head, "geometry", 3, 1, seed=seed) for seed in range(2)]
    trees = [TreesHead(members[1].head, "geometry", 3, 1, "binary") for _ in range(2)]
    for seed, each in enumerate(trees):
        fit_trees(each, z, np.ones((40, 6), bool), labels, 2, seed)
    head = Ensemble([recurrent, trees], "binary")
    result = FoldResult(
        np.array([2, 5]),
        np.array([[0.1], [0.7]]),
        np.array([[0.5, 0.5], [0.3, 0.7]]),
        np.array([0, 1]),
        "wide",
        head,
        Calibration(temperature=1.7, threshold=0.3),
        members,
    )
    save_fold(tmp_path / "가.safetensors", result)
    found = load_fold(tmp_path / "가.safetensors", head.dims, "binary", 2)
    assert found is not None
    for name in ("indices", "logits", "probabilities", "predicted"):
        np.testing.assert_array_equal(getattr(found, name), getattr(result, name), strict=True)
    assert (found.setting, found.calibration) == ("wide", result.calibration)
    assert found.head is not None
    assert (found.members, found.head.num_folds) == (members, 2)
    x = {"geometry": z[:4]}, {"geometry": np.ones((4, 6), bool)}
    np.testing.assert_array_equal(head_logits(found.head, *x), head_logits(head, *x))
    assert np.ptp(head_logits(head, *x)) > 0.1
    assert load_fold(tmp_path / "나.safetensors", head.dims, "binary", 2) is None
    save_fold(tmp_path / "다.safetensors", replace(result, head=None))
    without = load_fold(tmp_path / "다.safetensors", head.dims, "binary", 2)
    assert without is not None
    assert without.head is None


@pytest.mark.parametrize("how", ["4", "loso"])
def test_nearly_equal_clips_of_two_subjects_stay_in_one_fold(tmp_path, monkeypatch, how):
    """A video that was copied under another subject: in no fold, and in no inner part, the copy is on the
    other side."""
    store = make_store(tmp_path / "s.zarr", num_subjects=9, clips_each=3, broken=False)
    make_run(tmp_path / "run", store, epochs=1)
    copies = [0, 26]
    monkeypatch.setattr("features.maintenance.near_duplicates.MIN_VALUES", 50)  # of 72 in these small clips
    store = FeatureStore.open(tmp_path / "s.zarr", "r+")
    store.write_row(26, embeddings=store.array("embeddings")[0], frames=store.array("frames")[0])
    subsets = _noted_subsets(monkeypatch)
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--folds", how, "--bootstrap-rounds", "50"]) == 0
    assert len(subsets) == (4 if how == "4" else 8) * (1 + NUM_FOLDS)
    assert not any(np.isin(copies, one).any() and np.isin(copies, other).any() for one, other in subsets)


def test_folds_of_another_data_set_use_mapped_labels(tmp_path):
    card = make_run(tmp_path / "run", make_store(tmp_path / "home.zarr", num_subjects=9), epochs=1)
    save_settings(tmp_path / "run", [MemberConfig("embeddings", card.members[0].head, TrainConfig(6, 1e-2))])
    make_store(tmp_path / "other.zarr", names=("away", "here"), num_subjects=6, clip_prefix="o")
    argv = ["evaluate", "--run", str(tmp_path / "run"), "--store", str(tmp_path / "other.zarr")]
    argv += ["--label-map", "away=distracted", "here=engaged", "--folds", "3", "--bootstrap-rounds", "50"]
    assert main(argv) == 0
    assert _metrics(tmp_path / "run/cross/other/folds-3")["folds-3"]["auroc"]["value"] > 0.7
    assert not (tmp_path / "run/folds-3").exists(), "it is about the run's own data"


def test_folds_that_the_manifest_names_are_held_out(tmp_path, monkeypatch, capsys):
    """By default, if every clip has one. Folds that share people, and clips without a fold, are refused."""
    rng, n = np.random.default_rng(0), 72
    y, number = np.arange(n) // 12 % 2, np.arange(n) % 12
    x = rng.normal(size=(n, 5, 6)) + 2 * y[:, None, None]
    given = {"x": x, "y": y, "subject": np.array([f"p{k}" for k in number])}
    folds = {
        "named": np.array([f"fold {k % 3}" for k in number]),
        "shared": np.array(["a", "b"])[np.arange(n) // 12 % 2],
        "none": np.full(n, ""),
    }
    for name, fold in folds.items():
        np.savez(tmp_path / f"{name}.npz", **given, fold=fold)
        write_external(
            tmp_path / f"{name}.zarr", read_sequences(tmp_path / f"{name}.npz"), name, "embeddings"
        )
    run = tmp_path / "run"
    assert main(["train", "--store", str(tmp_path / "named.zarr"), "--run", str(run), "--epochs", "1"]) == 0
    assert load_card(run).design.folds == "column"
    assert main(["evaluate", "--run", str(run), "--bootstrap-rounds", "20"]) == 0
    rows = [row for row in read_csv(run / "predictions.csv") if row["fold"]]
    assert len(rows) == n
    fold_of = {row["clip_id"]: int(row["fold"]) for row in rows}
    table = FeatureStore.open(tmp_path / "named.zarr").table()
    assert [fold_of[clip] for clip in table.clip_id] == [int(name[-1]) + 1 for name in table.fold]
    capsys.readouterr()
    for name, said in (("shared", "are in the folds a and b"), ("none", "needs a column fold")):
        argv = ["evaluate", "--run", str(run), "--store", str(tmp_path / f"{name}.zarr"), "--folds", "column"]
        assert main(argv) == 2
        assert said in capsys.readouterr().err


def test_folds_of_a_store_with_another_width_train_new_heads(tmp_path, capsys):
    """Folds use the run's labels and streams, not its network; a missing stream gives a one-line error."""
    for name, width in (("home", 6), ("other", 9)):
        x = np.random.default_rng(width).normal(size=(48, 5, width))
        subject, y = np.array([f"{name}{i % 12}" for i in range(48)]), np.arange(48) // 12 % 2
        x[:, :, 0] += 2 * y[:, None]
        names = np.array([f"f{i}" for i in range(width)])
        np.savez(tmp_path / f"{name}.npz", x=x, y=y, subject=subject, feature_names=names)
        read = read_sequences(tmp_path / f"{name}.npz")
        write_external(tmp_path / f"{name}.zarr", read, name, "embeddings")
    run = str(tmp_path / "run")
    assert main(["train", "--store", str(tmp_path / "home.zarr"), "--run", run, "--epochs", "1"]) == 0
    argv = ["evaluate", "--run", run, "--folds", "2", "--bootstrap-rounds", "20"]
    assert main([*argv, "--store", str(tmp_path / "other.zarr")]) == 0
    write_external(tmp_path / "geometry.zarr", read, "other", "geometry")
    capsys.readouterr()
    assert main([*argv, "--store", str(tmp_path / "geometry.zarr")]) == 2
    assert "reads embeddings, but" in " ".join(capsys.readouterr().err.split())


def test_folds_use_the_requested_threshold_metric(tmp_path):
    from seqmodel.evaluation.context import open_context

    make_run(tmp_path / "run", make_store(tmp_path / "s.zarr", num_subjects=8, signal=0.3), epochs=1)
    args = EvaluateArgs(
        tmp_path / "run", folds="2", bootstrap_rounds=20, threshold_metric="recall:distracted=0.9"
    )
    card = load_card(tmp_path / "run")
    context = folds.every_clip(open_context(args.run, card, None, "test"), "2")
    _, baselines, fold_models, _ = folds.run_folds(context, args, tmp_path / "finished")
    assert {c.threshold_metric for c in fold_models.calibrations} == {"recall:distracted=0.9"}
    majority = next(stick for stick in baselines if stick.name == "majority")
    assert len(np.unique(majority.probabilities[:, 1])) == 1, (
        "of all folds; of one fold it would be biased against the held-out clips"
    )
    argv = ["evaluate", "--run", str(tmp_path / "run"), "--folds", "2"]
    assert main([*argv, "--threshold-metric", "recall:nobody=7"]) == 2
    assert main([*argv, "--abstain", "0.2"]) == 2
    assert load_card(tmp_path / "run").test_evaluations == ()
