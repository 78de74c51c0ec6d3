"""Accuracy of what `tune` makes with its defaults: ten made-up data sets, and real numbers if given.

    BENCH_FOLDER (bench-accuracy)  where videos, stores and results are kept; the same command goes on
    BENCH_SEEDS (0,1,…,9)          seeds of the demo data set
    BENCH_PARTS (demo real)        parts to run; stage_two takes two minutes a seed
    BENCH_REAL                     folder with real_geometry.npz and real_sequences.npz

Figures of the demo are of its six test people; the reference is extremely randomised trees on statistics of
the geometry (tests/bench/reference.py), fitted on the ten other people. Real data are divided by person, and
every fold makes the model anew from the starting points of a search. Figures are printed with what is lost.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from extract.demo.generate import make_demo
from features.cli import UserError
from features.datasets import Samples, select_samples
from features.splits import grouped_folds
from features.store.store import FeatureStore
from seqmodel.config import EvaluateArgs, FinetuneArgs, LabelArgs
from seqmodel.encoders.model_files import encoder_weights
from seqmodel.heads.ensemble import Ensemble
from seqmodel.metrics.calibration import decide, fit_calibration
from seqmodel.metrics.classification import ece, score
from seqmodel.runs.card import load_card
from seqmodel.runs.files import read_csv
from seqmodel.training.cross_fit import FoldInputs, Objective, assign_folds, average_logits
from seqmodel.training.loop import predict_logits
from seqmodel.training.select import fit_ensemble
from tests.bench import reference
from tune.config import TuneArgs
from tune.run import tune
from tune.search_space import EPOCHS, MANY_CLIPS, Space, member_config_of, starting_points

FOLDER = Path(os.environ.get("BENCH_FOLDER", "bench-accuracy"))
SEEDS = [int(seed) for seed in os.environ.get("BENCH_SEEDS", "0,1,2,3,4,5,6,7,8,9").split(",")]
PARTS = os.environ.get("BENCH_PARTS", "demo real").split()
NAMES = "distracted,engaged"
DEMO_SHA256 = {
    0: "ced03ec21937a2a72345a0c103895d74f393648c01f72e3eb4093086e942b1c2",
    1: "cd77f9952a0cfc9bcedc9295e57da2fa9bbad0c7edf5b4cfcefc75fab39cba76",
    2: "f82f970b07f57c70a9615003571e1a98572fd5e50a15f04e26156b930006a987",
    3: "5e8f6244a6532984237c9bcbdc1498b0f75b3fd4f2a3f123cb6391f440cd35f2",
    4: "1eab338efba69775123a548ef638de6a0cc18e5c9092f20393e2d4ef8bab3427",
    5: "da323002a18f4963721027b18932f59a00a316c0d83837522b2e5c3ff510a88d",
    6: "52c034d90d93ced26aab6de253e48ecc3ed5b4bf3a5291f04248550298fd7c49",
    7: "cd46963acfd3399dada3d8cfd38041b1afdbe0d20c0343bef3a6404d7f21d1b9",
    8: "d7e28438e0b8dcdb93e60fb3dff141168c9876b556401509ed4fe158f085ce43",
    9: "0a89b815155e71a74ce355e04f22c1ba14f4dffa6d8e6fdcbe7f21c65908f7df",
}
"""Seed -> sha256 of labels.csv and of all decoded frames (RGB) of the demo, in the order of labels.csv."""


def demo_sha256(labels: Path) -> dict[str, str]:
    """The hash of `DEMO_SHA256` for a demo's labels.csv."""
    digest = hashlib.sha256(labels.read_bytes())
    for row in read_csv(labels):
        with av.open(str(labels.parent / row["path"])) as video:
            for frame in video.decode(video=0):
                digest.update(frame.to_ndarray(format="rgb24").tobytes())
    return {"sha256": digest.hexdigest()}


