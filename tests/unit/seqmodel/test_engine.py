"""The compiled encoder gives the embeddings of the torch encoder, without torch and without network
access."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqmodel.encoders.backbone import build_encoder
from seqmodel.encoders.engine import Precision, import_openvino, open_engine, open_identity
from tests.support.crops import crops


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_lite0"])
def test_engine_and_torch_differ_by_float16_steps_at_most(name: str) -> None:
    compiled = open_engine(name, "random", backend="openvino", precision="f32", threads=2)
    eager = open_engine(name, "random", backend="torch")
    assert compiled.encoder_id == eager.encoder_id
    actual, expected = compiled.embed(crops(4)), eager.embed(crops(4))
    # One float16 step; near 0, where steps are smaller, the float32 error (1e-5 measured).
    step = np.maximum(np.spacing(np.abs(actual)).astype(float), 5e-5)
    assert (np.abs(actual.astype(float) - expected.astype(float)) <= step).all()
    assert (actual != expected).mean() < 0.05
    assert compiled.numerics["backend"] == "openvino"
    assert eager.numerics["backend"] == "torch"


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_batch_and_threads_do_not_move_a_bit(precision: Precision) -> None:
    one, two = (
        open_engine("mobilenet_v3_large", "random", backend="openvino", precision=precision, threads=n)
        for n in (1, 2)
    )
    together = two.embed(crops(4))
    assert np.array_equal(together, one.embed(crops(4)))
    assert np.array_equal(together[2:3], two.embed(crops(4)[2:3]))


def test_auto_precision_is_bf16_if_supported_and_numerics_record_it() -> None:
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    best = "bf16" if "BF16" in capabilities else "f32"
    became = {}
    for precision in ("auto", "f32", "bf16"):
        engine = open_engine("mobilenet_v3_large", "random", backend="openvino", precision=precision)
        became[precision] = engine.numerics["precision"]
    assert (became["auto"], became["f32"]) == (best, "f32")
    # Without instructions for it, OpenVINO computes bf16 with AVX-512, and f32 with AVX2.
    assert became["bf16"] in {best, "bf16"}


@pytest.mark.parametrize(
    ("name", "weights"), [("mobilenet_v3_large", "random"), ("efficientnet_lite0", "imagenet")]
)
def test_bf16_embeddings_are_close_to_float32(name: str, weights: str) -> None:
    full, half = (
        open_engine(name, weights, backend="openvino", precision=p).embed(crops(4)).astype(float)
        for p in ("f32", "bf16")
    )
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.99


def test_other_inputs_than_rgb_uint8_are_refused() -> None:
    engine = open_engine("mobilenet_v3_large", "random", backend="openvino")
    with pytest.raises(TypeError, match="RGB uint8 crops"):
        engine.embed(crops(1).astype(np.float32))  # type: ignore[arg-type]
    assert engine.embed(crops(0)).shape == (0, 960)


def test_torch_is_not_imported_once_the_network_is_converted() -> None:
    open_engine("mobilenet_v3_large", "random", backend="openvino")
    program = (
        "import sys; from seqmodel.encoders.engine import open_engine; "
        "e = open_engine('mobilenet_v3_large', 'random', backend='openvino'); "
        "print('torch' in sys.modules, sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.split() == ["False", "None"], done.stderr


def test_converted_network_can_have_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, identity = build_encoder("efficientnet_lite0", "imagenet")
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "캐시 폴더"))
    first = open_identity(identity, lambda: encoder, "openvino", "auto", "auto", 0, 224).embed(crops(1))
    (folder,) = (tmp_path / "캐시 폴더" / "openvino").iterdir()
    kept = list(folder.iterdir())
    assert sorted(path.suffix for path in kept) == [".bin", ".xml"]

    again = open_engine("efficientnet_lite0", "imagenet", backend="openvino")
    assert np.array_equal(again.embed(crops(1)), first)


def test_an_engine_without_a_cache_gives_the_same_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder cannot be made, because a file has its name."""
    cached = open_engine("mobilenet_v3_large", "random", backend="openvino", precision="f32", threads=1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "file" / "cache"))
    engine = open_engine("mobilenet_v3_large", "random", backend="openvino", precision="f32", threads=1)
    assert engine.encoder_id == cached.encoder_id
    assert np.array_equal(engine.embed(crops(2)), cached.embed(crops(2)))


def test_missing_devices_are_named() -> None:
    with pytest.raises(ValueError, match="OpenVINO does not run on CUDA"):
        open_engine("mobilenet_v3_large", "random", backend="openvino", device="cuda")
    with pytest.raises(ValueError, match="--device must be auto, cpu or cuda"):
        open_engine("mobilenet_v3_large", "random", device="tpu")
