"""Fine-tuning never lowers the validation score, resumes exactly, and its caches change only the speed."""

import dataclasses
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from extract.config import ExtractConfig
from extract.pipeline.planning import make_extractor_config
from features.cli import parse
from features.datasets import CropClips
from features.manifest import Clip
from features.store.store import FeatureStore, plan
from seqmodel.__main__ import main
from seqmodel.commands.finetune import finetune, start_job
from seqmodel.commands.train import train
from seqmodel.config import FinetuneArgs, FinetuneConfig, HeadConfig, TrainArgs, TrainConfig
from seqmodel.encoders.backbone import build_encoder, encoder_from_state, state_sha256
from seqmodel.finetuning.activation_cache import prefix_runner
from seqmodel.finetuning.augmentation import Augmentation, augment_clip
from seqmodel.finetuning.distributed import DistributedContext
from seqmodel.finetuning.reextract import re_extract
from seqmodel.finetuning.setup import activation_datasets, crops_command, open_setup
from seqmodel.finetuning.trainer import EndToEnd
from seqmodel.runs.card import load_card, save_card
from seqmodel.runs.files import load_folds, load_weights, read_log, save_weights
from seqmodel.runs.predict import predict_rows
from seqmodel.runs.run_encoder import open_run_engine
from seqmodel.runs.training_stats import read_training_stats
from seqmodel.runs.writer import drop_results
from seqmodel.training.losses import Loss
from tests.support.crop_store import clip_images, encoder, write_crop_store

pytestmark = pytest.mark.usefixtures("converted_once", "not_exported")

QUICK = FinetuneConfig(
    epochs=2, head_only_epochs=1, effective_batch=4, head_lr=3e-3, encoder_lr=3e-4, augmented_copies=1
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With small tensors on a busy machine, a second thread mostly waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a run. Tests copy it and do not change it."""
    folder = tmp_path_factory.mktemp("finetune")
    store = write_crop_store(folder / "crops.zarr")
    head = HeadConfig(hidden=8, dropout=0.1, components=16, pooling="mean", statistics=False)
    train(TrainArgs(Path(store.path), folder / "run", head=head, train=TrainConfig(epochs=1, lr=1e-5)))
    return folder


@pytest.fixture
def run(stage_1: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stage_1 / "run", tmp_path / "실행"))


def args(run: Path, **changes: object) -> FinetuneArgs:
    return dataclasses.replace(FinetuneArgs(run, finetune=QUICK, unfreeze_from=15), **changes)


def trained_with(run: Path, **changes: Any) -> None:
    """Change the training settings of the run's member in its card."""
    card = load_card(run)
    (member,) = card.members
    member = dataclasses.replace(member, train=dataclasses.replace(member.train, **changes))
    save_card(run, dataclasses.replace(card, members=(member,)))


def test_finetune_improves_validation_and_records_its_epochs(run: Path) -> None:
    before = load_card(run)
    summary, code = finetune(args(run, finetune=dataclasses.replace(QUICK, head_only_epochs=0, epochs=4)))
    assert code == 0
    assert summary["stage_2"] > summary["stage_1"]
    card = load_card(run)
    assert card.stages[-1]["kept"]
    assert card.stages[-1]["stage_1"] == summary["stage_1"]
    assert len(card.stages[-1]["epochs"]) == summary["epochs"]
    assert not (run / "finetune").exists()
    reference = read_training_stats(run)
    assert reference is not None
    assert reference.min_filled is not None, "live can predict before a window is full"

    encoder_id = card.recipe.encoder
    assert encoder_id.weights == f"finetuned:{run.name}"
    assert encoder_id.weights_sha256 != before.recipe.encoder.weights_sha256
    state = load_weights(run)["encoder"]
    assert state_sha256(encoder_from_state(encoder_id.name, state).state_dict()) == encoder_id.weights_sha256
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["stage"] for line in lines][-2:] == ["finetune, both"] * 2
    assert set(load_folds(run).values()) == {0}, "the encoder has seen the people of the other folds"


