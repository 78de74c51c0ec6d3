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
from seqmodel.config import HeadConfig, LabelArgs, MemberConfig, TrainConfig
from seqmodel.encoders.backbone import build_encoder
from seqmodel.finetuning.network import CnnLstm
from seqmodel.heads.ensemble import Ensemble
from seqmodel.heads.inputs import masked_mean_std
from seqmodel.heads.recurrent import build_head
from seqmodel.metrics.classification import score
from seqmodel.training.cross_fit import FoldInputs, Objective, cross_fit
from seqmodel.training.loop import Epoch, fit
from tune.config import TuneArgs
from tune.run import tune

CLIPS = int(os.environ.get("BENCH_CLIPS", "9000"))
SEEDS = int(os.environ.get("BENCH_SEEDS", "5"))
TRIALS = int(os.environ.get("BENCH_TRIALS", "50"))
STEPS, DIM = 30, 960
HEAD = HeadConfig()
DEFAULT = TrainConfig(batch_size=32, epochs=10)
"""As a search uses for so many clips."""
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
        train = select_samples(samples, np.flatnonzero(np.arange(CLIPS) % 5))
        if "speed" in parts:
            speed(folder, train)
        if "quality" in parts:
            quality(samples, np.where(np.arange(CLIPS) % 5, -1, 0))
        if "end" in parts:
            end_to_end(train)
        if "searches" in parts:
            searches(folder, samples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_samples(count: int) -> Samples:
    """Clips of a hundred subjects, float16 as in a store: enough for one fold."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    x = rng.standard_normal((count, STEPS, DIM), dtype=np.float32).astype(np.float16)
    direction = rng.normal(0, SIGNAL, DIM).astype(np.float16)
    for index, label in enumerate(labels.tolist()):
        start = int(rng.integers(0, 12))
        x[index, start : start + (12 if label else 6)] += direction
    subjects = np.array([f"p{i % 100}" for i in range(count)])
    return Samples(
        {"embeddings": x},
        {"embeddings": np.ones((count, STEPS), bool)},
        labels,
        subjects,
        subjects,
        np.arange(count),
    )


class ReferenceHead(torch.nn.Module):
    """A head with a projection to 128 and an LSTM of 128, both ways, in plain torch."""

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__()
        self.mean, self.std = torch.from_numpy(mean), torch.from_numpy(std)
        self.projection = torch.nn.Linear(DIM, 128)
        self.lstm = torch.nn.LSTM(128, 128, batch_first=True, bidirectional=True)
        self.dropout = torch.nn.Dropout(HEAD.dropout)
        self.output = torch.nn.Linear(2 * 128, 1)

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
    """Print clips per second of the reference (from files, from memory) and of brainbuddy, whose principal
    components are computed before, once for all heads."""
    part = select_samples(train, np.arange(min(len(train), NUM_TIMED)))
    clips = folder / "clips"
    clips.mkdir()
    for index, values in enumerate(part.x["embeddings"]):
        np.save(clips / f"{index}.npy", values.astype(np.float32))
    loader = DataLoader(ClipFiles(clips, part.labels), batch_size=8, shuffle=True)
    mean_std = masked_mean_std(part.x["embeddings"], part.valid["embeddings"])
    x, labels = torch.from_numpy(part.x["embeddings"]).float(), torch.from_numpy(part.labels)
    inputs = FoldInputs(part, np.where(np.arange(len(part)) < 2, 0, -1))
    rates: dict[str, list[float]] = {"reference, files": [], "reference, memory": [], "brainbuddy": []}
    for _ in range(3):
        for name in rates:
            epochs, reference = epochs_of(inputs, 0), ReferenceHead(*mean_std)
            started = time.perf_counter()
            if name == "brainbuddy":
                next(epochs)
            elif name == "reference, files":
                reference_epoch(reference, loader)
            else:
                reference_epoch(
                    reference, ((x[some], labels[some]) for some in torch.randperm(len(x)).split(8))
                )
            rates[name].append(len(part) / (time.perf_counter() - started))
    best = {name: max(values) for name, values in rates.items()}
    best["brainbuddy, two heads"] = max(two_at_once(inputs) for _ in range(3))
    for name, rate in best.items():
        ratios = [best[name] / rate for name in ("brainbuddy", "brainbuddy, two heads")]
        print(f"{name:22} {rate:8.0f} clips/s   brainbuddy {ratios[0]:.2f}×, two heads {ratios[1]:.2f}×")


def epochs_of(inputs: FoldInputs, seed: int) -> Iterator[Epoch]:
    """The epochs of a head with the default settings, on the clips that fold 0 does not hold out."""
    head = build_head(HEAD, "embeddings", DIM, 1, seed=seed)
    windows, _ = inputs.windows(0, head.input)
    head.fit_statistics(windows.z, windows.valid)
    return fit(head, windows, None, DEFAULT, task="binary", num_classes=2, seed=seed)


def two_at_once(inputs: FoldInputs) -> float:
    """Clips per second of two heads together, each in a process with one thread, as in `tune --workers 2`."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_alone, args=(inputs, seed)) for seed in (0, 1)]
    started = time.perf_counter()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return EPOCHS_AT_ONCE * 2 * len(inputs.samples) / (time.perf_counter() - started)


def train_alone(inputs: FoldInputs, seed: int) -> None:
    torch.set_num_threads(1)
    epochs = epochs_of(inputs, seed)
    for _ in range(EPOCHS_AT_ONCE):
        next(epochs)


def quality(samples: Samples, folds: np.ndarray) -> None:
    """Print the AUROC of the default settings on fold 0 over seeds, and of the reference after 15 epochs."""
    inputs, objective = FoldInputs(samples, folds), Objective("binary", 2)
    train, val = np.flatnonzero(folds < 0), np.flatnonzero(folds == 0)
    mean_std = masked_mean_std(samples.x["embeddings"][train], samples.valid["embeddings"][train])
    x, labels = torch.from_numpy(samples.x["embeddings"]), torch.from_numpy(samples.labels)
    found: dict[str, list[float]] = {"reference": [], "brainbuddy": []}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        reference = ReferenceHead(*mean_std)
        for _ in range(15):
            order = torch.from_numpy(train[torch.randperm(len(train)).numpy()])
            reference_epoch(reference, ((x[some], labels[some]) for some in order.split(8)))
        with torch.inference_mode():
            positive = torch.cat(
                [reference.eval()(x[some].float()) for some in torch.from_numpy(val).split(256)]
            )
        p = torch.sigmoid(positive).numpy()
        found["reference"].append(score("auroc", samples.labels[val], np.stack([1 - p, p], axis=1)))
        member = cross_fit(inputs, MemberConfig("embeddings", HEAD, DEFAULT), objective, seed=seed)
        found["brainbuddy"].append(member.histories[0][-1].val_score)
    for name, values in found.items():
        mean, spread = statistics.fmean(values), statistics.pstdev(values)
        print(f"AUROC {name:10} {mean:.4f} ± {spread:.4f} over {SEEDS} seeds")


def end_to_end(train: Samples) -> None:
    """Print how many times longer an epoch through the whole network takes than one on cached features."""
    encoder, _ = build_encoder("mobilenet_v3_large", "random")
    head = build_head(HEAD, "embeddings", DIM, 1, seed=0)
    model = CnnLstm(encoder, Ensemble([[head]], "binary")).train()
    crops = {"crops": torch.randint(0, 256, (1, STEPS, 224, 224, 3), dtype=torch.uint8)}
    valid = {"crops": torch.ones(1, STEPS, dtype=torch.bool)}
    model(crops, valid).sum().backward()
    started = time.perf_counter()
    for _ in range(2):
        model(crops, valid).sum().backward()
    whole = (time.perf_counter() - started) / 2
    part = select_samples(train, np.arange(min(len(train), 1600)))
    inputs = FoldInputs(part, np.where(np.arange(len(part)) < 2, 0, -1))
    cached = next(epochs_of(inputs, 0)).seconds / len(part)
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
        args = TuneArgs(folder / "x.zarr", folder / pruning, LabelArgs(), trials=TRIALS)
        with PeakMemory() as peaks:
            started = time.perf_counter()
            summary, _ = tune(dataclasses.replace(args, pruning=pruning))
            seconds[pruning] = time.perf_counter() - started
        scores[pruning] = summary["val_score"]
        private = f"{max(peaks.values(), default=0):.0f} MB private memory per worker at most"
        print(
            f"{TRIALS} trials, pruning {pruning}: {seconds[pruning]:.0f} s, "
            f"best {scores[pruning]:.4f}, {private}",
            flush=True,
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
