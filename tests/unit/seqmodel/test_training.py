"""The training loop, losses, schedules and options."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from features.labels import Task
from seqmodel.config import FinetuneArgs, FinetuneConfig, HeadConfig, TrainConfig
from seqmodel.finetuning.setup import config_of
from seqmodel.heads.inputs import fit_input
from seqmodel.heads.recurrent import RecurrentHead, build_head
from seqmodel.runs.writer import resolve_device
from seqmodel.training.loop import (
    Epoch,
    Windows,
    augment_features,
    fit,
    lr_scale,
    make_optimizer,
    read_logits,
)
from seqmodel.training.losses import loss_for

pytestmark = pytest.mark.usefixtures("one_thread")
HEAD = HeadConfig(hidden=8, components=0, dropout=0.2)
QUICK = TrainConfig(epochs=4, batch_size=16, lr=5e-3)


def clips(count: int, seed: int = 0, classes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, valid, labels) of clips whose label is the number of frames with a high feature, as in the demo:
    single frames do not show it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    x = rng.normal(0, 0.3, (count, 10, 6)).astype(np.float16)
    for place, label in enumerate(labels.tolist()):
        x[place, : 2 + 3 * label, 0] += 2
    return x, rng.random((count, 10)) > 0.1, labels


def new_head(outputs: int = 1, config: HeadConfig = HEAD) -> RecurrentHead:
    """A head whose input is fitted on the training clips."""
    head = build_head(config, "embeddings", 6, outputs, seed=0)
    x, valid, _ = clips(64)
    head.input.put(fit_input("embeddings", x, valid, config.components))
    read = windows(head, 64)
    head.fit_statistics(read.z, read.valid)
    return head


def windows(head: RecurrentHead, count: int, seed: int = 0, classes: int = 2) -> Windows:
    """Clips as the input of the head gives them."""
    x, valid, labels = clips(count, seed, classes)
    with torch.inference_mode():
        return Windows(head.input(torch.from_numpy(x), torch.from_numpy(valid)).numpy(), valid, labels)


def run(config: TrainConfig, head: RecurrentHead, seed: int = 0) -> list[Epoch]:
    train, held_out = windows(head, 64), windows(head, 32, 1)
    return list(fit(head, train, held_out, config, task="binary", num_classes=2, seed=seed))


def losses(epochs: list[Epoch]) -> list[float]:
    return [epoch.train_loss for epoch in epochs]


def test_one_seed_gives_the_same_losses_and_another_does_not() -> None:
    config = dataclasses.replace(QUICK, noise=0.2, frame_dropout=0.2)
    assert losses(run(config, new_head())) == losses(run(config, new_head()))
    assert losses(run(config, new_head())) != losses(run(config, new_head(), seed=1))


def test_the_rate_follows_the_cosine_down_to_zero() -> None:
    epochs = run(dataclasses.replace(QUICK, lr=0.1), new_head())
    expected = [0.1 * lr_scale("cosine", 4 * index + 3, 16) for index in range(4)]
    assert [e.lr for e in epochs] == pytest.approx(expected)
    assert epochs[-1].lr < 0.1 * 0.02


def test_every_epoch_is_trained_and_the_last_one_is_the_model() -> None:
    """Held-out clips choose nothing: the model is the same without them, and with other labels."""
    config = dataclasses.replace(QUICK, lr=0.5)  # scores go up and down
    heads = [new_head() for _ in range(3)]
    train, held_out = windows(heads[0], 64), windows(heads[0], 32, 1)
    turned = dataclasses.replace(held_out, labels=1 - held_out.labels)
    found = [
        list(fit(head, train, part, config, task="binary", num_classes=2, seed=0))
        for head, part in zip(heads, (held_out, turned, None), strict=True)
    ]
    assert [[epoch.index for epoch in epochs] for epochs in found] == [[0, 1, 2, 3]] * 3
    np.testing.assert_array_equal(read_logits(heads[0], held_out), found[0][-1].val_logits)
    assert losses(found[0]) == losses(found[1]) == losses(found[2])
    assert found[0][-1].val_score == pytest.approx(1 - found[1][-1].val_score)
    assert all(np.isnan(epoch.val_score) and np.isnan(epoch.val_loss) for epoch in found[2])
    for other in heads[1:]:
        state = other.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in heads[0].state_dict().items())


def test_training_does_not_change_the_input_of_the_head() -> None:
    """Components and statistics are fitted before; the windows were computed with them."""
    head = new_head(config=dataclasses.replace(HEAD, components=4))
    before = {name: tensor.clone() for name, tensor in head.named_buffers()}
    run(QUICK, head)
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.named_buffers())
    assert before["input.basis"].any()
    assert before["statistics_mean"].any()


@pytest.mark.parametrize("statistics", [True, False])
def test_head_learns_the_length_of_an_event(statistics: bool) -> None:
    head = new_head(config=dataclasses.replace(HEAD, statistics=statistics))
    config = TrainConfig(epochs=12, batch_size=8, lr=5e-3)
    given = windows(head, 96), windows(head, 64, 1)
    *_, last = fit(head, *given, config, task="binary", num_classes=2, seed=0)
    assert last.val_score > 0.97


def has_bf16_lstm() -> bool:
    """Whether this processor has torch's LSTM in bfloat16; it needs AVX-512. Of a GRU,
    only the linear layers after it are in bfloat16, on every processor."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(6, 8, batch_first=True)(torch.zeros(1, 2, 6))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_bf16_training_learns_the_same_and_validates_in_float32(kind: str) -> None:
    if kind == "lstm" and not has_bf16_lstm():
        pytest.skip("this processor has no bfloat16 LSTM")
    scores, shape = [], dataclasses.replace(HEAD, kind=kind)  # type: ignore[arg-type]
    for precision in ("f32", "bf16"):
        head = new_head(config=shape)
        val = windows(head, 64, 1)
        config = TrainConfig(epochs=12, batch_size=8, lr=5e-3, precision=precision)  # type: ignore[arg-type]
        *_, last = fit(head, windows(head, 96), val, config, task="binary", num_classes=2, seed=0)
        scores.append(last.val_score)
        assert all(tensor.dtype == torch.float32 for tensor in head.state_dict().values())
        assert np.array_equal(last.val_logits, read_logits(head, val))
    assert abs(scores[0] - scores[1]) < 0.03


