"""The training loop, losses, schedules and options."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from features.datasets import Samples, select_samples
from features.labels import Task
from seqmodel.config import FinetuneArgs, FinetuneConfig, HeadConfig, TrainConfig
from seqmodel.finetuning.setup import config_of
from seqmodel.heads.recurrent import LstmHead, build_head
from seqmodel.runs.writer import resolve_device
from seqmodel.training.loop import Epoch, Fitted, fit, fit_best, lr_scale, make_optimizer, predict_logits
from seqmodel.training.losses import loss_for
from tune.objective import join

HEAD = HeadConfig(hidden=8, projection=8, dropout=0.2)
QUICK = TrainConfig(epochs=4, batch_size=16, lr=5e-3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clips(count: int, seed: int = 0, classes: int = 2) -> Samples:
    """Clips whose label is the number of frames with a high feature, as in the demo: single frames do not
    show it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    x = rng.normal(0, 0.3, (count, 10, 6)).astype(np.float16)
    for place, label in enumerate(labels.tolist()):
        x[place, : 2 + 3 * label, 0] += 2
    valid = rng.random((count, 10)) > 0.1
    names = np.array([f"clip{i}" for i in range(count)])
    return Samples({"embeddings": x}, {"embeddings": valid}, labels, names, names, np.arange(count))


def new_head(task: Task = "binary", outputs: int = 1, config: HeadConfig = HEAD) -> LstmHead:
    head = build_head(config, {"embeddings": 6}, outputs, seed=0)
    head.set_statistics(clips(64))
    return head


def run(config: TrainConfig, head: LstmHead, seed: int = 0) -> list[Epoch]:
    return list(fit(head, clips(64), clips(32, 1), config, task="binary", num_classes=2, seed=seed))


def losses(epochs: list[Epoch]) -> list[float]:
    return [epoch.train_loss for epoch in epochs]


def test_one_seed_gives_the_same_losses_and_another_does_not() -> None:
    config = dataclasses.replace(QUICK, noise=0.2, frame_dropout=0.2, subsample=0.5)
    assert losses(run(config, new_head())) == losses(run(config, new_head()))
    assert losses(run(config, new_head())) != losses(run(config, new_head(), seed=1))


@pytest.mark.parametrize("scheduler", ["cosine", "plateau", "none"])
def test_the_rate_follows_the_schedule(scheduler: str) -> None:
    config = dataclasses.replace(QUICK, scheduler=scheduler, lr=0.1)
    epochs = run(config, new_head())
    before = [[e.val_loss for e in epochs[:count]] for count in range(len(epochs))]
    expected = [0.1 * lr_scale(config, 4 * index + 3, 16, seen) for index, seen in enumerate(before)]
    assert [e.lr for e in epochs] == pytest.approx(expected)


def test_head_learns_the_length_of_an_event() -> None:
    head = new_head()
    config = TrainConfig(epochs=12, batch_size=8, lr=5e-3)
    fitted = fit_best(
        head, fit(head, clips(96), clips(64, 1), config, task="binary", num_classes=2, seed=0), 12
    )
    assert fitted.best.val_score > 0.97


def test_bf16_training_learns_the_same_and_validates_in_float32() -> None:
    val, scores = clips(64, 1), []
    for precision in ("f32", "bf16"):
        head = new_head()
        config = TrainConfig(epochs=12, batch_size=8, lr=5e-3, precision=precision)
        fitted = fit_best(head, fit(head, clips(96), val, config, task="binary", num_classes=2, seed=0), 12)
        scores.append(fitted.best.val_score)
        assert all(tensor.dtype == torch.float32 for tensor in head.state_dict().values())
        assert np.array_equal(fitted.best.val_logits, predict_logits(head, val))
    assert abs(scores[0] - scores[1]) < 0.03


@pytest.mark.parametrize(("task", "outputs"), [("multiclass", 3), ("ordinal", 2)])
@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_three_levels_are_learned_by_every_task_and_loss(task: Task, outputs: int, loss: str) -> None:
    shape = dataclasses.replace(HEAD, shared_thresholds=task == "ordinal", dropout=0.0)
    head = new_head(task, outputs, shape)
    config = TrainConfig(epochs=10, batch_size=8, lr=1e-2, loss=loss, label_smoothing=0.05)
    epochs = fit(head, clips(96, 0, 3), clips(64, 1, 3), config, task=task, num_classes=3, seed=0)
    assert fit_best(head, epochs, 10).best.val_score > 0.85


def test_the_best_epoch_is_kept_and_its_logits_are_the_models() -> None:
    head = new_head()
    val = clips(32, 1)
    fitted = fit_best(head, fit(head, clips(64), val, QUICK, task="binary", num_classes=2, seed=0), 4)
    np.testing.assert_array_equal(predict_logits(head, val), fitted.best.val_logits)
    assert fitted.best.val_score == max(epoch.val_score for epoch in fitted.history)


