"""Writes a small store of synthetic features and a run trained on it, for tests of evaluation and reports."""

from pathlib import Path

import numpy as np

from extract.face.geometry import FEATURES
from features.datasets import Inputs, load_samples, streams_of
from features.labels import class_indices, make_labelling
from features.manifest import Clip
from features.recipe import EncoderId, GeometryId, Pixels, Recipe
from features.splits import make_split, split_hash, subset_by_clip
from features.store.data_statement import DataStatement
from features.store.store import FeatureStore, plan
from features.store.table import groups_of
from seqmodel.config import HeadConfig, MemberConfig, TrainConfig
from seqmodel.evaluation.baselines import identity, majority
from seqmodel.evaluation.evaluator import EvaluationResult, evaluate_predictions
from seqmodel.metrics.calibration import Calibration, fit_calibration
from seqmodel.metrics.predictions import make_predictions
from seqmodel.runs.card import Card, save_card, versions
from seqmodel.runs.files import save_split, save_weights
from seqmodel.runs.writer import TrainedModel, log_members, subsets_of_failed
from seqmodel.training.cross_fit import FoldInputs, Objective, assign_folds, cross_fit
from seqmodel.training.task import LearningClips

NAMES = ("distracted", "engaged")
DIM, NUM_FRAMES = 12, 6
EYES = [FEATURES.index(name) for name in ("eyeBlinkLeft", "eyeBlinkRight")]
RECIPE = Recipe(
    Pixels(detectors=("d" * 64,), fps=1.0, window_s=float(NUM_FRAMES)),
    EncoderId("mobilenet_v3_large", "random:0", "a" * 64, DIM),
)
WITH_GEOMETRY = Recipe(RECIPE.pixels, RECIPE.encoder, GeometryId("e" * 64, FEATURES))
SMALL_HEAD = HeadConfig(hidden=8, dropout=0.0)


