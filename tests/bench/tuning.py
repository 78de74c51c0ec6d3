"""Speed and quality of head training against a reference loop; time and memory of the search.

The features are synthetic: a fixed direction is added to noise, and the label decides for how many frames.
BENCH_CLIPS (9000), BENCH_SEEDS (5) and BENCH_TRIALS (50) set the sizes, BENCH_PARTS (speed quality end
searches) selects the parts. Compare ratios.
"""

import dataclasses
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from features.datasets import Samples, select_samples
from features.maintenance.import_external import read_sequences, write_external
from features.store.store import FeatureStore
from seqmodel.config import HeadConfig, LabelArgs, TrainConfig
from seqmodel.encoders.backbone import build_encoder
from seqmodel.finetuning.network import CnnLstm
from seqmodel.heads.recurrent import build_head, stream_statistics
from seqmodel.metrics.classification import score
from seqmodel.training.loop import fit, fit_best
from tune.config import TuneArgs
from tune.run import tune

CLIPS = int(os.environ.get("BENCH_CLIPS", "9000"))
SEEDS = int(os.environ.get("BENCH_SEEDS", "5"))
TRIALS = int(os.environ.get("BENCH_TRIALS", "50"))
STEPS, DIM = 30, 960
HEAD = HeadConfig()
REFERENCE = TrainConfig(batch_size=8, precision="f32")
DEFAULT = TrainConfig(batch_size=64)
"""The search offers batches of 8 to 128. At 64 the AUROC does not fall with the same learning rate; at 128 it
is .004 to .015 lower, at any learning rate from 1e-3 to 4e-3."""
NUM_TIMED = 3200
"""Number of clips in the epoch that is timed."""
EPOCHS_AT_ONCE = 4
SIGNAL = 0.04
"""Size of the difference between the classes; it keeps the AUROC of every head well below 1."""


class ClipFiles(Dataset):
    """A data set with one file per clip, read on access, as in most projects."""

    def __init__(self, folder: Path, labels: np.ndarray) -> None:
        self.folder, self.labels = folder, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.load(self.folder / f"{index}.npy")), int(self.labels[index])


