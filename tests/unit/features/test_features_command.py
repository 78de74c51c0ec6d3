"""python -m features: what it prints, and its exit codes."""

import io
import json
import os
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.__main__ import main
from features.datasets import load_samples
from features.labels import make_labelling
from features.maintenance.import_external import read_sequences
from features.maintenance.verify import verify_store
from features.store.rows import DAMAGED
from features.store.store import FeatureStore, Part, plan
from tests.support.small_store import RECIPE, WITH_GEOMETRY, clips_of, fill_row, row_values, write_store
from tests.support.stores import all_files, require_equal_stores


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[dict, int]:  # type: ignore[type-arg]
    """The one JSON object on stdout, and the exit code."""
    capsys.readouterr()
    code = main([*argv, "--json"])
    return json.loads(capsys.readouterr().out), code


def test_info_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clips, subjects, labels, face rate and failures, as JSON and as text."""
    path = tmp_path / "가.zarr"
    store = write_store(path, 8)
    store.write_failure(3, "x")
    summary, code = run_json(capsys, "info", str(path))
    assert code == 0
    assert (summary["clips"], summary["done"], summary["subjects"], summary["videos"]) == (8, 8, 4, 8)
    assert summary["labels"]["label"] == {"all": {"distracted": 4, "engaged": 4}}
    assert summary["face_rate"] == pytest.approx(5 / 6)
    assert summary["failures"] == [{"clip_id": "영상/3.mp4#0", "reason": "x"}]
    assert main(["info", str(path)]) == 0
    assert "8 clips of 8 videos and 4 subjects" in capsys.readouterr().err


def test_info_shows_levels_by_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if a later plan added the lower levels."""
    path = tmp_path / "s.zarr"
    clips = [replace(clip, labels={"level": level}) for clip, level in zip(clips_of(3), "210", strict=True)]
    for count in (1, 3):
        plan(path, clips[:count], RECIPE, numerics={})
    assert run_json(capsys, "info", str(path))[0]["label_names"]["level"] == ["2", "0", "1"]
    assert main(["info", str(path)]) == 0
    (heading,) = (line for line in capsys.readouterr().err.splitlines() if "split" in line)
    assert heading.index("0") < heading.index("1") < heading.index("2")


def test_info_counts_labels_by_split_and_prints_numerics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numerics of later extractions too, if they differ, and the command to compare embeddings."""
    path = tmp_path / "a store.zarr"
    splits = ("train", "train", "val", "test")
    clips = [replace(clip, split=splits[i]) for i, clip in enumerate(clips_of(4))]
    plan(path, clips, RECIPE, numerics={"backend": "openvino", "precision": "f32"})
    plan(path, clips, RECIPE, numerics={"backend": "openvino", "precision": "bf16"})
    summary, _ = run_json(capsys, "info", str(path))
    assert summary["labels"]["level"] == {
        "train": {"0": 1, "1": 1},
        "val": {"2": 1},
        "test": {"0": 1},
    }
    assert summary["splits"] == {"train": 2, "val": 1, "test": 1}
    assert [numerics["precision"] for numerics in summary["numerics"]] == ["f32", "bf16"]
    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().err
    assert "computed with: backend openvino, precision f32" in shown
    assert "some rows were computed with: precision bf16\n" in shown
    assert f"--out '{path}' --verify-sample" in shown


def test_verify_names_inconsistent_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that is not finite, a wrong state, a face without a crop."""
    path = tmp_path / "s.zarr"
    store = write_store(path, 4, crops=True)
    values = row_values(0)
    values["embeddings"][0, 0] = np.nan
    store.array("embeddings")[0] = values["embeddings"]
    (path / "frames" / "c.1.0.0").unlink()
    store.rows.write_bytes("crops", 2, [b""])
    summary, code = run_json(capsys, "verify", str(path))
    assert code == 1
    reasons = {item["clip_id"]: item["reason"] for item in summary["problems"]}
    assert reasons["영상/0.mp4#0"] == "an embedding of a valid frame is not finite"
    assert reasons["영상/1.mp4#0"] == "state is done, but its frames are missing"
    assert reasons["영상/2.mp4#0"] == "5 frames with a crop but no face, or the reverse"
    assert "영상/3.mp4#0" not in reasons


