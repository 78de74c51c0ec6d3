"""Fine-tuning on CUDA gives the same results as on a CPU, up to rounding. `pytest -m gpu` runs these
alone."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from seqmodel.commands.finetune import finetune, start_job
from seqmodel.commands.train import train
from seqmodel.config import FinetuneArgs, FinetuneConfig, HeadConfig, TrainArgs, TrainConfig
from seqmodel.encoders.engine import open_engine
from seqmodel.finetuning.distributed import DistributedContext
from seqmodel.finetuning.setup import open_setup
from tests.support.crop_store import clip_images, write_crop_store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
QUICK = FinetuneConfig(epochs=2, head_only_epochs=1, effective_batch=4, head_lr=3e-3, encoder_lr=3e-4)


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    store = write_crop_store(folder / "crops.zarr")
    head = HeadConfig(hidden=8, dropout=0.0)
    options = TrainArgs(Path(store.path), folder / "run", head=head, train=TrainConfig(epochs=1, lr=1e-5))
    train(dataclasses.replace(options, device="cpu"))
    return folder / "run"


@pytest.mark.parametrize("activation_cache", ["on", "off"])
def test_training_on_cuda_equals_training_on_the_cpu(stage_1: Path, activation_cache: str) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        args = FinetuneArgs(stage_1, finetune=QUICK, unfreeze_from=15, augment=False, device=device)
        args = dataclasses.replace(args, activation_cache=activation_cache)
        job = start_job(open_setup(args), args, DistributedContext(device=device))
        while not job.finished:
            job.step()
        losses[device] = [result.train_loss for result in job.state.history[1:]]
        shutil.rmtree(stage_1 / "finetune", ignore_errors=True)
    # bf16 keeps 8 bits: a loss near 0.7 is known to about 0.005.
    assert np.abs(np.subtract(losses["cuda"], losses["cpu"])).max() < 0.02


def test_the_command_runs_on_cuda_and_writes_a_run_for_cpus(stage_1: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stage_1, tmp_path / "run"))
    config = dataclasses.replace(QUICK, head_only_epochs=0)
    summary, code = finetune(
        FinetuneArgs(run, finetune=config, unfreeze_from=15, activation_cache="off", device="cuda")
    )
    assert code == 0
    assert summary["kept"] == "stage 2"
    assert open_setup(FinetuneArgs(run)).model.encoder.mean.device.type == "cpu"


def test_half_precision_with_a_scaler_stays_finite(stage_1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    args = FinetuneArgs(stage_1, finetune=QUICK, unfreeze_from=15, activation_cache="off", device="cuda")
    job = start_job(open_setup(args), args, DistributedContext(device="cuda"))
    assert job.scaler.is_enabled()
    while not job.finished:
        job.step()
    assert all(np.isfinite(result.train_loss) for result in job.state.history[1:])


def test_embeddings_on_cuda_are_those_of_the_cpu() -> None:
    on_cuda = open_engine("mobilenet_v3_large", "random", backend="torch", device="cuda")
    on_cpu = open_engine("mobilenet_v3_large", "random", backend="torch", device="cpu")
    pictures = clip_images(0)
    actual, expected = on_cuda.embed(pictures).astype(float), on_cpu.embed(pictures).astype(float)
    # TF32 is off by default for products but on for convolutions: 10 bits of mantissa, layer after layer.
    assert np.abs(actual - expected).max() < 0.05 * expected.std()
