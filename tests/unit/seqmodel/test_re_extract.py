"""A store of a fine-tuned encoder lists the encoder's training subjects, and none of them is held out."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from features.maintenance.verify import verify_store
from features.manifest import Clip
from features.store.data_statement import DataStatement
from features.store.schema import write_column
from features.store.store import FeatureStore, delete, plan
from seqmodel.__main__ import main
from seqmodel.commands.train import train
from seqmodel.config import HeadConfig, LabelArgs, TrainArgs, TrainConfig
from seqmodel.finetuning.reextract import re_extract
from seqmodel.runs.card import load_card, save_card
from seqmodel.training.task import build_task, encoder_leak_warning
from tests.support.crop_store import write_crop_store
from tests.support.small_store import WITH_GEOMETRY, clips_of, fill_row, write_store
from tests.support.trained_run import RECIPE, make_run, make_store

pytestmark = pytest.mark.usefixtures("no_figures", "converted_once")

LABELS = LabelArgs(labels="distracted,engaged")
SUBSETS = {"subject p0": "train", "subject p1": "train", "subject p2": "val", "subject p3": "test"}


def tuned_store(path: Path, subsets: dict[str, str]) -> FeatureStore:
    """64 clips of four subjects, with embeddings of a fine-tuned encoder."""
    encoder = dataclasses.replace(WITH_GEOMETRY.encoder, weights="finetuned:first")
    store = plan(path, clips_of(64), dataclasses.replace(WITH_GEOMETRY, encoder=encoder), numerics={})
    for row in range(64):
        fill_row(store, row)
    store.carry_over([], subsets)
    return store


def subjects_of(store: FeatureStore, rows: np.ndarray) -> set[str]:
    return set(store.table().subject[rows].tolist())


def write_split(folder: Path, subset_of: dict[str, str]) -> Path:
    """Write only the split.csv of a run."""
    folder.mkdir()
    lines = [f"{k}#0,{subject},{subset}" for k, (subject, subset) in enumerate(subset_of.items())]
    (folder / "split.csv").write_text("clip_id,subject,split\n" + "\n".join(lines), encoding="utf-8")
    return folder


def test_re_extracted_store_keeps_encoder_subsets_and_test_log(tmp_path: Path) -> None:
    """A second re-extraction keeps the store's own log entries. A learning task on the store uses the split
    of the run that trained the encoder."""
    old = write_crop_store(tmp_path / "crops.zarr")
    # Else the splits in the manifest would already set the subsets.
    write_column(zarr.open_group(old.path, mode="r+"), "split", np.full(32, ""))
    run, out = tmp_path / "first", tmp_path / "tuned.zarr"
    head = HeadConfig(hidden=8)
    train(TrainArgs(Path(old.path), run, head=head, train=TrainConfig(epochs=1), seed=3, design="holdout"))
    card = load_card(run)
    encoder = dataclasses.replace(card.recipe.encoder, weights="finetuned:first")
    save_card(run, dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, encoder=encoder)))
    old.record_test_evaluation("first")
    statement = DataStatement(name="crops")
    plan(old.path, [], old.recipe, numerics={}, listing_complete=False, data_statement=statement)
    re_extract(run, Path(old.path), out)
    new = FeatureStore.open(out)
    assert new.data_statement == statement
    assert new.test_evaluations == old.test_evaluations
    assert len(new.test_evaluations) == 1
    assert verify_store(new) == []
    expected = build_task(out, LABELS, splits_from=run).split
    named = {
        f"subject {subject}": subset
        for subset, rows in expected.subsets().items()
        for subject in subjects_of(new, rows)
    }
    assert new.encoder_subsets == named
    for seed in (0, 1, 2):
        actual = build_task(out, LABELS, seed=seed).split
        for subset, rows in expected.subsets().items():
            assert actual.subsets()[subset].tolist() == rows.tolist()
        assert not actual.warnings
    new.record_test_evaluation("second")
    re_extract(run, Path(old.path), out)
    assert [entry["run"] for entry in FeatureStore.open(out).test_evaluations] == ["first", "second"]


def test_encoder_subsets_include_those_of_an_earlier_finetuning(tmp_path: Path) -> None:
    from seqmodel.finetuning.reextract import encoder_subsets

    store = tuned_store(tmp_path / "tuned.zarr", SUBSETS)
    subset_of = {"p1": "test", "p2": "train", "p3": "val"}
    clip_of = {clip.subject: clip.clip_id for clip in clips_of(4)}
    lines = [f"{clip_of[subject]},{subject},{subset}" for subject, subset in subset_of.items()]
    run = write_split(tmp_path / "second", {})
    (run / "split.csv").write_text("clip_id,subject,split\n" + "\n".join(lines), encoding="utf-8")
    wanted = {"subject p0": "train", "subject p1": "train", "subject p2": "train", "subject p3": "val"}
    assert encoder_subsets(run, store, store.table(), np.arange(64)) == wanted
    assert encoder_subsets(run, store, store.table(), np.array([1])) == {"subject p1": "train"}


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_subjects_keep_the_subset_of_the_encoders_training(tmp_path: Path, seed: int) -> None:
    store = tuned_store(tmp_path / "tuned.zarr", SUBSETS)
    split = build_task(store.path, LABELS, seed=seed).split
    found = {subset: subjects_of(store, rows) for subset, rows in split.subsets().items()}
    assert found == {"train": {"p0", "p1"}, "val": {"p2"}, "test": {"p3"}}
    assert "finetuned:first" in split.description


@pytest.mark.parametrize(
    ("subset_of", "subject"),
    [
        (
            {"p0": "test", "p1": "train", "p2": "val", "p3": "train"},
            r"subject p0 \(train for the encoder, test here\)",
        ),
        (
            {"p0": "train", "p1": "val", "p2": "train", "p3": "test"},
            r"subject p1 \(train for the encoder, val here\)",
        ),
        (
            {"p0": "train", "p1": "train", "p3": "val", "p2": "test"},
            r"subject p2 \(val for the encoder, test here\)",
        ),
    ],
)
def test_training_subjects_of_the_encoder_cannot_be_held_out(
    tmp_path: Path, subset_of: dict[str, str], subject: str
) -> None:
    """Neither in test nor in validation; heads that read geometry only are not restricted."""
    store, run = tuned_store(tmp_path / "tuned.zarr", SUBSETS), write_split(tmp_path / "other", subset_of)
    with pytest.raises(
        ValueError, match=rf"was trained or validated on subjects.*{subject}.*leave --splits-from out"
    ):
        build_task(store.path, LABELS, splits_from=run)
    assert build_task(store.path, LABELS, "geometry", splits_from=run).split.train.size
    inward = write_split(tmp_path / "inward", {"p0": "train", "p1": "train", "p2": "val", "p3": "test"})
    assert subjects_of(store, build_task(store.path, LABELS, splits_from=inward).split.test) == {"p3"}


def test_finetuned_store_without_encoder_subsets_gives_a_warning(tmp_path: Path) -> None:
    """Only if the store is from a fine-tuned encoder and --splits-from is not given."""
    store = tuned_store(tmp_path / "tuned.zarr", {})
    (text,) = build_task(store.path, LABELS).split.warnings
    assert "does not list its training subjects" in text
    assert not build_task(store.path, LABELS, "geometry").split.warnings
    run = write_split(tmp_path / "first", {"p0": "train", "p1": "train", "p2": "val", "p3": "test"})
    assert not build_task(store.path, LABELS, splits_from=run).split.warnings
    every_subject = np.array(list(SUBSETS))
    assert "may be too optimistic here" in encoder_leak_warning(store, every_subject)
    plain = write_store(tmp_path / "plain.zarr", 64)
    assert not build_task(plain.path, LABELS).split.warnings
    assert encoder_leak_warning(plain, every_subject) == ""


def test_leak_warning_counts_the_encoders_subjects(tmp_path: Path) -> None:
    store = tuned_store(tmp_path / "tuned.zarr", SUBSETS)
    assert "3 of the 4 held-out subjects" in encoder_leak_warning(store, np.array([*SUBSETS, *SUBSETS]))
    assert encoder_leak_warning(store, np.array(["subject p3", "subject p9"])) == ""


def test_evaluate_with_folds_warns_about_encoder_leakage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "s.zarr", num_subjects=6, clips_each=4, broken=False, recipe=RECIPE)
    make_run(tmp_path / "run", store, epochs=1)
    store.carry_over([], {"subject 사람00": "train", "subject 사람01": "val", "subject 사람02": "test"})
    argv = ["evaluate", "--run", str(tmp_path / "run"), "--folds", "3", "--bootstrap-rounds", "50", "--json"]
    assert main(argv) == 0
    warning = "metrics of folds are too optimistic here"
    summary = json.loads(capsys.readouterr().out)
    assert warning in summary["warnings"][0]
    assert "2 of the 6 held-out subjects" in summary["warnings"][0]
    for page in ("report.html", "MODEL_CARD.md"):
        assert warning in (tmp_path / "run/folds-3" / page).read_text(encoding="utf-8")


def renamed(clips: list[Clip], names: dict[str, str]) -> list[Clip]:
    return [dataclasses.replace(clip, subject=names.get(clip.subject, clip.subject)) for clip in clips]


def test_encoder_subsets_follow_renamed_and_deleted_subjects(
    tmp_path: Path,
) -> None:
    """A subject that is merged with a training subject counts as a training subject."""
    store = tuned_store(tmp_path / "tuned.zarr", SUBSETS)
    corrected = renamed(clips_of(64), {"p0": "박", "p3": "p2"})
    store = plan(store.path, corrected, store.recipe, numerics={})
    assert store.encoder_subsets == {"subject 박": "train", "subject p1": "train", "subject p2": "val"}
    assert verify_store(store) == []
    nameless = [dataclasses.replace(clip, subject="") for clip in clips_of(64)]
    other = plan(tmp_path / "nameless.zarr", nameless, WITH_GEOMETRY, numerics={})
    other.carry_over([], {"video 영상/5.mp4": "train"})
    other = plan(other.path, clips_of(64), WITH_GEOMETRY, numerics={})
    assert other.encoder_subsets == {"subject p1": "train"}
    delete(store.path, "박")
    assert FeatureStore.open(store.path).encoder_subsets == {"subject p1": "train", "subject p2": "val"}
    assert "박" not in (Path(store.path) / "zarr.json").read_text(encoding="utf-8")
    assert verify_store(FeatureStore.open(store.path)) == []
