"""Claims about judging a run: who counts, what is written, and what never moves."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from seqmodel.__main__ import main
from seqmodel.run import load_card
from tests.judged import make_run, make_store


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> Path:
    """A run, evaluated on test; its store lies beside it."""
    root = tmp_path_factory.mktemp("평가 1")
    store = make_store(root / "s.zarr", signal=0.6)
    make_run(root / "runs/작은", store)
    assert main(["evaluate", "--run", str(root / "runs/작은"), "--split", "test", "--rounds", "200"]) == 0
    return root / "runs/작은"


def _metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def test_every_file_of_an_evaluation_is_there(judged):
    for name in (
        "metrics.json",
        "predictions.csv",
        "report.html",
        "MODEL_CARD.md",
        "plots/confusion.png",
        "plots/roc.png",
    ):
        assert (judged / name).stat().st_size > 100
    assert not list(judged.rglob("*.tmp"))


def test_metrics_have_value_and_interval(judged):
    for figures in _metrics(judged).values():
        for figure in figures.values():
            assert set(figure) == {"value", "low", "high"}
    auroc = _metrics(judged)["test"]["auroc"]
    assert 0 <= auroc["low"] <= auroc["value"] <= auroc["high"] <= 1


def test_nobody_drops_out_of_the_denominator(judged):
    with (judged / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    states = [row["state"] for row in rows]
    assert "no face" in states
    assert any(state.startswith("failed") for state in states)
    metrics = _metrics(judged)
    assert metrics["test"]["num_clips"]["value"] == len(rows)
    right = np.mean([row["label"] == row["decision"] for row in rows])
    assert metrics["test"]["accuracy"]["value"] == pytest.approx(right)
    measured = [row for row in rows if row["state"] == "ok"]
    right = np.mean([row["label"] == row["decision"] for row in measured])
    assert metrics["test/measured"]["accuracy"]["value"] == pytest.approx(right)


def test_unmeasured_clips_are_taken_as_the_training_majority(judged):
    with (judged / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    said = {row["decision"] for row in rows if row["state"] not in ("ok", "unsure")}
    assert len(said) == 1


def test_opening_the_test_split_is_counted_in_card_and_store(judged):
    from features.store import FeatureStore

    card = load_card(judged)
    before = len(card.test_openings)
    assert main(["evaluate", "--run", str(judged), "--split", "val", "--rounds", "50"]) == 0
    assert len(load_card(judged).test_openings) == before
    assert main(["evaluate", "--run", str(judged), "--split", "test", "--rounds", "200"]) == 0
    assert len(load_card(judged).test_openings) == before + 1
    assert len(FeatureStore.open(card.store).test_openings) == before + 1
    assert {"test", "val"} <= set(_metrics(judged))


def test_a_lost_store_and_an_unfinished_run_are_one_clear_line(judged, tmp_path, capsys):
    assert main(["evaluate", "--run", str(tmp_path)]) == 2
    assert "is not a finished run" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(judged), "--store", str(tmp_path / "gone.zarr")]) == 2
    assert "no store at" in capsys.readouterr().err
