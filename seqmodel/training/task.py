"""What is to be learned: a store, a question put to its labels, and who stands on which side.

Shared by `python -m seqmodel train` and `python -m tune`, so that a searched head and a plain one learn from
the same clips. Only training and validation clips are ever loaded here.

N clips, T frames, D width of a stream.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.cli import log_warning
from features.datasets import Inputs, Samples, labelled_rows, load_samples, streams_of
from features.labels import Labelling, class_indices, make_labelling
from features.manifest import SUBSETS
from features.recipe import to_json
from features.splits import Split, extend_split, make_split, require_disjoint
from features.store.schema import read_column
from features.store.store import FeatureStore
from features.store.table import ClipTable, groups_of
from seqmodel.config import LabelArgs


@dataclass(frozen=True)
class LearningTask:
    """A store, a labelling and a split; the rest of training follows from them."""

    store: FeatureStore
    table: ClipTable
    labelling: Labelling
    split: Split
    inputs: Inputs
    """Streams that a head may read."""
    num_unlabelled: int
    """Extracted clips without a label of this labelling: left out."""

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
) -> LearningTask:
    """Open a store and decide what is learned from whom.

    `inputs` None means every stream that the store holds. `splits_from` is a run whose people keep their
    side; without it a store that names who trained its encoder keeps theirs. Raises ValueError when the
    column, a label or a stream is missing, no clip has a label, a class has no training clip, somebody
    stands on two sides, or is held out of heads that read embeddings of an encoder which learned from them.
    """
    store = FeatureStore.open(store_path)
    table = store.table()
    if label.label not in table.label_names:
        raise ValueError(
            f"store {store_path} has no label column {label.label!r}; "
            f"it has: {', '.join(table.label_names) or 'none'}"
        )
    labelling = _labelling(table, label)
    rows, labels = labelled_rows(table, labelling)
    if not len(rows):
        raise ValueError(f"store {store_path} has no extracted clip with a label of {list(labelling.names)}")
    chosen: Inputs = inputs or ("both" if len(store.streams) > 1 else store.streams[0])
    for name in streams_of(chosen):
        if name not in store.streams:
            raise ValueError(f"--inputs {chosen}: store {store_path} holds no {name}")
    split = _split(store, table, rows, labels, seed, splits_from)
    require_disjoint(split, table.subject)
    if "embeddings" in streams_of(chosen):
        split = _unseen_by_encoder(split, store, table, splits_from)
    _require_classes(split, labels, rows, labelling)
    lacking = int((~store.present("geometry")[rows]).sum()) if "geometry" in streams_of(chosen) else 0
    if lacking:
        split = _warned(
            split,
            f"{lacking} of {len(rows)} labelled clips have no geometry yet, which a head takes for faces "
            "out of sight: run extract again on the store",
        )
    return LearningTask(store, table, labelling, split, chosen, int((table.state == 1).sum()) - len(rows))


def seen_fingerprint(learning_task: LearningTask) -> str:
    """Sixteen hex digits of what a search sees: recipe, and people, labels, sides and files of its clips.

    Not the whole store's: crops that are added, or corrections of other columns, change nothing about it.
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
    """(len(rows),) int64 class index of these rows."""
    column = learning_task.labelling.column
    codes, names = learning_task.table.labels[column][rows], learning_task.table.label_names[column]
    return class_indices(learning_task.labelling, codes, names)


def load_train_val(learning_task: LearningTask, *, mapped: bool = True) -> tuple[Samples, Samples]:
    """Training and validation samples; `mapped` shares one packed copy among processes.

    Where there is no room for that copy it says so, and each process reads the store for itself. Raises
    ValueError where nothing was measured in any training clip.
    """
    if mapped:
        try:
            learning_task.store.pack()
        except OSError as error:
            clips = len(learning_task.split.train) + len(learning_task.split.val)
            store, widths = learning_task.store, learning_task.dims.items()
            frame_bytes = sum(width * store.array(name).dtype.itemsize for name, width in widths)
            log_warning(
                f"no room for a packed copy of {store.path} ({error}): each process holds the clips in its "
                f"own memory, about {clips * store.num_frames * frame_bytes / 1e9:.1f} GB"
            )
            mapped = False
    train, val = (
        load_samples(learning_task.store, learning_task.labelling, rows, learning_task.inputs, mapped=mapped)
        for rows in (learning_task.split.train, learning_task.split.val)
    )
    if not any(valid[:].any() for valid in train.valid.values()):
        raise ValueError(
            f"not one of the {len(train)} training clips in "
            f"{learning_task.store.path} has a valid frame: there "
            "is nothing to learn from"
        )
    return train, val


