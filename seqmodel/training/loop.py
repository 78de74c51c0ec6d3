"""The training loop: `fit`, a generator of Epochs, with optimizer and learning-rate schedule.

The caller of the generator does pruning, saving and logging. The number of epochs is fixed, and no epoch is
chosen. Every random choice of epoch k depends on (seed, k) alone, and the learning rate on the step alone.
Fine-tuning shares the losses and the schedule.

B clips, T frames, D width of a stream, K channels of a head's input, C classes, O outputs of the network.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from features.cli import UserError
from features.labels import Task
from seqmodel.config import METRIC_OF_TASK, Metric, Scheduler, TrainConfig
from seqmodel.heads.ensemble import Head
from seqmodel.heads.recurrent import RecurrentHead, num_outputs
from seqmodel.metrics.calibration import probabilities
from seqmodel.metrics.classification import score
from seqmodel.training.losses import Loss, loss_for

Batch = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], np.ndarray]

UNDEFINED = (math.nan, math.nan)
"""Loss and score without labelled validation clips."""


class Source(Protocol):
    """Clips to predict: a length, labels and batches by index."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class indices, −1 = unlabelled."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, /) -> Batch:
        """(x, valid, labels) of these clips: x (B, T, D) and valid (B, T) bool by stream."""


@dataclass(frozen=True)
class Epoch:
    """Losses and metric of one epoch."""

    index: int
    """0 for the first."""
    train_loss: float
    """Mean over the clips, with class weights and augmentation."""
    val_loss: float
    """Mean over the clips, without class weights, smoothing and augmentation; NaN without validation clips.
    """
    val_score: float
    """The metric on validation; NaN if undefined."""
    val_logits: np.ndarray = field(repr=False)
    """(N, O) float32, in the order of the validation source."""
    lr: float
    """Learning rate of the first parameter group at the last step."""
    seconds: float
    """Time for training and validation."""


@dataclass(frozen=True)
class Windows:
    """Clips as a head's input gives them."""

    z: np.ndarray
    """(N, T, K) float32, 0 where not valid."""
    valid: np.ndarray
    """(N, T) bool."""
    labels: np.ndarray
    """(N,) int64 class indices, −1 = not labelled."""

    def __len__(self) -> int:
        return len(self.labels)


def fit(
    head: RecurrentHead,
    train: Windows,
    held_out: Windows | None,
    config: TrainConfig,
    *,
    task: Task,
    num_classes: int,
    seed: int,
    device: str = "cpu",
    metric: Metric = "auto",
) -> Iterator[Epoch]:
    """Train `head` in place for `config.epochs` epochs; yields each Epoch.

    held_out: clips that are predicted after each epoch, in float32, as prediction is later; they choose
    nothing. Unlabelled clips are skipped. Raises UserError for a batch size or epochs below 1 and without
    labelled clips.
    """
    _require_positive(config)
    head.to(device)
    optimizer = make_optimizer(head, config)
    usable = labelled_clips(train)
    loss = loss_for(task, num_classes, config, np.asarray(train.labels)[usable])
    plain = loss_for(task, num_classes)
    resolved = resolve_metric(metric, task)
    autocast = config.precision == "bf16" or (config.precision == "auto" and computes_in_bf16(device))
    steps = math.ceil(len(usable) / config.batch_size)
    tensors = [torch.from_numpy(array).to(device) for array in (train.z, train.valid, train.labels)]
    for index in range(config.epochs):
        started, total = time.perf_counter(), 0.0
        order = torch.from_numpy(usable[np.random.default_rng([seed, index]).permutation(len(usable))])
        torch.manual_seed(seed_of(seed, index))
        head.train()
        for step in range(steps):
            set_rate(optimizer, lr_scale("cosine", index * steps + step, steps * config.epochs))
            batch = order[step * config.batch_size : (step + 1) * config.batch_size].to(device)
            total += _step(head, [tensor[batch] for tensor in tensors], loss, optimizer, config, autocast)
        logits, val_loss, val_score = np.zeros((0, num_outputs(task, num_classes)), np.float32), *UNDEFINED
        if held_out:
            logits = read_logits(head, held_out, device=device)
            val_loss, val_score = evaluate_logits(logits, held_out.labels, plain, task, resolved)
        yield Epoch(
            index=index,
            train_loss=total / len(usable),
            val_loss=val_loss,
            val_score=val_score,
            val_logits=logits,
            lr=optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
        )


def _require_positive(config: TrainConfig) -> None:
    for name in ("batch_size", "epochs"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(config, name)}")


