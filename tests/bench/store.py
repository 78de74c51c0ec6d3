"""Time of planning, writing, packing and reading a store of DAiSEE's size (9,000 clips × 30 frames × 960).

All files are in the page cache: compare ratios and seconds per gigabyte.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from features.maintenance.verify import verify_store
from features.manifest import Clip
from features.recipe import EncoderId, Pixels, Recipe
from features.store.store import FeatureStore, plan

NUM_CLIPS = int(os.environ.get("BENCH_CLIPS", "9000"))
DIM = 960
RECIPE = Recipe(Pixels(("ab" * 32,)), EncoderId("mobilenet_v3_large", "random:0", "cd" * 32, DIM))
CHILD = """
import sys
import numpy as np
from features.datasets import load_samples
from features.labels import make_labelling
from features.store.store import FeatureStore
def memory(key):
    lines = open("/proc/self/smaps_rollup", encoding="utf-8").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
store = FeatureStore.open(sys.argv[1])
before = memory("Private_Dirty")
rows, labelling = np.arange(store.num_clips), make_labelling(["a", "b"])
samples = load_samples(store, labelling, rows, mapped=sys.argv[2] == "mapped")
order = np.random.default_rng(0).permutation(len(samples))
for first in range(0, len(order), 64):
    samples.batch(order[first : first + 64])[0]["embeddings"].sum()
print(memory("Private_Dirty") - before, memory("Rss:"))
sys.stdin.read()
"""


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of the fastest of `repeats` calls."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def make_clips() -> list[Clip]:
    """Clips of 100 subjects."""
    return [
        Clip(
            f"{index}.mp4#0",
            Path(f"{index}.mp4"),
            subject=f"p{index % 100}",
            labels={"label": "ab"[index % 2]},
        )
        for index in range(NUM_CLIPS)
    ]


def fill(store: FeatureStore) -> None:
    """Write all rows."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(64, 30, DIM)).astype(np.float16)
    frames = np.ones((30, 6), np.float32)
    for row in range(NUM_CLIPS):
        store.write_row(row, embeddings=values[row % 64], frames=frames)


def two_children(path: Path, mode: str) -> list[list[float]]:
    """Private and resident megabytes of two processes that hold the features at the same time."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for _ in range(2)
    ]
    measured = []
    for child in children:
        assert child.stdout is not None
        measured.append([float(word) for word in child.stdout.readline().split()])
    for child in children:
        child.communicate()
    return measured


def main() -> None:
    """Print the table."""
    folder = Path(tempfile.mkdtemp(prefix="brainbuddy-bench-"))
    path = folder / "s.zarr"
    clips, gigabytes = make_clips(), NUM_CLIPS * 30 * DIM * 2 / 1e9
    try:
        planned_s = seconds(lambda: plan(path, clips, RECIPE, numerics={}))
        store = plan(path, clips, RECIPE, numerics={})
        written_s = seconds(lambda: fill(store))
        again_s = seconds(lambda: plan(path, clips, RECIPE, numerics={}))
        missing_s = seconds(lambda: store.missing("embeddings"), 5)
        table_s = seconds(store.table, 5)
        print(f"{NUM_CLIPS} clips, {gigabytes:.2f} GB")
        print(f"plan new {planned_s:.2f} s, plan again {again_s:.2f} s", end="")
        print(f", table {table_s:.3f} s, missing {missing_s:.3f} s")
        print(f"write_row {written_s / NUM_CLIPS * 1e3:.2f} ms per clip")
        chunked_s = seconds(lambda: store.read_stream("embeddings"))
        packed_s = seconds(store.pack)
        loaded_s = seconds(lambda: FeatureStore.open(path).read_stream("embeddings"), 5)
        mapped_s = seconds(lambda: FeatureStore.open(path).mapped_stream("embeddings"), 5)
        print("| reading | s | s per GB | ratio to one clip per chunk |\n|---|---|---|---|")
        for name, spent_s in (
            ("one clip per chunk", chunked_s),
            ("packed, read into memory", loaded_s),
            ("packed, memory map", mapped_s),
        ):
            print(f"| {name} | {spent_s:.3f} | {spent_s / gigabytes:.2f} | {chunked_s / spent_s:.0f}× |")
        print(f"packing {packed_s:.1f} s; verify {seconds(lambda: verify_store(store)):.1f} s")
        if sys.platform == "linux":
            print("two processes that read the features in random order, private MB of each:")
            for mode in ("mapped", "memory"):
                print(f"  {mode}: {', '.join(f'{private:.0f}' for private, _ in two_children(path, mode))}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