@pytest.mark.parametrize(("task", "outputs"), [("multiclass", 3), ("ordinal", 2)])
def test_three_levels_are_learned_by_every_task(task: Task, outputs: int) -> None:
    shape = dataclasses.replace(HEAD, shared_thresholds=task == "ordinal", dropout=0.0)
    head = new_head(outputs, shape)
    config = TrainConfig(epochs=10, batch_size=8, lr=1e-2)
    given = windows(head, 96, 0, 3), windows(head, 64, 1, 3)
    *_, last = fit(head, *given, config, task=task, num_classes=3, seed=0)
    assert last.val_score > 0.85


def test_unlabelled_clips_are_skipped() -> None:
    labelled, unlabelled = windows(new_head(), 64), windows(new_head(), 16, 7)
    more = Windows(
        np.concatenate([labelled.z, np.full_like(unlabelled.z, 50)]),
        np.concatenate([labelled.valid, unlabelled.valid]),
        np.concatenate([labelled.labels, np.full(16, -1)]),
    )

    def first(given: Windows, held_out: Windows | None = None) -> Epoch:
        return next(fit(new_head(), given, held_out, QUICK, task="binary", num_classes=2, seed=0))

    assert first(more).train_loss == first(labelled).train_loss
    mixed, alone = first(labelled, more), first(labelled, labelled)
    assert (mixed.val_score, mixed.val_loss) == (alone.val_score, alone.val_loss)
    assert len(mixed.val_logits) == 80
    with pytest.raises(ValueError, match="the training split has no labelled clip"):
        first(Windows(more.z[64:], more.valid[64:], more.labels[64:]))


def test_class_weights_balance_the_classes() -> None:
    labels = np.array([0] * 9 + [1])
    each = loss_for("binary", 2, TrainConfig(class_weighting=True), labels)
    found = each(torch.zeros(10, 1), torch.from_numpy(labels))
    assert float(found[:9].sum()) == pytest.approx(float(found[9]))
    assert float(found.mean()) == pytest.approx(np.log(2), rel=1e-6)


def test_schedules_are_functions_of_step_and_history() -> None:
    cosine = [lr_scale("cosine", step, 100) for step in range(100)]
    assert cosine[0] == pytest.approx(0.2)
    assert max(cosine) == cosine[4] == cosine[5] == 1.0
    assert cosine[-1] < 0.01
    assert lr_scale("plateau", 0, 9, [1.0, 0.9, 0.95]) == 1.0
    assert lr_scale("plateau", 0, 9, [1.0, 0.9, 0.95, 0.92, 0.91, 0.9]) == 0.25
    assert lr_scale("none", 50, 100, [9.0, 9.0, 9.0]) == 1.0


