"""Speed and memory of fine-tuning (frames per second) against a reference training loop.

The reference trains on 4 clips of 30 frames at once in contiguous float32, and decodes crops by PIL inside
the loop. Each setting runs in its own process on the same store. BENCH_CLIPS (12) clips, BENCH_THREADS (2)
threads.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

NUM_CLIPS = int(os.environ.get("BENCH_CLIPS", "12"))
THREADS = int(os.environ.get("BENCH_THREADS", "2"))
ENCODER = os.environ.get("BENCH_ENCODER", "mobilenet_v3_large")
CUTS = {"mobilenet_v3_large": (13, 15), "efficientnet_lite0": (13, 17)}
CLOCK = time.process_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter
"""BENCH_CLOCK=cpu measures processor time: on a busy machine, use it with one thread."""
T, PX, REFERENCE_CLIPS = 30, 224, 4


def main() -> None:
    """Write a store, run every setting, print the table."""
    first, second = CUTS[ENCODER]
    settings = {
        "reference loop": ["reference", "0", "4"],
        "whole network": ["finetune", "0", "4"],
        "whole network, 12 clips a step": ["finetune", "0", "12"],
        f"blocks 0–{first - 1} frozen, cached": ["finetune", str(first), "4"],
        f"blocks 0–{second - 1} frozen, cached": ["finetune", str(second), "4"],
    }
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "crops.zarr")
        print(f"{ENCODER}, {NUM_CLIPS} clips of {T} frames, {THREADS} threads")
        print(f"{'setting':34} {'frames/s':>9} {'ratio':>7} {'loading':>8} {'peak GB':>8} {'KB/frame':>15}")
        reference = 0.0
        for name, argv in settings.items():
            row = measure(Path(folder), *argv)
            reference = reference or row["frames_per_s"]
            print(
                f"{name:34} {row['frames_per_s']:9.1f} {row['frames_per_s'] / reference:6.1f}× "
                f"{row['loading_share']:8.1%} {row['peak_gb']:8.2f} {row['kb_per_frame']:15.1f}",
                flush=True,
            )


def measure(folder: Path, *argv: str) -> dict[str, float]:
    """Run one setting in its own process."""
    command = [sys.executable, "-m", "tests.bench.finetune", str(folder), *argv]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment)
    if done.returncode:
        raise RuntimeError(f"{argv} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def write_store(path: Path) -> None:
    """Write a store of crops of the size of faces (17 KB each as JPEG), with alternating labels."""
    from features.manifest import Clip
    from features.recipe import EncoderId, Pixels, Recipe
    from features.store.store import plan

    names = ("distracted", "engaged")
    clips = [
        Clip(f"{i}.mp4#0", Path(f"{i}.mp4"), end_s=10.0, labels={"label": names[i % 2]})
        for i in range(NUM_CLIPS)
    ]
    recipe = Recipe(Pixels(("ab" * 32,)), EncoderId(ENCODER, "random:0", "cd" * 32, 8))
    store = plan(path, clips, recipe, numerics={}, crops=True)
    frames = np.ones((T, 6), np.float32)
    for row in range(NUM_CLIPS):
        rng = np.random.default_rng(row)
        files = []
        for _ in range(T):
            coarse = rng.integers(0, 256, (28, 28, 3), np.uint8)
            image = cv2.resize(coarse, (PX, PX), interpolation=cv2.INTER_CUBIC)
            files.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
        store.write_row(row, embeddings=np.zeros((T, 8), np.float16), frames=frames, crops=files)


def run_setting(folder: Path, kind: str, first_block: int, clips_per_step: int) -> dict[str, float]:
    """Frames per second over a few steps, after one warm-up step."""
    import torch

    torch.set_num_threads(THREADS)
    measured = reference(folder) if kind == "reference" else finetune(folder, first_block, clips_per_step)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"kb_per_frame": 0.0, "peak_gb": peak_gb} | measured


def finetune(folder: Path, first_block: int, clips_per_step: int) -> dict[str, float]:
    """The steps of brainbuddy's fine-tune, from crops (first block 0) or from cached activations."""
    from features.datasets import CropClips
    from features.labels import Labelling
    from features.store.store import FeatureStore
    from seqmodel.config import FinetuneConfig, HeadConfig, TrainConfig
    from seqmodel.encoders.backbone import build_encoder
    from seqmodel.finetuning.activation_cache import frame_shape, open_activation_cache, prefix_runner
    from seqmodel.finetuning.distributed import DistributedContext
    from seqmodel.finetuning.network import CnnLstm
    from seqmodel.finetuning.state import Objective
    from seqmodel.finetuning.trainer import EndToEnd, keep_freed_memory
    from seqmodel.heads.ensemble import Ensemble
    from seqmodel.heads.recurrent import build_head

    keep_freed_memory()
    encoder, _ = build_encoder(ENCODER, "random")
    names = ("distracted", "engaged")
    labelling = Labelling("label", names, tuple((n,) for n in names), "binary")
    clips: Any = CropClips(FeatureStore.open(folder / "crops.zarr"), labelling, np.arange(NUM_CLIPS))
    kb_per_frame = 0.0
    if first_block:
        shape = frame_shape(encoder, first_block, PX)
        cache = open_activation_cache(folder / f"activations_{first_block}", clips, shape, {})
        for _ in cache.fill(prefix_runner(encoder, first_block, PX, "cpu"), np.arange(NUM_CLIPS)):
            pass
        clips, kb_per_frame = cache.source(), 2 * float(np.prod(shape)) / 1e3
    head = build_head(HeadConfig(), "embeddings", encoder.dim, 1, seed=0)
    model = CnnLstm(encoder, Ensemble([[head]], "binary"), first_block)
    config = FinetuneConfig(head_only_epochs=0, epochs=100, effective_batch=clips_per_step)
    objective = Objective("binary", 2, "auroc", TrainConfig())
    job = EndToEnd(
        model,
        clips,
        clips,
        objective,
        config,
        first_block=first_block,
        seed=0,
        distributed=DistributedContext(),
    )
    steps = max(1, NUM_CLIPS // clips_per_step - 1)
    job.num_steps = 1_000_000  # so that no epoch ends and validates
    job.step()
    loading, batch = 0.0, type(clips).batch

    started = CLOCK()
    for _ in range(steps):
        job.state.step = 0  # the same clips again
        job.step()
    seconds = CLOCK() - started
    for clip in range(NUM_CLIPS):
        began = CLOCK()
        batch(clips, np.array([clip]))
        loading += CLOCK() - began
    clips_seen = steps * min(clips_per_step, NUM_CLIPS)
    frames = clips_seen * T
    share = loading / NUM_CLIPS * clips_seen / seconds
    return {"frames_per_s": frames / seconds, "loading_share": share, "kb_per_frame": kb_per_frame}


def reference(folder: Path) -> dict[str, float]:
    """The reference loop: all parameters train, and a batch of clips is computed at once."""
    import torch

    from seqmodel.config import HeadConfig
    from seqmodel.encoders.backbone import build_encoder
    from seqmodel.heads.recurrent import build_head

    encoder, _ = build_encoder(ENCODER, "random")
    head = build_head(HeadConfig(), "embeddings", encoder.dim, 1, seed=0)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-4)
    loading = 0.0
    times = []
    for images, labels, seconds in reference_batches(folder):
        began = CLOCK()
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous() / 255
        x = (x - encoder.mean) / encoder.std
        embeddings = encoder.pool(encoder.blocks(x)).view(REFERENCE_CLIPS, T, -1)
        valid = torch.ones(REFERENCE_CLIPS, T, dtype=torch.bool)
        logits = head(embeddings, valid)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(CLOCK() - began + seconds)
        loading += seconds
    steady = times[1:] or times
    share = loading / sum(times)
    return {"frames_per_s": REFERENCE_CLIPS * T * len(steady) / sum(steady), "loading_share": share}


def reference_batches(folder: Path) -> Iterator[tuple[np.ndarray, Any, float]]:
    """(crops, labels, seconds of loading) of batches of 4 clips, decoded by PIL."""
    import torch
    from PIL import Image

    from features.store.store import FeatureStore

    store = FeatureStore.open(folder / "crops.zarr")
    for start in range(0, NUM_CLIPS - REFERENCE_CLIPS + 1, REFERENCE_CLIPS):
        began = CLOCK()
        rows = range(start, start + REFERENCE_CLIPS)
        images = [np.asarray(Image.open(io.BytesIO(file))) for row in rows for file in store.read_crops(row)]
        labels = torch.tensor([float(row % 2) for row in rows])
        yield np.stack(images), labels, CLOCK() - began


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run_setting(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
