"""The learning task: a store, how its labels map to classes, and its train/val/test split.

`python -m seqmodel train` and `python -m tune` share it, so both train on the same clips. Only training and
validation clips are loaded here.

N clips, T frames, D width of a stream.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.cli import UserError, log_warning
from features.datasets import Inputs, Samples, labelled_rows, load_samples, streams_of
from features.labels import Labelling, class_indices, make_labelling
from features.maintenance.near_duplicates import COPY_COSINE, name_of, near_duplicates
from features.manifest import SUBSETS
from features.recipe import to_json
from features.splits import (
    TEST_SHARE,
    Split,
    extend_split,
    has_official_subsets,
    joined_groups,
    make_split,
)
from features.store.schema import read_column
from features.store.store import FeatureStore
from features.store.table import ClipTable, groups_of
from seqmodel.config import Design, LabelArgs
from seqmodel.training.cross_fit import assign_folds
from seqmodel.training.design import FOLDS, PERSON, StudyDesign, study_design, units_of


@dataclass(frozen=True)
class LearningTask:
    """A store, a labelling and a split."""

    store: FeatureStore
    table: ClipTable
    labelling: Labelling
    split: Split
    inputs: Inputs
    """Streams that a head may read."""
    num_unlabelled: int
    """Extracted clips that are left out, because they have no label of this labelling."""
    near_duplicates: Sequence[tuple[int, int]]
    """Pairs of rows that are nearly equal: they are in one subset, and belong in one fold."""
    design: StudyDesign

    @property
    def dims(self) -> dict[str, int]:
        """D of each stream of `inputs`."""
        wanted = streams_of(self.inputs)
        return {name: self.store.array(name).shape[-1] for name in self.store.streams if name in wanted}

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.labelling.names)


def build_task(
    store_path: Path | str,
    label: LabelArgs,
    inputs: Inputs | None = None,
    *,
    seed: int = 0,
    splits_from: Path | None = None,
    known_pairs: Sequence[tuple[int, int]] | None = None,
    design: Design = "auto",
) -> LearningTask:
    """Open a store, map its labels to classes, and split its subjects.

    `inputs` None means all streams of the store. `splits_from` is a run whose split is reused; without it, a
    store with a fine-tuned encoder reuses the split of that encoder. `known_pairs` are the nearly equal clips
    if another process has found them; without it, all clips are compared. Raises UserError if the column, a
    label or a stream is missing, no clip has a label, a class has no training clip, or a subject is in two
    subsets. Also raises if heads read embeddings and a held-out subject was used to train the encoder
    (leakage).
    """
    store = FeatureStore.open(store_path)
    table = store.table()
    labelling = _labelling(store_path, table, label)
    rows, labels = labelled_rows(table, labelling)
    if not len(rows):
        raise UserError(f"store {store_path} has no extracted clip with a label of {list(labelling.names)}")
    chosen: Inputs = inputs or ("both" if len(store.streams) > 1 else store.streams[0])
    for name in streams_of(chosen):
        if name not in store.streams:
            raise UserError(
                f"--inputs {chosen}: store {store_path} has no {name}; it has {', '.join(store.streams)}"
            )
    pairs = near_duplicates(store, rows, COPY_COSINE) if known_pairs is None else known_pairs
    study = study_design(table, rows, design, is_official=has_official_subsets(table, rows))
    split, study = _split(store, table, rows, labels, seed, splits_from, pairs, study)
    _require_duplicates_together(split, table, pairs)
    if "embeddings" in streams_of(chosen):
        split = _unseen_by_encoder(split, store, table, splits_from)
    _require_classes(split, labels, rows, labelling)
    missing = int((~store.present("geometry")[rows]).sum()) if "geometry" in streams_of(chosen) else 0
    if missing:
        split = _warned(
            split,
            f"{missing} of {len(rows)} labelled clips have no geometry yet: a head treats them as clips "
            "without a face. Run extract again on the store",
        )
    num_unlabelled = int((table.state == 1).sum()) - len(rows)
    return LearningTask(store, table, labelling, split, chosen, num_unlabelled, pairs, study)


def data_fingerprint(learning_task: LearningTask) -> str:
    """Hash, sixteen hex digits, of what a search reads: the recipe, and subjects, labels, subsets and files
    of its clips.

    It does not cover the whole store: added crops and changes in other columns do not change it.
    """
    store, table = learning_task.store, learning_task.table
    rows = np.concatenate([learning_task.split.train, learning_task.split.val])
    digest = hashlib.sha256(json.dumps(to_json(store.recipe), sort_keys=True).encode())
    for texts in (table.clip_id[rows], table.subject[rows]):
        digest.update("\0".join(texts.tolist()).encode() + b"\n")
    numbers = [labels_of(learning_task, rows), np.array([len(learning_task.split.train)])]
    numbers += [
        read_column(store.group, name, store.num_clips)[rows]
        for name in ("source_size", "source_mtime_ns", "end_s")
    ]
    numbers += [store.present(name)[rows] for name in store.streams]
    for values in numbers:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def labels_of(learning_task: LearningTask, rows: np.ndarray) -> np.ndarray:
    """(len(rows),) int64 class indices of these rows."""
    column = learning_task.labelling.column
    codes, names = learning_task.table.labels[column][rows], learning_task.table.label_names[column]
    return class_indices(learning_task.labelling, codes, names)


@dataclass(frozen=True)
class LearningClips:
    """The clips that a model learns from, in N rows: those of training, then those of validation."""

    rows: np.ndarray
    """(N,) rows of the store."""
    groups: np.ndarray
    """(N,) str: people, or what else stays on one side; groups with nearly equal clips are one."""
    folds: np.ndarray
    """(N,) fold in which each clip is held out; validation is fold 0; −1 = never."""


def learning_clips(learning_task: LearningTask, seed: int) -> LearningClips:
    """The training and validation clips with their folds; seed: that of the run."""
    split, table = learning_task.split, learning_task.table
    rows = np.concatenate([split.train, split.val])
    units = units_of(table, rows, learning_task.design.unit)
    groups = joined_groups(units, rows, learning_task.near_duplicates)
    in_val = np.arange(len(rows)) >= len(split.train)
    return LearningClips(rows, groups, assign_folds(labels_of(learning_task, rows), groups, seed, in_val))


def load_learning(learning_task: LearningTask, *, mapped: bool = True) -> Samples:
    """Samples of the training clips, then of the validation clips; with `mapped`, all processes share one
    packed copy on disk.

    If the disk has no space for that copy, a warning says so and each process reads the store into its own
    memory. Raises UserError if no training clip has a valid frame.
    """
    rows = np.concatenate([learning_task.split.train, learning_task.split.val])
    if mapped:
        try:
            learning_task.store.pack()
        except OSError as error:
            store, widths = learning_task.store, learning_task.dims.items()
            frame_bytes = sum(width * store.array(name).dtype.itemsize for name, width in widths)
            log_warning(
                f"no disk space for a packed copy of {store.path} ({error}): each process keeps the clips in "
                f"its own memory, about {len(rows) * store.num_frames * frame_bytes / 1e9:.1f} GB"
            )
            mapped = False
    samples = load_samples(
        learning_task.store, learning_task.labelling, rows, learning_task.inputs, mapped=mapped
    )
    num_train = len(learning_task.split.train)
    if not any(valid[np.arange(num_train)].any() for valid in samples.valid.values()):
        raise UserError(
            f"none of the {num_train} training clips in {learning_task.store.path} has a valid "
            "frame (a frame with a face): training is not possible"
        )
    return samples


def encoder_leak_warning(store: FeatureStore, groups: np.ndarray) -> str:
    """A warning for cross-validation over these groups, if the encoder was trained on some of them; else ''.

    groups: (N,) str, subjects or videos, as `groups_of` gives them.
    """
    weights = store.recipe.encoder.weights
    if store.encoder_subsets:
        subjects = np.unique(groups).tolist()
        known = sum(store.encoder_subsets.get(subject, "test") != "test" for subject in subjects)
        return (
            f"metrics of folds are too optimistic here: {known} of the {len(subjects)} held-out subjects (or "
            f"videos) were in training or validation of the encoder of the embeddings ({weights})"
            if known
            else ""
        )
    if _is_tuned(store):
        return (
            f"metrics of folds may be too optimistic here: the encoder of the embeddings ({weights}) was "
            f"fine-tuned, and {store.path} does not list its training subjects. Held-out subjects may be "
            "among them"
        )
    return ""


def _is_tuned(store: FeatureStore) -> bool:
    return store.recipe.encoder.weights.startswith("finetuned:")


def _labelling(store_path: Path | str, table: ClipTable, label: LabelArgs) -> Labelling:
    """The labelling that the options set, for a column of the table. Raises UserError if it is missing."""
    if label.label not in table.label_names:
        raise UserError(
            f"store {store_path} has no label column {label.label!r}; it has: "
            f"{', '.join(table.label_names) or 'none'}"
        )
    codes, names = table.labels[label.label], table.label_names[label.label]
    return make_labelling(
        names,
        column=label.label,
        labels=tuple(part.strip() for part in label.labels.split(",") if part.strip()),
        binarize_at=label.binarize_at,
        merge=label.merge,
        task=label.task,
        unused=[name for code, name in enumerate(names) if not (codes == code).any()],
    )


def _warned(split: Split, text: str) -> Split:
    return dataclasses.replace(split, warnings=(*split.warnings, text))


def _split(
    store: FeatureStore,
    table: ClipTable,
    rows: np.ndarray,
    labels: np.ndarray,
    seed: int,
    splits_from: Path | None,
    pairs: Sequence[tuple[int, int]],
    design: StudyDesign,
) -> tuple[Split, StudyDesign]:
    """The split: of an earlier run, of the training of the store's encoder, or a new one; and the design. If
    one of the first two has no test subset, `evaluate` uses folds."""
    if splits_from is not None:
        split = extend_split(table, rows, labels, splits_from)
        return split, dataclasses.replace(design, folds="" if len(split.test) else design.folds or FOLDS)
    groups = None if design.unit == PERSON else units_of(table, rows, design.unit)
    if not store.encoder_subsets:
        test_share = 0.0 if design.folds else TEST_SHARE
        return make_split(
            table, rows, labels, seed=seed, test_share=test_share, near_duplicates=pairs, groups=groups
        ), design
    marked = zip(groups_of(table, np.arange(len(table.split))).tolist(), table.split.tolist(), strict=True)
    marks = np.array([store.encoder_subsets.get(subject, mark) for subject, mark in marked], str)
    marked_table = dataclasses.replace(table, split=marks)
    has_test = "test" in marks[rows]
    test_share = TEST_SHARE if has_test else 0.0
    split = make_split(marked_table, rows, labels, seed=seed, test_share=test_share, near_duplicates=pairs)
    encoder = store.recipe.encoder.weights
    split = dataclasses.replace(
        split, description=f"the same subsets as in the training of the encoder ({encoder})"
    )
    return split, dataclasses.replace(design, folds="" if has_test else design.folds or FOLDS)


def _require_duplicates_together(split: Split, table: ClipTable, pairs: Sequence[tuple[int, int]]) -> None:
    """Raises UserError if nearly equal clips are in two subsets, because their marks or an earlier run put
    them there."""
    subset_of = {int(row): subset for subset, rows in split.subsets().items() for row in rows}
    apart = [
        f"{name_of(table, a)} in {subset_of[a]} and {name_of(table, b)} in {subset_of[b]}"
        for a, b in pairs
        if a in subset_of and b in subset_of and subset_of[a] != subset_of[b]
    ]
    if apart:
        more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
        raise UserError(
            f"nearly equal clips are in two subsets ({split.description}): {'; '.join(apart[:3])}{more}. "
            "Delete the copies, or give them the same subject and split"
        )


def _unseen_by_encoder(
    split: Split, store: FeatureStore, table: ClipTable, splits_from: Path | None
) -> Split:
    """The split, with a warning if the training subjects of the store's fine-tuned encoder are not known.

    Raises UserError if a subject is held out here but was in training of the encoder, or is in test here but
    was in its validation.
    """
    weights = store.recipe.encoder.weights
    if not store.encoder_subsets:
        if splits_from is not None or not _is_tuned(store):
            return split
        return _warned(
            split,
            f"the encoder of the embeddings ({weights}) was fine-tuned, and {store.path} does not list its "
            "training subjects: they may be held out here (leakage). Use --splits-from with the run that "
            "trained it",
        )
    held = [
        f"{subject} ({store.encoder_subsets[subject]} for the encoder, {subset} here)"
        for subset, rows in split.subsets().items()
        for subject in np.unique(groups_of(table, rows)).tolist()
        if SUBSETS.index(store.encoder_subsets.get(subject, subset)) < SUBSETS.index(subset)
    ]
    if held:
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        raise UserError(
            f"the encoder of {store.path} ({weights}) was trained or validated on subjects that are held out "
            f"here: {', '.join(held[:3])}{more}; use --splits-from with the run that trained the encoder, or "
            "leave --splits-from out"
        )
    return split


def _require_classes(split: Split, labels: np.ndarray, rows: np.ndarray, labelling: Labelling) -> None:
    train, val = (set(labels[np.isin(rows, subset)].tolist()) for subset in (split.train, split.val))
    for index, name in enumerate(labelling.names):
        if index not in train:
            raise UserError(f"the training split has no clip of class {name!r}")
    if len(val) < 2:
        raise UserError(
            f"the validation split has clips of {len(val)} class only, but choosing a head needs 2: add "
            "recordings of more subjects, or give splits in the manifest"
        )
