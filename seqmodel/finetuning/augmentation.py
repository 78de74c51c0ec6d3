"""Augmentation of a clip's crops, with the same random transform for all its frames.

Labels depend on changes over time, for example a glance away, so a transform that differs from frame to frame
would add noise to this signal. One transform per clip simulates another camera or another light. It works on
whole clips as tensors. T frames, H = W crop_px.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

GREY = torch.tensor([0.299, 0.587, 0.114])
"""Luma weights of ITU-R BT.601."""


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random transform; 0 switches a part off."""

    flip: float = 0.5
    """Probability of mirroring."""
    rotation_deg: float = 8.0
    shift: float = 0.06
    """Maximum shift of the crop, as a fraction of its width."""
    scale: float = 0.1
    """Maximum change of size: 0.1 means a factor of 0.9 to 1.1."""
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.3
    hue: float = 0.05
    """Maximum tint: each channel has its own factor of 1 ± this."""
    blur: float = 0.15
    """Probability of blur."""
    erase: float = 0.15
    """Probability of a grey rectangle (as a hand or a cup), up to a third of the width."""


def augment_clip(crops: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    """Crops (T,H,W,3) uint8 RGB of one clip after one random transform; same shape and dtype."""
    a = augmentation
    crop_px = crops.shape[1]
    x = crops.permute(0, 3, 1, 2).float()
    x = F.grid_sample(
        x,
        _grid(a, rng, crop_px, crops.device).expand(len(x), -1, -1, -1),
        padding_mode="border",
        align_corners=False,
    )
    x = _recoloured(x, a, rng)
    if rng.random() < a.blur:
        kernel = int(rng.choice([3, 5]))
        x = F.avg_pool2d(x, kernel, stride=1, padding=kernel // 2, count_include_pad=False)
    if rng.random() < a.erase:
        height, width = (int(crop_px * rng.uniform(0.1, 0.33)) for _ in range(2))
        top, left = int(rng.integers(crop_px - height + 1)), int(rng.integers(crop_px - width + 1))
        x[:, :, top : top + height, left : left + width] = float(rng.uniform(60, 190))
    return x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _grid(a: Augmentation, rng: np.random.Generator, crop_px: int, device: torch.device) -> Tensor:
    """Sampling grid (1,H,W,2) for mirroring, rotation, scaling and shift in a single resampling."""
    mirror = -1.0 if rng.random() < a.flip else 1.0
    angle = math.radians(float(rng.uniform(-a.rotation_deg, a.rotation_deg)))
    scale = 1 + float(rng.uniform(-a.scale, a.scale))
    shift = rng.uniform(-a.shift, a.shift, 2) * 2  # the grid runs from −1 to 1
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = torch.tensor(
        [[[cos * mirror, -sin, shift[0]], [sin * mirror, cos, shift[1]]]], dtype=torch.float32
    )
    return F.affine_grid(matrix.to(device), [1, 3, crop_px, crop_px], align_corners=False)


def _recoloured(x: Tensor, a: Augmentation, rng: np.random.Generator) -> Tensor:
    """(T,3,H,W) in 0..255 with random brightness, contrast (around the clip's mean grey), saturation and
    tint."""

    def factor(spread: float) -> float:
        return 1 + float(rng.uniform(-spread, spread))

    brightness, contrast, saturation = factor(a.brightness), factor(a.contrast), factor(a.saturation)
    tint = torch.tensor([factor(a.hue) for _ in range(3)], dtype=torch.float32, device=x.device)
    grey = torch.einsum("tchw,c->thw", x, GREY.to(x.device)).unsqueeze(1)
    mean = float(grey.mean())
    x = grey + (x - grey) * saturation
    x = (x - mean) * contrast + mean * brightness
    return x * tint.view(1, 3, 1, 1)