def encoder_leak_warning(store: FeatureStore, groups: np.ndarray) -> str:
    """What readers have to know of figures for which each of these people is held out once, on whatever side
    they stand; '' where the encoder learned from nobody of them.

    groups: (N,) str as `groups_of` gives them.
    """
    weights = store.recipe.encoder.weights
    if store.encoder_subsets:
        people = np.unique(groups).tolist()
        known = sum(store.encoder_subsets.get(who, "test") != "test" for who in people)
        return (
            f"figures of folds are too good here: the encoder behind the embeddings ({weights}) has learned "
            f"from {known} of the {len(people)} people (or videos) that are held out, or was chosen by them"
            if known
            else ""
        )
    if _is_tuned(store):
        return (
            f"figures of folds may be too good here: the encoder behind the embeddings ({weights}) was "
            f"fine-tuned, and {store.path} does not say on whom, so it may know the people who are held out"
        )
    return ""


def _is_tuned(store: FeatureStore) -> bool:
    return store.recipe.encoder.weights.startswith("finetuned:")


def _labelling(table: ClipTable, label: LabelArgs) -> Labelling:
    """The labelling that the options ask for, of a column of the table."""
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
) -> Split:
    """Who stands on which side: as in an earlier run, as when the store's encoder was trained, or anew."""
    if splits_from is not None:
        return extend_split(table, rows, labels, splits_from)
    if not store.encoder_subsets:
        return make_split(table, rows, labels, seed=seed)
    marked = zip(groups_of(table, np.arange(len(table.split))).tolist(), table.split.tolist(), strict=True)
    marks = np.array([store.encoder_subsets.get(who, mark) for who, mark in marked], str)
    split = make_split(dataclasses.replace(table, split=marks), rows, labels, seed=seed)
    encoder = store.recipe.encoder.weights
    return dataclasses.replace(
        split, description=f"everybody on the side on which the encoder ({encoder}) had them"
    )


def _unseen_by_encoder(
    split: Split, store: FeatureStore, table: ClipTable, splits_from: Path | None
) -> Split:
    """The split, with a warning where nobody knows whom the store's fine-tuned encoder learned from.

    Raises ValueError where it learned from people who are held out here, or was chosen by test people.
    """
    weights = store.recipe.encoder.weights
    if not store.encoder_subsets:
        if splits_from is not None or not _is_tuned(store):
            return split
        return _warned(
            split,
            f"the encoder behind the embeddings ({weights}) was fine-tuned, and {store.path} does not say on "
            "whom: it may know people who are held out here; --splits-from that run keeps them on their side",
        )
    held = [
        f"{who} ({store.encoder_subsets[who]} there, {subset} here)"
        for subset, rows in split.subsets().items()
        for who in np.unique(groups_of(table, rows)).tolist()
        if SUBSETS.index(store.encoder_subsets.get(who, subset)) < SUBSETS.index(subset)
    ]
    if held:
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        raise ValueError(
            f"the encoder behind {store.path} ({weights}) has learned from people who are held out here, or "
            f"was chosen by them: {', '.join(held[:3])}{more}; give --splits-from the run that trained it, "
            "or leave --splits-from out"
        )
    return split


def _require_classes(split: Split, labels: np.ndarray, rows: np.ndarray, labelling: Labelling) -> None:
    train, val = (set(labels[np.isin(rows, subset)].tolist()) for subset in (split.train, split.val))
    for index, name in enumerate(labelling.names):
        if index not in train:
            raise ValueError(f"the training split has no clip of {name!r}")
    if len(val) < 2:
        raise ValueError(
            f"the validation split has clips of {len(val)} class(es): too few people "
            "to choose a head by; add recordings, or give splits in the manifest"
        )
