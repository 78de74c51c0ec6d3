"""seqmodel/export.py, bundle.py: the same answers without torch, in a folder that can be copied."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.video import read_video
from features.manifest import Clip
from features.store import FeatureStore, plan
from live.model import open_model
from live.predictor import Prediction, Predictor
from seqmodel.bundle import FORMATS, bundle_folder, find_bundle, load_statistics
from seqmodel.config import ExportArgs
from seqmodel.encoder import encoder_of
from seqmodel.export import check, export, gather
from seqmodel.heads import build_head
from seqmodel.reference import read_reference, write_reference
from seqmodel.run import load_card, load_split, save_card, save_split
from tests.small_run import write_run
from tests.test_parity import extracted

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    detector_path: Path,
    landmarker_path: Path,
    real_clips: dict[str, Path],
) -> Path:
    """A run of both streams whose store holds crops of real faces, half of them validation."""
    folder = tmp_path_factory.mktemp("export") / "내보내기"
    run = write_run(
        folder / "run", detector_path, landmarker=landmarker_path, inputs=("embeddings", "geometry")
    )
    names = ("pexels", "carphone", "single", "noface_face")
    clips = [
        Clip(f"{name}#0", real_clips[name], 0.0, 10.0, f"Secret Person {i}", "", "", {"label": label}, {})
        for i, (name, label) in enumerate(zip(names, ("engaged", "distracted") * 2, strict=True))
    ]
    card = load_card(run)
    path = folder / "faces.zarr"
    store = plan(path, clips, card.recipe, numerics={}, crops=True)
    for row, name in enumerate(names):
        found = extracted(run, real_clips[name], "openvino")
        store.write_row(
            row,
            embeddings=found.embeddings,
            frames=found.frames,
            geometry=found.geometry,
            crops=found.crops,
        )
    save_split(run, [clip.clip_id for clip in clips], [clip.subject for clip in clips], ["val"] * 4)
    save_card(run, replace(card, store=str(path)))
    return run


@pytest.fixture(scope="module")
def bundles(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each format, made once, away from the run."""
    folder = tmp_path_factory.mktemp("copied bundles")
    for form in FORMATS:
        summary, code = export(ExportArgs(run, to=form, out=folder / form))
        assert code == 0
        assert "stored crops" in summary["checked_on"]
        assert summary["max_difference"]["cosine"] > 0.9999
    return {form: folder / form for form in FORMATS}


def pushed(run: Path, video: Path, backend: str = "auto") -> list[Prediction]:
    """What live predicts over a video."""
    predictor = Predictor(open_model(run, backend=backend))  # type: ignore[arg-type]
    found = [p for frame in read_video(video) if (p := predictor.push(frame)) is not None]
    predictor.close()
    return found


@pytest.mark.parametrize("form", ["openvino", "onnx"])
def test_live_says_the_same_with_an_export(
    run: Path, bundles: dict[str, Path], real_clips: dict[str, Path], form: str
) -> None:
    """A copied bundle gives the run's logits on a real video: to 1e-3, because single float16 steps of an
    embedding may differ."""
    ours = pushed(run, real_clips["carphone"])
    theirs = pushed(bundles[form], real_clips["carphone"])
    assert [p.t_s for p in ours] == [p.t_s for p in theirs]
    np.testing.assert_allclose([p.logits for p in theirs], [p.logits for p in ours], atol=1e-3)
    assert [(p.state, p.label) for p in theirs] == [(p.state, p.label) for p in ours]


