"""The input of a head: standardised features of one stream, reduced to principal components.

Everything is fitted on the training frames and stored in the weights, so a file, the webcam and an export
compute the same. N clips, T frames, D width of the stream, K channels that the head reads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STD_FLOOR = 1e-4
"""A channel with a smaller standard deviation in the training split counts as constant: dividing by it would
amplify noise."""
LIMITED, Z_LIMIT = "geometry", 5.0
"""The stream whose standardised values are clipped, and the limit. Blendshape scores have long tails, and new
subjects may be far outside the training range: in cross-validation by subject on a real engagement set, the
limit gains .007 AUROC (any limit from 3 to 5). Embeddings are not clipped: fine-tuning changes them, and a
clipped value has no gradient."""
SMALLEST_AXIS = 1e-6
"""An axis with a smaller share of the first one's variance is 0: its direction is rounding noise."""
MAX_FRAMES = 20_000
"""Frames, evenly spaced, from which principal components are computed; a thousand clips have 30,000."""


@dataclass(frozen=True)
class InputStatistics:
    """What `StreamInput` holds, as arrays."""

    mean: np.ndarray
    """(D,) float32 mean of the valid training frames."""
    std: np.ndarray
    """(D,) float32 standard deviation, 1 for a constant channel."""
    basis: np.ndarray
    """(K, D) float32 principal axes of the standardised features, divided by the standard deviation along the
    first one; (0, D) = no reduction."""


class StreamInput(nn.Module):
    """Standardised features of one stream, limited for geometry, on K principal axes."""

    mean: Tensor
    std: Tensor
    basis: Tensor

    def __init__(self, stream: str, dim: int, components: int) -> None:
        """components: number of principal components; 0, or not fewer than `dim`, = all features."""
        super().__init__()
        self.stream, self.dim = stream, dim
        self.width = components if 0 < components < dim else dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("basis", torch.zeros(self.width if self.width < dim else 0, dim))

    def put(self, statistics: InputStatistics) -> None:
        """Set the statistics that `fit_input` found; of more axes, the first K are used."""
        for name in ("mean", "std"):
            getattr(self, name).copy_(torch.from_numpy(getattr(statistics, name)))
        self.basis.copy_(torch.from_numpy(statistics.basis[: len(self.basis)]))

    def noise_unit(self) -> float:
        """Size, in the channels that the head reads, of one standard deviation of a feature."""
        return float(torch.linalg.vector_norm(self.basis[0])) if len(self.basis) else 1.0

    def forward(self, values: Tensor, valid: Tensor) -> Tensor:
        """(B, T, K) from values (B, T, D), any float dtype, and valid (B, T) bool; 0 where not valid."""
        z = (values.to(self.mean.dtype) - self.mean) / self.std
        z = z.clamp(-Z_LIMIT, Z_LIMIT) if self.stream == LIMITED else z
        z = z @ self.basis.T if len(self.basis) else z
        return z.masked_fill(~valid.unsqueeze(-1), 0.0)


def fit_input(stream: str, x: Any, valid: Any, components: int) -> InputStatistics:
    """Statistics of a stream over its valid frames. x: (N, T, D); valid: (N, T) bool; arrays, or views of a
    memory map. components: number of axes; 0, or not fewer than D, = none.

    With fewer frames than axes, the axes that are missing are 0.
    """
    mean, std = masked_mean_std(x, valid)
    if not 0 < components < len(mean):
        return InputStatistics(mean, std, np.zeros((0, len(mean)), np.float32))
    frames = _some_frames(x, valid)
    z = (frames - mean) / std
    z = np.clip(z, -Z_LIMIT, Z_LIMIT) if stream == LIMITED else z
    z -= z.mean(axis=0) if len(z) else 0
    covariance = torch.from_numpy(z.T @ z / max(1, len(z)))
    variances, axes = torch.linalg.eigh(covariance)
    spread = float(variances[-1].clamp(min=STD_FLOOR).sqrt())
    basis = axes.T.flip(0)[:components].numpy() / spread
    basis[(variances.flip(0)[:components] <= SMALLEST_AXIS * variances[-1]).numpy()] = 0
    # The sign of an axis is arbitrary: its largest entry is positive, on every machine.
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=1, keepdims=True), axis=1)
    return InputStatistics(mean, std, (basis * np.sign(largest)).astype(np.float32))


def _some_frames(x: Any, valid: Any) -> np.ndarray:
    """(n, D) float32: valid frames of evenly spaced clips, about `MAX_FRAMES` at most."""
    clips = np.unique(np.linspace(0, len(x) - 1, max(1, MAX_FRAMES // x.shape[1])).astype(int))
    clips = clips if len(clips) < len(x) else np.arange(len(x))
    return np.asarray(x[clips][valid[clips]], np.float32)


def masked_mean_std(x: Any, valid: Any, rows_at_once: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) float32 of (N, T, D) over valid frames, in float64, a chunk at a time.

    x and valid: arrays, or views of a memory map that give arrays for a slice.
    A channel without spread gets 1. Without any valid frame: zeros and ones.
    """
    dim = x.shape[-1]
    count, total, squares = 0, np.zeros(dim), np.zeros(dim)
    # Sums of squares around a first estimate of the mean: no cancellation for channels far from zero.
    first_mean: np.ndarray | None = None
    for start in range(0, len(x), rows_at_once):
        part = x[start : start + rows_at_once][valid[start : start + rows_at_once]].astype(np.float32)
        if not len(part):
            continue
        if first_mean is None:
            first_mean = part.mean(axis=0, dtype=np.float64).astype(np.float32)
        part -= first_mean
        count += len(part)
        total += part.sum(axis=0, dtype=np.float64)
        squares += np.einsum("nd,nd->d", part, part, dtype=np.float64)
    if first_mean is None:
        return np.zeros(dim, np.float32), np.ones(dim, np.float32)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return (first_mean + mean).astype(np.float32), np.where(std < STD_FLOOR, 1.0, std).astype(np.float32)
