"""The trainer of encoder and head: one optimizer step at a time; a job can stop and resume at every step.

A step accumulates gradients clip by clip (on CPUs larger micro-batches were slower), over all processes.
Every random choice depends on (seed, epoch, step, position in the step) alone. So neither a kill nor the
number of processes changes the result, except for the order of sums. The best epoch on validation is kept;
the weights before fine-tuning count as an epoch. B clips, T frames, O outputs.
"""

import ctypes
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from features.cli import UserError
from features.datasets import CropClips
from seqmodel.config import FinetuneConfig
from seqmodel.finetuning.activation_cache import ActivationDataset
from seqmodel.finetuning.augmentation import Augmentation, augment_clip
from seqmodel.finetuning.distributed import DistributedContext
from seqmodel.finetuning.network import CnnLstm
from seqmodel.finetuning.prefetch import prefetched
from seqmodel.finetuning.state import EpochResult, Objective, TrainState
from seqmodel.training.checkpoint import optimizer_tensors, restore_optimizer
from seqmodel.training.loop import (
    augment_features,
    computes_in_bf16,
    evaluate_logits,
    labelled_clips,
    lr_scale,
    make_optimizer,
    seed_of,
    set_rate,
    to_tensors,
)
from seqmodel.training.losses import Loss, loss_for

CLIP_NORM = 1.0
"""Maximum norm of a step's gradient, as in the first stage."""


M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
"""From glibc's malloc.h."""


Clips = CropClips | ActivationDataset
Tensors = tuple[dict[str, Tensor], dict[str, Tensor], np.ndarray]
"""(x, valid, labels) of a clip, as a batch of one."""


