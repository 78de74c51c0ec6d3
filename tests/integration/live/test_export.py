"""Tests of exports and bundles: the same results without torch, in a folder that can be copied."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from extract.face.cropper import FaceCropper
from extract.video.reader import read_video, sample_at
from features.manifest import Clip
from features.store.store import FeatureStore, plan
from live.inference.model import open_model
from live.inference.predictor import Prediction, Predictor
from seqmodel.commands.export import check, export, make_verification_input
from seqmodel.config import ExportArgs
from seqmodel.encoders.backbone import build_encoder, encoder_of, state_sha256
from seqmodel.export.bundle import FORMATS, bundle_folder, find_bundle
from seqmodel.heads.ensemble import Ensemble
from seqmodel.heads.inputs import InputStatistics
from seqmodel.heads.recurrent import build_head
from seqmodel.metrics.calibration import Calibration
from seqmodel.runs.card import load_card, save_card
from seqmodel.runs.files import load_split, save_split, save_weights
from seqmodel.runs.training_stats import level_of, load_statistics, read_training_stats, write_training_stats
from tests.support.extracted import extracted
from tests.support.small_run import write_run

ROOT = Path(__file__).resolve().parents[3]


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
    save_split(run, [clip.clip_id for clip in clips], [clip.subject for clip in clips], ["val"] * 4, {})
    # A float32 store: live then uses float32 on every processor, as the bundles do.
    save_card(run, replace(card, store=str(path), numerics={"precision": "f32"}))
    return run


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    """Keep each network's ONNX program for later tests with the same weights: the export of the encoder takes
    most of their time."""
    export, programs = torch.onnx.export, {}

    def once(network: torch.nn.Module, example: tuple[torch.Tensor, ...], **options: Any) -> Any:
        state = state_sha256(network.state_dict())
        key = (type(network).__name__, state, *(tensor.shape for tensor in example))
        if key not in programs:
            programs[key] = export(network, example, **options)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", once)
        yield


@pytest.fixture(scope="module")
def bundles(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each format, made once, outside the run."""
    folder = tmp_path_factory.mktemp("copied bundles")
    for form in FORMATS:
        summary, code = export(ExportArgs(run, format=form, out=folder / form))
        assert code == 0
        assert "stored crops" in summary["verified_on"]
        assert summary["max_difference"]["cosine"] > 0.9999
    return {form: folder / form for form in FORMATS}


def pushed(run: Path, video: Path, backend: str = "auto") -> list[Prediction]:
    """Predictions of live over a video."""
    predictor = Predictor(open_model(run, backend=backend))  # type: ignore[arg-type]
    found = [p for frame in read_video(video) if (p := predictor.push(frame)) is not None]
    predictor.close()
    return found


@pytest.mark.parametrize("form", ["openvino", "onnx"])
def test_live_with_an_export_gives_the_runs_logits(
    run: Path, bundles: dict[str, Path], real_clips: dict[str, Path], form: str
) -> None:
    """With a copied bundle, on a real video: to 1e-3, because embeddings may differ by single float16
    steps."""
    actual = pushed(run, real_clips["carphone"])
    expected = pushed(bundles[form], real_clips["carphone"])
    assert [p.t_s for p in actual] == [p.t_s for p in expected]
    np.testing.assert_allclose([p.logits for p in expected], [p.logits for p in actual], atol=1e-3)
    assert [(p.state, p.label) for p in expected] == [(p.state, p.label) for p in actual]


