"""Statistics of a run's training data, to compare a live session with (drift).

Face rate, mean probability, and distance of embeddings from the training mean (novelty), per clip. They are
stored in the run as training_stats.json, because live may have no access to the store.

Reading it needs neither torch nor zarr. N clips, T frames, D embedding.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from features.cli import UserError
from seqmodel.metrics.calibration import probabilities
from seqmodel.runs.card import Card, load_card
from seqmodel.runs.files import WEIGHTS, load_split, read_json, write_text

if TYPE_CHECKING:
    from features.store.store import FeatureStore

FILE, STATISTICS = "training_stats.json", "statistics.safetensors"
MAX_CLIPS = 400
"""Maximum number of clips: a few hundred give the same statistics as all."""
MIN_SCORE_FRACTION = 0.9
"""A partly filled window gives a prediction if its validation score above chance is at least this fraction of
that of a full window."""


@dataclass(frozen=True)
class PercentileRange:
    """A statistic over clips: its mean, and its 5th and 95th percentile."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class TrainingStats:
    """Statistics of the training data of a run."""

    num_clips: int
    face_rate: PercentileRange
    """Fraction of a clip's sampled frames with a face."""
    p: PercentileRange
    """`level_of` a clip's probabilities."""
    novelty: PercentileRange | None
    """Mean squared z-score of a clip's embeddings, 1 on average. None if the head reads no embeddings."""
    min_filled: float | None = None
    """Smallest filled fraction of the window that is good enough for a prediction, by validation
    (MIN_SCORE_FRACTION)."""


def write_training_stats(
    run: Path, store: Path | str | None = None, track: Callable[[range], Iterable[int]] = iter
) -> TrainingStats:
    """Compute the statistics of a run's training split and save them in the run.

    `store` defaults to the one that the run was trained on. track: gives the clips of the longest part one by
    one, and may show the progress. Raises UserError if it cannot be opened or has
    another recipe.
    """
    from features.store.store import FeatureStore

    card = load_card(run)
    found = measure(run, card, FeatureStore.open(store or card.store), track)
    write_text(run / FILE, json.dumps(asdict(found), indent=1) + "\n")
    return found


def read_training_stats(run: Path) -> TrainingStats | None:
    """The statistics that a run has stored, or None."""
    path = run / FILE
    if not path.is_file():
        return None
    plain = read_json(path)
    spreads = {
        name: PercentileRange(**plain[name]) if plain[name] else None
        for name in ("face_rate", "p", "novelty")
    }
    return TrainingStats(**plain | spreads)


def measure(
    run: Path, card: Card, store: "FeatureStore", track: Callable[[range], Iterable[int]] = iter
) -> TrainingStats:
    """The statistics of the run's training clips in a store."""
    from seqmodel.runs.predict import held_out_folds, open_inputs, predict_rows

    rows = _evenly_spaced(rows_of(run, store, "train"))
    folds = held_out_folds(run, store, rows)
    logits, measured = predict_rows(run, card, store, card.labelling, rows, folds=folds)
    p = probabilities(logits[measured], card.labelling.task, card.calibration)
    frames = store.read_frames(rows)
    face_rate = (frames[..., 5] > 0).sum(axis=1) / np.maximum(np.isfinite(frames[..., 0]).sum(axis=1), 1)
    novelty = None
    if "embeddings" in card.dims:
        mean, std = load_statistics(run, card)["embeddings"]
        # The run's own inputs: the embeddings of a fine-tuned encoder are not those of the store.
        _, samples = open_inputs(run, card, store, card.labelling, rows)
        x, valid = samples.x["embeddings"], samples.valid["embeddings"]
        squares = (((x.astype(np.float32) - mean) / std) ** 2).mean(axis=2)
        seen = valid.any(axis=1)
        novelty = _percentile_range((squares * valid).sum(axis=1)[seen] / valid.sum(axis=1)[seen])
    return TrainingStats(
        num_clips=len(rows),
        face_rate=_percentile_range(face_rate),
        p=_percentile_range(level_of(p, card.labelling.task)),
        novelty=novelty,
        min_filled=_min_filled(run, card, store, track),
    )