def test_a_bundle_names_nobody(bundles: dict[str, Path]) -> None:
    """No subject, no path of the training data, no figures about them in any file."""
    bundle = bundles["openvino"]
    for path in (path for folder in bundles.values() for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for secret in ("Secret Person", "faces.zarr", "noface_face"):
            assert secret.encode() not in content, path
    assert not (bundle / "split.csv").exists()
    assert json.loads((bundle / "card.json").read_text(encoding="utf-8"))["metrics"] == {}


def test_the_run_uses_its_own_export_only_while_it_fits(
    run: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Other weights or another calibration: the export is outgrown, and passed by."""
    own = tmp_path / "run"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("export"))
    assert find_bundle(own) is None
    shutil.copytree(bundles["openvino"], bundle_folder(own, "openvino"))
    model = open_model(own)
    assert model.engine.numerics["export"] == "openvino"
    assert set(load_statistics(own / "export" / "openvino")) == {"embeddings", "geometry"}
    card = load_card(own)
    save_card(own, replace(card, calibration=replace(card.calibration, temperature=2.0)))
    assert find_bundle(own) is None
    save_card(own, card)
    (own / "weights.safetensors").write_bytes((own / "weights.safetensors").read_bytes() + b" ")
    assert find_bundle(own) is None


def test_live_needs_no_torch_with_a_bundle(
    bundles: dict[str, Path], real_clips: dict[str, Path], tmp_path: Path
) -> None:
    """In a process that has no torch (nor torchvision, timm, zarr, optuna, sklearn), live runs."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision', 'timm', 'zarr', 'optuna', 'sklearn'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from live.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["--run", str(bundles["openvino"]), "--video", str(real_clips["single"]), "--headless", "--json"]
    words += ["--log", str(tmp_path / "a.csv")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 8


def test_an_export_that_differs_is_refused(run: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    """With another head's answers in its place, the check says by how much and raises."""
    card = load_card(run)
    args = ExportArgs(run, to="openvino")
    wrong = tmp_path / "wrong"
    shutil.copytree(bundles["openvino"], wrong)
    encoder = encoder_of(card.recipe.encoder, None)
    other = build_head(card.head, card.dims, card.num_outputs, seed=1)
    with pytest.raises(ValueError, match="differs from torch"):
        check(wrong, encoder, other.eval(), card, gather(args, card), args)


@pytest.mark.slow
def test_int8_that_sees_something_else_is_refused(run: Path, tmp_path: Path) -> None:
    """Random weights do not survive eight bits (worst cosine .30): that is said, and nothing is written."""
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=r"worst cosine of an embedding 0\.\d+ .* nothing was written"):
        export(ExportArgs(run, to="onnx", int8=True, out=tmp_path / "int8"))
    assert not (tmp_path / "int8" / "encoder.onnx").exists()


def test_int8_without_crops_is_refused(detector_path: Path, tmp_path: Path) -> None:
    """It cannot be calibrated on nothing."""
    run = write_run(tmp_path / "run", detector_path)
    with pytest.raises(ValueError, match="--crops jpeg"):
        export(ExportArgs(run, int8=True))


def test_onnxruntime_alone_runs_the_file(run: Path, bundles: dict[str, Path]) -> None:
    """The README's example: crops in, probability out, with nothing of ours."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = bundles["onnx"]
    encoder, head = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "head"))
    about = encoder.get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == ["distracted", "engaged"]
    assert json.loads(about["recipe"])["pixels"]["fps"] == 3.0
    store = FeatureStore.open(load_card(run).store)
    import cv2

    crops = [cv2.imdecode(np.frombuffer(c, np.uint8), 1)[..., ::-1] for c in store.read_crops(0) if c]
    embeddings = np.concatenate([encoder.run(None, {"crop": crop[None]})[0] for crop in crops])
    inputs = {node.name: node for node in head.get_inputs()}
    assert list(inputs) == ["embeddings", "embeddings_valid", "geometry", "geometry_valid"]
    geometry, valid = store.read_stream("geometry", np.array([0]))
    feed = {
        "embeddings": embeddings[None].astype(np.float16).astype(np.float32),
        "embeddings_valid": np.ones((1, 30), bool),
        "geometry": geometry.astype(np.float32),
        "geometry_valid": valid,
    }
    (logits,) = head.run(None, feed)
    assert logits.shape == (1, 1)
    assert np.isfinite(logits).all()


def test_the_training_data_leave_figures_that_are_read_back(run: Path, tmp_path: Path) -> None:
    """Face rate, probability, novelty and the shortest window worth showing; nobody is named."""
    own = tmp_path / "run"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("export"))
    ids = list(load_split(own))
    save_split(own, ids, ["a", "b", "c", "d"], ["train", "train", "val", "val"])
    found = write_reference(own)
    assert read_reference(own) == found
    assert found.num_clips == 2
    assert found.face_rate.mean == 1.0  # pexels and carphone show a face in every frame
    assert found.min_filled is not None
    assert 0 < found.min_filled <= 1
    assert open_model(own).min_filled == found.min_filled
    assert read_reference(run) is None