def test_finetune_without_improvement_keeps_the_old_weights(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqmodel.finetuning import trainer

    loss_for = trainer.loss_for

    def wrong_way(task: Any, num_classes: int, *weighting: Any) -> Loss:
        right = loss_for(task, num_classes, *weighting)
        return (lambda logits, labels: right(-logits, labels)) if weighting else right

    monkeypatch.setattr(trainer, "loss_for", wrong_way)
    before = load_card(run), load_weights(run)
    summary, _ = finetune(args(run))
    after = load_card(run)
    assert summary["kept"] == "stage 1"
    assert dataclasses.replace(after, stages=before[0].stages) == before[0]
    for part, tensors in load_weights(run).items():
        assert all(torch.equal(tensor, before[1][part][name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("activation_cache", ["on", "off"])
def test_a_job_stopped_at_any_step_ends_at_the_same_weights(
    run: Path, tmp_path: Path, activation_cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_with(run, noise=0.1, frame_dropout=0.2)
    uninterrupted = Path(shutil.copytree(run, tmp_path / "uninterrupted"))
    every_step = dataclasses.replace(QUICK, save_every_s=0.0)
    finetune(args(uninterrupted, activation_cache=activation_cache))

    step, calls = EndToEnd.step, 0

    def stop_sometimes(self: EndToEnd) -> object:
        nonlocal calls
        calls += 1
        if calls in (2, 7):
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(EndToEnd, "step", stop_sometimes)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            finetune(args(run, finetune=every_step, activation_cache=activation_cache))
    summary, _ = finetune(args(run, finetune=every_step, activation_cache=activation_cache))
    assert calls == 2 + 3 * 4, "each step runs once, and the two stopped steps run again"

    expected, actual = load_weights(uninterrupted), load_weights(run)
    for part in expected:
        for name, tensor in expected[part].items():
            assert torch.equal(tensor, actual[part][name]), name
    assert summary["stage_2"] == load_card(uninterrupted).stages[-1]["stage_2"]


def test_training_on_cached_activations_equals_training_on_crops(run: Path) -> None:
    """Without augmentation, cached float16 activations change the result by rounding only."""
    outcomes = []
    exact = dataclasses.replace(QUICK, precision="f32")
    for activation_cache in ("on", "off"):
        finetune_args = args(run, activation_cache=activation_cache, augment=False, finetune=exact)
        job = start_job(open_setup(finetune_args), finetune_args, DistributedContext())
        start = job.best_logits
        while not job.finished:
            job.step()
        outcomes.append((job.state.history, start))
    (cached, cached_logits), (from_crops, logits) = outcomes
    # Logits change by half a hundredth of their spread; training changes them by the whole spread.
    assert np.abs(cached_logits - logits).max() < 0.02 * np.ptp(logits)
    for actual, expected in zip(cached[1:], from_crops[1:], strict=True):
        assert abs(actual.train_loss - expected.train_loss) < 0.003
    assert abs(from_crops[1].train_loss - from_crops[-1].train_loss) > 0.01, "training improves the score"


def test_feature_augmentation_of_stage_one_also_applies_in_finetuning(run: Path) -> None:
    """Noise and masked frames, also with cached activations; not in validation, and not with --no-augment."""
    losses, starts = {}, {}
    for noise, frame_dropout, augment in (
        (0.1, 0.2, True),
        (0.1, 0.0, True),
        (0.0, 0.2, True),
        (0.1, 0.2, False),
    ):
        finetune_args = args(run, augment=augment)
        setup = open_setup(finetune_args)
        chosen = dataclasses.replace(setup.loss, noise=noise, frame_dropout=frame_dropout)
        setup = dataclasses.replace(setup, loss=chosen)
        job = start_job(setup, finetune_args, DistributedContext())
        starts[noise, frame_dropout, augment] = job.best_logits
        job.step()
        losses[noise, frame_dropout, augment] = job.state.loss_sum
    assert len(set(losses.values())) == 4
    first = starts.pop((0.1, 0.2, True))
    assert all(np.array_equal(first, other) for other in starts.values())


def test_frozen_blocks_and_batchnorm_statistics_do_not_change(run: Path) -> None:
    finetune_args = args(run, activation_cache="off")
    setup = open_setup(finetune_args)
    before = {k: v.clone() for k, v in setup.model.encoder.state_dict().items()}
    job = start_job(setup, finetune_args, DistributedContext())
    while not job.finished:
        job.step()
    for name, tensor in setup.model.encoder.state_dict().items():
        part = name.split(".")
        frozen = part[0] in ("mean", "std") or "running" in name or "num_batches" in name or int(part[1]) < 15
        assert torch.equal(tensor, before[name]) == frozen, name


def test_head_only_epochs_train_the_head_only(run: Path) -> None:
    finetune_args = args(run)
    setup = open_setup(finetune_args)
    before = {k: v.clone() for k, v in setup.model.state_dict().items()}
    job = start_job(setup, finetune_args, DistributedContext())
    while job.trains_head_only:
        job.step()
    moved = [
        name for name, tensor in setup.model.state_dict().items() if not torch.equal(tensor, before[name])
    ]
    assert moved
    assert all(name.startswith("head.") for name in moved)


def test_nonfinite_loss_stops_before_the_weights_change(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune_args = args(run)
    job = start_job(open_setup(finetune_args), finetune_args, DistributedContext())
    job.step()
    before = {k: v.clone() for k, v in job.model.state_dict().items()}
    monkeypatch.setattr(job, "loss", lambda logits, labels: logits.sum(1) * torch.nan)
    with pytest.raises(ValueError, match=r"the loss is not finite at epoch 0, step 1, with clips .*\.mp4#0"):
        job.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in job.model.state_dict().items())


def test_store_without_crops_error_names_command_size_and_privacy(tmp_path: Path, run: Path) -> None:
    store = write_crop_store(tmp_path / "plain.zarr", crops=False)
    with pytest.raises(
        ValueError, match=r"--out .*plain\.zarr .*--crops jpeg .*about \d+ MB.*pictures of people"
    ):
        finetune(args(run, store=Path(store.path)))


def test_test_clips_are_never_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    batch = CropClips.batch

    def noting(self: CropClips, indices: np.ndarray) -> object:
        read.update(self.subjects[np.atleast_1d(indices)])
        return batch(self, indices)

    monkeypatch.setattr(CropClips, "batch", noting)
    finetune(args(run))
    assert read == {"p0", "p1", "p4", "p5", "p2", "p6"}


def test_re_extracted_store_trains_new_heads(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.zarr"
    quick = dataclasses.replace(QUICK, head_only_epochs=0)
    summary, _ = finetune(args(run, finetune=quick, re_extract=out))
    assert summary["kept"] == "stage 2"
    assert summary["re_extract"] == {"store": str(out), "clips": 32, "done": 32, "without_crops": []}

    old, new, card = FeatureStore.open(load_card(run).store), FeatureStore.open(out), load_card(run)
    assert new.recipe.encoder == card.recipe.encoder
    assert new.table().labels["label"].tolist() == old.table().labels["label"].tolist()
    assert new.read_crops(3) == old.read_crops(3)
    rows = np.arange(32)
    whole, _ = predict_rows(run, card, old, card.labelling, rows)
    cached, _ = predict_rows(run, card, new, card.labelling, rows)
    # One path uses torch, the other OpenVINO: some float16 embeddings differ by one step.
    assert np.abs(whole - cached).max() < 5e-3

    head = HeadConfig(hidden=8)
    train(TrainArgs(out, tmp_path / "again", head=head, train=TrainConfig(epochs=1)))
    assert load_card(tmp_path / "again").recipe.encoder == card.recipe.encoder
    with pytest.raises(ValueError, match=r"recipes differ.*encoder\.weights_sha256"):
        re_extract(run, Path(old.path), Path(shutil.copytree(old.path, tmp_path / "copy.zarr")))
    with pytest.raises(ValueError, match="is also the store to read from"):
        re_extract(run, Path(old.path), Path(old.path))


def test_finetuned_run_rejects_old_embeddings(run: Path, tmp_path: Path) -> None:
    finetune(args(run, finetune=dataclasses.replace(QUICK, head_only_epochs=0)))
    plain = FeatureStore.open(write_crop_store(tmp_path / "plain.zarr", crops=False).path)
    card = load_card(run)
    with pytest.raises(ValueError, match=r"encoder\.weights_sha256.*keeps no crops"):
        predict_rows(run, card, plain, card.labelling, np.arange(2))


def test_live_uses_the_finetuned_encoder(run: Path) -> None:
    finetune(args(run, finetune=dataclasses.replace(QUICK, head_only_epochs=0)))
    engine = open_run_engine(run, backend="openvino", threads=1)
    assert engine.encoder_id.weights == f"finetuned:{run.name}"
    tuned = encoder_from_state("mobilenet_v3_large", load_weights(run)["encoder"])
    pictures = clip_images(1)
    untuned = encoder()[0].embed(pictures)
    assert np.abs(engine.embed(pictures).astype(float) - tuned.embed(pictures)).max() < 2e-3
    assert np.abs(engine.embed(pictures).astype(float) - untuned).max() > 1e-2
    # The run's own weights can be used for extraction, with the same identity.
    built = build_encoder("mobilenet_v3_large", str(run / "weights.safetensors"))[1]
    assert built == engine.encoder_id


def test_clip_without_a_face_has_zero_gradients(run: Path) -> None:
    model = open_setup(args(run)).model.train()
    crops = torch.zeros(1, 6, 32, 32, 3, dtype=torch.uint8)
    logits = model({"crops": crops}, {"crops": torch.zeros(1, 6, dtype=torch.bool)})
    logits.sum().backward()
    gradients = [p.grad for p in model.encoder.parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    assert torch.isfinite(logits).all()


# The same command again


class Killed(BaseException):
    """Raised instead of SIGKILL, which cannot be caught."""


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets one entry for each later step of any job."""
    made: list[int] = []
    step = EndToEnd.step

    def counted(self: EndToEnd) -> object:
        made.append(self.state.step)
        return step(self)

    monkeypatch.setattr(EndToEnd, "step", counted)
    return made


def argv(run: Path, *more: str) -> list[str]:
    """Arguments of the finetune command for a short job."""
    quick = ["--epochs", "2", "--head-only-epochs", "0", "--effective-batch", "4", "--unfreeze-from", "15"]
    return ["finetune", "--run", str(run), *quick, *more]


LEARNS = ["--head-lr", "3e-3", "--encoder-lr", "3e-4", "--epochs", "4"]
STAYS = ["--head-lr", "0", "--encoder-lr", "0"]


@pytest.mark.parametrize("how", [LEARNS, STAYS], ids=["stage 2", "stage 1"])
def test_finished_finetuning_is_not_repeated(
    run: Path, how: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv(run, *how, "--json")) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["kept"] == ("stage 2" if how is LEARNS else "stage 1")
    given = ["python", "-m", "seqmodel", *argv(run, *how, "--json")]
    assert [shlex.split(setup["command"]) for setup in load_card(run).stages] == [[], given]
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    made = steps_of(monkeypatch)
    for _ in range(2):
        assert main(argv(run, *how, "--json")) == 0
        again = json.loads(capsys.readouterr().out)
        assert again | {"seconds": 0} == first | {"seconds": 0}
    assert not made
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    # With other settings it continues from the run's weights, and a message says so.
    assert main(argv(run, *STAYS, "--seed", "7", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == first["kept"]
    assert made
    assert load_card(run).stages[-1]["started_from"] == first["kept"]


def test_second_command_is_refused_while_the_first_fine_tunes_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would continue from the first one's checkpoint, and the card would have both."""
    step, second = EndToEnd.step, list[tuple[int, str]]()

    def step_beside_another_command(self: EndToEnd) -> object:
        if not second:
            second.append((-1, ""))  # its own steps start no third command
            capsys.readouterr()
            second[:] = [(main(argv(run, *LEARNS)), capsys.readouterr().err)]
        return step(self)

    monkeypatch.setattr(EndToEnd, "step", step_beside_another_command)
    assert main(argv(run, *LEARNS)) == 0
    assert second == [(2, f"error: another command fine-tunes {run}: wait until it ends\n")]
    assert [stage["stage"] for stage in load_card(run).stages] == ["head", "finetune"]


def test_checkpoint_of_another_head_is_not_resumed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune_args = args(run, finetune=dataclasses.replace(QUICK, save_every_s=0.0))
    step = EndToEnd.step

    def killed_later(self: EndToEnd) -> object:
        if self.state.step == 2:
            raise Killed
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(EndToEnd, "step", killed_later)
        with pytest.raises(Killed):
            finetune(finetune_args)
    assert start_job(open_setup(finetune_args), finetune_args, DistributedContext()).state.step == 2, (
        "the job resumes at the step where it stopped"
    )
    weights = load_weights(run)
    other = {name: tensor + 0.01 for name, tensor in weights["head"].items()}
    save_weights(run, other, weights["encoder"])
    assert start_job(open_setup(finetune_args), finetune_args, DistributedContext()).state.step == 0
    assert "starting from the beginning" in capsys.readouterr().err
    card = load_card(run)
    train(TrainArgs(Path(card.store), run, head=card.members[0].head, train=TrainConfig(epochs=1, lr=2e-5)))
    assert not (run / "finetune").exists()


def test_job_killed_between_weights_and_card_resumes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(run, tmp_path / "whole" / run.name))
    assert main(argv(whole, *LEARNS)) == 0
    with monkeypatch.context() as patch:
        patch.setattr("seqmodel.commands.finetune.update_card", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            main(argv(run, *LEARNS))
    made = steps_of(monkeypatch)
    assert main(argv(run, *LEARNS)) == 0
    assert not made
    actual, expected = load_card(run), load_card(whole)
    assert actual.recipe == expected.recipe
    assert actual.stages[-1]["stage_2"] == expected.stages[-1]["stage_2"]
    assert actual.stages[-1]["started_from"] == "stage 1"
    for part, tensors in load_weights(run).items():
        assert all(torch.equal(tensor, load_weights(whole)[part][name]) for name, tensor in tensors.items())


def test_finetune_deletes_old_results_but_keeps_the_log_of_test_evaluations(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of evaluations during the fine-tuning or the training."""
    card = load_card(run)
    save_card(run, dataclasses.replace(card, test_evaluations=("2026-01-01T00:00:00",)))

    def log_and_drop(run: Path) -> None:
        now = load_card(run)
        evaluations = (*now.test_evaluations, f"2026-02-0{len(now.test_evaluations)}T00:00:00")
        save_card(run, dataclasses.replace(now, test_evaluations=evaluations))
        drop_results(run)

    monkeypatch.setattr("seqmodel.commands.finetune.drop_results", log_and_drop)
    monkeypatch.setattr("seqmodel.runs.writer.drop_results", log_and_drop)
    stale = ["metrics.json", "predictions.csv", "report.html", "MODEL_CARD.md", "plots/roc.png"]
    stale += ["export/openvino/bundle.json", "cross/other/metrics.json"]

    def litter() -> None:
        for name in stale:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("old", encoding="utf-8")

    litter()
    assert main(argv(run, *LEARNS)) == 0
    assert not [name for name in stale if (run / name).exists()]
    litter()
    train(TrainArgs(Path(card.store), run, head=card.members[0].head, train=TrainConfig(epochs=1)))
    assert not [name for name in stale if (run / name).exists()]
    expected = ("2026-01-01T00:00:00", "2026-02-01T00:00:00", "2026-02-02T00:00:00")
    assert load_card(run).test_evaluations == expected
    assert {entry["stage"] for entry in read_log(run)} == {"head, embeddings lstm"}


# Features of a fine-tuned encoder


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("how", [LEARNS, STAYS], ids=["stage 2", "stage 1"])
def test_readme_loop_resumes_after_a_kill(
    run: Path, tmp_path: Path, how: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tune, finetune, --re-extract, tune; killed in the middle of the re-extraction, too."""
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "cache"))  # with no weights from other files
    from seqmodel.finetuning import reextract as module
    from tune.__main__ import main as tune

    new, copied, copy = tmp_path / "새.zarr", [0], module._copy_row

    def killed_later(*parts: Any) -> None:
        copied[0] += 1
        if copied[0] == 10:
            raise Killed
        copy(*parts)

    command = argv(run, *how, "--re-extract", str(new))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_copy_row", killed_later)
        with pytest.raises(Killed):
            main(command)
    assert int(FeatureStore.open(new).present("embeddings").sum()) == 9
    made = steps_of(monkeypatch)
    assert main(command) == 0
    assert not made, "finished training is not repeated"
    assert not (run / "finetune").exists()
    assert read_training_stats(run) is not None
    store = FeatureStore.open(new)
    assert store.present("embeddings").all()
    assert store.recipe.encoder == load_card(run).recipe.encoder
    second = tmp_path / "second"
    options = ["--trials", "1", "--workers", "1", "--epochs", "1"]
    assert tune(["--store", str(new), "--out", str(second), "--splits-from", str(run), *options]) == 0
    assert load_card(second).recipe.encoder == load_card(run).recipe.encoder
    actual, expected = load_weights(second)["encoder"], load_weights(run)["encoder"]
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items()), (
        "the run works in live without its store"
    )


def test_re_extract_names_clips_without_crops_and_adds_them_later(tmp_path: Path, run: Path) -> None:
    """Rows 6 and 22 belong to a test subject, which fine-tuning never reads."""
    store = write_crop_store(tmp_path / "some.zarr", cropless=(6, 22))
    assert set(store.table().split[[6, 22]]) == {"test"}
    finetune_args = args(run, store=Path(store.path), re_extract=tmp_path / "new.zarr")
    summary, code = finetune(finetune_args)
    assert code == 1
    assert summary["re_extract"]["without_crops"] == ["6.mp4#0", "22.mp4#0"]
    whole = FeatureStore.open(load_card(run).store)
    for row in (6, 22):
        store.write_row(row, crops=whole.read_crops(row))
    summary, code = finetune(finetune_args)
    assert code == 0
    assert summary["re_extract"]["done"] == 32


def test_existing_re_extract_path_is_rejected_before_training(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = write_crop_store(tmp_path / "there.zarr", crops=False)
    made = steps_of(monkeypatch)
    with pytest.raises(ValueError, match="already exists: give a new path"):
        finetune(args(run, re_extract=Path(there.path)))
    assert not made


# Options


@pytest.mark.parametrize(
    ("encoder_name", "weights", "geometry"),
    [("mobilenet_v3_large", "random", "on"), ("efficientnet_lite0", "imagenet", "off")],
)
def test_printed_crops_command_has_the_same_recipe(
    tmp_path: Path, encoder_name: Any, weights: str, geometry: Any
) -> None:
    made = ExtractConfig(
        Path("x"), "y", encoder=encoder_name, weights=weights, geometry=geometry, fps=5, window=4
    )
    recipe = make_extractor_config(made)[0].recipe
    clip = Clip("a#0", Path("a"), end_s=4.0, labels={"label": "x"})
    store = plan(tmp_path / "내 저장소.zarr", [clip], recipe, numerics={})
    printed = shlex.split(crops_command(store))
    assert printed[:3] == ["python", "-m", "extract"]
    finetune_args = parse(ExtractConfig, printed[3:], prog="extract", description="")
    assert (finetune_args.out, finetune_args.crops) == (str(store.path), "jpeg")
    assert make_extractor_config(finetune_args)[0].recipe == recipe


def test_preset_seed_rejects_other_options(run: Path) -> None:
    with pytest.raises(ValueError, match=r"--preset seed sets .*--head-lr.*--effective-batch"):
        finetune(args(run, preset="seed"))
    trained_with(run, class_weighting=True, noise=0.3, frame_dropout=0.2)
    finetune_args = args(run, preset="seed", finetune=FinetuneConfig(save_every_s=1.0))
    job = start_job(open_setup(finetune_args), finetune_args, DistributedContext())
    assert (job.config.effective_batch, job.config.save_every_s) == (256, 1.0)
    logits, labels = torch.tensor([[0.3], [-2.0]]), torch.tensor([1, 1])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(2, 1), reduction="none")
    assert torch.allclose(job.loss(logits, labels), plain[:, 0])
    assert job.model.noise == 0
    assert job.objective.loss.frame_dropout == 0


def test_without_trained_blocks_the_run_stays(run: Path) -> None:
    before = load_card(run).recipe
    blocks = len(encoder()[0].blocks)
    quick = dataclasses.replace(QUICK, head_only_epochs=0, epochs=4)
    summary, _ = finetune(args(run, unfreeze_from=blocks, finetune=quick))
    assert summary["kept"] == "stage 1"
    assert load_card(run).recipe == before


def test_without_any_epoch_the_summary_is_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--run", str(run), "--epochs", "0", "--head-only-epochs", "0", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert (summary["stage_2"], summary["kept"]) == (None, "stage 1")


def test_activation_cache_checks_disk_space_for_train_and_val_together(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune_args = args(run)
    setup = open_setup(finetune_args)
    start_job(setup, finetune_args, DistributedContext())
    assert "--activation-cache off, augments them" in capsys.readouterr().err
    folders = [setup.folder / f"activations_{subset}" for subset in ("train", "val")]
    sizes = [(folder / "activations.f16").stat().st_size for folder in folders]

    def has_free(num_bytes: float) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=num_bytes))

    has_free(0)
    start_job(open_setup(finetune_args), finetune_args, DistributedContext())  # everything is cached already
    shutil.rmtree(setup.folder)
    has_free(1.2 * max(sizes))
    with pytest.raises(ValueError, match="the activation cache needs"):
        start_job(open_setup(finetune_args), finetune_args, DistributedContext())
    has_free(1.2 * sum(sizes))
    start_job(open_setup(finetune_args), finetune_args, DistributedContext())


def test_activation_cache_of_a_changed_store_is_replaced(run: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(load_card(run).store, tmp_path / "moving.zarr"))
    finetune_args = args(run, store=store)
    start_job(open_setup(finetune_args), finetune_args, DistributedContext())
    cached = run / "finetune" / "activations_train"
    marks = (cached / "done.u8").stat().st_mtime_ns
    start_job(open_setup(finetune_args), finetune_args, DistributedContext())
    assert (cached / "done.u8").stat().st_mtime_ns == marks
    shutil.rmtree(store)
    write_crop_store(store, cropless=(6,))
    start_job(open_setup(finetune_args), finetune_args, DistributedContext())
    assert (cached / "done.u8").stat().st_mtime_ns != marks


def test_cached_versions_are_activations_of_augmented_crops(run: Path) -> None:
    finetune_args = args(run, finetune=dataclasses.replace(QUICK, augmented_copies=3))
    setup = open_setup(finetune_args)
    train, val = activation_datasets(setup, finetune_args, DistributedContext())
    assert (train.num_versions, val.num_versions) == (3, 1)
    prefix = prefix_runner(setup.model.encoder, setup.first_block, 32, "cpu")
    x, valid, _ = setup.train.batch(np.array([1]))
    crops = x["crops"][0][valid["crops"][0]]
    for version in range(3):
        found = train.batch(np.array([1]), version)[0]["activations"][0][valid["crops"][0]]
        rng = np.random.default_rng([finetune_args.seed, 1, version])
        seen = augment_clip(torch.from_numpy(crops), Augmentation(), rng).contiguous().numpy()
        assert np.array_equal(found, prefix(seen if version else crops))


def test_another_seed_gives_other_augmented_copies(run: Path) -> None:
    def cached(seed: int) -> list[np.ndarray]:
        """Cached activations of original and augmented training clips, and of validation clips."""
        finetune_args = args(run, finetune=dataclasses.replace(QUICK, augmented_copies=2), seed=seed)
        train, val = activation_datasets(open_setup(finetune_args), finetune_args, DistributedContext())
        both = [train.batch(np.arange(len(train)), version) for version in range(2)]
        return [x["activations"] for x, _, _ in [*both, val.batch(np.arange(len(val)))]]

    first, held = cached(0), run / "finetune" / "activations_val" / "activations.f16"
    written = held.stat().st_mtime_ns
    other = cached(1)
    assert [np.array_equal(a, b) for a, b in zip(first, other, strict=True)] == [True, False, True]
    assert held.stat().st_mtime_ns == written, "original crops do not depend on the seed"
    assert all(np.array_equal(a, b) for a, b in zip(first, cached(0), strict=True))