class EndToEnd:
    """A job that trains the head and the encoder blocks from `first_block` on."""

    def __init__(
        self,
        model: CnnLstm,
        train: Clips,
        val: Clips,
        objective: Objective,
        config: FinetuneConfig,
        *,
        first_block: int,
        seed: int,
        distributed: DistributedContext,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.model, self.train, self.val, self.objective, self.config = model, train, val, objective, config
        self.first_block, self.seed, self.distributed, self.augmentation = (
            first_block,
            seed,
            distributed,
            augmentation,
        )
        self.order = labelled_clips(train)
        self.num_epochs = config.head_only_epochs + config.epochs
        self.num_steps = math.ceil(len(self.order) / config.effective_batch)
        model.to(distributed.device)
        model.encoder.to(memory_format=torch.channels_last)
        model.noise = objective.loss.noise if augmentation is not None else 0.0
        self.optimizer = make_optimizer(model, objective.loss, parameter_groups(model, config, first_block))
        self.on_cuda = distributed.device.startswith("cuda")
        half = torch.bfloat16 if not self.on_cuda or torch.cuda.is_bf16_supported() else torch.float16
        kind = distributed.device.partition(":")[0]
        narrow = {
            "f32": False,
            "bf16": True,
            "auto": self.on_cuda or computes_in_bf16(distributed.device),
        }[config.precision]
        self.autocast: Callable[[], Any] = lambda: torch.autocast(kind, half, enabled=narrow)
        self.scaler = torch.amp.GradScaler(kind, enabled=narrow and half is torch.float16)
        self.loss: Loss = loss_for(
            objective.task, objective.num_classes, objective.loss, np.asarray(train.labels)[self.order]
        )
        self.plain: Loss = loss_for(objective.task, objective.num_classes)
        self.state = TrainState()
        self.best: dict[str, Tensor] = {}
        self.best_logits = np.zeros((0, 1), np.float32)
        self._wrapped: nn.Module | None = None

    def evaluate_start(self) -> EpochResult:
        """Evaluate the initial weights on validation; they are the best until an epoch is better."""
        self.best_logits = self._val_logits()
        result = self._evaluated(self.best_logits, -1, "stage 1")
        self.state.history, self.state.best = [result], -1
        self.best = self._trained_weights()
        return result

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or early stopping applies (it counts epochs with the encoder
        unfrozen)."""
        if self.state.epoch >= self.num_epochs:
            return True
        since = self.state.epoch - 1 - max(self.state.best, self.config.head_only_epochs - 1)
        return self.state.step == 0 and since >= self.config.patience

    @property
    def trains_head_only(self) -> bool:
        """Whether this epoch trains only the head."""
        return self.state.epoch < self.config.head_only_epochs

    def step(self) -> EpochResult | None:
        """One optimizer step; returns the epoch's result after its last step, else None.

        Raises UserError, before any weight changes, if a loss or a gradient is not finite.
        """
        started = time.perf_counter()
        clips = self._clips_of_step()
        wrapped = self._ready()
        losses = []
        with prefetched(self._load, [(position, clip) for position, clip in clips if clip >= 0]) as loaded:
            for number, (position, clip) in enumerate(clips):
                last = number == len(clips) - 1
                quiet = getattr(wrapped, "no_sync", nullcontext) if not last else nullcontext
                with quiet():
                    losses.append(self._backward(wrapped, next(loaded) if clip >= 0 else None, position))
        total = self.distributed.all_reduce(torch.stack(losses).sum())
        self._require_finite(float(total), clips, losses)
        self._update(clips)
        self.state.loss_sum += float(total)
        self.state.step += 1
        self.state.seconds += time.perf_counter() - started
        return self._close_epoch() if self.state.step == self.num_steps else None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a job needs to resume; `note()` has the other data."""
        parts = {f"now.{k}": v for k, v in self._trained_weights().items()}
        parts |= {f"best.{k}": v for k, v in self.best.items()}
        others = {"best_logits": torch.from_numpy(self.best_logits), "rng": torch.get_rng_state()}
        return parts | others | optimizer_tensors(self.optimizer)

    def note(self) -> dict[str, Any]:
        """Position and history of the job, ready for JSON."""
        return asdict(self.state) | {"scaler": self.scaler.state_dict()}

    def load_state_dict(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Resume from the results of `tensors()` and `note()`."""
        history = [EpochResult(**entry) for entry in note["history"]]
        self.state = TrainState(**{k: v for k, v in note.items() if k != "scaler"} | {"history": history})
        self._put({k.removeprefix("now."): v for k, v in tensors.items() if k.startswith("now.")})
        self.best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        self.best_logits = tensors["best_logits"].numpy()
        restore_optimizer(self.optimizer, tensors)
        if note["scaler"]:
            self.scaler.load_state_dict(dict(note["scaler"]))
        torch.set_rng_state(tensors["rng"])

    def restore_best(self) -> EpochResult:
        """Load the best weights into the model; returns the result of their epoch."""
        self._put(self.best)
        return next(epoch for epoch in self.state.history if epoch.index == self.state.best)

    def _trained_weights(self) -> dict[str, Tensor]:
        """Copies of the weights that this job trains."""
        frozen = tuple(f"encoder.blocks.{i}." for i in range(self.first_block))
        return {
            name: tensor.detach().clone()
            for name, tensor in self.model.state_dict().items()
            if not name.startswith(frozen or "-")
        }

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(self.model.state_dict() | dict(tensors))

    def _clips_of_step(self) -> list[tuple[int, int]]:
        """(position in the step, index of the clip) for this process; −1 pads to equal numbers of clips."""
        order = np.random.default_rng([self.seed, self.state.epoch]).permutation(self.order)
        size = self.config.effective_batch
        chosen = order[self.state.step * size : (self.state.step + 1) * size]
        filled_up = math.ceil(len(chosen) / self.distributed.size) * self.distributed.size
        positions = range(self.distributed.rank, filled_up, self.distributed.size)
        return [(position, int(chosen[position]) if position < len(chosen) else -1) for position in positions]

    def _ready(self) -> nn.Module:
        """The model in training mode, with the trainable parts of this phase, wrapped for several
        processes."""
        for name, parameter in self.model.encoder.named_parameters():
            trains = not self.trains_head_only and int(name.split(".")[1]) >= self.first_block
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)
                self._wrapped = None
        self.model.train()
        if self._wrapped is None:
            self._wrapped = self.model
            if self.distributed.size > 1:
                # Buffers never change: BatchNorm keeps its statistics.
                self._wrapped = DistributedDataParallel(self.model, broadcast_buffers=False)
        return self._wrapped

    def _load(self, position: int, clip: int) -> Tensors:
        """One clip as a batch of one, augmented."""
        rng = np.random.default_rng([self.seed, self.state.epoch, self.state.step, position])
        train, augments = self.train, self.augmentation is not None
        if isinstance(train, ActivationDataset) and augments and train.num_versions > 1:
            x, valid, labels = train.batch(np.array([clip]), int(rng.integers(train.num_versions)))
        else:
            x, valid, labels = train.batch(np.array([clip]))
        tensors = to_tensors(x)
        if self.augmentation is not None and "crops" in tensors:
            tensors["crops"] = augment_clip(tensors["crops"][0], self.augmentation, rng)[None]
        return tensors, to_tensors(valid), labels

    def _backward(self, wrapped: nn.Module, batch: Tensors | None, position: int) -> Tensor:
        """Accumulate one clip's gradient; returns its loss, divided by the number of clips of the step."""
        size = self.config.effective_batch
        weight = 1.0 / min(size, len(self.order) - self.state.step * size)
        if batch is None:  # another process has one clip more: take part with weight 0
            batch, weight = self._load(0, int(self.order[0])), 0.0
        x, valid, labels = batch
        torch.manual_seed(seed_of(self.seed, self.state.epoch, self.state.step, position))
        inputs, masks = self._moved(x), self._moved(valid)
        if self.augmentation is not None:
            inputs, masks = augment_features(inputs, masks, self.objective.loss, {})
        with self.autocast():
            logits = wrapped(inputs, masks)
        target = torch.from_numpy(np.asarray(labels)).to(self.distributed.device)
        loss = self.loss(logits.float(), target).sum() * weight
        # DistributedDataParallel takes the mean over processes, but a step needs the sum over clips.
        self.scaler.scale(loss * self.distributed.size).backward()
        return loss.detach()

    def _moved(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.on_cuda:
            return tensors
        return {k: v.pin_memory().to(self.distributed.device, non_blocking=True) for k, v in tensors.items()}

    def _require_finite(self, total: float, clips: list[tuple[int, int]], losses: list[Tensor]) -> None:
        if math.isfinite(total):
            return
        self.optimizer.zero_grad(set_to_none=True)
        bad = [c for (_, c), loss in zip(clips, losses, strict=True) if not math.isfinite(float(loss))]
        raise UserError(self._stopped("the loss", bad or [c for _, c in clips]))

    def _update(self, clips: list[tuple[int, int]]) -> None:
        """Update the weights. Raises UserError if the gradient is not finite."""
        config, state, scale = self.config, self.state, 1.0
        if not self.trains_head_only:
            done = (state.epoch - config.head_only_epochs) * self.num_steps + state.step
            losses = [epoch.val_loss for epoch in state.history]
            scale = lr_scale(config.scheduler, done, config.epochs * self.num_steps, losses)
        set_rate(self.optimizer, scale)
        self.scaler.unscale_(self.optimizer)
        trainable = [
            p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = float(nn.utils.clip_grad_norm_(trainable, CLIP_NORM))
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            self.optimizer.zero_grad(set_to_none=True)
            raise UserError(self._stopped("the gradient", [clip for _, clip in clips]))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _stopped(self, what: str, clips: list[int]) -> str:
        names = ", ".join(str(self.train.clip_ids[clip]) for clip in clips if clip >= 0)
        return (
            f"{what} is not finite at epoch {self.state.epoch}, step {self.state.step}, with clips {names}. "
            "Training stopped; the last checkpoint is kept. Check these clips, or lower the learning rates"
        )

    def _close_epoch(self) -> EpochResult:
        """Evaluate on validation, add the result to the history, and keep the weights if they are the
        best."""
        state = self.state
        logits = self._val_logits()
        seen = self.train.valid["activations" if "activations" in self.train.valid else "crops"]
        result = self._evaluated(
            logits,
            state.epoch,
            "head" if self.trains_head_only else "both",
            train_loss=state.loss_sum / self.num_steps,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=state.seconds,
            frames_per_s=int(seen[self.order].sum()) / state.seconds,
        )
        state.history.append(result)
        if result.rank > next(epoch for epoch in state.history if epoch.index == state.best).rank:
            state.best, self.best, self.best_logits = state.epoch, self._trained_weights(), logits
        state.epoch, state.step, state.loss_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0
        return result

    def _evaluated(self, logits: np.ndarray, index: int, phase: str, **more: float) -> EpochResult:
        loss, value = evaluate_logits(
            logits, self.val.labels, self.plain, self.objective.task, self.objective.metric
        )
        return EpochResult(index, phase, value, loss, **more)

    def _val_logits(self) -> np.ndarray:
        """Logits (N,O) float32 of the validation clips, computed by all processes together."""
        self.model.eval()
        autocast = self.autocast if self.on_cuda else nullcontext
        logits = torch.zeros(len(self.val), self.model.head.num_outputs)
        own_indices = range(self.distributed.rank, len(self.val), self.distributed.size)
        with (
            torch.inference_mode(),
            prefetched(lambda i: self.val.batch(np.array([i])), [(i,) for i in own_indices]) as batches,
        ):
            for index, (x, valid, _) in zip(own_indices, batches, strict=True):
                moved = (self._moved(to_tensors(part)) for part in (x, valid))
                with autocast():
                    logits[index] = self.model(*moved)[0].float().cpu()
        return self.distributed.all_reduce(logits.to(self.distributed.device)).cpu().numpy()


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the tensors of the next step.

    By default it returns large blocks to the system at once, and a step on a CPU spends a fifth of its time
    on allocating them again. It works with glibc only; with other C libraries nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def parameter_groups(model: CnnLstm, config: FinetuneConfig, first_block: int) -> list[dict[str, Any]]:
    """Parameter groups of the head, then of the blocks from the last to `first_block`, with decreasing
    learning rates (`layer_decay`).

    Weight decay applies to matrices and kernels, not to norms and biases.
    """
    last = len(model.encoder.blocks) - 1
    parts: list[tuple[nn.Module, float]] = [(model.head, config.head_lr)]
    for index in range(last, first_block - 1, -1):
        parts.append((model.encoder.blocks[index], config.encoder_lr * config.layer_decay ** (last - index)))
    return [
        {"params": [p for p in part.parameters() if (p.ndim > 1) == decays], "lr": lr, "weight_decay": decay}
        for part, lr in parts
        for decays, decay in ((True, config.weight_decay), (False, 0.0))
    ]