def test_bundle_has_no_subjects_and_no_training_paths(bundles: dict[str, Path]) -> None:
    """No file has a subject, a path of the training data, or metrics about subjects."""
    bundle = bundles["openvino"]
    for path in (path for folder in bundles.values() for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for secret in ("Secret Person", "faces.zarr", "noface_face"):
            assert secret.encode() not in content, path
    assert not (bundle / "split.csv").exists()
    assert json.loads((bundle / "card.json").read_text(encoding="utf-8"))["metrics"] == {}


def test_run_uses_its_export_only_for_the_same_weights(
    run: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """With other weights the export is ignored. The calibration is always the run's own."""
    own = tmp_path / "run"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("export"))
    assert find_bundle(own) is None
    shutil.copytree(bundles["openvino"], bundle_folder(own, "openvino"))
    model = open_model(own)
    assert model.engine is not None
    assert model.engine.numerics["export"] == "openvino"
    assert set(load_statistics(own / "export" / "openvino", load_card(own))) == {"embeddings", "geometry"}
    card = load_card(own)
    save_card(own, replace(card, calibration=replace(card.calibration, temperature=2.0)))
    again = open_model(own)
    assert again.engine is not None
    assert again.engine.numerics["export"] == "openvino"
    assert again.card.calibration.temperature == 2.0
    (own / "weights.safetensors").write_bytes((own / "weights.safetensors").read_bytes() + b" ")
    assert find_bundle(own) is None


def test_live_with_a_bundle_needs_no_torch(
    bundles: dict[str, Path], real_clips: dict[str, Path], tmp_path: Path
) -> None:
    """Live runs in a process without torch, torchvision, timm, zarr, optuna and sklearn."""
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
    argv = ["--run", str(bundles["openvino"]), "--video", str(real_clips["single"]), "--headless", "--json"]
    argv += ["--log", str(tmp_path / "a.csv")]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 8


def test_export_with_other_results_than_torch_is_refused(
    run: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """With the results of another head the check raises and gives the difference."""
    card = load_card(run)
    args = ExportArgs(run, format="openvino")
    wrong = tmp_path / "wrong"
    shutil.copytree(bundles["openvino"], wrong)
    encoder = encoder_of(card.recipe.encoder, None)
    heads = [
        build_head(m.head, m.stream, card.dims[m.stream], card.num_outputs, seed=1) for m in card.members
    ]
    other = Ensemble([[head] for head in heads], card.labelling.task)
    with pytest.raises(ValueError, match="differs from torch"):
        check(wrong, encoder, other.eval(), card, make_verification_input(args, card), args)


@pytest.mark.parametrize("what", ["the run", "its parent", "another user's folder", "a file"])
def test_export_into_a_folder_with_other_files_is_refused(run: Path, tmp_path: Path, what: str) -> None:
    """The check is before the first write, and the folder is unchanged."""
    own = tmp_path / "runs" / "run"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("export"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("all of it", encoding="utf-8")
    targets = {
        "the run": own,
        "its parent": own.parent,
        "another user's folder": tmp_path / "other",
        "a file": tmp_path / "other" / "thesis.txt",
    }
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="--out"):
        export(ExportArgs(own, out=targets[what]))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_export_replaces_an_older_one_and_leaves_no_other_files(
    bundles: dict[str, Path], detector_path: Path, tmp_path: Path
) -> None:
    """The new bundle has the old one's path; an empty folder is accepted too."""
    run = write_run(tmp_path / "run", detector_path)
    shutil.copytree(bundles["onnx"], tmp_path / "out" / "bundle")
    (tmp_path / "out" / "empty").mkdir()
    for name in ("bundle", "empty"):
        export(ExportArgs(run, out=tmp_path / "out" / name))
        assert find_bundle(tmp_path / "out" / name) is not None
        assert not (tmp_path / "out" / name / "encoder.onnx").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bundle", "empty"]


def test_missing_store_of_the_user_is_an_error(run: Path, tmp_path: Path) -> None:
    """A store given by the user is used or refused; only the run's own store may be missing."""
    with pytest.raises(ValueError, match=r"none\.zarr"):
        make_verification_input(ExportArgs(run, store=tmp_path / "none.zarr"), load_card(run))


@pytest.mark.parametrize("form", FORMATS)
def test_run_of_geometry_needs_no_encoder(
    detector_path: Path, landmarker_path: Path, real_clips: dict[str, Path], tmp_path: Path, form: Any
) -> None:
    """Live opens it without the encoder's weights, and its bundle without encoder gives the same results."""
    run = write_run(tmp_path / "run", detector_path, landmarker=landmarker_path, inputs=("geometry",))
    card = load_card(run)
    nowhere = replace(card.recipe.encoder, weights="gone.pth", weights_sha256="0" * 64)
    save_card(run, replace(card, recipe=replace(card.recipe, encoder=nowhere)))
    actual = pushed(run, real_clips["carphone"], "torch")
    summary, _ = export(ExportArgs(run, format=form))
    assert not list(Path(summary["bundle"]).glob("encoder*"))
    assert open_model(run).engine is None
    expected = pushed(run, real_clips["carphone"])
    np.testing.assert_allclose([p.logits for p in expected], [p.logits for p in actual], atol=1e-4)


def test_docs_example_gives_the_same_probability_as_live(
    detector_path: Path, real_clips: dict[str, Path], tmp_path: Path
) -> None:
    """The program in docs/live.md, unchanged, on the crops that live used."""
    pytest.importorskip("onnxruntime")
    calibration = Calibration(temperature=0.4, bias=0.3, threshold=0.45)
    run = write_run(tmp_path / "run", detector_path, calibration=calibration)
    # onnxruntime computes in float32. Live does too if the store was made in float32.
    save_card(run, replace(load_card(run), numerics={"precision": "f32"}))
    export(ExportArgs(run, format="onnx"))
    model = open_model(run)
    assert model.card.recipe.pixels is not None
    cropper = FaceCropper(model.card.recipe.pixels, model.detector_files)
    files = []
    for frame in sample_at(read_video(real_clips["carphone"]), 3):
        files.append(tmp_path / f"crop{len(files):02}.png")
        image = cropper.crop(frame.rgb()).image
        assert image is not None
        files[-1].write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    cropper.close()
    docs = (ROOT / "docs" / "live.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "example.py", run / "export" / "onnx", *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    label, p, label_of_page = re.fullmatch(r"(\w+): ([\d.]+) -> (\w+)\n", done.stdout).groups()  # type: ignore[union-attr]
    last = pushed(run, real_clips["carphone"])[-1]
    assert label == "engaged"
    assert float(p) == pytest.approx(last.p_raw[1], abs=0.006)
    assert label_of_page == last.names[last.p_raw[1] >= calibration.threshold]


def test_onnx_file_runs_with_only_onnxruntime(run: Path, bundles: dict[str, Path]) -> None:
    """The README's example: crops in, probability out, without this project."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = bundles["onnx"]
    encoder, head = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "head"))
    about = encoder.get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == ["distracted", "engaged"]
    assert json.loads(about["recipe"])["pixels"]["fps"] == 3.0
    store = FeatureStore.open(load_card(run).store)
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


def test_training_stats_are_written_and_read_back(run: Path, tmp_path: Path) -> None:
    """Face rate, probability, novelty and the smallest filled share of a window; no subject is named."""
    own = tmp_path / "run"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("export"))
    ids = list(load_split(own))
    save_split(own, ids, ["a", "b", "c", "d"], ["train", "train", "val", "val"], {})
    found = write_training_stats(own)
    assert read_training_stats(own) == found
    assert found.num_clips == 2
    assert found.face_rate.mean == 1.0  # pexels and carphone show a face in every frame
    assert found.min_filled is not None
    assert 0 < found.min_filled <= 1
    assert open_model(own).min_filled == found.min_filled
    assert read_training_stats(run) is None


def test_novelty_of_a_fine_tuned_run_uses_its_own_encoder(
    run: Path, real_clips: dict[str, Path], tmp_path: Path
) -> None:
    """The training clips' novelty is that of live on the same videos, up to the JPEG error of the stored
    crops; the store's embeddings come from another encoder and would be far away."""
    own = tmp_path / "run"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("export"))
    encoder, identity = build_encoder("mobilenet_v3_large", "random", 1)
    card = load_card(run)
    members = tuple(member for member in card.members if member.stream == "embeddings")
    recipe = replace(card.recipe, encoder=identity)
    card = replace(card, recipe=recipe, members=members, dims={"embeddings": identity.dim})
    store = FeatureStore.open(card.store)
    crops = [cv2.imdecode(np.frombuffer(c, np.uint8), 1)[..., ::-1] for c in store.read_crops(0) if c]
    seen = encoder.embed(np.ascontiguousarray(np.stack(crops)))
    head = build_head(members[0].head, "embeddings", identity.dim, card.num_outputs, seed=0)
    mean, std = (getattr(seen.astype(np.float32), name)(axis=0) for name in ("mean", "std"))
    head.input.put(InputStatistics(mean, std + 1e-2, np.zeros((0, identity.dim), np.float32)))
    save_weights(own, Ensemble([[head]], card.labelling.task).state_dict(), encoder.state_dict())
    save_card(own, card)
    save_split(own, list(load_split(own)), ["a", "b", "c", "d"], ["train", "train", "val", "val"], {})
    found = write_training_stats(own).novelty
    assert found is not None
    lives = [
        float(np.nanmean([p.novelty for p in pushed(own, real_clips[name]) if p.t_s < 10 - 1e-3]))
        for name in ("pexels", "carphone")
    ]
    assert found.mean == pytest.approx(np.mean(lives), rel=0.1)


def test_level_is_the_same_for_live_and_training() -> None:
    """Binary: p of the positive class; ordinal: expected level; multiclass: largest probability; for one or
    many windows."""
    p = np.array([[0.3, 0.5, 0.2], [0.0, 0.0, 1.0]])
    assert level_of(p, "ordinal").tolist() == pytest.approx([0.45, 1.0])
    assert level_of(p, "multiclass").tolist() == [0.5, 1.0]
    assert level_of(p[:, :2], "binary").tolist() == [0.5, 0.0]
    assert [float(level_of(row, "ordinal")) for row in p] == level_of(p, "ordinal").tolist()