def test_patience_stops_and_the_best_of_equal_scores_has_the_lower_loss() -> None:
    def epochs() -> Iterator[Epoch]:
        for index, (score, loss) in enumerate(
            [(0.5, 1.0), (0.9, 0.9), (0.9, 0.8), (0.7, 0.1), (0.6, 0.1), (1.0, 0.1)]
        ):
            yield Epoch(index, 0.0, loss, score, np.zeros((0, 1), np.float32), 0.0, 0.0)

    fitted = fit_best(new_head(), epochs(), patience=2)
    assert isinstance(fitted, Fitted)
    assert (fitted.best.index, len(fitted.history)) == (2, 5)


def test_unlabelled_clips_are_skipped() -> None:
    labelled, unlabelled = clips(64), clips(16, 7)
    unlabelled.x["embeddings"][:] = 50
    more = join(labelled, dataclasses.replace(unlabelled, labels=np.full(16, -1)))
    alone = next(fit(new_head(), labelled, None, QUICK, task="binary", num_classes=2, seed=0))
    mixed = next(fit(new_head(), more, None, QUICK, task="binary", num_classes=2, seed=0))
    assert mixed.train_loss == alone.train_loss
    assert np.isnan(alone.val_score)
    with pytest.raises(ValueError, match="the training split has no labelled clip"):
        next(
            fit(
                new_head(),
                select_samples(more, np.arange(64, 80)),
                None,
                QUICK,
                task="binary",
                num_classes=2,
                seed=0,
            )
        )


def test_class_weights_balance_the_classes() -> None:
    labels = np.array([0] * 9 + [1])
    each = loss_for("binary", 2, TrainConfig(class_weighting=True), labels)
    found = each(torch.zeros(10, 1), torch.from_numpy(labels))
    assert float(found[:9].sum()) == pytest.approx(float(found[9]))
    assert float(found.mean()) == pytest.approx(np.log(2), rel=1e-6)


def test_focal_loss_is_lower_for_easy_clips() -> None:
    easy, hard = torch.tensor([[4.0]]), torch.tensor([[-4.0]])
    plain, focal = (
        loss_for("binary", 2),
        loss_for("binary", 2, TrainConfig(loss="focal", class_weighting=False)),
    )
    yes = torch.tensor([1])
    assert float(focal(easy, yes) / plain(easy, yes)) < 0.001
    assert float(focal(hard, yes) / plain(hard, yes)) > 0.9


def test_schedules_are_functions_of_step_and_history() -> None:
    cosine = [lr_scale(TrainConfig(scheduler="cosine"), step, 100, []) for step in range(100)]
    assert cosine[0] == pytest.approx(0.2)
    assert max(cosine) == cosine[4] == cosine[5] == 1.0
    assert cosine[-1] < 0.01
    plateau = TrainConfig(scheduler="plateau")
    assert lr_scale(plateau, 0, 9, [1.0, 0.9, 0.95]) == 1.0
    assert lr_scale(plateau, 0, 9, [1.0, 0.9, 0.95, 0.92, 0.91, 0.9]) == 0.25
    assert lr_scale(TrainConfig(scheduler="none"), 50, 100, [9.0, 9.0, 9.0]) == 1.0


def test_parameter_groups_have_own_rates_and_no_decay_of_vectors() -> None:
    head = new_head()
    groups = make_optimizer(head, TrainConfig()).param_groups
    assert groups[0]["weight_decay"] > 0
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert groups[1]["weight_decay"] == 0
    split = [{"params": [head.output.weight], "lr": 1e-2}, {"params": [head.output.bias], "lr": 1e-4}]
    groups = make_optimizer(head, TrainConfig(), split).param_groups
    assert [(group["lr"], group["base_lr"]) for group in groups] == [(1e-2, 1e-2), (1e-4, 1e-4)]


def test_augmentation_masks_frames_only_in_training() -> None:
    from seqmodel.training.loop import augment_features

    config = TrainConfig(frame_dropout=0.5, subsample=1.0, noise=1.0)
    x, valid = {"embeddings": torch.zeros(40, 10, 6)}, {"embeddings": torch.ones(40, 10, dtype=torch.bool)}
    torch.manual_seed(0)
    noisy, kept = augment_features(x, valid, config, new_head())
    assert 0.15 < float(kept["embeddings"].float().mean()) < 0.6
    assert float(noisy["embeddings"].std()) > 0.1
    _, whole = augment_features(x, valid, TrainConfig(subsample=1.0), new_head())
    spans = whole["embeddings"].sum(dim=1)
    assert (spans >= 5).all()
    assert (whole["embeddings"].int().diff(dim=1).clamp(min=0).sum(dim=1) <= 1).all()  # one span


@pytest.mark.parametrize("batch_size", [0, -8])
def test_batch_size_of_zero_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        run(dataclasses.replace(QUICK, batch_size=batch_size), new_head())


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
