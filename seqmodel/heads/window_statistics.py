"""Statistics of a window: heads read them beside, or instead of, its sequence of frames, and so do the simple
methods that a model is compared with. They are part of a network and its exports.

B windows, T frames, K channels.
"""

import numpy as np
import torch
from torch import Tensor

NAMES = ("mean", "std", "min", "quartile 1", "median", "quartile 3", "max", "slope", "mean change")
"""Statistics of each channel, in this order; the share of valid frames comes last."""


def num_statistics(width: int) -> int:
    """Number of statistics of a window with `width` channels."""
    return len(NAMES) * width + 1


def window_statistics(z: Tensor, valid: Tensor) -> Tensor:
    """(B, 9 K + 1) float32: NAMES of each channel over the valid frames, each K columns, then the share of
    valid frames. z: (B, T, K), any float dtype; valid: (B, T) bool.

    The slope is the least-squares change per frame, the mean change is the mean absolute difference of
    neighbouring valid frames; both are 0 with fewer than two frames. All are 0 (std: 1e-6) without any.
    """
    keep, count = valid.unsqueeze(-1), valid.sum(dim=1, keepdim=True).float()
    some, frames = count.clamp(min=1.0), z.shape[1]
    values = z.float().masked_fill(~keep, 0.0)
    mean = values.sum(dim=1) / some
    centred = (values - mean.unsqueeze(1)) * keep
    step = torch.arange(frames, dtype=torch.float32, device=z.device)
    steps = ((step - (valid * step).sum(dim=1, keepdim=True) / some) * valid).unsqueeze(-1)
    pairs = (valid[:, 1:] & valid[:, :-1]).unsqueeze(-1)
    changes = ((values[:, 1:] - values[:, :-1]).abs() * pairs).sum(dim=1)
    # Frames that are not valid come last; in a window without valid frames all values are 0.
    ordered = values.masked_fill(~keep & (count > 0).unsqueeze(-1), torch.inf).sort(dim=1).values
    places = [(some - 1) * share for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    found = [
        mean,
        ((centred**2).sum(dim=1) / some).clamp(min=1e-12).sqrt(),  # the root has no finite slope at 0
        *[_quantile(ordered, place) for place in places],
        (steps * centred).sum(dim=1) / (steps**2).sum(dim=1).clamp(min=1e-6),
        changes / pairs.sum(dim=1).clamp(min=1),
        count / frames,
    ]
    return torch.cat(found, dim=1)


def statistics_of(z: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`window_statistics` of arrays (N, T, K) and (N, T), 256 windows at a time."""
    with torch.inference_mode():
        parts = [
            window_statistics(torch.from_numpy(z[i : i + 256]), torch.from_numpy(valid[i : i + 256]))
            for i in range(0, max(1, len(z)), 256)
        ]
        return torch.cat(parts).numpy()


def _quantile(ordered: Tensor, place: Tensor) -> Tensor:
    """(B, K): value at `place` (B, 1) of ascending values (B, T, K), between two by straight line."""
    low = place.floor()
    low_index, high_index = low.long(), place.ceil().long()
    first, second = (
        ordered.gather(1, index.unsqueeze(-1).expand(-1, 1, ordered.shape[2])).squeeze(1)
        for index in (low_index, high_index)
    )
    return first + (second - first) * (place - low)
