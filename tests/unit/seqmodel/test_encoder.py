"""The encoder takes RGB uint8 only, and its identity depends on its weights alone."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from features.recipe import EncoderId
from seqmodel.encoders.backbone import Encoder, build_encoder, encoder_from_state, encoder_of, state_sha256
from seqmodel.encoders.bn_folding import fold_norms
from tests.support.crops import crops

NAMES = ("mobilenet_v3_large", "efficientnet_lite0")


@cache
def encoder(name: str) -> Encoder:
    return build_encoder(name, "random")[0]


@pytest.mark.parametrize(("name", "dim"), [("mobilenet_v3_large", 960), ("efficientnet_lite0", 1280)])
def test_random_weights_give_different_embeddings_in_float16(name: str, dim: int) -> None:
    embeddings = encoder(name).embed(crops(3))
    assert embeddings.shape == (3, dim)
    assert embeddings.dtype == np.float16
    assert np.isfinite(embeddings).all()
    assert (embeddings[0] != embeddings[1]).mean() > 0.5
    assert 0.01 < embeddings.astype(float).std() < 10


def test_random_weights_have_one_hash_per_seed_at_any_thread_count() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = build_encoder("mobilenet_v3_large", "random")[1]
    finally:
        torch.set_num_threads(before)
    assert one.weights_sha256 == state_sha256(encoder("mobilenet_v3_large").state_dict())
    assert one.weights == "random:0"
    assert build_encoder("mobilenet_v3_large", "random", seed=1)[1].weights_sha256 != one.weights_sha256


@pytest.mark.parametrize("name", NAMES)
def test_folded_norms_give_the_same_embeddings_and_gradients(name: str) -> None:
    plain, folded = (
        build_encoder(name, "random")[0].double() for _ in range(2)
    )  # so that rounding has an effect
    fold_norms(folded)
    pictures = torch.from_numpy(crops(1))
    found = [net(pictures) for net in (plain, folded)]
    assert torch.allclose(*found, rtol=1e-9)
    for embeddings in found:
        embeddings.square().mean().backward()
    for (key, one), (other_key, other) in zip(
        plain.named_parameters(), folded.named_parameters(), strict=True
    ):
        assert key == other_key
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-6, atol=1e-9 * float(one.grad.abs().max())), key
    assert state_sha256(plain.state_dict()) == state_sha256(folded.state_dict())


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_lite0"])
def test_random_weights_have_no_negative_zero(name: str) -> None:
    """Equal numbers with other bytes have another hash; rounding gave either, by the number of threads."""
    state = build_encoder(name, "random")[0].state_dict()  # type: ignore[arg-type]
    assert not any((torch.signbit(tensor) & (tensor == 0)).any() for tensor in state.values())


def test_building_random_weights_does_not_change_the_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build_encoder("mobilenet_v3_large", "random")
    assert torch.equal(torch.rand(2), expected)


def test_other_inputs_than_rgb_uint8_are_refused() -> None:
    net = encoder("mobilenet_v3_large")
    with pytest.raises(TypeError, match="RGB uint8 crops"):
        net(torch.zeros(1, 224, 224, 3))
    with pytest.raises(TypeError, match="RGB uint8 crops"):
        net(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    with pytest.raises(TypeError, match="got float32"):
        net.embed(np.zeros((1, 224, 224, 3), np.float32))  # type: ignore[arg-type]


def test_batch_equals_single_frames() -> None:
    net = encoder("mobilenet_v3_large")
    together = net.embed(crops(5)).astype(float)
    alone = np.concatenate([net.embed(crops(5)[i : i + 1]) for i in range(5)]).astype(float)
    # One float16 step: torch uses other kernels for other batch sizes.
    assert np.abs(together - alone).max() <= np.spacing(np.float16(np.abs(together).max()))


def test_embedding_in_training_mode_is_refused() -> None:
    net = encoder_from_state("mobilenet_v3_large", encoder("mobilenet_v3_large").state_dict())
    with pytest.raises(ValueError, match="training mode"):
        net.train().embed(crops(1))


def test_no_frames_give_no_embeddings() -> None:
    assert encoder("mobilenet_v3_large").embed(crops(0)).shape == (0, 960)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_is_the_same(name: str) -> None:
    again = encoder_from_state(name, encoder(name).state_dict())
    assert np.array_equal(again.embed(crops(2)), encoder(name).embed(crops(2)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [0, 5, 15])
def test_head_of_the_encoder_after_a_block_equals_the_whole_encoder(name: str, cut: int) -> None:
    net, frames = encoder(name), torch.from_numpy(crops(2))
    with torch.no_grad():
        activations = net.blocks[:cut](net.pixels(frames))
        assert torch.equal(net.head_of(activations, cut), net(frames))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_published_weights_load_with_other_key_names(tmp_path: Path, suffix: str) -> None:
    """A .safetensors file sorts its tensors; they are paired by name."""
    from torchvision.models import mobilenet_v3_large

    torchvision_model = mobilenet_v3_large(weights=None).eval()
    path, state = tmp_path / f"가중치.{suffix}", torchvision_model.state_dict()
    if suffix == "pth":
        torch.save(state, path)
    else:
        path.write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}))
    encoder, identity = build_encoder("mobilenet_v3_large", str(path))
    frames = torch.from_numpy(crops(1))
    with torch.no_grad():
        expected = torchvision_model.avgpool(torchvision_model.features(encoder.pixels(frames))).flatten(1)
        assert torch.allclose(encoder(frames), expected, atol=1e-6)
    assert identity.weights == path.name
    path.unlink()
    assert torch.equal(encoder_of(identity)(frames), encoder(frames))


def test_imagenet_weights_of_the_wheel_load() -> None:
    net, identity = build_encoder("efficientnet_lite0", "imagenet")
    assert identity.weights_sha256.startswith("57934424")
    assert np.isfinite(net.embed(crops(2))).all()
    assert encoder_of(identity).name == "efficientnet_lite0"


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("not weights", encoding="utf-8")
    (tmp_path / "text.safetensors").write_text("not weights", encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.pth does not fit mobilenet_v3_large"):
        build_encoder("mobilenet_v3_large", str(tmp_path / "other.pth"))
    for name in ("text.pth", "text.safetensors"):
        with pytest.raises(ValueError, match="is not a"):
            build_encoder("mobilenet_v3_large", str(tmp_path / name))


def test_sorted_weights_with_unknown_names_are_refused(tmp_path: Path) -> None:
    """By position, they would be paired with other layers of the same shape."""
    state = {
        f"x.{name}": tensor for name, tensor in encoder("efficientnet_lite0").blocks.state_dict().items()
    }
    (tmp_path / "x.safetensors").write_bytes(save(state))
    with pytest.raises(ValueError, match=r"does not keep the order of the layers: save .* as \.pth"):
        build_encoder("efficientnet_lite0", str(tmp_path / "x.safetensors"))


def test_an_identity_of_other_weights_is_refused() -> None:
    from dataclasses import replace

    identity = build_encoder("efficientnet_lite0", "imagenet")[1]
    with pytest.raises(ValueError, match="weights of this recipe are not on this machine"):
        encoder_of(replace(identity, weights_sha256="0" * 64))


def test_missing_finetuned_encoder_is_named_and_nothing_is_downloaded() -> None:
    identity = EncoderId("mobilenet_v3_large", "finetuned:first", "ab" * 32, 960)
    with pytest.raises(ValueError, match="mobilenet_v3_large, fine-tuned in run 'first'"):
        encoder_of(identity)
