"""Prediction with a run: the rows of a split, their logits, and predictions.csv.

If the run's encoder made the store's embeddings, those are used. A fine-tuned run has another encoder: it
embeds the stored crops again, as live does. Recipes are compared field by field first.

Shapes: N clips, T frames, O logits, C classes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from features.cli import UserError
from features.datasets import CropClips, Samples, load_samples, select_samples
from features.labels import Labelling, class_indices
from features.recipe import Part, differences, require_equal
from features.store.store import FeatureStore
from features.store.table import ClipTable, groups_of
from seqmodel.heads.ensemble import Ensemble, build_ensemble
from seqmodel.metrics.predictions import Predictions
from seqmodel.runs.card import Card
from seqmodel.runs.files import load_folds, load_weights, read_csv, write_csv
from seqmodel.runs.run_encoder import open_run_engine
from seqmodel.training.loop import predict_logits, to_tensors

PREDICTIONS = "predictions.csv"
CLIPS_AT_ONCE = 256
PREFIXES_AT_ONCE = 32
"""Prefixes of a window that are predicted at once: memory then grows with the length and not with its square.
"""


@dataclass(frozen=True)
class EvalSubset:
    """The rows of a split, with their labels."""

    rows: np.ndarray
    """(N,) int64 rows of the store, labelled."""
    labels: np.ndarray
    """(N,) int64."""
    pending: int
    """Number of labelled clips of the split that are not extracted; a warning names it."""
    description: str
    """Which clips these are, for reports."""


def clip_labels(table: ClipTable, labelling: Labelling, mapping: Sequence[str] = ()) -> np.ndarray:
    """(N,) class indices of every row, -1 = none. `mapping` has STORE_LABEL=RUN_LABEL for another store.

    Raises UserError if the column is missing, or none of its labels maps to a class.
    """
    if labelling.column not in table.labels:
        present = ", ".join(sorted(table.labels)) or "none"
        raise UserError(f"the store has no label column {labelling.column!r}; it has: {present}")
    store_names = list(table.label_names[labelling.column])
    renamed, classes = list(store_names), list(zip(labelling.names, labelling.sources, strict=True))
    for pair in mapping:
        name, equals, run_label = pair.partition("=")
        if not equals or name not in store_names or not any(run_label in (n, *s) for n, s in classes):
            raise UserError(
                f"--label-map {pair}: must be STORE_LABEL=RUN_LABEL; STORE_LABEL is one of {store_names}, "
                f"RUN_LABEL is one of {list(labelling.names)}"
            )
        # Any label of the class represents it.
        renamed[store_names.index(name)] = next(s[0] for n, s in classes if run_label in (n, *s))
    if not any(name in group for name in renamed for group in labelling.sources):
        raise UserError(
            f"none of the store's labels {store_names} is a label of the run ({list(labelling.names)}); "
            "map them with --label-map STORE_LABEL=RUN_LABEL"
        )
    return class_indices(labelling, table.labels[labelling.column], renamed)


def eval_subset(
    table: ClipTable,
    labels: np.ndarray,
    subsets: Mapping[str, tuple[str, str]],
    split: str,
    known: np.ndarray,
    calibration_clips: Mapping[str, str] = MappingProxyType({}),
) -> EvalSubset:
    """Every labelled row of a split, as split.csv assigns it, failed clips included.

    known: (N,) bool, which rows are clips of the run, as `known_rows` returns. A store that shares no clip
    with the run is another data set: then the rows are its own split of that name, or all rows if it has
    none, without the subjects that the run was calibrated on (`calibration_clips`: clip_id -> subject).
    """
    labelled = labels >= 0
    if known.any():
        subset = np.array([subsets.get(clip, ("", ""))[1] for clip in table.clip_id.tolist()], str)
        chosen = labelled & known & (subset == split)
        description = f"the {split} subset of the run's split"
    else:
        marked = table.split == split
        chosen = labelled & (marked if marked.any() else np.ones(len(marked), bool))
        description = (
            f"another data set: its {split} split"
            if marked.any()
            else "another data set: every labelled clip"
        )
        used = chosen & _is_calibration_clip(table, calibration_clips)
        if used.any():
            chosen &= ~used
            description += f", without {int(used.sum())} clips of subjects that the run was calibrated on"
    # A row that is planned, or no longer in the manifest, and was not extracted, is not a failure.
    pending = chosen & (table.state == 0)
    rows = np.flatnonzero(chosen & ~pending)
    return EvalSubset(rows, labels[rows], int(pending.sum()), description)


def _is_calibration_clip(table: ClipTable, calibration_clips: Mapping[str, str]) -> np.ndarray:
    """(N,) bool: rows of subjects (or videos) that the run was calibrated on, also clips that were added
    later."""
    pairs = zip(table.clip_id.tolist(), table.subject.tolist(), strict=True)
    named = np.array(
        [clip in calibration_clips and calibration_clips[clip] in ("", subject) for clip, subject in pairs],
        bool,
    )
    groups = groups_of(table, np.arange(len(named)))
    return np.isin(groups, groups[named])


def open_inputs(
    run: Path, card: Card, store: FeatureStore, labelling: Labelling, rows: np.ndarray
) -> tuple[Ensemble, Samples]:
    """A run's model, and its inputs for rows of a store: cached features, or crops embedded with the run's
    encoder.

    Raises UserError with the differing fields if the recipes of run and store differ.
    """
    weights = load_weights(run)
    model = load_ensemble(card, weights["head"])
    parts: list[Part] = ["pixels", "geometry"] if "geometry" in card.dims else ["pixels"]
    where = f"run {run} with store {store.path}"
    differs = differences(card.recipe, store.recipe, ["encoder"]) if "embeddings" in card.dims else []
    if differs and "encoder" in weights:
        # Only the pixels must be equal: the run has its own encoder.
        require_equal(card.recipe, store.recipe, parts, where=where)
        if not store.has_crops:
            raise UserError(
                f"recipes differ ({where}): {'; '.join(differs)}; and the store keeps no crops that the "
                "run's own encoder could embed. Extract with --crops jpeg, or use finetune --re-extract"
            )
        return model, _embedded_again(run, card, store, labelling, rows)
    if "embeddings" in card.dims:
        parts.append("encoder")
    require_equal(card.recipe, store.recipe, parts, where=where)
    return model, load_samples(store, labelling, rows, inputs_of(card))


def load_ensemble(card: Card, weights: Mapping[str, torch.Tensor]) -> Ensemble:
    """A run's model with its weights, in eval mode."""
    names = len(card.labelling.names)
    model = build_ensemble(card.members, card.dims, card.labelling.task, names, card.num_folds)
    model.load_state_dict(dict(weights))
    return model.eval()


