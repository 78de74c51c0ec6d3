"""The study design by the number of people: what is held out, and what the commands say and write."""

import json
from dataclasses import replace

import numpy as np
import pytest

from features.store.store import FeatureStore
from features.store.table import ClipTable
from seqmodel.__main__ import main
from seqmodel.config import LabelArgs
from seqmodel.runs.card import load_card
from seqmodel.runs.files import load_split
from seqmodel.runs.predict import read_predictions
from seqmodel.training.design import study_design, units_of
from seqmodel.training.task import build_task
from tests.support.trained_run import make_store

pytestmark = pytest.mark.usefixtures("no_drawing")


def clip_table(subjects: list[str], days: list[str] | None = None) -> ClipTable:
    """One clip a video."""
    n = len(subjects)
    nothing, names = np.full(n, ""), np.array([f"v{k}.mp4" for k in range(n)])
    slices = {"day": np.array(days)} if days else {}
    times = np.zeros(n)
    return ClipTable(
        names, names, np.array(subjects), nothing, nothing, {}, {}, slices, times, times, times, nothing
    )


def people(number: int) -> list[str]:
    return [f"p{k % number}" for k in range(3 * number)]


@pytest.mark.parametrize(
    ("subjects", "days", "folds", "unit", "said"),
    [
        (people(40), None, "", "person", "40 people with labels: evaluated on a test subset"),
        (people(39), None, "5", "person", "39 people with labels: evaluate holds every person out once in 5"),
        (people(6), None, "5", "person", "no test subset"),
        (people(5), None, "loso", "person", "once, one left out at a time; no test subset"),
        (["a"] * 20, None, "5", "video", "1 person with labels, 20 videos"),
        (["a"] * 6, list("112233"), "loso", "day", "3 days"),
        (["a"] * 6, list("111111"), "5", "video", "valid for this person only"),
        ([""] * 20, None, "5", "video", "subjects are unknown, 20 videos"),
        ([""] * 40, list("12") * 20, "", "video", "subjects are unknown, 40 videos"),
        (["a", *[""] * 9], None, "5", "person", "10 people (or videos of unknown people) with labels"),
    ],
)
def test_design_follows_from_who_there_is(subjects, days, folds, unit, said):
    table = clip_table(subjects, days)
    design = study_design(table, np.arange(len(subjects)), "auto", is_official=False)
    assert (design.folds, design.unit) == (folds, unit)
    assert said in design.text
    assert study_design(table, np.arange(len(subjects)), "holdout", is_official=False).folds == ""
    assert study_design(table, np.arange(len(subjects)), "folds", is_official=True).folds != ""
    assert study_design(table, np.arange(len(subjects)), "auto", is_official=True).folds == ""
    assert len(units_of(table, np.arange(len(subjects)), unit)) == len(subjects)


def test_folds_of_the_manifest_are_the_design_if_they_divide_people():
    table, rows = clip_table(people(50)), np.arange(150)
    named = replace(table, fold=np.array([f"f{k % 50 % 4}" for k in range(150)]))
    design = study_design(named, rows, "auto", is_official=False)
    assert design.folds == "column"
    assert "every person out once in the folds of the manifest" in design.text
    assert study_design(named, rows, "holdout", is_official=False).folds == ""
    for fold in ([""] + ["a", "b"] * 74 + ["a"], ["a", "b", "c"] * 50):
        other = replace(table, fold=np.array(fold))
        assert study_design(other, rows, "auto", is_official=False).folds == ""


def test_one_video_of_one_person_is_one_clear_error():
    table = clip_table(["a"])
    with pytest.raises(ValueError, match="one person and one video: nothing can be held out"):
        study_design(table, np.arange(1), "auto", is_official=False)


@pytest.mark.parametrize(
    ("who", "folds", "heading"),
    [
        ({"num_subjects": 1, "clips_each": 20}, "5", "Valid for this person only."),
        ({"num_subjects": 2, "clips_each": 12}, "loso", ""),
        ({"num_subjects": 12, "clips_each": 3, "known_subjects": False}, "5", "Subjects unknown."),
    ],
)
def test_few_people_are_evaluated_by_folds_without_options(tmp_path, capsys, who, folds, heading):
    """The report in the run is about the folds, every clip is predicted by a head that was not trained on its
    person (or video), and below six people nothing has an interval."""
    store = make_store(tmp_path / "s.zarr", broken=False, **who)
    run = tmp_path / "run"
    assert main(["train", "--store", str(store.path), "--run", str(run), "--epochs", "3"]) == 0
    assert {subset for _, subset in load_split(run).values()} == {"train", "val"}
    assert load_card(run).design.folds == folds
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--bootstrap-rounds", "20", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["warnings"]) > 0
    rows = read_predictions(run / "predictions.csv")
    assert len(rows) == store.num_clips
    assert {row["state"] for row in rows} == {"ok"}
    assert {row["split"] for row in rows} == {f"folds-{folds}"}
    page, card = ((run / name).read_text(encoding="utf-8") for name in ("report.html", "MODEL_CARD.md"))
    for text in (page, card):
        assert heading in text
    if 0 < who["num_subjects"] < 6:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))[f"folds-{folds}"]
        assert metrics["auroc"]["low"] is None
    assert not (run / f"folds-{folds}").exists()


def test_runs_without_a_test_subset_are_compared_on_their_folds(tmp_path, capsys):
    store = make_store(tmp_path / "s.zarr", num_subjects=7, clips_each=3, broken=False)
    runs = [tmp_path / "old", tmp_path / "new"]
    for run in runs:
        assert main(["train", "--store", str(store.path), "--run", str(run), "--epochs", "2"]) == 0
    assert main(["compare", "--runs", *map(str, runs)]) == 2
    assert "no current predictions of its folds: evaluate it first" in " ".join(
        capsys.readouterr().err.split()
    )
    for run in runs:
        assert main(["evaluate", "--run", str(run), "--bootstrap-rounds", "20"]) == 0
    assert main(["compare", "--runs", *map(str, runs), "--bootstrap-rounds", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shared_clips"] == store.num_clips


def test_a_new_run_keeps_the_subsets_of_one_without_test(tmp_path):
    """Also for people that are new, and for a store whose encoder was fine-tuned without a test subset."""
    store = make_store(tmp_path / "s.zarr", num_subjects=8, clips_each=3, broken=False)
    run = tmp_path / "run"
    assert main(["train", "--store", str(store.path), "--run", str(run), "--epochs", "1"]) == 0
    more = make_store(tmp_path / "more.zarr", num_subjects=45, clips_each=3, broken=False)
    task = build_task(more.path, LabelArgs(), splits_from=run)
    assert not len(task.split.test)
    assert task.design.folds
    subsets = {f"subject {subject}": subset for subject, subset in load_split(run).values()}
    store.carry_over([], subsets)
    again = build_task(store.path, LabelArgs(), seed=5)
    assert again.design.folds == "5"
    val = FeatureStore.open(store.path).table().subject[again.split.val]
    assert {f"subject {name}" for name in val} == {name for name, part in subsets.items() if part == "val"}
