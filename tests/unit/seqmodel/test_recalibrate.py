"""A new threshold or new weights delete old results and keep the settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features.store.store import FeatureStore
from seqmodel.__main__ import main
from seqmodel.reporting.text import calibration_intro
from seqmodel.runs.card import calibration_stage, load_card, save_card
from seqmodel.runs.predict import predict_rows, read_predictions
from seqmodel.runs.training_stats import read_training_stats
from seqmodel.runs.writer import drop_results
from tests.support.trained_run import make_run, make_store

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run", make_store(tmp_path / "s.zarr", signal=0.4), epochs=3)
    return tmp_path / "run"


def evaluate(run: Path, *argv: str) -> None:
    assert main(["evaluate", "--run", str(run), "--bootstrap-rounds", "20", *argv]) == 0


def test_new_threshold_deletes_results_of_the_old_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Predictions on test, their reports and exports are deleted."""
    for split in ("test", "val"):
        evaluate(run, "--split", split)
    exported = run / "export" / "openvino"
    exported.mkdir(parents=True)
    before = load_card(run)
    evaluate(run, "--split", "val", "--threshold-metric", "recall:distracted=0.95")
    after = load_card(run)
    assert after.calibration.threshold != before.calibration.threshold
    assert {row["split"] for row in read_predictions(run / "predictions.csv")} == {"val"}
    assert {name.split("/")[0].split(" ")[0] for name in after.metrics} == {"val"}
    assert not (run / "report.html").exists()
    assert (run / "val" / "report.html").is_file()
    assert not exported.exists()
    predicted = " ".join(capsys.readouterr().err.split())
    assert "copies of its exports (openvino) keep the old threshold" in predicted
    assert read_training_stats(run) is not None, "measured with the new calibration"
    assert after.test_evaluations == before.test_evaluations


def test_same_threshold_deletes_nothing(run: Path) -> None:
    evaluate(run, "--threshold-metric", "balanced_accuracy")
    evaluate(run, "--split", "val", "--threshold-metric", "balanced_accuracy")
    assert (run / "report.html").is_file()
    assert {row["split"] for row in read_predictions(run / "predictions.csv")} == {"test", "val"}


def test_another_threshold_keeps_the_abstain_band_around_it(run: Path) -> None:
    evaluate(run, "--split", "val", "--abstain", "0.2")
    first = load_card(run).calibration
    evaluate(run, "--split", "val", "--threshold-metric", "recall:distracted=0.95")
    second = load_card(run).calibration
    assert first.abstain is not None
    assert second.abstain is not None
    assert second.threshold != first.threshold
    assert second.abstain[0] < second.threshold < second.abstain[1]


def test_finetune_without_new_weights_keeps_the_calibration_subjects(run: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "new.zarr", signal=0.4, clip_prefix="n", shift=1.2)
    assert main(["calibrate", "--run", str(run), "--store", str(tmp_path / "new.zarr")]) == 0
    card = load_card(run)
    kept = replace(card, stages=(*card.stages, {"stage": "finetune", "kept": False}))
    tuned = replace(card, stages=(*card.stages, {"stage": "finetune", "kept": True}))
    assert calibration_stage(kept) == card.stages[-1]
    assert "subjects of new.zarr" in calibration_intro(kept)
    assert calibration_stage(tuned) is None
    save_card(run, kept)
    evaluate(run, "--store", str(tmp_path / "new.zarr"))
    evaluated = read_predictions(run / "cross" / "new" / "predictions.csv")
    assert 0 < len(evaluated) < FeatureStore.open(tmp_path / "new.zarr").num_clips


def test_calibration_of_old_weights_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is fine-tuned while its old logits are computed: nothing of the run is changed."""
    make_store(tmp_path / "new.zarr", signal=0.4, clip_prefix="n", shift=1.2)
    (run / "report.html").write_text("of the new weights", encoding="utf-8")

    def predict_slowly(*args: Any) -> Any:
        found = predict_rows(*args)
        card = load_card(run)
        save_card(run, replace(card, stages=(*card.stages, {"stage": "finetune", "kept": True})))
        return found

    monkeypatch.setattr("seqmodel.commands.calibrate.predict_rows", predict_slowly)
    before = load_card(run)
    assert main(["calibrate", "--run", str(run), "--store", str(tmp_path / "new.zarr")]) == 2
    assert "was changed by another command" in " ".join(capsys.readouterr().err.split())
    assert load_card(run).calibration == before.calibration
    assert (run / "report.html").is_file()
    assert not (run / "calibrated_on.csv").exists()


def test_new_head_deletes_reports_of_the_old_one(run: Path) -> None:
    evaluate(run, "--split", "val")
    (run / "compare.json").write_text("{}", encoding="utf-8")
    drop_results(run)
    assert not list(run.rglob("*.html"))
    assert not (run / "compare.json").exists()
