"""The input of an evaluation: a run, a store and the clips of a split; predictions and baselines for them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from features.cli import UserError
from features.datasets import load_samples
from features.recipe import Part, differences
from features.splits import known_rows
from features.store.location import location_of
from features.store.store import FeatureStore
from features.store.table import ClipTable, groups_of
from seqmodel.evaluation.baselines import identity, majority, simple_baselines
from seqmodel.evaluation.evaluator import Baseline
from seqmodel.evaluation.permutation_importance import ImportanceScore
from seqmodel.evaluation.simple_methods import principal_components, stream_statistics
from seqmodel.metrics.calibration import Calibration
from seqmodel.metrics.classification import class_frequencies
from seqmodel.metrics.predictions import Predictions, make_predictions
from seqmodel.runs.card import Card, calibration_clips
from seqmodel.runs.files import load_split, write_text
from seqmodel.runs.predict import (
    EvalSubset,
    clip_labels,
    eval_subset,
    held_out_folds,
    predict_rows,
)

STORE_NOTE = "store.txt"
"""File in a folder below `cross`: the path of the store that was evaluated."""


@dataclass(frozen=True)
class EvalContext:
    """A run, a store, and the clips of a split: all that an evaluation reads, before prediction."""

    run: Path
    card: Card
    store: FeatureStore
    table: ClipTable
    labels: np.ndarray
    """(all rows,) int64 class of every row, -1 = none."""
    subsets: dict[str, tuple[str, str]]
    """The run's own split: clip_id -> (subject, subset)."""
    known: np.ndarray
    """(all rows,) bool, which rows are clips of the run's own split."""
    eval_subset: EvalSubset
    split: str
    is_other_data: bool
    """True if the store shares no clip with the run."""

    @property
    def synthetic_notice(self) -> str:
        """The notice for reports if the training data or the evaluated clips are synthetic, else ''."""
        return self.card.data_statement.synthetic_notice or self.store.data_statement.synthetic_notice


def open_context(
    run: Path, card: Card, store_path: Path | None, split: str, mapping: Sequence[str] = ()
) -> EvalContext:
    """Open the store and find the clips. Raises UserError if there is no store or no such clip."""
    path = store_path or Path(card.store)
    folder = location_of(path).folder
    if folder is not None and not folder.exists():
        raise UserError(f"no store at {path}" + ("" if store_path else "; give its path with --store"))
    store = FeatureStore.open(path)
    table = store.table()
    labels = clip_labels(table, card.labelling, mapping)
    subsets = load_split(run)
    known = known_rows(table, subsets, is_training_store=_whole(path) == _whole(card.store))
    is_other = not known.any()
    found = eval_subset(table, labels, subsets, split, known, calibration_clips(run, card))
    if len(found.rows) == 0:
        raise UserError(f"store {path} has no extracted clip with a label in the {split} split of run {run}")
    split = f"{path.stem}:{split}" if is_other else split
    return EvalContext(run, card, store, table, labels, subsets, known, found, split, is_other)


def folder_of(context: EvalContext) -> Path:
    """The folder for the results: the run, or for another data set a folder in the run's `cross`, named after
    the store."""
    if not context.is_other_data:
        return context.run
    store, number = Path(context.store.path), 1
    while True:
        folder = context.run / "cross" / (store.stem if number == 1 else f"{store.stem}-{number}")
        note = folder / STORE_NOTE
        if not note.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(note, f"{_whole(store)}\n")
        if note.read_text(encoding="utf-8").strip() == _whole(store):
            return folder
        number += 1


def every_labelled(context: EvalContext) -> EvalContext:
    """The same context with every labelled clip of the store, of all subsets, failed clips included."""
    rows = np.flatnonzero((context.labels >= 0) & (context.table.state != 0))
    found = replace(
        context.eval_subset, rows=rows, labels=context.labels[rows], description="every labelled clip"
    )
    return replace(context, eval_subset=found)


def _whole(store: Path | str) -> str:
    """A store's absolute path, or its URL."""
    folder = location_of(store).folder
    return str(store) if folder is None else str(folder.resolve())


def predict(context: EvalContext) -> Predictions:
    """The run's predictions for the clips of the split, with its own calibration; those of clips that it
    learned from are out of fold."""
    card, table, rows = context.card, context.table, context.eval_subset.rows
    coverage = face_coverage(context.store, rows)
    failed = table.state[rows] == 2
    logits = np.full((len(rows), card.num_outputs), np.nan, np.float32)
    measured = np.zeros(len(rows), bool)
    if (~failed).any():
        known = None if context.is_other_data else held_out_folds(context.run, context.store, rows[~failed])
        logits[~failed], measured[~failed] = predict_rows(
            context.run, card, context.store, card.labelling, rows[~failed], folds=known
        )
    reasons = np.where(measured, "", "no face")
    reasons = np.where(failed, [f"failed: {text}" for text in table.failure[rows]], reasons)
    return make_predictions(
        clip_ids=table.clip_id[rows],
        subjects=table.subject[rows],
        labels=context.eval_subset.labels,
        logits=logits,
        reasons=reasons,
        coverage=coverage,
        slices={name: column[rows] for name, column in table.slices.items()} | {"source": table.source[rows]},
        task=card.labelling.task,
        calibration=card.calibration,
        training_class_frequencies=training_class_frequencies(context, training_clips(context)),
    )