def test_verify_and_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 if everything is correct, 1 if something is broken."""
    path = tmp_path / "s.zarr"
    write_store(path, 4)
    assert run_json(capsys, "pack", str(path)) == ({"store": str(path), "clips": 4, "packed": True}, 0)
    assert run_json(capsys, "pack", str(path))[0]["packed"] is False
    whole = {"store": str(path), "clips": 4, "problems": [], "repaired": 0, "near_duplicates": []}
    assert run_json(capsys, "verify", str(path)) == (whole, 0)
    chunk = path / "frames" / "c.2.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
    summary, code = run_json(capsys, "verify", str(path))
    assert code == 1
    assert [item["clip_id"] for item in summary["problems"]] == ["영상/2.mp4#0"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("chunk", "missing"),
    [
        ("embeddings/c.1.0.0", "embeddings"),
        ("frames/c.1.0.0", "embeddings"),
        ("geometry/c.1.0.0", "geometry"),
        ("crops/c.1.0", "crops"),
    ],
)
def test_truncated_chunk_is_repaired_and_extracted_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], chunk: str, missing: Part
) -> None:
    """Only that part of that clip; then the store equals the undisturbed one."""
    path = tmp_path / "s.zarr"
    write_store(path, 3, crops=True)
    write_store(tmp_path / "whole.zarr", 3, crops=True)
    truncate(path / chunk)
    assert main(["verify", str(path)]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert f"영상/1.mp4#0: {chunk.partition('/')[0]}: {chunk} does not match its checksum" in shown
    assert f"to repair: python -m features verify {path} --repair" in shown
    assert run_json(capsys, "verify", str(path), "--repair")[1] == 0
    store = plan(path, clips_of(3), WITH_GEOMETRY, numerics={"backend": "test"}, crops=True)
    assert {part: store.missing(part).tolist() for part in store.parts if len(store.missing(part))} == {
        missing: [1]
    }
    fill_row(store, 1, crops=True)
    store.finalize()
    require_equal_stores(path, tmp_path / "whole.zarr")


def test_damaged_failure_reason_stops_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The clip still counts as failed, until a repair deletes the reason."""
    path = tmp_path / "s.zarr"
    store = plan(path, clips_of(2), RECIPE, numerics={})
    store.write_failure(1, "사유")
    truncate(path / "failure" / "c.1")
    (failure,) = run_json(capsys, "info", str(path))[0]["failures"]
    assert failure == {"clip_id": "영상/1.mp4#0", "reason": DAMAGED}
    summary, code = run_json(capsys, "verify", str(path))
    assert (code, summary["problems"][0]["reason"]) == (1, f"failure: {DAMAGED}")
    assert run_json(capsys, "verify", str(path), "--repair")[1] == 0
    assert plan(path, clips_of(2), RECIPE, numerics={}).missing().tolist() == [0, 1]