def main() -> None:
    parts = os.environ.get("BENCH_PARTS", "speed quality end searches").split()
    folder = Path(tempfile.mkdtemp(prefix="brainbuddy-bench-"))
    try:
        samples = make_samples(CLIPS)
        val = select_samples(samples, np.arange(0, CLIPS, 5))
        train = select_samples(samples, np.flatnonzero(np.arange(CLIPS) % 5))
        if "speed" in parts:
            speed(folder, train)
        if "quality" in parts:
            quality(train, val)
        if "end" in parts:
            end_to_end(train)
        if "searches" in parts:
            searches(folder, samples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_samples(count: int) -> Samples:
    """Clips of forty subjects, float16 as in a store."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    x = rng.standard_normal((count, STEPS, DIM), dtype=np.float32).astype(np.float16)
    direction = rng.normal(0, SIGNAL, DIM).astype(np.float16)
    for index, label in enumerate(labels.tolist()):
        start = int(rng.integers(0, 12))
        x[index, start : start + (12 if label else 6)] += direction
    subjects = np.array([f"p{i % 40}" for i in range(count)])
    return Samples(
        {"embeddings": x},
        {"embeddings": np.ones((count, STEPS), bool)},
        labels,
        subjects,
        subjects,
        np.arange(count),
    )


class ReferenceHead(torch.nn.Module):
    """The head of `HEAD` in plain torch."""

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__()
        self.mean, self.std = torch.from_numpy(mean), torch.from_numpy(std)
        self.projection = torch.nn.Linear(DIM, HEAD.projection)
        self.lstm = torch.nn.LSTM(HEAD.projection, HEAD.hidden, batch_first=True, bidirectional=True)
        self.dropout = torch.nn.Dropout(HEAD.dropout)
        self.output = torch.nn.Linear(2 * HEAD.hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.projection((x - self.mean) / self.std))
        states, _ = self.lstm(self.dropout(x))
        return self.output(self.dropout(states.mean(dim=1)))[:, 0]


def reference_epoch(head: ReferenceHead, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """One epoch of the usual training loop."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    criterion = torch.nn.BCEWithLogitsLoss()
    head.train()
    for x, labels in batches:
        optimizer.zero_grad()
        criterion(head(x.float()), labels.float()).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()


def speed(folder: Path, train: Samples) -> None:
    """Print clips per second of the reference (from files, from memory) and of brainbuddy."""
    part = select_samples(train, np.arange(min(len(train), NUM_TIMED)))
    clips = folder / "clips"
    clips.mkdir()
    for index, values in enumerate(part.x["embeddings"]):
        np.save(clips / f"{index}.npy", values.astype(np.float32))
    loader = DataLoader(ClipFiles(clips, part.labels), batch_size=8, shuffle=True)
    statistics_ = stream_statistics(part, ("embeddings",))
    x, labels = torch.from_numpy(part.x["embeddings"]).float(), torch.from_numpy(part.labels)
    rates: dict[str, list[float]] = {"reference, files": [], "reference, memory": [], "brainbuddy": []}
    for _ in range(3):
        for name in rates:
            head = build_head(HEAD, {"embeddings": DIM}, 1, seed=0)
            head.put_statistics(statistics_)
            reference = ReferenceHead(*statistics_["embeddings"])
            started = time.perf_counter()
            if name == "brainbuddy":
                next(fit(head, part, None, DEFAULT, task="binary", num_classes=2, seed=0))
            elif name == "reference, files":
                reference_epoch(reference, loader)
            else:
                reference_epoch(
                    reference, ((x[some], labels[some]) for some in torch.randperm(len(x)).split(8))
                )
            rates[name].append(len(part) / (time.perf_counter() - started))
    best = {name: max(values) for name, values in rates.items()}
    best["brainbuddy, two heads"] = max(two_at_once(part, statistics_) for _ in range(3))
    for name, rate in best.items():
        ratios = [best[name] / rate for name in ("brainbuddy", "brainbuddy, two heads")]
        print(f"{name:22} {rate:8.0f} clips/s   brainbuddy {ratios[0]:.2f}×, two heads {ratios[1]:.2f}×")


def two_at_once(part: Samples, statistics_: dict) -> float:
    """Clips per second of two heads together, each in a process with one thread, as in `tune --workers 2`."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_alone, args=(part, statistics_, seed)) for seed in (0, 1)]
    started = time.perf_counter()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return EPOCHS_AT_ONCE * 2 * len(part) / (time.perf_counter() - started)


def train_alone(part: Samples, statistics_: dict, seed: int) -> None:
    torch.set_num_threads(1)
    head = build_head(HEAD, {"embeddings": DIM}, 1, seed=seed)
    head.put_statistics(statistics_)
    epochs = fit(head, part, None, DEFAULT, task="binary", num_classes=2, seed=seed)
    for _ in range(EPOCHS_AT_ONCE):
        next(epochs)


def quality(train: Samples, val: Samples) -> None:
    """Print the validation AUROC of both settings over seeds, on all clips, up to the default 15 epochs."""
    statistics_ = stream_statistics(train, ("embeddings",))
    means = {}
    for name, config in (("reference", REFERENCE), ("brainbuddy", DEFAULT)):
        found = []
        for seed in range(SEEDS):
            head = build_head(HEAD, {"embeddings": DIM}, 1, seed=seed)
            head.put_statistics(statistics_)
            epochs = fit(head, train, val, config, task="binary", num_classes=2, seed=seed)
            found.append(fit_best(head, epochs, config.patience).best.val_score)
        means[name] = statistics.fmean(found)
        print(f"AUROC {name:10} {means[name]:.4f} ± {statistics.pstdev(found):.4f} over {SEEDS} seeds")
    print(f"difference {means['brainbuddy'] - means['reference']:+.4f} (target: above −.005)")
    assert score("auroc", np.array([0, 1]), np.eye(2)) == 1.0


def end_to_end(train: Samples) -> None:
    """Print how many times longer an epoch through the whole network takes than one on cached features."""
    encoder, _ = build_encoder("mobilenet_v3_large", "random")
    model = CnnLstm(encoder, build_head(HEAD, {"embeddings": DIM}, 1, seed=0)).train()
    crops = {"crops": torch.randint(0, 256, (1, STEPS, 224, 224, 3), dtype=torch.uint8)}
    valid = {"crops": torch.ones(1, STEPS, dtype=torch.bool)}
    model(crops, valid).sum().backward()
    started = time.perf_counter()
    for _ in range(2):
        model(crops, valid).sum().backward()
    whole = (time.perf_counter() - started) / 2
    part = select_samples(train, np.arange(min(len(train), 1600)))
    head = build_head(HEAD, {"embeddings": DIM}, 1, seed=0)
    cached = next(fit(head, part, None, DEFAULT, task="binary", num_classes=2, seed=0)).seconds / len(part)
    print(
        f"an epoch through the whole network takes {whole / cached:.0f} times as long as on cached features"
    )


def searches(folder: Path, samples: Samples) -> None:
    """Print time, best score and private memory of the workers for a search with and without pruning."""
    np.savez(folder / "x.npz", x=samples.x["embeddings"], y=samples.labels, subject=samples.subjects)
    write_external(folder / "x.zarr", read_sequences(folder / "x.npz"), "bench")
    FeatureStore.open(folder / "x.zarr").pack()
    seconds, scores = {}, {}
    for pruning in ("on", "off"):
        args = TuneArgs(folder / "x.zarr", folder / pruning, LabelArgs(), trials=TRIALS, reseed=1, epochs=15)
        with PeakMemory() as peaks:
            started = time.perf_counter()
            summary, _ = tune(dataclasses.replace(args, pruning=pruning))
            seconds[pruning] = time.perf_counter() - started
        scores[pruning] = summary["best"]["value"]
        private = f"{max(peaks.values(), default=0):.0f} MB private memory per worker at most"
        print(
            f"{TRIALS} trials, pruning {pruning}: {seconds[pruning]:.0f} s, "
            f"best {scores[pruning]:.4f}, {private}"
        )
    print(
        f"pruning takes {seconds['on'] / seconds['off']:.0%} of the time (target: ≤ 40 %), "
        f"best score {scores['on'] - scores['off']:+.4f} (target: within .01)"
    )


class PeakMemory:
    """Measures the largest private memory (MB) of each child process while the block runs."""

    def __enter__(self) -> dict[int, float]:
        import threading

        self.peaks: dict[int, float] = {}
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._poll, daemon=True)
        self.thread.start()
        return self.peaks

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _poll(self) -> None:
        while not self.stop.wait(1.0):
            for pid in children(os.getpid()):
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
                except OSError:
                    continue
                private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
                self.peaks[pid] = max(self.peaks.get(pid, 0.0), private)


def children(pid: int) -> Iterator[int]:
    """Ids of the direct child processes of `pid` (Linux)."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, task.read_text(encoding="utf-8").split())


if __name__ == "__main__":
    main()
