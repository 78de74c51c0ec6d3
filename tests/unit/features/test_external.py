"""Import of geometry from other programs: a store whose only stream is the geometry."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from extract.face.geometry import FEATURES
from features.__main__ import main
from features.maintenance.import_external import read_sequences
from features.maintenance.verify import verify_store
from features.store.store import FeatureStore
from seqmodel.__main__ import main as seqmodel
from seqmodel.config import LabelArgs
from seqmodel.runs.card import load_card
from seqmodel.training.task import build_task

pytestmark = pytest.mark.usefixtures("no_figures")

NAMES = (*FEATURES[:52], "yaw_rad")
SUBJECTS, EACH = 10, 8


def write_npz(path: Path, feature_names: tuple[str, ...] = NAMES) -> np.ndarray:
    """Write one-frame clips whose eye closure separates the classes, and one clip without a face; returns x
    (N,1,D)."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=SUBJECTS * EACH)
    x = rng.normal(size=(len(y), 1, len(NAMES))).astype(np.float32)
    x[:, 0, NAMES.index("eyeBlinkLeft")] += 3 * y
    x[5] = np.nan
    arrays = {"feature_names": np.array(feature_names)} if feature_names else {}
    np.savez(path, x=x, y=y, subject=np.repeat(np.arange(SUBJECTS), EACH), **arrays)
    return x


def test_landmarker_feature_names_make_a_geometry_store(tmp_path: Path) -> None:
    x = write_npz(tmp_path / "f.npz")
    assert main(["import", str(tmp_path / "f.npz"), "--out", str(tmp_path / "s.zarr"), "--name", "mp"]) == 0
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.streams == ("geometry",)
    assert store.recipe.geometry is not None
    assert store.recipe.geometry.features == NAMES
    values, valid = store.read_stream("geometry")
    assert np.flatnonzero(~valid[:, 0]).tolist() == [5]
    np.testing.assert_array_equal(values[valid], x[valid])
    assert verify_store(store) == []
    assert store.pack()
    np.testing.assert_array_equal(FeatureStore.open(store.path).read_stream("geometry")[0], values)
    assert build_task(store.path, LabelArgs()).dims == {"geometry": len(NAMES)}
    assert main(["info", str(store.path)]) == 0
    assert main(["verify", str(store.path)]) == 0


def test_other_feature_names_stay_embeddings_unless_requested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tuple(f"au{k}" for k in range(len(NAMES)))
    write_npz(tmp_path / "f.npz", others)
    argv = ["import", str(tmp_path / "f.npz"), "--name", "own", "--out"]
    assert main([*argv, str(tmp_path / "e.zarr")]) == 0
    assert FeatureStore.open(tmp_path / "e.zarr").streams == ("embeddings",)
    assert main([*argv, str(tmp_path / "g.zarr"), "--stream", "geometry"]) == 0
    assert FeatureStore.open(tmp_path / "g.zarr").streams == ("geometry",)
    write_npz(tmp_path / "f.npz", ())
    assert main([*argv, str(tmp_path / "n.zarr"), "--stream", "geometry"]) == 2
    assert "an .npz with feature_names" in " ".join(capsys.readouterr().err.split())
    write_npz(tmp_path / "f.npz", NAMES[:3])
    assert main([*argv, str(tmp_path / "n.zarr")]) == 2
    assert "3 feature_names for 53 features" in " ".join(capsys.readouterr().err.split())