def read_logits(head: Head, windows: Windows, *, device: str = "cpu") -> np.ndarray:
    """Logits (N, O) float32 of every clip, computed in eval mode."""
    head.eval()
    parts = [np.zeros((0, head.num_outputs), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(windows), 256):
            z, valid = (
                torch.from_numpy(a[start : start + 256]).to(device) for a in (windows.z, windows.valid)
            )
            parts.append(head.read(z, valid).float().cpu().numpy())
    return np.concatenate(parts)


def predict_logits(
    model: nn.Module, source: Source, batch_size: int = 64, *, device: str = "cpu"
) -> np.ndarray:
    """Logits (N, O) float32 of every clip of `source`, in its order, computed in eval mode."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(source), batch_size):
            x, valid, _ = source.batch(np.arange(start, min(start + batch_size, len(source))))
            parts.append(model(to_tensors(x, device), to_tensors(valid, device)).float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def make_optimizer(
    model: nn.Module, config: TrainConfig, groups: Sequence[dict[str, Any]] | None = None
) -> torch.optim.AdamW:
    """AdamW over `groups`, or over all trainable parameters with weight decay on matrices only; each group
    also stores its `base_lr`."""
    if groups is None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
    complete = [{"lr": config.lr, "weight_decay": config.weight_decay} | dict(group) for group in groups]
    complete = [group | {"base_lr": group["lr"]} for group in complete if group["params"]]
    return torch.optim.AdamW(complete, fused=True)


def computes_in_bf16(device: str) -> bool:
    """Whether training of heads is faster in bfloat16. On processors with instructions for it, it is 1.3 to
    1.7 times as fast as float32 for the heads of the search space. False on a GPU: heads are too small to
    gain."""
    if device != "cpu":
        return False
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))


def lr_scale(scheduler: Scheduler, step: int, total_steps: int, val_losses: Sequence[float] = ()) -> float:
    """The factor on the base learning rate at this step, 0 to 1; a function of its arguments alone.

    cosine: linear warm-up over 5 % of the steps, then half a cosine down to 0. plateau: halved after every
    two epochs in a row without a lower validation loss.
    """
    if scheduler == "cosine":
        warm = max(1, round(0.05 * total_steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total_steps - warm)))
    if scheduler == "plateau":
        scale, lowest, bad_epochs = 1.0, math.inf, 0
        for loss in val_losses:
            bad_epochs = 0 if loss < lowest else bad_epochs + 1
            lowest = min(loss, lowest)
            if bad_epochs >= 2:
                scale, bad_epochs = scale / 2, 0
        return scale
    return 1.0


def resolve_metric(metric: Metric, task: Task) -> str:
    """The metric that `auto` stands for, or the metric itself."""
    return METRIC_OF_TASK[task] if metric == "auto" else metric


def _step(
    head: RecurrentHead,
    batch: Sequence[Tensor],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    autocast: bool,
) -> float:
    """One optimizer step over a batch (z, valid, labels); returns the summed loss."""
    optimizer.zero_grad(set_to_none=True)
    z, valid, labels = batch
    x, masks = augment_features(
        {head.stream: z}, {head.stream: valid}, config, {head.stream: head.input.noise_unit()}
    )
    with torch.autocast(z.device.type, torch.bfloat16, enabled=autocast):
        logits = head.read(x[head.stream], masks[head.stream])
    losses = loss(logits, labels)
    losses.mean().backward()
    if config.clip_norm > 0:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.clip_norm)
    optimizer.step()
    return float(losses.detach().sum())


def augment_features(
    x: dict[str, Tensor],
    valid: dict[str, Tensor],
    config: TrainConfig,
    unit: Mapping[str, Tensor | float],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features with masked frames and noise, as `config` sets.

    Uses torch's random state. unit: standard deviation of a stream's channels, the unit of the noise. Streams
    (B,T,…) without it, for example crops, get no noise.
    """
    if config.frame_dropout > 0:
        some = next(iter(valid.values()))
        kept = torch.rand(some.shape, device=some.device) >= config.frame_dropout
        valid = {name: mask & kept for name, mask in valid.items()}
    if config.noise > 0:
        x = {
            name: values + config.noise * unit[name] * torch.randn_like(values, dtype=torch.float32)
            if name in unit
            else values
            for name, values in x.items()
        }
    return x, valid


def to_tensors(arrays: Mapping[str, np.ndarray], device: str = "cpu") -> dict[str, Tensor]:
    """The arrays of each stream as tensors on a device."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}


def evaluate_logits(
    logits: np.ndarray, labels: np.ndarray, plain: Loss, task: Task, metric: str
) -> tuple[float, float]:
    """(loss, score) of validation logits; NaN if no clip has a label."""
    known = np.asarray(labels) >= 0
    if not known.any():
        return UNDEFINED
    logits, labels = logits[known], np.asarray(labels)[known]
    loss = float(plain(torch.from_numpy(logits), torch.from_numpy(labels)).mean())
    return loss, score(metric, labels, probabilities(logits, task))


def seed_of(*numbers: int) -> int:
    """One seed for torch that depends on all of these numbers."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def labelled_clips(clips: Source | Windows) -> np.ndarray:
    """Indices of the clips with a label. Raises UserError if there is none."""
    usable = np.flatnonzero(np.asarray(clips.labels) >= 0)
    if not len(usable):
        raise UserError("the training split has no labelled clip")
    return usable


def set_rate(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set the learning rate of every parameter group to its base rate times `scale`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale


def rank_of(val_score: float, val_loss: float) -> tuple[float, float]:
    """Sort key of a validation result, higher is better: the score, then the negative loss."""
    value = val_score if math.isfinite(val_score) else -math.inf
    return value, -val_loss if math.isfinite(val_loss) else -math.inf