def test_truncated_packed_copy_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By pack; and deleted by a repair."""
    path = tmp_path / "s.zarr"
    store = write_store(path, 3)
    store.pack()
    (copy,) = (path / "packed").glob("embeddings-*/x.npy")
    whole = copy.read_bytes()
    truncate(copy)
    assert FeatureStore.open(path).read_stream("embeddings")[1].sum() == 3 * 5
    assert FeatureStore.open(path).pack()
    assert copy.read_bytes() == whole
    truncate(copy)
    assert run_json(capsys, "verify", str(path), "--repair")[0]["repaired"] == 1
    assert verify_store(FeatureStore.open(path)) == []


def test_damaged_imported_features_must_be_imported_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every clip of the damaged chunk is named; the repair changes nothing."""
    file, path = import_npz(tmp_path, x=np.ones((3, 4, 2)), y=np.zeros(3)), tmp_path / "o.zarr"
    assert main(["import", str(file), "--out", str(path), "--name", "mine"]) == 0
    truncate(path / "embeddings" / "c.0.0.0")
    before = all_files(path)
    summary, code = run_json(capsys, "verify", str(path), "--repair")
    assert (code, summary["repaired"]) == (1, 0)
    assert [item["clip_id"] for item in summary["problems"]] == FeatureStore.open(
        path
    ).table().clip_id.tolist()
    assert main(["verify", str(path)]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert f"not repairable: python -m features delete {path} --all, then import these clips again" in shown
    assert "to repair" not in shown
    assert all_files(path) == before


def test_label_corrects_without_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 if the clip of a line is not in the store."""
    path = tmp_path / "s.zarr"
    write_store(path, 4)
    manifest = tmp_path / "corrected.csv"
    manifest.write_text(
        "path,label,subject\n영상/0.mp4,sleepy,new\n영상/9.mp4,sleepy,new\n", encoding="utf-8"
    )
    summary, code = run_json(capsys, "label", str(path), str(manifest))
    assert code == 1
    assert summary["corrected"] == ["영상/0.mp4#0"]
    assert len(summary["unnamed"]) == 3
    assert [item["clip_id"] for item in summary["problems"]] == ["영상/9.mp4#0"]
    table = FeatureStore.open(path).table()
    assert table.subject[0] == "new"
    assert table.label_names["label"][table.labels["label"][0]] == "sleepy"


def test_label_says_which_columns_it_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "s.zarr", 4)
    manifest = tmp_path / "corrected.csv"
    manifest.write_text("file,class\n영상/0.mp4,sleepy\n", encoding="utf-8")
    assert main(["label", str(tmp_path / "s.zarr"), str(manifest)]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "column 'file' is read as 'path'" in shown
    assert "column 'class' is read as 'label'" in shown
    table = FeatureStore.open(tmp_path / "s.zarr").table()
    assert table.label_names["label"][table.labels["label"][0]] == "sleepy"


def test_label_keeps_subjects_and_splits_without_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short list with corrected labels changes only the labels."""
    path = tmp_path / "s.zarr"
    plan(path, [replace(clip, split="test") for clip in clips_of(2)], RECIPE, numerics={})
    manifest = tmp_path / "fixes.csv"
    manifest.write_text("path,label\n영상/0.mp4,sleepy\n영상/1.mp4,distracted\n", encoding="utf-8")
    summary, code = run_json(capsys, "label", str(path), str(manifest))
    assert (code, summary["corrected"]) == (0, ["영상/0.mp4#0"])
    table = FeatureStore.open(path).table()
    assert table.subject.tolist() == ["p0", "p1"]
    assert table.split.tolist() == ["test", "test"]


@pytest.mark.parametrize("argv", [("info",), ("label", "fixes.csv"), ("delete", "--subject", "p0")])
def test_path_without_a_store_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("path,label\na.mp4,x\n", encoding="utf-8")
    (tmp_path / "fixes.csv").write_text("path,label\na.mp4,x\n", encoding="utf-8")
    word, *more = (str(tmp_path / part) if part.endswith(".csv") else part for part in argv)
    for name, message in (("none.zarr", "no store at"), ("file", "is a file, expected a folder")):
        assert main([word, str(tmp_path / name), *more]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "fixes.csv"]


def folder_of(root: Path, *names: str) -> Path:
    """A folder with these empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_label_reads_the_csv_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As extract does: the folders next to it need not be classes."""
    path = tmp_path / "s.zarr"
    write_store(path, 2)
    data = folder_of(tmp_path / "data", "영상/0.mp4", "영상/1.mp4")
    (data / "labels.csv").write_text(
        "path,label\n영상/0.mp4,sleepy\n영상/1.mp4,distracted\n", encoding="utf-8"
    )
    summary, code = run_json(capsys, "label", str(path), str(data))
    assert (code, summary["corrected"]) == (0, ["영상/0.mp4#0"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("영상/0.mp4", "영상/1.mp4"), "at least two folders named by class, found only '영상'"),
        (("Train/0.mp4", "Validation/1.mp4"), "at least two folders named by class, found none"),
        (
            ("DataSet/Train/11/a/a.avi", "Labels/TrainLabels.csv", "labels.csv"),
            "the layout of a known data set",
        ),
        (
            ("1.Training/원천데이터/a.mp4", "2.Validation/01.라벨링데이터/a-0.json"),
            "the layout of a known data set",
        ),
    ],
)
def test_label_refuses_folders_that_are_not_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], message: str
) -> None:
    """They would overwrite every label; nothing is written."""
    path = tmp_path / "s.zarr"
    before = write_store(path, 2).fingerprint()
    data = folder_of(tmp_path / "data", *names)
    assert main(["label", str(path), str(data)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown
    assert "use a manifest CSV, or extract again" in shown
    assert FeatureStore.open(path).fingerprint() == before


def test_label_corrects_subjects_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a CSV without a label column."""
    path = tmp_path / "s.zarr"
    write_store(path, 2)
    (tmp_path / "people.csv").write_text("path,subject\n영상/0.mp4,민수\n", encoding="utf-8")
    assert run_json(capsys, "label", str(path), str(tmp_path / "people.csv"))[1] == 0
    table = FeatureStore.open(path).table()
    assert table.subject.tolist() == ["민수", "p1"]
    assert (table.labels["label"] >= 0).all()


def test_delete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One subject, then the whole store."""
    path = tmp_path / "s.zarr"
    write_store(path, 8)
    assert run_json(capsys, "delete", str(path), "--subject", "p1")[0]["deleted"] == 2
    assert run_json(capsys, "info", str(path))[0]["deleted"] == 2
    assert run_json(capsys, "delete", str(path), "--all")[0]["deleted"] == 8
    assert not path.exists()


def test_delete_without_a_subject_name_deletes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`None` is a valid subject name, and '' is no subject: neither deletes the whole store."""
    path = tmp_path / "s.zarr"
    plan(path, [replace(clip, subject="None") for clip in clips_of(2)] + clips_of(4)[2:], RECIPE, numerics={})
    assert main(["delete", str(path), "--subject", ""]) == 2
    assert "no subject ''" in capsys.readouterr().err
    summary, code = run_json(capsys, "delete", str(path), "--subject", "None")
    assert (code, summary["subject"], summary["deleted"]) == (0, "None", 2)
    assert main(["delete", str(path), "--subject", "None"]) == 2
    assert FeatureStore.open(path).table().subject.tolist() == ["", "", "p2", "p3"]
    assert run_json(capsys, "delete", str(path), "--all")[0]["subject"] is None
    assert not path.exists()


def test_whole_store_is_not_deleted_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only with --all, and not together with --subject."""
    path = tmp_path / "s.zarr"
    write_store(path, 3)
    assert main(["delete", str(path)]) == 2
    assert "has 3 clips: --all deletes the whole store" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["delete", str(path), "--all", "--subject", "p1"])
    assert FeatureStore.open(path).table().subject.tolist() == ["p0", "p1", "p2"]


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_delete_asks_on_a_terminal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    code: int,
) -> None:
    """Enter, and the end of the input, mean no."""
    path = tmp_path / "s.zarr"
    write_store(path, 3)
    typed = io.StringIO(answer)
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", typed)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["delete", str(path)]) == code
    assert "with all 3 clips?" in capsys.readouterr().err
    assert path.exists() == (code == 1)