def face_coverage(store: FeatureStore, rows: np.ndarray) -> np.ndarray:
    """(N,) fraction of frames with a face; 0 if nothing was extracted. For imported features: the fraction of
    the clip's frames that have all features."""
    frames = store.read_frames(rows)
    seen = np.nan_to_num(frames[:, :, 5]) > 0
    if store.recipe.pixels is None:
        return np.asarray(seen.sum(axis=1) / np.maximum(np.isfinite(frames[:, :, 0]).sum(axis=1), 1))
    return np.asarray(seen.mean(axis=1), np.float64)


@dataclass(frozen=True)
class Training:
    """The run's training clips; empty if their store cannot be opened."""

    store: FeatureStore
    rows: np.ndarray
    """(M,) rows of that store, extracted and labelled."""
    labels: np.ndarray
    """(M,) int64."""
    subjects: np.ndarray
    """(M,) str."""


def training_clips(context: EvalContext) -> Training:
    """The clips of the run's train subset: in the evaluated store, or for another data set in the store that
    the run was trained on."""
    store, table, labels = context.store, context.table, context.labels
    training_store = _open_training_store(context.card) if context.is_other_data else store
    if training_store is not None and training_store is not store:
        store, table = training_store, training_store.table()
        labels = clip_labels(table, context.card.labelling)
    # If their store is missing, clips of another data set may have the same names.
    subsets = context.subsets if training_store is not None else {}
    in_train = np.array([subsets.get(str(c), ("", ""))[1] == "train" for c in table.clip_id], bool)
    rows = np.flatnonzero(in_train & (labels >= 0) & (table.state == 1))
    return Training(store, rows, labels[rows], table.subject[rows])


def _open_training_store(card: Card) -> FeatureStore | None:
    try:
        return FeatureStore.open(card.store)
    except (UserError, OSError):
        return None


def training_class_frequencies(context: EvalContext, training: Training) -> np.ndarray:
    """(C,) class frequencies of the training clips; those of the card if the clips are not available."""
    if not len(training.labels):
        return np.array(context.card.training_class_frequencies)
    return class_frequencies(training.labels, len(context.card.labelling.names))


def fit_baselines(
    context: EvalContext, predictions: Predictions, training: Training, seed: int
) -> list[Baseline]:
    """Baselines for the evaluated clips: majority class, simple methods on each stream of the store (also
    those that the head does not read) and on both, and subject identity if subjects are known."""
    card, prior = context.card, training_class_frequencies(context, training)
    found = [majority(prior, len(predictions), card.labelling.names)]
    if len(np.unique(training.labels)) > 1 and predictions.measured.any():
        of_train, of_evaluated = _statistics(context, predictions.measured, training, seed)
        found += simple_baselines(
            of_train,
            training.labels,
            groups_of(training.store.table(), training.rows),
            of_evaluated,
            predictions.measured,
            prior,
            task=card.labelling.task,
            label_names=card.labelling.names,
            threshold_metric=card.calibration.threshold_metric,
            seed=seed,
        )
    identity_baseline = identity(
        predictions.labels,
        predictions.subjects,
        prior,
        seed=seed,
        training_labels=training.labels,
        training_subjects=training.subjects,
    )
    return [*found, *([identity_baseline] if identity_baseline is not None else [])]


def _statistics(
    context: EvalContext, measured: np.ndarray, training: Training, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`stream_statistics` of the training clips and of the evaluated clips with a prediction."""
    card = context.card
    found: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    for stream in context.store.streams:
        # Embeddings of different encoders are not comparable.
        part: Part = "encoder" if stream == "embeddings" else "geometry"
        if stream in training.store.streams and not differences(
            training.store.recipe, context.store.recipe, [part]
        ):
            given = ((training.store, training.rows), (context.store, context.eval_subset.rows[measured]))
            train, evaluated = (load_samples(store, card.labelling, rows, stream) for store, rows in given)
            components = principal_components(train, seed)
            for statistics, samples in zip(found, (train, evaluated), strict=True):
                statistics.update(stream_statistics(samples, components))
    return found


@dataclass(frozen=True)
class FoldModels:
    """The heads of folds, which are evaluated instead of the run's own: importance, calibration,
    thresholds."""

    importance_scores: Sequence[ImportanceScore]
    """Permutation importance of each group of inputs."""
    calibrations: Sequence[Calibration]
    """One per fold."""
    thresholds: np.ndarray
    """(N,) threshold of the fold that predicted each clip."""
