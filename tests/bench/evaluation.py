"""Time of `evaluate` on 9,000 clips (the size of DAiSEE), and of the bootstrap against scikit-learn.

    python -m tests.bench.evaluation [CLIPS]

The time of `evaluate` includes 1,000 bootstrap rounds, baselines, subgroups and the report, not UMAP.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from features.manifest import Clip
from features.recipe import EncoderId, Pixels, Recipe
from features.store.store import FeatureStore, plan
from seqmodel.config import EvaluateArgs, HeadConfig, LabelArgs, TrainArgs, TrainConfig
from seqmodel.metrics.bootstrap import bootstrap_metrics, resample_subjects
from seqmodel.metrics.classification import compute_metrics

DIM, FRAMES, NUM_SUBJECTS, ROUNDS = 960, 30, 110, 1000
SUBSET_SHARES = (("train", 0.6), ("val", 0.16), ("test", 0.24))


def make_store(path: Path, num_clips: int) -> None:
    """Write a store with splits, two labels and some failures; features depend weakly on the label."""
    rng = np.random.default_rng(0)
    edges = np.cumsum([share for _, share in SUBSET_SHARES]) * NUM_SUBJECTS
    clips = []
    for k in range(num_clips):
        subject = k * NUM_SUBJECTS // num_clips
        split = SUBSET_SHARES[int(np.searchsorted(edges, subject, side="right"))][0]
        name = f"{split}/s{subject:03d}/{k:05d}.avi"
        clips.append(
            Clip(
                clip_id=f"{name}#0",
                path=path.parent / name,
                end_s=10.0,
                subject=f"s{subject:03d}",
                split=split,
                labels={"label": "engaged" if rng.random() < 0.7 else "distracted"},
                slices={"light": str(subject % 4)},
            )
        )
    recipe = Recipe(Pixels(detectors=("d" * 64,)), EncoderId("mobilenet_v3_large", "random:0", "a" * 64, DIM))
    store = plan(path, clips, recipe, numerics={}, crops=False, versions={})
    frames = np.zeros((FRAMES, 6), np.float32)
    frames[:, 0], frames[:, 5] = np.arange(FRAMES) / 3, 0.9
    direction = rng.normal(0, 0.2, DIM)
    for row, clip in enumerate(clips):
        if row % 97 == 0:
            store.write_failure(row, "cannot be decoded")
            continue
        offset = direction if clip.labels["label"] == "engaged" else -direction
        x = (rng.standard_normal((FRAMES, DIM), np.float32) + offset).astype(np.float16)
        store.write_row(row, embeddings=x, frames=frames)
    store.pack()


def measure_evaluate(num_clips: int) -> None:
    """Train a small head for one epoch, then time `evaluate` on test and on train, the largest subset."""
    from seqmodel.commands.evaluate import evaluate
    from seqmodel.commands.train import train

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        started = time.perf_counter()
        make_store(root / "s.zarr", num_clips)
        print(f"wrote a store of {num_clips} clips in {time.perf_counter() - started:.0f} s")
        train(
            TrainArgs(
                store=root / "s.zarr",
                run=root / "run",
                label=LabelArgs(labels="distracted,engaged"),
                head=HeadConfig(hidden=32),
                train=TrainConfig(epochs=1, batch_size=256),
            )
        )
        for split in ("test", "train"):
            wall, cpu = time.perf_counter(), time.process_time()
            summary, _ = evaluate(EvaluateArgs(run=root / "run", split=split, bootstrap_rounds=ROUNDS))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(
                f"evaluate --split {split}: {summary['clips']} clips, {ROUNDS} bootstrap rounds: "
                f"{wall:.1f} s, {cpu:.1f} s of processor time"
            )
        FeatureStore.open(root / "s.zarr")


def measure_bootstrap(num_clips: int) -> None:
    """Time all rounds at once against scikit-learn round by round (timed on five rounds)."""
    rng = np.random.default_rng(1)
    subjects = np.array([f"s{k % NUM_SUBJECTS}" for k in range(num_clips)])
    for num_classes in (2, 4):
        labels = rng.integers(0, num_classes, num_clips)
        p = rng.dirichlet(np.ones(num_classes), num_clips)
        predicted = p.argmax(axis=1)
        resamples = resample_subjects(subjects, ROUNDS, seed=0)
        started = time.process_time()
        bootstrap_metrics(labels, p, predicted, resamples, 0)
        fast = time.process_time() - started
        compute_metrics(labels, p, predicted, 0)  # imports scikit-learn
        few = 5
        started = time.process_time()
        for r in range(few):
            again = np.repeat(np.arange(num_clips), resamples.weights[r][resamples.unit_index].astype(int))
            compute_metrics(labels[again], p[again], predicted[again], 0)
        slow = (time.process_time() - started) / few * ROUNDS
        print(
            f"{ROUNDS} rounds, {num_clips} clips, {num_classes} classes: {fast:.1f} s; "
            f"scikit-learn round by round {slow:.0f} s: ratio {slow / fast:.0f}"
        )


if __name__ == "__main__":
    clips = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    measure_bootstrap(clips)
    measure_evaluate(clips)