def make_store(
    path: Path,
    *,
    names: tuple[str, ...] = NAMES,
    num_subjects: int = 24,
    clips_each: int = 6,
    signal: float = 1.0,
    seed: int = 0,
    known_subjects: bool = True,
    one_video_each: bool = False,
    broken: bool = True,
    clip_prefix: str = "",
    recipe: Recipe = RECIPE,
    shift: float = 0.0,
    statement: DataStatement | None = None,
) -> FeatureStore:
    """Write a store whose features move along one direction by `signal`, according to the label.

    The direction is the same in every store. `shift` moves all clips along it, to simulate another data set.
    With `broken`, some clips fail and some have no face. If the recipe has geometry, only the two eye-blink
    features depend on the label, and each subject has another mean. With `one_video_each`, the clips of a
    subject are windows of one video.
    """
    rng = np.random.default_rng(seed)
    clips, labels = [], []
    for s in range(num_subjects):
        for c in range(clips_each):
            labels.append(int(rng.integers(len(names))))
            video, start_s = (0, c * NUM_FRAMES) if one_video_each else (c, 0)
            clips.append(
                Clip(
                    clip_id=f"{clip_prefix}{s:02d}/클립 {video}.mp4#{start_s * 1000}",
                    path=path.parent / f"{s:02d}/클립 {video}.mp4",
                    start_s=float(start_s),
                    end_s=float(start_s + NUM_FRAMES),
                    subject=f"사람{s:02d}" if known_subjects else "",
                    split="",
                    fold="",
                    labels={"label": names[labels[-1]]},
                    slices={"light": "dim" if s % 3 == 0 else "bright"},
                )
            )
    store = plan(
        path, clips, recipe, numerics={"backend": "none"}, crops=False, versions={}, data_statement=statement
    )
    direction = np.random.default_rng(99).normal(0, 1, DIM)
    for row, label in enumerate(labels):
        frames = np.zeros((NUM_FRAMES, 6), np.float32)
        frames[:, 0] = np.arange(NUM_FRAMES)
        frames[:, 1:5] = [10, 10, 50, 50]
        frames[:, 5] = 0.9
        if broken and row % 13 == 3:
            store.write_failure(row, "cannot be decoded")
            continue
        if broken and row % 11 == 5:
            frames[:, 1:] = np.nan
            frames[:, 5] = 0
        offset = signal * (label - (len(names) - 1) / 2) + shift
        x = rng.normal(0, 1, (NUM_FRAMES, DIM)) + offset * direction
        x[frames[:, 5] == 0] = 0
        geometry = None
        if recipe.geometry is not None:
            generator = np.random.default_rng([seed, row])
            geometry = generator.normal(0, 1, (NUM_FRAMES, len(FEATURES))).astype(np.float32)
            geometry[:, EYES] += 2 * offset + 3.0 * (row // clips_each % 5)
            geometry[frames[:, 5] == 0] = np.nan
        store.write_row(row, embeddings=x.astype(np.float16), frames=frames, geometry=geometry)
    return FeatureStore.open(path)


def make_run(
    run: Path,
    store: FeatureStore,
    *,
    task: str = "auto",
    epochs: int = 5,
    seed: int = 0,
    inputs: Inputs = "embeddings",
) -> Card:
    """Train a small head on the store and write its run directory."""
    table = store.table()
    labelling = make_labelling(table.label_names["label"], task=task)  # type: ignore[arg-type]
    labels = class_indices(labelling, table.labels["label"], table.label_names["label"])
    rows = np.flatnonzero((labels >= 0) & (table.state == 1))
    split = make_split(table, rows, labels[rows], seed=seed)
    learned = np.concatenate([split.train, split.val])
    samples = load_samples(store, labelling, learned, inputs)
    groups, in_val = groups_of(table, learned), np.isin(learned, split.val)
    fold_inputs = FoldInputs(samples, assign_folds(samples.labels, groups, seed, in_val))
    objective = Objective(labelling.task, len(labelling.names), "auto")
    train = TrainConfig(epochs=epochs)
    members = [MemberConfig(stream, SMALL_HEAD, train) for stream in streams_of(inputs)]
    model = TrainedModel(
        tuple(cross_fit(fold_inputs, member, objective, seed=seed) for member in members),
        LearningClips(learned, groups, fold_inputs.folds),
        objective,
    )
    run.mkdir(parents=True)
    log_members(run, model, "head")
    known = ~np.isnan(model.logits[:, 0])
    calibration = fit_calibration(model.logits[known], samples.labels[known], labelling.task)
    card = Card(
        recipe=store.recipe,
        labelling=labelling,
        members=tuple(members),
        num_folds=model.ensemble.num_folds,
        dims=model.ensemble.dims,
        store=str(store.path),
        store_fingerprint=store.fingerprint(),
        data_statement=store.data_statement,
        split_description=split.description,
        split_hash=split_hash(split, table.clip_id),
        seed=seed,
        metric="auroc",
        training_class_frequencies=(0.5, 0.5),
        calibration=calibration,
        versions=versions(),
    )
    save_weights(run, model.ensemble.state_dict())
    subsets = subset_by_clip(split, table.clip_id) | subsets_of_failed(split, table, labelling)
    index_of = {str(clip_id): i for i, clip_id in enumerate(table.clip_id)}
    folds = dict(zip(table.clip_id[learned].tolist(), fold_inputs.folds.tolist(), strict=True))
    subjects = [str(table.subject[index_of[c]]) for c in subsets]
    save_split(run, list(subsets), subjects, list(subsets.values()), folds)
    save_card(run, card)
    return card


def evaluated(
    labels: np.ndarray,
    positive: np.ndarray,
    subjects: np.ndarray,
    *,
    rounds: int = 300,
    seed: int = 0,
    training_class_frequencies: tuple[float, float] = (0.3, 0.7),
) -> EvaluationResult:
    """The evaluation of p(positive) (N,) with the majority and the identity baseline."""
    positive = np.clip(positive, 1e-6, 1 - 1e-6)
    class_frequencies = np.array(training_class_frequencies)
    p = make_predictions(
        clip_ids=np.array([f"{i}#0" for i in range(len(labels))]),
        subjects=subjects,
        labels=labels,
        logits=np.log(positive / (1 - positive))[:, None].astype(np.float32),
        reasons=np.full(len(labels), ""),
        coverage=np.ones(len(labels)),
        slices={},
        task="binary",
        calibration=Calibration(),
        training_class_frequencies=class_frequencies,
    )
    identity_baseline = identity(labels, subjects, class_frequencies, seed=seed)
    baselines = [
        majority(class_frequencies, len(labels), NAMES),
        *([identity_baseline] if identity_baseline else []),
    ]
    return evaluate_predictions(
        p, baselines, split="test", label_names=NAMES, task="binary", rounds=rounds, seed=seed
    )


def subject_ids(num_subjects: int, clips_each: int) -> np.ndarray:
    """(num_subjects × clips_each,) subject ids, as p00, p00, p01, …"""
    return np.repeat([f"p{s:02d}" for s in range(num_subjects)], clips_each)
