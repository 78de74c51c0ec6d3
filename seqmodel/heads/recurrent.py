"""The recurrent head: from a window of embeddings (and face geometry) to logits.

Every stream is standardised with statistics of the training split, set to zero in frames that are not valid,
projected, and concatenated with its validity as an extra channel. A recurrent network reads the whole window,
and the pooling uses valid steps only. The content of a masked frame does not change the logits.

B clips, T frames, D width of a stream, P projection, H hidden, C classes, O outputs (1 for a binary task,
C for a multi-class one, C − 1 cumulative thresholds for an ordinal one).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from features.cli import UserError
from features.labels import Task
from seqmodel.config import HeadConfig

if TYPE_CHECKING:
    from features.datasets import Samples

STD_FLOOR = 1e-4
"""A channel with a smaller standard deviation in the training split counts as constant: dividing by it would
amplify noise."""
LIMITED, Z_LIMIT = "geometry", 5.0
"""The stream whose standardised values are clipped, and the limit. Blendshape scores have long tails, and new
subjects may be far outside the training range: in cross-validation by subject on a real engagement set, the
limit gains .007 AUROC (any limit from 3 to 5). Embeddings are not clipped: fine-tuning changes them, and a
clipped value has no gradient."""


def num_outputs(task: Task, num_classes: int) -> int:
    """Number of logits of a head for a task with `num_classes` classes."""
    return {"binary": 1, "multiclass": num_classes, "ordinal": num_classes - 1}[task]


class LstmHead(nn.Module):
    """A recurrent head (LSTM or GRU) over one or more streams."""

    def __init__(self, config: HeadConfig, dims: Mapping[str, int], num_outputs: int) -> None:
        """`dims` gives D for each stream, by name. Weights come from torch's current random state.

        Raises UserError without a stream, and for a dropout outside [0, 1).
        """
        super().__init__()
        if not dims:
            raise UserError("a head needs at least one input stream, got none")
        if not 0 <= config.dropout < 1:
            raise UserError(f"dropout must be at least 0 and below 1, got {config.dropout}")
        self.config = config
        # Sorted, so that the order of streams in `dims` does not change the weights.
        self.dims = {name: dims[name] for name in sorted(dims)}
        self.num_outputs = num_outputs
        self.dropout = nn.Dropout(config.dropout)
        for name, dim in self.dims.items():
            self.register_buffer(f"mean_{name}", torch.zeros(dim))
            self.register_buffer(f"std_{name}", torch.ones(dim))
        widths = {name: dim * _num_copies(config) for name, dim in self.dims.items()}
        self.projections = nn.ModuleDict(
            {name: nn.Linear(width, config.projection) for name, width in widths.items() if config.projection}
        )
        joined = sum((config.projection or width) + 1 for width in widths.values())
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU}[config.kind]
        self.recurrent = recurrent(
            joined,
            config.hidden,
            num_layers=config.layers,
            batch_first=True,
            bidirectional=config.bidirectional,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        out_dim = config.hidden * (2 if config.bidirectional else 1)
        self.attention = nn.Linear(out_dim, 1) if config.pooling == "attention" else None
        # CORAL (Cao, Mirjalili & Raschka 2020): one score, a threshold for each step between levels.
        self.output = nn.Linear(out_dim, 1 if config.shared_thresholds else num_outputs)
        self.thresholds = (
            nn.Parameter(torch.linspace(1.0, -1.0, num_outputs)) if config.shared_thresholds else None
        )

    def set_statistics(self, samples: "Samples") -> None:
        """Set mean and standard deviation of every stream from the valid frames of `samples`, which must be
        the training split."""
        self.put_statistics(stream_statistics(samples, tuple(self.dims)))

    def put_statistics(self, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Set statistics that are already computed, for a search that trains many heads on the same clips."""
        for name in self.dims:
            mean, std = statistics[name]
            getattr(self, f"mean_{name}").copy_(torch.from_numpy(mean))
            getattr(self, f"std_{name}").copy_(torch.from_numpy(std))

    def forward(self, x: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> Tensor:
        """Logits of whole windows.

        x: for each stream (B, T, D), any float dtype; values in frames that are not valid are ignored.
        valid: for each stream (B, T) bool. A missing stream counts as not valid in all frames.
        Returns (B, O), float32 outside autocast.
        """
        seen, some_step = self._stream_validity(valid)
        parts = []
        for name in self.dims:
            mask = seen[name]
            read = self._read(name, x.get(name), mask)
            parts += [read, mask.unsqueeze(-1).to(read.dtype)]
        states = self.recurrent(self.dropout(torch.cat(parts, dim=-1)))[0]
        logits = self.output(self.dropout(self._pool(states, some_step)))
        return logits if self.thresholds is None else logits + self.thresholds

    def _stream_validity(self, valid: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Each stream's (B, T) bool after stream dropout, and the steps where any stream is valid."""
        some = next(iter(valid.values()))
        seen = {
            name: valid[name].bool() if name in valid else torch.zeros_like(some, dtype=torch.bool)
            for name in self.dims
        }
        if self.training and self.config.stream_dropout > 0 and len(seen) > 1:
            # Mask one stream of a clip and keep the other, so that the head learns to work with either.
            names = list(seen)
            drop = torch.rand(some.shape[0], device=some.device) < self.config.stream_dropout
            which = torch.randint(len(names), (some.shape[0],), device=some.device)
            for index, name in enumerate(names):
                seen[name] = seen[name] & ~(drop & (which == index)).unsqueeze(-1)
        return seen, torch.stack(list(seen.values())).any(dim=0)

    def _read(self, name: str, values: Tensor | None, mask: Tensor) -> Tensor:
        """The recurrent layers' input from one stream, zero where masked: (B, T, P), or (B, T, width) without
        a projection."""
        if values is None:
            width = self.config.projection or self.dims[name] * _num_copies(self.config)
            return getattr(self, f"mean_{name}").new_zeros(*mask.shape, width)
        copies = self._copies(name, values, mask)
        if not self.config.projection:
            return copies
        return torch.relu(self.projections[name](copies)) * mask.unsqueeze(-1)

    def _copies(self, name: str, values: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width): standardised values and the extra channels of the config, in this order: deviations
        from the window's mean, differences between frames, rates of rises. Zero where masked."""
        mean, std = getattr(self, f"mean_{name}"), getattr(self, f"std_{name}")
        z = (values.to(mean.dtype) - mean) / std
        z = z.clamp(-Z_LIMIT, Z_LIMIT) if name == LIMITED else z
        z = z.masked_fill(~mask.unsqueeze(-1), 0.0)
        copies = [z]
        if self.config.centred_copy:
            copies.append((z - _masked_mean(z, mask).unsqueeze(1)) * mask.unsqueeze(-1))
        if self.config.dynamics:
            change, rate = _dynamics(z, mask)
            copies += [change, rate.unsqueeze(1) * mask.unsqueeze(-1)]
        return torch.cat(copies, dim=-1)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, T, H') to (B, H'), over valid steps only; zeros for a window without any."""
        keep = mask.unsqueeze(-1)
        match self.config.pooling:
            case "mean":
                return _masked_mean(states, mask)
            case "max":
                pooled = states.masked_fill(~keep, -torch.inf).amax(dim=1)
                return torch.where(mask.any(dim=1, keepdim=True), pooled, torch.zeros_like(pooled))
            case "attention":
                assert self.attention is not None
                # A large finite number, not -inf: a window without any valid step must not become NaN.
                scores = self.attention(states).squeeze(-1).float().masked_fill(~mask, -1e9)
                weights = (torch.softmax(scores, dim=1) * mask).to(states.dtype)
                return torch.bmm(weights.unsqueeze(1), states).squeeze(1)
            case "last":
                return self._last(states, mask)
            case other:
                raise UserError(f"pooling must be last, mean, max or attention, got {other!r}")

    def _last(self, states: Tensor, mask: Tensor) -> Tensor:
        """Forward state after the last valid step; backward state after the first one."""
        steps = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        last = torch.where(mask, steps, -1).amax(dim=1).clamp(min=0)
        first = torch.where(mask, steps, mask.shape[1]).amin(dim=1).clamp(max=mask.shape[1] - 1)
        rows, hidden = torch.arange(mask.shape[0], device=mask.device), self.config.hidden
        pooled = states[rows, last, :hidden]
        if self.config.bidirectional:
            pooled = torch.cat([pooled, states[rows, first, hidden:]], dim=-1)
        return pooled * mask.any(dim=1, keepdim=True)


def build_head(config: HeadConfig, dims: Mapping[str, int], outputs: int, *, seed: int) -> LstmHead:
    """A head with weights initialised from `seed`; the caller's random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LstmHead(config, dims, outputs)


def stream_statistics(samples: "Samples", streams: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(mean, standard deviation) of each stream over its valid frames, (D,) float32 each."""
    return {name: masked_mean_std(samples.x[name], samples.valid[name]) for name in streams}


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


def _num_copies(config: HeadConfig) -> int:
    """Number of channels per feature: value, deviation from the mean, difference, rate of rises."""
    return 1 + bool(config.centred_copy) + 2 * bool(config.dynamics)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, T, K) over valid steps, (B, K); zeros without valid steps."""
    weights = mask.to(values.dtype).unsqueeze(-1)
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def _dynamics(z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Difference from the previous step (B, T, D), and rate of rises (B, D), of each feature.

    z: (B, T, D) standardised, zero where masked. The difference is zero at the first step and after a masked
    one. The rate is the number of upward crossings of one standard deviation, per pair of neighbouring valid
    steps: for an eye-blink score it is the blink rate, for a gaze or yaw score the rate of gaze shifts.
    """
    pair = (mask[:, 1:] & mask[:, :-1]).unsqueeze(-1)
    change = torch.zeros_like(z)
    change[:, 1:] = (z[:, 1:] - z[:, :-1]) * pair
    high = z > 1.0
    rises = (high[:, 1:] > (high | ~mask.unsqueeze(-1))[:, :-1]).sum(dim=1)
    return change, rises / pair.sum(dim=1).clamp(min=1)