def kept(path: Path, compute: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """The content of a JSON file, or of `compute(*given)`, which is then written there."""
    if not path.is_file():
        found = compute(*given)
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def make_store(seed: int) -> Path:
    """The store of a demo, made if it is missing. The pixels are those that this benchmark was made for."""
    folder = FOLDER / f"d{seed}"
    if not (folder / "done").is_file():
        make_demo(folder, seed=seed)
        options = [
            "--data",
            str(folder / "labels.csv"),
            "--out",
            str(folder / "demo.zarr"),
            "--crops",
            "jpeg",
        ]
        subprocess.run([sys.executable, "-m", "extract", *options, "--encoder", encoder()], check=True)
        (folder / "done").touch()
    found = kept(folder / "pixels.json", demo_sha256, folder / "labels.csv")
    if found["sha256"] != DEMO_SHA256[seed]:
        print(f"seed {seed}: other pixels than this benchmark was made for: figures are not comparable")
    return folder / "demo.zarr"


def encoder() -> str:
    """MobileNetV3-Large, or the encoder of a package where its weights cannot be fetched."""
    try:
        encoder_weights("mobilenet_v3_large", "imagenet")
    except (UserError, OSError):
        return "efficientnet_lite0"
    return "mobilenet_v3_large"


def demo_run(store: Path, run: Path, inputs: Any = None) -> dict[str, Any]:
    """Search and evaluate with the defaults; `test_predictions`, and wall seconds of the search."""
    from seqmodel.commands.evaluate import evaluate

    started = time.perf_counter()
    tune(TuneArgs(store=store, out=run, label=LabelArgs(labels=NAMES), inputs=inputs))
    seconds = {"wall_s": time.perf_counter() - started}
    evaluate(EvaluateArgs(run, bootstrap_rounds=100))
    return test_predictions(run) | seconds


def test_predictions(run: Path) -> dict[str, Any]:
    """Labels, p(engaged), decisions and clips of the test split."""
    rows = [row for row in read_csv(run / "predictions.csv") if row["split"] == "test"]
    return {
        "clips": [row["clip_id"] for row in rows],
        "labels": [int(row["label"] == "engaged") for row in rows],
        "p": [float(row["p_engaged"]) for row in rows],
        "decided": [int(row["decision"] == "engaged") for row in rows],
        "members": [f"{member.stream} {member.head.kind}" for member in load_card(run).members],
    }


def reference_run(store: Path, clips: list[str]) -> dict[str, Any]:
    """p(engaged) of the reference trees on the geometry for these clips."""
    found, table = FeatureStore.open(store), FeatureStore.open(store).table()
    rows = np.flatnonzero(table.state == 1)
    x, valid = found.read_stream("geometry", rows)
    names = table.label_names["label"]
    labels = np.array([names[code] == "engaged" for code in table.labels["label"][rows]], int)
    statistics = reference.statistics(np.asarray(x, np.float32), np.asarray(valid))
    at = {clip: index for index, clip in enumerate(table.clip_id[rows].tolist())}
    test = np.array([at[clip] for clip in clips])
    train = np.flatnonzero(table.split[rows] != "test")
    groups = table.subject[rows][train]
    p = reference.predict("trees", statistics[train], labels[train], groups, statistics[test])
    return {"p": p[:, 1].tolist()}


def demo() -> None:
    """The table of the demo data sets."""
    rows = []
    for seed in SEEDS:
        store, folder = make_store(seed), FOLDER / f"d{seed}"
        both = kept(folder / "both.json", demo_run, store, folder / "run")
        alone = kept(folder / "embeddings.json", demo_run, store, folder / "embeddings", "embeddings")
        trees = kept(folder / "reference.json", reference_run, store, both["clips"])
        tuned = {}
        if "stage_two" in PARTS:
            tuned = kept(folder / "stage_two.json", stage_two, folder / "embeddings", store)
        rows.append((seed, both, alone, trees, tuned))
        print(
            seed,
            " ".join(f"{name} {value:.3f}" for name, value in one_row(*rows[-1][1:]).items()),
            flush=True,
        )
    table = [one_row(*row[1:]) for row in rows]
    print("\nmean over the seeds")
    for name in table[0]:
        values = [row[name] for row in table if name in row]
        print(f"  {name:28} {np.mean(values):.3f}  ({min(values):.3f} to {max(values):.3f})")
    labels, p = (np.concatenate([row[1][name] for row in rows]) for name in ("labels", "p"))
    of_trees = np.concatenate([row[3]["p"] for row in rows])
    both_columns = np.stack([1 - p, p], axis=1)
    print(
        f"pooled: AUROC {auroc(labels, p):.3f}, reference trees {auroc(labels, of_trees):.3f}, expected "
        f"calibration error {ece(labels, both_columns):.3f}"
    )


def one_row(both: Any, alone: Any, trees: Any, tuned: Any) -> dict[str, float]:
    """Figures of one seed."""
    labels = np.array(both["labels"])
    value, of_trees = auroc(labels, both["p"]), auroc(labels, trees["p"])
    decided = np.array(both["decided"])
    found = {
        "auroc": value,
        "reference trees": of_trees,
        "difference": value - of_trees,
        "balanced accuracy": float(np.mean([(decided == labels)[labels == k].mean() for k in (0, 1)])),
        "embeddings alone": auroc(np.array(alone["labels"]), alone["p"]),
        "search, wall s": both["wall_s"],
    }
    if tuned:
        found["stage two, embeddings"] = auroc(np.array(tuned["labels"]), tuned["p"])
    return found


def stage_two(run: Path, store: Path) -> dict[str, Any]:
    """Fine-tune the run on embeddings alone, and evaluate again."""
    from seqmodel.commands.evaluate import evaluate
    from seqmodel.commands.finetune import finetune

    summary, _ = finetune(FinetuneArgs(run=run, store=store))
    evaluate(EvaluateArgs(run, bootstrap_rounds=100))
    return test_predictions(run) | {"kept": summary["kept"], "share_better": summary["share_better"]}


def auroc(labels: Any, p: Any) -> float:
    """AUROC of p(engaged)."""
    p = np.asarray(p)
    return float(score("auroc", np.asarray(labels), np.stack([1 - p, p], axis=1)))


def held_out(
    samples: Samples, folds: list[tuple[np.ndarray, np.ndarray]], objective: Objective
) -> np.ndarray:
    """(N, C) probabilities of every clip by a model that was made without its fold."""
    many = len(samples) >= MANY_CLIPS
    space = Space(objective.task, tuple(samples.x), EPOCHS[many], many)
    settings = [member_config_of(point, space) for point in starting_points(space)]
    p = np.zeros((len(samples), objective.num_classes))
    for train, test in folds:
        inner = select_samples(samples, train)
        inputs = FoldInputs(inner, assign_folds(inner.labels, inner.subjects, 0))
        members = fit_ensemble(inputs, settings, objective, seed=0)
        logits = average_logits([member.logits for member in members], objective.task)
        known = ~np.isnan(logits[:, 0])
        given = logits[known], inner.labels[known], objective.task
        calibration = fit_calibration(*given, groups=inner.subjects[known])
        model = Ensemble([member.heads for member in members], objective.task).eval()
        found = decide(predict_logits(model, select_samples(samples, test)), objective.task, calibration)
        p[test] = found.probabilities
        print("  members:", ", ".join(f"{m.config.stream} {m.config.head.kind}" for m in members), flush=True)
    return p


def of_reference(samples: Samples, folds: list[tuple[np.ndarray, np.ndarray]], method: str) -> np.ndarray:
    """(N, C) probabilities of a method of reference.py, in the same folds."""
    (x,), (valid,) = samples.x.values(), samples.valid.values()
    statistics = reference.statistics(x, valid)
    p = np.zeros((len(samples), len(np.unique(samples.labels))))
    for train, test in folds:
        given = statistics[train], samples.labels[train], samples.subjects[train]
        p[test] = reference.predict(method, *given, statistics[test])
    return p


def within(labels: np.ndarray, p: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean AUROC over the folds."""
    return float(np.mean([score("auroc", labels[test], p[test]) for _, test in folds]))


def real() -> None:
    """The real numbers in the folder BENCH_REAL."""
    folder = Path(os.environ["BENCH_REAL"])
    data = np.load(folder / "real_geometry.npz")
    x, subjects = data["x"][:, None].astype(np.float32), data["subject"].astype(str)
    valid = ~np.isnan(x).any(axis=2)
    samples = samples_of(np.nan_to_num(x), valid, (data["y"] > 0).astype(np.int64), subjects)
    samples = select_samples(samples, np.flatnonzero(valid.any(axis=1)))
    compare(
        "real geometry, 22 people, a face", samples, grouped_folds(samples.labels, samples.subjects, 5, 0)
    )
    data = np.load(folder / "real_sequences.npz")
    x, labels = np.log1p(np.abs(data["x"])) * np.sign(data["x"]), data["y"].astype(np.int64)
    everything = samples_of(x.astype(np.float32), np.ones(x.shape[:2], bool), labels, data["subject"])
    names = data["fold"]
    two = np.flatnonzero(labels != 1)
    samples = select_samples(everything, two)
    samples.labels[:] = samples.labels > 0
    compare("real sequences, alert against drowsy", samples, folds_of(names[two]))
    folds = folds_of(names)
    p = held_out(everything, folds, Objective("multiclass", 3))
    of_trees = of_reference(everything, folds, "trees")
    accuracy = [float((each.argmax(axis=1) == labels).mean()) for each in (p, of_trees)]
    print(f"real sequences, three classes: accuracy {accuracy[0]:.3f}, reference trees {accuracy[1]:.3f}")


def folds_of(names: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, held-out) indices for each name of a published fold."""
    return [(np.flatnonzero(names != name), np.flatnonzero(names == name)) for name in np.unique(names)]


def samples_of(x: np.ndarray, valid: np.ndarray, labels: np.ndarray, subjects: np.ndarray) -> Samples:
    """Samples with one stream, geometry."""
    rows = np.arange(len(x))
    return Samples({"geometry": x}, {"geometry": valid}, labels, rows.astype(str), subjects, rows)


def compare(name: str, samples: Samples, folds: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Print the AUROC within folds of the model and of the references, and an interval of the difference."""
    p = held_out(samples, folds, Objective("binary", 2))
    found = {method: of_reference(samples, folds, method) for method in reference.METHODS}
    values = {method: within(samples.labels, each, folds) for method, each in found.items()}
    print(f"{name}: AUROC within folds {within(samples.labels, p, folds):.3f}; references {values}")
    people, index = np.unique(samples.subjects, return_inverse=True)
    rng, draws = np.random.default_rng(0), []
    clips_of = [np.flatnonzero(index == k) for k in range(len(people))]
    for _ in range(500):
        drawn = np.concatenate([clips_of[k] for k in rng.integers(len(people), size=len(people))])
        parts = [drawn[np.isin(drawn, test)] for _, test in folds]
        parts = [part for part in parts if len(np.unique(samples.labels[part])) > 1]
        of_model, of_trees = (
            np.mean([score("auroc", samples.labels[part], each[part]) for part in parts])
            for each in (p, found["trees"])
        )
        draws.append(of_model - of_trees)
    low, high = np.quantile(draws, (0.025, 0.975))
    print(f"  difference from the trees: {np.mean(draws):+.3f} ({low:+.3f} to {high:+.3f})")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    if "demo" in PARTS:
        demo()
    if "real" in PARTS and "BENCH_REAL" in os.environ:
        real()


if __name__ == "__main__":
    main()
