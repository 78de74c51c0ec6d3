"""Run directories: read equals written, writes are atomic, and no file is a pickle."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from features.labels import Labelling
from features.recipe import EncoderId, Pixels, Recipe
from seqmodel.config import HeadConfig, MemberConfig, TrainConfig
from seqmodel.metrics.calibration import Calibration
from seqmodel.runs.card import Card, load_card, save_card
from seqmodel.runs.files import (
    append_log,
    keep_first_fold,
    keep_model_file,
    load_folds,
    load_split,
    load_weights,
    read_log,
    require_free,
    save_split,
    save_weights,
    write_text,
)
from seqmodel.runs.settings import load_settings, save_settings

CARD = Card(
    recipe=Recipe(Pixels(("a" * 64,)), EncoderId("mobilenet_v3_large", "random:0", "b" * 64, 960)),
    labelling=Labelling("label", ("산만", "집중"), (("산만", "졸음"), ("집중",)), "binary"),
    members=(
        MemberConfig("embeddings", HeadConfig(hidden=24, components=8), TrainConfig(epochs=3)),
        MemberConfig("geometry", HeadConfig(kind="trees", components=0)),
    ),
    num_folds=5,
    member_scores=(0.8, 0.7),
    dims={"embeddings": 960, "geometry": 62},
    store="demo/demo.zarr",
    store_fingerprint="0123456789ab",
    split_description="official",
    split_hash="ffff",
    seed=7,
    metric="auroc",
    training_class_frequencies=(0.5, 0.5),
    calibration=Calibration(temperature=1.5, abstain=(0.4, 0.6)),
    stages=({"stage": 1, "val": 0.9, "kept": True},),
    test_evaluations=("2026-01-01T00:00:00Z",),
)


def test_saved_and_loaded_card_is_equal(tmp_path: Path) -> None:
    """Saved and loaded == same, Hangul and tuples included."""
    run = tmp_path / "내 실행"
    run.mkdir()
    save_card(run, CARD)
    assert load_card(run) == CARD
    assert not list(run.glob("*.tmp"))


@pytest.mark.parametrize(
    ("task", "classes", "outputs"), [("binary", 2, 1), ("multiclass", 3, 3), ("ordinal", 4, 3)]
)
def test_number_of_outputs_follows_the_task(task: str, classes: int, outputs: int) -> None:
    """One logit, C logits, C − 1 logits."""
    names = tuple(str(k) for k in range(classes))
    labelling = Labelling("label", names, tuple((name,) for name in names), task)  # type: ignore[arg-type]
    assert dataclasses.replace(CARD, labelling=labelling).num_outputs == outputs


def test_weights_are_loaded_by_part_from_any_path(tmp_path: Path) -> None:
    """Head and encoder separately; Hangul and spaces in the path."""
    run = tmp_path / "실행 1"
    run.mkdir()
    head, encoder = {"lstm.w": torch.randn(3, 2)}, {"conv.w": torch.randn(4)}
    save_weights(run, head)
    assert set(load_weights(run)) == {"head"}
    save_weights(run, head, encoder)
    parts = load_weights(run)
    assert torch.equal(parts["head"]["lstm.w"], head["lstm.w"])
    assert torch.equal(parts["encoder"]["conv.w"], encoder["conv.w"])


def test_split_and_model_files_move_along(tmp_path: Path) -> None:
    """split.csv, with the folds of the clips that some head has not seen, and the detector file are part of
    the directory."""
    clips = ["a,b.mp4#0", "c.mp4#0", "라.mp4#0", "e.mp4#0"]
    folds = {"a,b.mp4#0": 3, "라.mp4#0": 0}
    save_split(tmp_path, clips, ["s 1", "", "s 2", "s 3"], ["train", "test", "val", "train"], folds)
    expected = {"a,b.mp4#0": ("s 1", "train"), "c.mp4#0": ("", "test"), "라.mp4#0": ("s 2", "val")}
    assert load_split(tmp_path) == expected | {"e.mp4#0": ("s 3", "train")}
    assert load_folds(tmp_path) == folds
    keep_first_fold(tmp_path)
    assert load_split(tmp_path) == expected | {"e.mp4#0": ("s 3", "train")}
    assert load_folds(tmp_path) == {"라.mp4#0": 0}
    source = tmp_path / "model"
    source.write_bytes(b"bytes")
    keep_model_file(tmp_path, source, "face.tflite")
    assert (tmp_path / "detector" / "face.tflite").read_bytes() == b"bytes"


def test_a_log_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    """The lines before it are kept."""
    append_log(tmp_path, {"epoch": 1})
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epo')
    assert read_log(tmp_path) == [{"epoch": 1}]


@pytest.mark.parametrize("content", [None, "{", "{}", '{"schema": 1}', '{"schema": 3}', '{"schema": 4}'])
def test_invalid_run_gives_a_clear_error(tmp_path: Path, content: str | None) -> None:
    """A missing card, a truncated one and one of another program raise ValueError."""
    if content is not None:
        (tmp_path / "card.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"not a finished run|cannot be read|schema"):
        load_card(tmp_path)


@pytest.mark.parametrize("made", ["card.json", "weights.safetensors", "split.csv", "study.log", ".DS_Store"])
def test_run_may_replace_a_run_or_fill_an_empty_folder(tmp_path: Path, made: str) -> None:
    """Also a run whose search or writing was interrupted."""
    require_free(tmp_path / "new")
    (tmp_path / made).touch()
    require_free(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [made], "checking does not create the folder"


def test_run_is_not_written_into_a_folder_with_other_files(tmp_path: Path) -> None:
    """For example a data set with split folders: a run would delete `train` and `val` in it."""
    (tmp_path / "data" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"data has other files \(train, …\) and no run"):
        require_free(tmp_path / "data")
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "zarr.json").touch()
    with pytest.raises(ValueError, match="is a store"):
        require_free(tmp_path / "s.zarr")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is a file"):
        require_free(tmp_path / "notes.txt")


def test_text_is_not_written_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        write_text(tmp_path / "page.html", "")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_missing_weights_give_a_clear_error(tmp_path: Path) -> None:
    """A run without a checkpoint names the missing file."""
    with pytest.raises(ValueError, match=r"no checkpoint: weights\.safetensors"):
        load_weights(tmp_path)


def test_without_a_split_no_clip_has_a_fold(tmp_path: Path) -> None:
    assert load_folds(tmp_path) == {}


def test_settings_are_read_as_written_and_default_to_the_members(tmp_path: Path) -> None:
    assert load_settings(tmp_path, CARD) == CARD.members
    save_settings(tmp_path, CARD.members[::-1])
    assert load_settings(tmp_path, CARD) == CARD.members[::-1]
    save_settings(tmp_path, ())
    assert not (tmp_path / "settings.json").exists()


def test_card_is_plain_json(tmp_path: Path) -> None:
    """Readable without this program."""
    save_card(tmp_path, CARD)
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))["labelling"]["names"] == [
        "산만",
        "집중",
    ]