def level_of(probabilities: ArrayLike, task: str) -> np.ndarray:
    """One number 0..1, (...), for probabilities (..., C): shown in the live bar, the timeline and the drift
    table.

    Binary: the positive class's probability. Ordinal: the expected level over the highest one. Multiclass:
    the probability of the most probable class.
    """
    p = np.asarray(probabilities, float)
    if task == "ordinal":
        return p @ np.arange(p.shape[-1]) / (p.shape[-1] - 1)
    return p[..., -1] if task == "binary" else p.max(axis=-1)


def _min_filled(
    run: Path, card: Card, store: "FeatureStore", track: Callable[[range], Iterable[int]]
) -> float | None:
    """The smallest fraction of a window that scores nearly as well as a full one on validation; None if
    unknown, and for imported features, which live does not use."""
    from features.labels import class_indices
    from seqmodel.metrics.classification import score
    from seqmodel.runs.predict import prefix_logits

    if card.recipe.pixels is None:
        return None
    rows = _evenly_spaced(rows_of(run, store, "val"))
    table, column = store.table(), card.labelling.column
    labels = class_indices(card.labelling, table.labels[column][rows], table.label_names[column])
    if not len(rows):
        return None
    logits, seen = prefix_logits(run, card, store, card.labelling, rows, track)
    metric = "auroc" if card.labelling.task == "binary" else "balanced_accuracy"
    usable = seen.any(axis=1)
    if len(np.unique(labels[usable])) < 2:  # the metric is undefined
        return None
    scores = [
        score(metric, labels[usable], probabilities(logits[usable, t], card.labelling.task, card.calibration))
        for t in range(logits.shape[1])
    ]
    chance = 1 / len(card.labelling.names)
    wanted = chance + MIN_SCORE_FRACTION * (scores[-1] - chance)
    # The first length after which no longer one falls below it: a single high early score does not count.
    below = [t for t, value in enumerate(scores) if value < wanted]
    return min(1.0, (max(below) + 2 if below else 1) / len(scores))


def rows_of(run: Path, store: "FeatureStore", subset: str) -> np.ndarray:
    """Extracted rows of a store in one subset of the run's split."""
    subsets, table = load_split(run), store.table()
    chosen = [subsets.get(str(clip_id), ("", ""))[1] == subset for clip_id in table.clip_id]
    return np.flatnonzero(np.array(chosen, bool) & (table.state == 1))


def _evenly_spaced(rows: np.ndarray) -> np.ndarray:
    """`MAX_CLIPS` of these rows, evenly spaced, because clips are often ordered by subject and class."""
    return rows[np.linspace(0, len(rows) - 1, min(MAX_CLIPS, len(rows))).astype(int)]


def _percentile_range(values: np.ndarray) -> PercentileRange:
    if not len(values):
        raise UserError(
            "the store has no training clip of the run: give the store that the run was trained on"
        )
    low, high = np.percentile(values, [5, 95])
    return PercentileRange(round(float(np.mean(values)), 4), round(float(low), 4), round(float(high), 4))


def load_statistics(folder: Path, card: Card) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation (D,) float32 of the training features by stream, from a run (those of the
    first head that reads the stream) or a bundle."""
    from safetensors.numpy import load

    if (folder / STATISTICS).is_file():
        tensors = load((folder / STATISTICS).read_bytes())
        return {name: (tensors[f"{name}.mean"], tensors[f"{name}.std"]) for name in card.dims}
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no checkpoint: {WEIGHTS} is missing")
    tensors = load((folder / WEIGHTS).read_bytes())
    streams = [member.stream for member in card.members]
    prefix = {name: f"head.member.{streams.index(name)}.fold.0.input" for name in card.dims}  # type: ignore[arg-type]
    return {name: (tensors[f"{key}.mean"], tensors[f"{key}.std"]) for name, key in prefix.items()}
