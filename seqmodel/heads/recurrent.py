"""The recurrent head: from a window of one stream to logits.

A recurrent network reads the window's input (`inputs.StreamInput`), set to zero in frames that are not valid.
Its states are pooled over valid steps, and statistics of the window may stand beside them before the output.
The content of a frame that is not valid does not change the logits.

B clips, T frames, D width of the stream, K channels of the input, H hidden, C classes, O outputs (1 for a
binary task, C for a multi-class one, C − 1 cumulative thresholds for an ordinal one).
"""

import numpy as np
import torch
from torch import Tensor, nn

from features.cli import UserError
from features.labels import Task
from seqmodel.config import HeadConfig
from seqmodel.heads.inputs import Z_LIMIT, StreamInput
from seqmodel.heads.window_statistics import num_statistics, statistics_of, window_statistics


def num_outputs(task: Task, num_classes: int) -> int:
    """Number of logits of a head for a task with `num_classes` classes."""
    return {"binary": 1, "multiclass": num_classes, "ordinal": num_classes - 1}[task]


class RecurrentHead(nn.Module):
    """A recurrent head (LSTM or GRU) over one stream."""

    statistics_mean: Tensor
    statistics_std: Tensor

    def __init__(self, config: HeadConfig, stream: str, dim: int, num_outputs: int) -> None:
        """dim: D. Weights come from torch's current random state.

        Raises UserError for a dropout outside [0, 1).
        """
        super().__init__()
        if not 0 <= config.dropout < 1:
            raise UserError(f"dropout must be at least 0 and below 1, got {config.dropout}")
        self.config, self.stream, self.num_outputs = config, stream, num_outputs
        self.input = StreamInput(stream, dim, config.components)
        self.dropout = nn.Dropout(config.dropout)
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU}[config.kind]
        self.recurrent = recurrent(
            self.input.width,
            config.hidden,
            num_layers=config.layers,
            batch_first=True,
            bidirectional=config.bidirectional,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        states = config.hidden * (2 if config.bidirectional else 1)
        self.attention = nn.Linear(states, 1) if config.pooling == "attention" else None
        pooled = states * (3 if config.pooling == "stats" else 1)
        extra = num_statistics(self.input.width) if config.statistics else 0
        self.register_buffer("statistics_mean", torch.zeros(extra))
        self.register_buffer("statistics_std", torch.ones(extra))
        # CORAL (Cao, Mirjalili & Raschka 2020): one score, a threshold for each step between levels.
        self.output = nn.Linear(pooled + extra, 1 if config.shared_thresholds else num_outputs)
        self.thresholds = (
            nn.Parameter(torch.linspace(1.0, -1.0, num_outputs)) if config.shared_thresholds else None
        )

    def fit_statistics(self, z: np.ndarray, valid: np.ndarray) -> None:
        """Set mean and standard deviation of the window statistics from the training windows: z (N, T, K)
        float32, valid (N, T) bool. Does nothing in a head without statistics."""
        if self.config.statistics:
            found = torch.from_numpy(statistics_of(z, valid))
            self.statistics_mean.copy_(found.mean(dim=0))
            self.statistics_std.copy_(found.std(dim=0, correction=0).clamp(min=1e-3))

    def forward(self, values: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, O), float32 outside autocast, of windows (B, T, D), any float dtype, with valid (B, T)
        bool."""
        return self.read(self.input(values, valid), valid)

    def read(self, z: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, O) of windows as the input gives them, (B, T, K)."""
        z = z.masked_fill(~valid.unsqueeze(-1), 0.0)
        states = self.recurrent(self.dropout(z))[0]
        pooled = self._pool(states, valid)
        if self.config.statistics:
            found = (window_statistics(z, valid) - self.statistics_mean) / self.statistics_std
            pooled = torch.cat([pooled, found.clamp(-Z_LIMIT, Z_LIMIT).to(pooled.dtype)], dim=1)
        logits = self.output(self.dropout(pooled))
        return logits if self.thresholds is None else logits + self.thresholds

    def _pool(self, states: Tensor, valid: Tensor) -> Tensor:
        """(B, T, H') to (B, H'), or (B, 3 H') with pooling stats, over valid steps only; zeros for a window
        without any."""
        keep = valid.unsqueeze(-1)
        weights = keep.to(states.dtype)
        count = weights.sum(dim=1).clamp(min=1.0)
        if self.attention is not None:
            # A large finite number, not -inf: a window without any valid step must not become NaN.
            scores = self.attention(states).squeeze(-1).float().masked_fill(~valid, -1e9)
            shares = (torch.softmax(scores, dim=1) * valid).to(states.dtype)
            return torch.bmm(shares.unsqueeze(1), states).squeeze(1)
        mean = (states * weights).sum(dim=1) / count
        if self.config.pooling == "mean":
            return mean
        variance = ((states - mean.unsqueeze(1)) ** 2 * weights).sum(dim=1) / count
        # States are between -1 and 1. The root has no finite slope at 0.
        largest = states.masked_fill(~keep, -1.0).amax(dim=1) * valid.any(dim=1, keepdim=True)
        return torch.cat([mean, (variance + 1e-6).sqrt() * valid.any(dim=1, keepdim=True), largest], dim=1)


def build_head(config: HeadConfig, stream: str, dim: int, outputs: int, *, seed: int) -> RecurrentHead:
    """A head with weights initialised from `seed`; the caller's random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RecurrentHead(config, stream, dim, outputs)
