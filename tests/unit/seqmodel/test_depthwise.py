"""Depthwise convolutions have torch's gradients, up to bfloat16 rounding."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seqmodel.encoders import depthwise
from seqmodel.encoders.backbone import build_encoder
from seqmodel.encoders.bn_folding import fold_norms


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side_px", [7, 14])
def test_gradients_equal_those_of_torch(kernel: int, stride: int, side_px: int) -> None:
    """Values and all three gradients, against float32 of the same rounded numbers."""
    torch.manual_seed(0)
    shapes = ((4, 6, side_px, side_px), (6, 1, kernel, kernel), (6,))
    rounded = [torch.randn(shape).bfloat16() for shape in shapes]
    actual = [t.clone().requires_grad_() for t in rounded]
    exact = [t.float().requires_grad_() for t in rounded]
    found = depthwise.depthwise(*actual, stride)
    wanted = F.conv2d(*exact, stride, kernel // 2, 1, 6)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02 * wanted.std().item())
    direction = torch.randn(wanted.shape).bfloat16()
    found.backward(direction)
    wanted.backward(direction.float())
    for mine, expected in zip(actual, exact, strict=True):
        assert mine.grad is not None
        assert expected.grad is not None
        off = (mine.grad.float() - expected.grad).norm() / expected.grad.norm()
        assert off < 0.01


def test_depthwise_is_used_only_for_autocast_training_on_a_cpu() -> None:
    """Not without autocast, not without gradients, not for other convolutions."""
    wide, plain = nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Conv2d(8, 8, 1)
    x = torch.zeros(1, 8, 7, 7)
    assert not depthwise.applies(wide, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise.applies(wide, x)
        assert not depthwise.applies(plain, x)
        assert not depthwise.applies(nn.Conv2d(8, 8, 5, groups=8), x)
        with torch.no_grad():
            assert not depthwise.applies(wide, x)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_lite0"])
def test_an_encoder_learns_in_the_direction_of_float32(name: str) -> None:
    """In its last blocks every weight has a gradient, and the gradients together have nearly the same
    direction."""
    crops = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    gradients = []
    for narrow in (False, True):
        encoder, _ = build_encoder(name, "random")
        fold_norms(encoder)
        wanted = torch.randn(4, encoder.dim, generator=torch.manual_seed(1))
        with torch.no_grad():
            activations = encoder.blocks[:11](encoder.pixels(crops))
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            embeddings = encoder.head_of(activations, 11)
        assert embeddings.dtype == torch.float32
        (embeddings * wanted).sum().backward()
        learned = [p.grad.flatten() for p in encoder.blocks[11:].parameters() if p.grad is not None]
        assert len(learned) == len(list(encoder.blocks[11:].parameters()))
        gradients.append(torch.cat(learned))
    assert F.cosine_similarity(*gradients, dim=0) > 0.97
