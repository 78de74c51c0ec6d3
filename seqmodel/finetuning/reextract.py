"""Re-extraction: a new store with embeddings of a run's own encoder, from the crops of an old store.

Heads can then be searched on these embeddings. The old store is never changed, because an interrupted job
would leave embeddings of two encoders in it. The same command again continues with the missing clips.
T frames, D embedding.
"""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from features.cli import UserError, echo, log_warning, progress
from features.manifest import SUBSETS, Clip
from features.recipe import require_equal
from features.store.store import DONE, FAILED, FeatureStore, plan
from features.store.table import ClipTable, groups_of
from seqmodel.encoders.backbone import build_encoder
from seqmodel.encoders.engine import Engine
from seqmodel.runs.card import load_card, versions
from seqmodel.runs.files import WEIGHTS, load_split
from seqmodel.runs.run_encoder import open_run_engine


def re_extract(run: Path, store_path: Path, out: Path) -> tuple[dict[str, Any], int]:
    """Write store `out`: clips, frames, geometry and crops of `store_path`, embeddings of the run's encoder.

    The new store also has the subsets of the encoder's training and the old store's log of test evaluations.
    Returns (summary, exit code); the code is 1 if extracted clips have no crops, and a warning names each.
    Raises UserError if the store has no crops, its pixel recipe differs from the run's, or `out` is the same
    store or one of another encoder.
    """
    store, card = FeatureStore.open(store_path), load_card(run)
    if out.resolve() == Path(store_path).resolve():
        raise UserError(f"--re-extract {out} is also the store to read from: give a new path")
    if not store.has_crops:
        raise UserError(f"{store_path} has no crops, which --re-extract needs: run extract with --crops jpeg")
    require_equal(card.recipe, store.recipe, ["pixels"], where=f"run {run} with store {store_path}")
    engine, table = open_run_engine(run), store.table()
    named = np.flatnonzero((table.clip_id != "") & store.listed())
    subsets: dict[str, str] = {}
    if card.recipe.encoder.weights.startswith("finetuned:"):
        subsets = encoder_subsets(run, store, table, named)
        # Runs on the new store look for this encoder by its hash in the cache: this puts it there.
        build_encoder(card.recipe.encoder.name, str(run / WEIGHTS))
    new = plan(
        out,
        [_clip(table, row) for row in named.tolist()],
        dataclasses.replace(store.recipe, encoder=card.recipe.encoder),
        numerics=engine.numerics | {"crops": store.numerics.get("crops", "jpeg"), "pixels": "stored crops"},
        crops=True,
        versions=versions(),
        data_statement=store.data_statement,
    )
    new.carry_over(store.test_evaluations, subsets)
    without_crops = embed_rows(new, store, named, engine)
    done = int(new.present("embeddings").sum())
    echo(
        f"{out}: {done} clips of {store_path} with embeddings of {card.recipe.encoder.weights}; "
        f"{len(without_crops)} clips had no crops"
    )
    for clip_id in without_crops:
        log_warning(
            f"{clip_id} has no crops and is left out: extract it with --crops jpeg, then run the same command"
        )
    summary = {"store": str(out), "clips": len(named), "done": done, "without_crops": without_crops}
    return summary, int(bool(without_crops))


def embed_rows(new: FeatureStore, store: FeatureStore, rows: np.ndarray, engine: Engine) -> list[str]:
    """Write the missing ones of these rows of `store` to `new`; returns the extracted clips without crops."""
    table, have, clip_ids = store.table(), store.present("crops"), new.table().clip_id
    row_of = dict(zip(table.clip_id[rows].tolist(), rows.tolist(), strict=True))
    without_crops: list[str] = []
    with progress() as bar:
        for row in bar.track(new.missing().tolist(), description="re-extracting"):
            source = row_of[clip_ids[row]]
            if table.state[source] == FAILED:
                new.write_failure(row, str(table.failure[source]))
            elif table.state[source] == DONE and have[source]:
                _copy_row(store, source, new, row, engine)
            elif table.state[source] == DONE:
                without_crops.append(str(table.clip_id[source]))
    new.finalize()
    return without_crops


def encoder_subsets(run: Path, store: FeatureStore, table: ClipTable, rows: np.ndarray) -> dict[str, str]:
    """Subject (or video) of these rows -> its subset in the run that trained the encoder. If an earlier
    fine-tuning used the subject too, the stricter subset counts: train before val before test.
    """
    split = load_split(run)
    subsets: dict[str, str] = {}
    for group, clip in zip(groups_of(table, rows).tolist(), table.clip_id[rows].tolist(), strict=True):
        _, subset = split.get(clip, ("", ""))
        used = [name for name in (subset, store.encoder_subsets.get(group), subsets.get(group)) if name]
        if used:
            subsets[group] = min(used, key=SUBSETS.index)
    return subsets


def _copy_row(store: FeatureStore, source: int, new: FeatureStore, row: int, engine: Engine) -> None:
    files = store.read_crops(source)
    seen = [t for t, file in enumerate(files) if file]
    images = [_decoded(files[t], f"crop {t} of row {source} of {store.path}") for t in seen]
    embeddings = np.zeros((len(files), engine.encoder_id.dim), np.float16)
    if images:
        embeddings[seen] = engine.embed(np.stack(images))
    geometry = np.asarray(store.array("geometry")[source]) if "geometry" in store.streams else None
    frames = store.read_frames(np.array([source]))[0]
    # Frames with a face but without a crop have no embedding: mark them as not valid.
    frames[np.setdiff1d(np.arange(len(frames)), seen), 5] = 0
    new.write_row(row, embeddings=embeddings, frames=frames, geometry=geometry, crops=files)


def _decoded(file: bytes, what: str) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UserError(f"{what} is not a valid image: extract again with --crops jpeg into a new store")
    return image


def _clip(table: ClipTable, row: int) -> Clip:
    """The clip of a row."""
    names, end_s = table.label_names, float(table.end_s[row])
    labels = {c: names[c][codes[row]] if codes[row] >= 0 else "" for c, codes in table.labels.items()}
    return Clip(
        str(table.clip_id[row]),
        Path(str(table.source[row])),
        float(table.start_s[row]),
        None if np.isnan(end_s) else end_s,
        str(table.subject[row]),
        str(table.split[row]),
        str(table.fold[row]),
        labels,
        {column: str(values[row]) for column, values in table.slices.items()},
    )