def test_head_on_imported_geometry_is_trained_evaluated_and_explained(tmp_path: Path) -> None:
    write_npz(tmp_path / "f.npz")
    assert main(["import", str(tmp_path / "f.npz"), "--out", str(tmp_path / "s.zarr"), "--name", "mp"]) == 0
    run = tmp_path / "run"
    assert seqmodel(["train", "--store", str(tmp_path / "s.zarr"), "--run", str(run), "--lr", "1e-2"]) == 0
    assert load_card(run).dims == {"geometry": len(NAMES)}
    assert seqmodel(["evaluate", "--run", str(run), "--bootstrap-rounds", "50"]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "The most important group is eyes." in page
    assert "Logistic regression, geometry" in page
    assert "Logistic regression, embeddings" not in page


def test_clips_without_ids_get_different_ids_in_two_files(tmp_path: Path) -> None:
    """A file with more clips than before keeps the ids of the old clips."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4, 3)), np.tile([0, 1], 3)

    def names(file: str, values: np.ndarray, labels: np.ndarray) -> list[str]:
        np.savez(tmp_path / file, x=values, y=labels)
        return [clip.clip_id for clip in read_sequences(tmp_path / file).clips]

    first = names("may.npz", x, y)
    assert len(set(first)) == 6
    assert not set(first) & set(names("june.npz", x[::-1], y))
    assert names("both.npz", np.concatenate([x, x]), np.tile(y, 2))[:6] == first


def test_start_or_end_time_is_a_listed_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part of a file is not imported as the whole file. If every line has times, the error gives the
    reason."""
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.ones((4, 3), np.float32))
    file = tmp_path / "labels.csv"
    lines = ("a.npy,x,0,", "b.npy,x,0,10", "b.npy,y,10,20", "b.npy,y,20,")
    file.write_text("path,label,start_s,end_s\n" + "\n".join(lines), encoding="utf-8")
    argv = ["import", str(file), "--name", "own", "--out", str(tmp_path / "s.zarr")]
    assert main(argv) == 1
    assert "start_s and end_s are not supported here: use one feature file per clip" in " ".join(
        capsys.readouterr().err.split()
    )
    assert FeatureStore.open(tmp_path / "s.zarr").table().clip_id.tolist() == ["a.npy#0"]
    assert [problem.clip_id for problem in read_sequences(file).problems] == [
        "b.npy#0",
        "b.npy#10000",
        "b.npy#20000",
    ]
    file.write_text("path,label,start_s,end_s\n" + "\n".join(lines[1:]), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"has no usable clip: b\.npy#0: start_s and end_s are not supported here"
    ):
        read_sequences(file)


X, Y = np.ones((4, 2, 3), np.float32), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X + 1j}, "x has dtype complex64, expected numbers"),
        ({"y": Y[:, None]}, r"y has shape \(4, 1\) and dtype int64, expected \(N,\)"),
        ({"y": Y.astype("M8[s]")}, r"y has shape \(4,\) and dtype datetime64"),
        ({"y": np.array([b"a", b"b", b"a", b"\xe9"])}, "y is not UTF-8"),
        ({"label_names": np.array("engaged")}, r"label_names has shape \(\), expected one dimension"),
        ({"length": np.array([1.5, 1, 1, 1])}, "length must be whole numbers"),
        ({"length": np.array(["1"] * 4)}, "length must be whole numbers"),
    ],
)
def test_unusable_arrays_raise(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "f.npz", **({"x": X, "y": Y} | arrays))
    with pytest.raises(ValueError, match=message):
        read_sequences(tmp_path / "f.npz")


def test_names_may_be_saved_as_bytes_and_lengths_as_floats(tmp_path: Path) -> None:
    arrays = {"y": np.array(["집중", "딴짓"] * 2), "subject": np.array(["가", "나"] * 2)}
    np.savez(tmp_path / "text.npz", x=X.reshape(8, 3), length=np.full(4, 2), **arrays)
    coded = {key: np.char.encode(array, "utf-8") for key, array in arrays.items()}
    np.savez(tmp_path / "bytes.npz", x=X.reshape(8, 3), length=np.full(4, 2.0), **coded)
    one, other = (read_sequences(tmp_path / name) for name in ("text.npz", "bytes.npz"))
    assert [clip.labels for clip in one.clips] == [clip.labels for clip in other.clips]
    assert [clip.subject for clip in other.clips] == ["가", "나"] * 2
    assert [len(values) for values in other.values] == [2] * 4


def test_file_with_wrong_content_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the whole data set, or as the file of one clip among readable ones."""
    whole, one, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(whole, x=X, y=Y)
    np.savez_compressed(packed, x=np.random.default_rng(0).normal(size=(4, 2, 300)), y=Y)
    np.save(one, X[0])
    damaged = bytearray(packed.getvalue())
    damaged[1000:1100] = bytes(100)
    texts = io.BytesIO()
    with zipfile.ZipFile(texts, "w") as archive:
        archive.writestr("x", "1")
        archive.writestr("y", "1")
    contents = (whole.getvalue()[:-40], b"", bytes(damaged), texts.getvalue(), b"PK\x03\x04")
    for content in (*contents, one.getvalue()):
        (tmp_path / "f.npz").write_bytes(content)
        assert main(["import", str(tmp_path / "f.npz"), "--name", "own", "--out", str(tmp_path / "s")]) == 2
        assert "Traceback" not in capsys.readouterr().err
    np.save(tmp_path / "good.npy", X[0])
    (tmp_path / "labels.csv").write_text("path,label\ngood.npy,x\nbad.npy,y\n", encoding="utf-8")
    for content in (*contents, whole.getvalue()):
        (tmp_path / "bad.npy").write_bytes(content)
        sequences = read_sequences(tmp_path / "labels.csv")
        assert [clip.path.name for clip in sequences.clips] == ["good.npy"]
        assert [problem.clip_id for problem in sequences.problems] == ["bad.npy#0"]
