"""Geometry that something else measured becomes a store whose only stream is the geometry."""

from pathlib import Path

import numpy as np
import pytest

from extract.geometry import FEATURES
from features.__main__ import main
from features.external import read_sequences
from features.store import FeatureStore
from seqmodel.__main__ import main as seqmodel
from seqmodel.config import LabelArgs
from seqmodel.question import put_question
from seqmodel.run import load_card

NAMES = (*FEATURES[:52], "yaw_rad")
PEOPLE, EACH = 10, 8


def write_npz(path: Path, feature_names: tuple[str, ...] = NAMES) -> np.ndarray:
    """One-frame clips whose closed eyes tell the classes apart, and one without a face; returns x (N,1,D)."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=PEOPLE * EACH)
    x = rng.normal(size=(len(y), 1, len(NAMES))).astype(np.float32)
    x[:, 0, NAMES.index("eyeBlinkLeft")] += 3 * y
    x[5] = np.nan
    arrays = {"feature_names": np.array(feature_names)} if feature_names else {}
    np.savez(path, x=x, y=y, subject=np.repeat(np.arange(PEOPLE), EACH), **arrays)
    return x


def test_the_landmarkers_names_make_a_geometry_store(tmp_path: Path) -> None:
    x = write_npz(tmp_path / "f.npz")
    assert main(["import", str(tmp_path / "f.npz"), "--out", str(tmp_path / "s.zarr"), "--name", "mp"]) == 0
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.streams == ("geometry",)
    assert store.recipe.geometry is not None
    assert store.recipe.geometry.features == NAMES
    values, valid = store.read_stream("geometry")
    assert np.flatnonzero(~valid[:, 0]).tolist() == [5]
    np.testing.assert_array_equal(values[valid], x[valid])
    assert store.verify() == []
    assert store.pack()
    np.testing.assert_array_equal(FeatureStore.open(store.path).read_stream("geometry")[0], values)
    assert put_question(store.path, LabelArgs()).dims == {"geometry": len(NAMES)}
    assert main(["info", str(store.path)]) == 0
    assert main(["verify", str(store.path)]) == 0


def test_other_names_stay_embeddings_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = tuple(f"au{k}" for k in range(len(NAMES)))
    write_npz(tmp_path / "f.npz", others)
    words = ["import", str(tmp_path / "f.npz"), "--name", "own", "--out"]
    assert main([*words, str(tmp_path / "e.zarr")]) == 0
    assert FeatureStore.open(tmp_path / "e.zarr").streams == ("embeddings",)
    assert main([*words, str(tmp_path / "g.zarr"), "--stream", "geometry"]) == 0
    assert FeatureStore.open(tmp_path / "g.zarr").streams == ("geometry",)
    write_npz(tmp_path / "f.npz", ())
    assert main([*words, str(tmp_path / "n.zarr"), "--stream", "geometry"]) == 2
    assert "an .npz with feature_names" in " ".join(capsys.readouterr().err.split())
    write_npz(tmp_path / "f.npz", NAMES[:3])
    assert main([*words, str(tmp_path / "n.zarr")]) == 2
    assert "3 feature_names for 53 features" in " ".join(capsys.readouterr().err.split())


def test_a_head_on_imported_geometry_is_trained_judged_and_explained(tmp_path: Path) -> None:
    write_npz(tmp_path / "f.npz")
    assert main(["import", str(tmp_path / "f.npz"), "--out", str(tmp_path / "s.zarr"), "--name", "mp"]) == 0
    run = tmp_path / "run"
    assert seqmodel(["train", "--store", str(tmp_path / "s.zarr"), "--run", str(run), "--lr", "1e-2"]) == 0
    assert load_card(run).dims == {"geometry": len(NAMES)}
    assert seqmodel(["evaluate", "--run", str(run), "--rounds", "50"]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Most rests on eyes." in page
    assert "Logistic, geometry" in page
    assert "Logistic, embeddings" not in page


def test_nameless_clips_of_two_files_do_not_go_by_one_name(tmp_path: Path) -> None:
    """And those of a file that has grown keep theirs."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4, 3)), np.tile([0, 1], 3)

    def names(file: str, values: np.ndarray, labels: np.ndarray) -> list[str]:
        np.savez(tmp_path / file, x=values, y=labels)
        return [clip.clip_id for clip in read_sequences(tmp_path / file).clips]

    first = names("may.npz", x, y)
    assert len(set(first)) == 6
    assert not set(first) & set(names("june.npz", x[::-1], y))
    assert names("both.npz", np.concatenate([x, x]), np.tile(y, 2))[:6] == first
