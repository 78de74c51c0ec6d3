"""Test AUROC before and after fine-tuning, for each stream and first trained block, over seeds.

The data are demo videos (generated faces, not people) with a seed of their own. The heads are not searched.
The test subjects are evaluated once for each row, with the stage that validation selected. All files are in
BENCH_FOLDER, and a second call continues there. BENCH_CLIPS (240), BENCH_SEEDS (3), and BENCH_ROWS
(ENCODER:INPUTS:BLOCK ..., where BLOCK is the first block that trains, or - for stage one alone).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from seqmodel.commands.finetune import finetune
from seqmodel.commands.train import train
from seqmodel.config import FinetuneArgs, TrainArgs, TrainConfig
from seqmodel.evaluation.context import open_context, predict
from seqmodel.metrics.classification import score
from seqmodel.runs.card import load_card

FOLDER = Path(os.environ.get("BENCH_FOLDER", "runs/bench-stage-two"))
CLIPS, SEEDS = int(os.environ.get("BENCH_CLIPS", "240")), int(os.environ.get("BENCH_SEEDS", "3"))
SET_SEED = 3
"""Seed of the demo videos; no default was chosen on them."""
WEIGHTS = {"efficientnet_lite0": "imagenet", "mobilenet_v3_large": "random"}
ROWS = os.environ.get(
    "BENCH_ROWS",
    "efficientnet_lite0:embeddings:16 efficientnet_lite0:both:16 efficientnet_lite0:geometry:- "
    "efficientnet_lite0:embeddings:17 efficientnet_lite0:embeddings:13 mobilenet_v3_large:embeddings:15 "
    "mobilenet_v3_large:embeddings:0 efficientnet_lite0:embeddings:0",
)
TRAIN = TrainConfig(noise=0.2, frame_dropout=0.1)


def main() -> None:
    """Compute the missing results row by row, and print the table after each row."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = FOLDER / "results.jsonl"
    for row in ROWS.split():
        encoder, inputs, cut = row.split(":")
        for seed in range(SEEDS):
            lines = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
            if any((known := json.loads(line))["row"] == row and known["seed"] == seed for line in lines):
                continue
            measured = {"row": row, "seed": seed} | one(store_of(encoder), encoder, inputs, cut, seed)
            with found.open("a", encoding="utf-8") as file:
                file.write(json.dumps(measured) + "\n")
        table([json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()])


def store_of(encoder: str) -> Path:
    """The store of the demo videos; it is written if it is missing."""
    store = FOLDER / f"{encoder}.zarr"
    if not (FOLDER / "set" / "labels.csv").is_file():
        run("extract", "demo", "--out", FOLDER / "set", "--clips", CLIPS, "--seed", SET_SEED)
    weights = ("--weights", WEIGHTS[encoder])
    data = ("--data", FOLDER / "set" / "labels.csv", "--out", store, "--encoder", encoder, "--crops", "jpeg")
    run("extract", *data, *weights)
    return store


def run(*argv: Any) -> None:
    subprocess.run([sys.executable, "-m", *map(str, argv)], check=True)


def one(store: Path, encoder: str, inputs: Any, cut: str, seed: int) -> dict[str, Any]:
    """Scores of one seed: stage one (trained once for all first blocks) and stage two."""
    first = FOLDER / f"{encoder}-{inputs}-{seed}"
    if not first.is_dir():
        train(TrainArgs(store, first, inputs=inputs, seed=seed, train=TRAIN))
    scores = {"stage_1": auroc_of_test(first)}
    if cut == "-":
        return scores
    tuned = FOLDER / f"{encoder}-{inputs}-{seed}-cut-{cut}"
    shutil.rmtree(tuned, ignore_errors=True)
    shutil.copytree(first, tuned)
    started = time.perf_counter()
    finetune(FinetuneArgs(tuned, unfreeze_from=int(cut), seed=seed))
    seconds = time.perf_counter() - started
    stage = load_card(tuned).stages[-1]
    val = [stage["stage_1"], max(epoch["val_score"] for epoch in stage["epochs"])]
    return scores | {"stage_2": auroc_of_test(tuned), "kept": stage["kept"], "val": val, "seconds": seconds}


def auroc_of_test(folder: Path) -> float:
    predictions = predict(open_context(folder, load_card(folder), None, "test"))
    return score("auroc", predictions.labels, predictions.probabilities)


def table(lines: list[dict[str, Any]]) -> None:
    """Print the test AUROC of each seed before and after fine-tuning."""
    print(f"\n{'encoder:inputs:block':40} {'stage 1':30} {'kept stage':30} {'stage 2 kept':>12} {'s/run':>7}")
    for row in dict.fromkeys(line["row"] for line in lines):
        row_lines = [line for line in lines if line["row"] == row]
        cells = [
            " ".join(f"{line[stage]:.3f}" for line in row_lines)
            + f"  mean {fmean(line[stage] for line in row_lines):.3f}"
            if stage in row_lines[0]
            else ""
            for stage in ("stage_1", "stage_2")
        ]
        kept = sum(bool(line.get("kept")) for line in row_lines)
        seconds = fmean(line.get("seconds", 0.0) for line in row_lines)
        print(f"{row:40} {cells[0]:30} {cells[1]:30} {kept:12} {seconds:7.0f}", flush=True)


if __name__ == "__main__":
    main()