def held_out_folds(run: Path, store: FeatureStore, rows: np.ndarray) -> np.ndarray:
    """(N,) fold whose heads have not seen the person of each row, for rows that the run learned from; −1 for
    others, which all heads predict together."""
    folds = load_folds(run)
    return np.array([folds.get(clip, -1) for clip in store.table().clip_id[rows].tolist()], np.int64)


def predict_rows(
    run: Path,
    card: Card,
    store: FeatureStore,
    labelling: Labelling,
    rows: np.ndarray,
    *,
    folds: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """((N, O) float32 logits, (N,) bool measured) of rows of a store.

    folds: `held_out_folds` of the rows, for clips that the run learned from: each is predicted by the heads
    of its fold alone. Default: all heads predict all rows.

    A row is measured if a stream that the head reads is valid in some frame; the logits of others are NaN.
    Raises UserError as `open_inputs`.
    """
    model, samples = open_inputs(run, card, store, labelling, rows)
    measured = np.any([np.asarray(mask).any(axis=1) for mask in samples.valid.values()], axis=0)
    logits = np.full((len(rows), card.num_outputs), np.nan, np.float32)
    for part, indices in parts_by_fold(model, np.full(len(rows), -1) if folds is None else folds):
        logits[indices] = predict_logits(part, select_samples(samples, indices), CLIPS_AT_ONCE)
    logits[~measured] = np.nan
    return logits, measured


def parts_by_fold(model: Ensemble, folds: np.ndarray) -> list[tuple[Ensemble, np.ndarray]]:
    """(model, indices) for each fold in folds (N,): the heads of that fold; for −1 all heads."""
    return [
        (model if number < 0 else model.of_fold(number).eval(), np.flatnonzero(folds == number))
        for number in np.unique(folds).tolist()
    ]


def prefix_logits(
    run: Path,
    card: Card,
    store: FeatureStore,
    labelling: Labelling,
    rows: np.ndarray,
    track: Callable[[range], Iterable[int]] = iter,
) -> tuple[np.ndarray, np.ndarray]:
    """((n, T, O) float32, (n, T) bool): logits of the prefix of the window that ends at each frame, and which
    frames are valid in any stream. A clip that the run learned from is predicted by the heads of its fold.

    track: gives the indices of the clips one by one, and may show the progress.
    """
    model, samples = open_inputs(run, card, store, labelling, rows)
    folds = held_out_folds(run, store, rows)
    heads = {int(folds[indices[0]]): part for part, indices in parts_by_fold(model, folds)}
    found, seen = [], []
    for index in track(range(len(rows))):
        x, valid, _ = samples.batch(np.array([index]))
        parts = []
        with torch.inference_mode():
            streams, masks = to_tensors(x), to_tensors(valid)
            length = next(iter(masks.values())).shape[1]
            for until in torch.ones(length, length, dtype=torch.bool).tril().split(PREFIXES_AT_ONCE):
                repeated = {name: values.expand(len(until), -1, -1) for name, values in streams.items()}
                head = heads[int(folds[index])]
                parts.append(head(repeated, {name: mask & until for name, mask in masks.items()}).float())
        found.append(torch.cat(parts).numpy())
        seen.append(torch.stack([mask[0] for mask in masks.values()]).any(dim=0).numpy())
    return np.stack(found), np.stack(seen)


def write_predictions(path: Path, predictions: Predictions, label_names: Sequence[str], split: str) -> None:
    """Write predictions.csv atomically: rows of this split replace earlier ones, rows of other splits stay.

    The column `fold` is empty without folds.
    """
    before, after = ("clip_id", "subject", "split", "label"), ("decision", "state", "coverage", "fold")
    columns = [*before, *(f"p_{name}" for name in label_names), *after]
    earlier = ({**row, "fold": row.get("fold", "")} for row in read_predictions(path))
    kept = [row for row in earlier if row["split"] != split and list(row) == columns]
    rows, p = [list(row.values()) for row in kept], predictions
    for i in range(len(p)):
        state = p.reasons[i] or ("unsure" if p.unsure[i] else "ok")
        predicted = [f"{value:.6f}" for value in p.probabilities[i]]
        named = [p.clip_ids[i], p.subjects[i], split, label_names[p.labels[i]]]
        fold = "" if p.fold is None else str(p.fold[i])
        rows.append([*named, *predicted, label_names[p.predicted[i]], state, f"{p.coverage[i]:.3f}", fold])
    write_csv(path, [columns, *rows])


def read_predictions(path: Path) -> list[dict[str, str]]:
    """Rows of predictions.csv; empty if there is no file."""
    return read_csv(path) if path.is_file() else []


def _embedded_again(
    run: Path, card: Card, store: FeatureStore, labelling: Labelling, rows: np.ndarray
) -> Samples:
    """The inputs of rows, with embeddings of their stored crops by the run's own encoder, as in live."""
    samples = load_samples(store, labelling, rows, inputs_of(card))
    crops = CropClips(store, labelling, rows)
    embed, known = _own_encoder(run, card.recipe.encoder.weights_sha256)
    seen = np.asarray(crops.valid["crops"])
    x = np.zeros((*seen.shape, card.recipe.encoder.dim), np.float16)
    for index, row in enumerate(rows.tolist()):
        key = (str(store.path), row)
        if key not in known and seen[index].any():
            known[key] = embed(crops.batch(np.array([index]))[0]["crops"][0][seen[index]])
        if seen[index].any():
            x[index, seen[index]] = known[key]
    return dataclasses.replace(
        samples, x=samples.x | {"embeddings": x}, valid=samples.valid | {"embeddings": seen}
    )


@lru_cache(maxsize=1)
def _own_encoder(run: Path, weights_sha256: str) -> tuple[Any, dict[tuple[str, int], np.ndarray]]:
    """The run's compiled encoder, and a cache of its embeddings by store and row, because plots, importance
    and metrics read the same clips. `weights_sha256` is a key of the cache."""
    return open_run_engine(run).embed, {}


def inputs_of(card: Card) -> Literal["embeddings", "geometry", "both"]:
    """The value of `--inputs` for the streams that a run's members read."""
    return "both" if len(card.dims) == 2 else "geometry" if "geometry" in card.dims else "embeddings"