@pytest.mark.parametrize("word", ["info", "verify", "pack", "delete"])
def test_missing_store_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    """Exit code 2."""
    assert main([word, str(tmp_path / "none.zarr")]) == 2
    assert "error: no store at" in capsys.readouterr().err


def import_npz(folder: Path, **arrays: object) -> Path:
    """An .npz file."""
    file = folder / "features.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file


def test_import_npz_at_any_length_and_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, subjects, splits and slices are imported; missing numbers are masked; the order of labels is
    that of the file."""
    x = np.random.default_rng(0).normal(size=(6, 4, 5))
    x[1, 2, 3] = np.nan
    file = import_npz(
        tmp_path,
        x=x,
        y=np.array([0, 1, 2, 1, 0, -1]),
        length=np.array([4, 4, 1, 2, 3, 4]),
        subject=np.array([3, 3, 4, 4, 5, 5]),
        split=np.array(["train", "train", "validation", "val", "test", "test"]),
        label_names=np.array(["none", "some", "lots"]),
        grey=np.array([True, False] * 3),
    )
    out = tmp_path / "own.zarr"
    summary, code = run_json(capsys, "import", str(file), "--out", str(out), "--name", "mine")
    assert code == 0
    assert (summary["recipe"], summary["frames"], summary["masked_frames"]) == ("external:mine:5", 18, 1)
    store = FeatureStore.open(out)
    table = store.table()
    assert store.recipe.pixels is None
    assert table.label_names["label"] == ["none", "some", "lots"]
    assert table.labels["label"].tolist() == [0, 1, 2, 1, 0, -1]
    assert table.subject.tolist() == ["3", "3", "4", "4", "5", "5"]
    assert table.split.tolist() == ["train", "train", "val", "val", "test", "test"]
    assert table.slices["grey"].tolist() == ["True", "False"] * 3
    samples = load_samples(store, make_labelling(table.label_names["label"]), np.arange(5), "embeddings")
    assert samples.x["embeddings"].dtype == np.float32
    assert samples.valid["embeddings"].sum(1).tolist() == [4, 3, 1, 2, 3]
    assert np.array_equal(samples.x["embeddings"][3, :2], x[3, :2].astype(np.float32))
    assert (samples.x["embeddings"][3, 2:] == 0).all()
    assert verify_store(store) == []
    assert sorted(item.name for item in tmp_path.iterdir()) == ["features.npz", "own.zarr"]
    with pytest.raises(ValueError, match="imported features: single rows cannot be written"):
        fill_row(FeatureStore.open(out, "r+"), 0)


def test_padded_and_concatenated_arrays_are_equal(tmp_path: Path) -> None:
    """Padded with length, concatenated with length, and single frames."""

    padded = np.arange(24.0).reshape(3, 4, 2)
    length, y = np.array([4, 1, 2]), np.array(["a", "b", "a"])
    laid = np.concatenate([padded[index, :end] for index, end in enumerate(length)])
    one = read_sequences(import_npz(tmp_path, x=padded, y=y, length=length))
    other = read_sequences(import_npz(tmp_path, x=laid, y=y, length=length))
    for actual, expected in zip(one.values, other.values, strict=True):
        assert np.array_equal(actual, expected)
    frames = read_sequences(import_npz(tmp_path, x=padded[:, 0], y=y))
    assert [values.shape for values in frames.values] == [(1, 2)] * 3
    assert frames.clips[1].labels == {"label": "b"}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(2)}, "no array 'x'"),
        ({"x": np.zeros((2, 3, 4))}, "no array 'y'"),
        ({"x": np.zeros((2, 3, 4)), "y": np.zeros(3)}, r"x of shape \(2, 3, 4\) does not match 3 labels"),
        ({"x": np.zeros((7, 4)), "y": np.zeros(2), "length": np.array([3, 3])}, "a total length of 6 frames"),
        (
            {"x": np.zeros((2, 3, 4)), "y": np.zeros(2), "length": np.array([3, 9])},
            "length must be 0 to 3 .*got 3 to 9",
        ),
        ({"x": np.zeros((2, 3, 4)), "y": np.zeros(2), "subject": np.zeros(3)}, "subject has shape"),
        (
            {"x": np.zeros((2, 3, 4)), "y": np.array([0, 5]), "label_names": np.array(["a"])},
            "y has the value 5",
        ),
        ({"x": np.array([{}, {}]), "y": np.zeros(2)}, "not pickled objects"),
        ({"x": np.array(["a", "b"]), "y": np.zeros(2)}, "expected numbers"),
        ({"x": np.zeros((2, 3, 4)), "y": np.zeros(2), "split": np.array(["train", "blue"])}, "split 'blue'"),
    ],
)
def test_unusable_npz_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, np.ndarray], message: str
) -> None:
    """Exit code 2, and no store is left."""
    import re

    file = import_npz(tmp_path, **arrays)
    assert main(["import", str(file), "--out", str(tmp_path / "o.zarr"), "--name", "n"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [item.name for item in tmp_path.iterdir()] == ["features.npz"]


def test_import_csv_with_a_line_a_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any order of columns; an empty number masks its frame."""
    file = tmp_path / "frames.csv"
    file.write_text(
        "clip_id,au1,label,subject,au2\n가,0.5,x,s1,1\n가,,x,s1,2\n나,3,y,s2,4\n", encoding="utf-8-sig"
    )
    out = tmp_path / "o.zarr"
    summary, code = run_json(capsys, "import", str(file), "--out", str(out), "--name", "au")
    assert (code, summary["clips"], summary["masked_frames"]) == (0, 2, 1)
    store = FeatureStore.open(out)
    x, valid = store.read_stream("embeddings")
    assert x[:, 0].tolist() == [[0.5, 1], [3, 4]]
    assert valid.tolist() == [[True, False], [True, False]]
    assert store.table().clip_id.tolist() == ["가#0", "나#0"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("clip_id,label,AU1,AU1", "unique and not empty, got clip_id,label,AU1,AU1"),
        ("clip_id,label,Label,AU1", "unique and not empty, got clip_id,label,label,AU1"),
        (",clip_id,label,AU1", "unique and not empty, got ,clip_id,label,AU1"),
        ("clip,label,subject,AU1", "expected a column clip_id (one line per frame) or path"),
    ],
)
def test_import_refuses_an_ambiguous_header(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], header: str, message: str
) -> None:
    """With a one-line error."""
    file = tmp_path / "frames.csv"
    file.write_text(f"{header}\n1,2,3,4\n", encoding="utf-8")
    assert main(["import", str(file), "--out", str(tmp_path / "o.zarr"), "--name", "au"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_import_matches_clip_columns_case_insensitively(tmp_path: Path) -> None:
    """A subject's number is not a feature."""

    (tmp_path / "frames.csv").write_text(
        "Clip_ID; Subject ;LABEL;AU1;Split\n가;7;x;0.5;Train\n나;8;y;1;test\n", encoding="utf-8-sig"
    )
    sequences = read_sequences(tmp_path / "frames.csv")
    assert [values.tolist() for values in sequences.values] == [[[0.5]], [[1]]]
    assert [(clip.subject, clip.labels["label"], clip.split) for clip in sequences.clips] == [
        ("7", "x", "train"),
        ("8", "y", "test"),
    ]
    np.save(tmp_path / "a.npy", np.ones((4, 3)))
    (tmp_path / "clips.csv").write_text("Path,Label\na.npy,x\n", encoding="utf-8")
    assert read_sequences(tmp_path / "clips.csv").clips[0].labels == {"label": "x"}


def test_import_openface_files_by_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files as OpenFace writes them: spaces in the header, columns that are not features, success 0 for
    failed frames."""
    header = "frame, face_id, timestamp, confidence, success, AU01_r, AU02_r\n"
    (tmp_path / "a.csv").write_text(
        header + "1, 0, 0.0, 0.98, 1, 1.5, 2\n2, 0, 0.1, 0.1, 0, 0, 0\n", encoding="utf-8"
    )
    (tmp_path / "b.csv").write_text(header + "1, 0, 0.0, 0.98, 1, 3, 4\n", encoding="utf-8")
    (tmp_path / "c.csv").write_text("nothing\n", encoding="utf-8")
    manifest = tmp_path / "labels.csv"
    manifest.write_text("path,label,subject\na.csv,x,1\nb.csv,y,2\nc.csv,y,3\n", encoding="utf-8")
    summary, code = run_json(
        capsys, "import", str(manifest), "--out", str(tmp_path / "o.zarr"), "--name", "openface"
    )
    assert code == 1
    assert [item["clip_id"] for item in summary["problems"]] == ["c.csv#0"]
    x, valid = FeatureStore.open(tmp_path / "o.zarr").read_stream("embeddings")
    assert x[:, 0].tolist() == [[1.5, 2], [3, 4]]
    assert valid.tolist() == [[True, False], [True, False]]


def test_openface_file_of_two_faces_becomes_a_clip_per_face(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frame without a face is masked for that face, also where the program printed -nan(ind)."""
    header = "frame, face_id, timestamp, confidence, success, AU01_r\n"
    lines = "1, 0, 0.0, .98, 1, 1\n1, 1, 0.0, .9, 1, 10\n2, 0, 0.1, .1, 0, -nan(ind)\n3, 0, .2, .9, 1, 3\n"
    (tmp_path / "a.csv").write_text(header + lines + "3, 1, .2, .9, 1, 30\n", encoding="utf-8")
    (tmp_path / "labels.csv").write_text("path,label,subject\na.csv,x,1\n", encoding="utf-8")
    arguments = ("--out", str(tmp_path / "o.zarr"), "--name", "openface")
    summary, code = run_json(capsys, "import", str(tmp_path / "labels.csv"), *arguments)
    assert code == 0
    assert "a.csv#0 has 2 faces" in summary["notes"][0]
    store = FeatureStore.open(tmp_path / "o.zarr")
    assert store.table().clip_id.tolist() == ["a.csv#0@face0", "a.csv#0@face1"]
    assert store.table().source.tolist() == ["a.csv", "a.csv"]
    x, valid = store.read_stream("embeddings")
    assert valid.tolist() == [[True, False, True]] * 2
    assert x[valid].ravel().tolist() == [1, 3, 10, 30]


def test_several_faces_in_a_csv_of_all_clips_become_clips(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(
        "clip_id,face_id,label,a\nv,0,x,1\nv,1,x,10\nv,0,x,2\nw,0,y,5\n", encoding="utf-8"
    )
    sequences = read_sequences(tmp_path / "f.csv")
    assert [clip.clip_id for clip in sequences.clips] == ["v#0@face0", "v#0@face1", "w#0"]
    assert [np.isfinite(values[:, 0]).sum() for values in sequences.values] == [2, 1, 1]
    assert len(sequences.notes) == 1


@pytest.mark.parametrize("value", [1e30, -2e9])
def test_import_refuses_values_that_would_overflow(tmp_path: Path, value: float) -> None:
    x = np.zeros((3, 4, 2), np.float32)
    x[1, 2, 1] = value
    file = import_npz(tmp_path, x=x, y=np.zeros(3), feature_names=np.array(["a", "b"]))
    with pytest.raises(ValueError, match=r"clip 000001-\w+#0, frame 2: feature b is"):
        read_sequences(file)


def test_files_of_a_killed_import_are_deleted_later(tmp_path: Path) -> None:
    """The next import deletes files older than an hour; delete removes all; other stores keep their files."""
    file = import_npz(tmp_path, x=np.zeros((2, 3)), y=np.zeros(2))
    argv = ["import", str(file), "--out", str(tmp_path / "o.zarr"), "--name", "n"]

    def left(store: str, age_s: float) -> Path:
        """A temporary folder with a chunk of this age."""
        half = tmp_path / f"{store}.{uuid.uuid4().hex}.partial"
        for place in (folder_of(half, "embeddings/c.0.0.0") / "embeddings", half):
            os.utime(place, (time.time() - age_s,) * 2)
        return half

    old, alive, other = left("o.zarr", 4000), left("o.zarr", 3000), left("o.zarr.b", 4000)
    os.utime(alive, (0, 0))
    assert main(argv) == 0
    assert [half.exists() for half in (old, alive, other)] == [False, True, True]
    assert main(["delete", str(tmp_path / "o.zarr"), "--all"]) == 0
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([file.name, other.name])


def test_import_refuses_an_existing_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also a name with a colon."""
    file = import_npz(tmp_path, x=np.zeros((2, 3)), y=np.zeros(2))
    write_store(tmp_path / "o.zarr", 2)
    assert main(["import", str(file), "--out", str(tmp_path / "o.zarr"), "--name", "n"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["import", str(file), "--out", str(tmp_path / "p.zarr"), "--name", "a:b"]) == 2
