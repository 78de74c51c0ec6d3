"""Distributed fine-tuning: two processes give the result of one, and a killed or stopped job can be
resumed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from features.store.store import FeatureStore
from seqmodel.__main__ import main
from seqmodel.commands.train import train
from seqmodel.config import HeadConfig, TrainArgs, TrainConfig
from seqmodel.runs.files import load_weights, read_log
from seqmodel.training.checkpoint import load_checkpoint
from tests.support.crop_store import write_crop_store

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="gloo and /proc as on Linux"),
    # For the commands in this process; the real processes convert and export.
    pytest.mark.usefixtures("converted_once", "not_exported"),
]
OPTIONS = ["--unfreeze-from", "15", "--effective-batch", "5", "--head-lr", "3e-3", "--encoder-lr", "3e-4"]
ALONE = [sys.executable, "-m", "seqmodel", "finetune"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TWO += ["-m", "--", "seqmodel", "finetune"]  # without the dashes, torchrun parses --run as its own option


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("team")
    store = write_crop_store(folder / "crops.zarr")
    head = HeadConfig(hidden=8, dropout=0.1, components=16, pooling="mean", statistics=False)
    train(TrainArgs(Path(store.path), folder / "run", head=head, train=TrainConfig(epochs=1, lr=1e-5)))
    return folder / "run"


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNDEFAULTENCODING": ""}


def call(command: list[str], run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [*command, "--run", str(run), *OPTIONS, *options]
    return subprocess.run(argv, capture_output=True, text=True, encoding="utf-8", env=environment())


def finetune_here(run: Path, *options: str) -> None:
    """The same command in this process, which saves the imports."""
    assert main(["finetune", "--run", str(run), *OPTIONS, *options]) == 0


def test_two_processes_train_as_one(stage_1: Path, tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(stage_1, tmp_path / name)) for name in ("one", "two")]
    # 16 clips in steps of 5: the last step has one clip, and one of two processes none.
    short = ["--epochs", "2", "--head-only-epochs", "1", "--re-extract"]
    finetune_here(runs[0], *short, str(tmp_path / "one.zarr"))
    done = call(TWO, runs[1], *short, str(tmp_path / "two.zarr"))
    assert done.returncode == 0, done.stderr
    two = FeatureStore.open(tmp_path / "two.zarr")
    assert two.present("embeddings").all(), "one process finishes after the other has left"
    logs = [[entry for entry in read_log(run) if "finetune" in entry["stage"]] for run in runs]
    assert len(logs[0]) == 3
    for alone, shared in zip(*logs, strict=True):
        # Sums in another order differ by 1e-7; Adam makes whole steps of gradients that small.
        assert shared["train_loss"] == pytest.approx(alone["train_loss"], rel=0.005)
        assert shared["val_loss"] == pytest.approx(alone["val_loss"], abs=5e-5)
    assert abs(logs[0][-1]["val_loss"] - logs[0][0]["val_loss"]) > 3e-4, "training changes it by more"


def test_killed_process_ends_the_job_and_the_same_command_resumes(
    stage_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(stage_1, tmp_path / "run"))
    options = ["--epochs", "4", "--patience", "9", "--save-every-s", "0"]
    argv = [*TWO, "--run", str(run), *OPTIONS, *options]
    job = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment())
    checkpoint = run / "finetune" / "checkpoint.safetensors"
    deadline = time.monotonic() + 240
    while not checkpoint.exists():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(worker(job.pid, rank=1), signal.SIGKILL)
    stderr = job.communicate(timeout=120)[1]
    assert job.returncode != 0
    assert "same command" in stderr, stderr
    kept = load_checkpoint(checkpoint)
    assert kept is not None
    assert kept[1]["position"]["epoch"] * 4 + kept[1]["position"]["step"] >= 1

    finetune_here(run, *options)  # also with another number of processes
    assert "resuming at epoch" in capsys.readouterr().err


LONG = ["--epochs", "5", "--head-only-epochs", "1", "--patience", "9"]


@pytest.fixture(scope="module")
def uninterrupted(stage_1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(stage_1, tmp_path_factory.mktemp("uninterrupted") / "run"))
    finetune_here(run, *LONG)
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_job_stopped_by_a_signal_resumes_to_the_same_weights(
    stage_1: Path,
    uninterrupted: Path,
    tmp_path: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(stage_1, tmp_path / "run"))
    argv = [*ALONE, "--run", str(run), *OPTIONS, *LONG]
    job = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment())
    checkpoint = run / "finetune" / "checkpoint.safetensors"
    deadline = time.monotonic() + 240
    while not checkpoint.exists():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first = load_checkpoint(checkpoint)
    job.send_signal(number)
    stderr = job.communicate(timeout=120)[1]
    kept = load_checkpoint(checkpoint)
    assert first is not None
    assert kept is not None, "the job ended before the stop signal"
    if number == signal.SIGKILL:
        assert job.returncode == -signal.SIGKILL
    else:
        assert job.returncode == 130
        assert "continues from the last checkpoint" in stderr
        assert "Traceback" not in stderr
        position = kept[1]["position"]
        assert (position["epoch"], position["step"]) > (1, 0), "one step after the checkpoint of the epoch"

    finetune_here(run, *LONG)
    assert "resuming at epoch" in capsys.readouterr().err
    actual, expected = load_weights(run), load_weights(uninterrupted)
    for part, tensors in expected.items():
        assert all(torch.equal(tensor, actual[part][name]) for name, tensor in tensors.items())


def test_all_processes_stop_at_the_same_step(stage_1: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stage_1, tmp_path / "run"))
    argv = [*TWO, "--run", str(run), *OPTIONS, *LONG, "--epochs", "40", "--patience", "40"]
    job = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment())
    checkpoint = run / "finetune" / "checkpoint.safetensors"
    deadline = time.monotonic() + 240
    while not checkpoint.exists():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(worker(job.pid, rank=1), signal.SIGTERM)  # to one process only
    stderr = job.communicate(timeout=120)[1]
    assert job.returncode != 0
    assert "processes of this job ended" not in stderr, stderr
    kept = load_checkpoint(checkpoint)
    assert kept is not None
    assert (kept[1]["position"]["epoch"], kept[1]["position"]["step"]) > (1, 0)


def worker(launcher: int, rank: int) -> int:
    """Process id of a rank that torchrun started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="utf-8").split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")