def test_parameter_groups_have_own_rates_and_no_decay_of_vectors() -> None:
    head = new_head()
    groups = make_optimizer(head, TrainConfig()).param_groups
    assert groups[0]["weight_decay"] > 0
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert groups[1]["weight_decay"] == 0
    split = [{"params": [head.output.weight], "lr": 1e-2}, {"params": [head.output.bias], "lr": 1e-4}]
    groups = make_optimizer(head, TrainConfig(), split).param_groups
    assert [(group["lr"], group["base_lr"]) for group in groups] == [(1e-2, 1e-2), (1e-4, 1e-4)]


def test_augmentation_masks_frames_and_adds_noise() -> None:
    config = TrainConfig(frame_dropout=0.5, noise=1.0)
    x, valid = {"embeddings": torch.zeros(40, 10, 6)}, {"embeddings": torch.ones(40, 10, dtype=torch.bool)}
    torch.manual_seed(0)
    noisy, kept = augment_features(x, valid, config, {"embeddings": 0.5})
    assert 0.35 < float(kept["embeddings"].float().mean()) < 0.65
    assert float(noisy["embeddings"].std()) == pytest.approx(0.5, rel=0.1)
    same, whole = augment_features(x, valid, TrainConfig(), {"embeddings": 0.5})
    assert same["embeddings"] is x["embeddings"]
    assert whole["embeddings"] is valid["embeddings"]


def test_augmentation_is_only_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training reads masked and noisy windows, held-out clips are predicted as they are."""
    head, config = new_head(), dataclasses.replace(QUICK, epochs=1, frame_dropout=0.5, noise=1.0)
    given = windows(head, 32, 1)
    seen: dict[bool, list[tuple[torch.Tensor, torch.Tensor]]] = {True: [], False: []}
    read = RecurrentHead.read

    def noted(self: RecurrentHead, z: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        seen[self.training].append((z, valid))
        return read(self, z, valid)

    monkeypatch.setattr(RecurrentHead, "read", noted)
    list(fit(head, given, given, config, task="binary", num_classes=2, seed=0))
    ((z, valid),) = seen[False]
    np.testing.assert_array_equal(z.numpy(), given.z)
    np.testing.assert_array_equal(valid.numpy(), given.valid)
    order = np.random.default_rng([0, 0]).permutation(32)
    z, valid = (torch.cat(parts) for parts in zip(*seen[True], strict=True))
    assert 0.2 < valid.float().mean() < 0.7
    assert not (valid & ~torch.from_numpy(given.valid[order])).any()
    moved = (z - torch.from_numpy(given.z[order])).std()
    assert float(moved) == pytest.approx(head.input.noise_unit(), rel=0.1)


@pytest.mark.parametrize("name", ["batch_size", "epochs"])
@pytest.mark.parametrize("value", [0, -8])
def test_batch_size_and_epochs_of_zero_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        run(dataclasses.replace(QUICK, **{name: value}), new_head())


@pytest.mark.parametrize("change", [{"effective_batch": 0}, {"effective_batch": -8}, {"augmented_copies": 0}])
def test_finetune_refuses_a_batch_of_zero_before_caching(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="--effective-batch and --augmented-copies must be at least 1"):
        config_of(FinetuneArgs(Path("run"), finetune=FinetuneConfig(**change)))


@pytest.mark.parametrize("change", [{"epochs": -1}, {"head_only_epochs": -1}])
def test_finetune_refuses_negative_epochs(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="--epochs and --head-only-epochs must be at least 0"):
        config_of(FinetuneArgs(Path("run"), finetune=FinetuneConfig(**change)))


def test_missing_device_error_names_the_available_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(cards: int, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    here(cards=2)
    assert [resolve_device(d) for d in ("auto", "cpu", "cuda:1")] == ["cuda", "cpu", "cuda:1"]
    for device in ("gpu", "mps", "cuda:2", "cuda:", "cuda:-1", ""):
        with pytest.raises(
            ValueError, match=f"--device {device}: this machine has cpu, cuda, cuda:0, cuda:1$"
        ):
            resolve_device(device)
    here(cards=0, mps=True)
    assert [resolve_device(d) for d in ("auto", "mps")] == ["cpu", "mps"]
    with pytest.raises(ValueError, match=r"--device cuda: this machine has cpu, mps$"):
        resolve_device("cuda")
