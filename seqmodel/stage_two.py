"""A run, opened for its second stage: the network, the crops it learns from, and how it will be trained.

Test clips are never asked for. Knows nothing about steps, checkpoints or what comes out.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.datasets import CropClips, load_samples
from features.door import progress, say, warn
from features.recipe import Part, fingerprint, require_equal
from features.store import FeatureStore
from seqmodel.cnn_lstm import CnnLstm
from seqmodel.config import FinetuneArgs, FinetuneConfig
from seqmodel.cut_cache import cache_bytes, frame_shape, open_cut_cache, prefix_runner
from seqmodel.encoder import encoder_of
from seqmodel.heads import LstmHead
from seqmodel.predictions import inputs_of
from seqmodel.run import Card, load_card, load_split, load_weights
from seqmodel.team import Team

BYTES_PER_CROP = 17_000
"""A JPEG crop of 224 pixels at quality 95, as measured; for telling what `--crops jpeg` will take."""
DEFAULT_CUT = {"mobilenet_v3_large": 15, "efficientnet_lite0": 17}
"""First block that learns; what each cut gains and costs is in docs/finetune.md."""
SEED_RECIPE = FinetuneConfig(
    epochs=15,
    warm_epochs=0,
    patience=4,
    head_lr=1e-4,
    encoder_lr=1e-4,
    depth_decay=1.0,
    scheduler="plateau",
    effective_batch=8 * 32,
)
"""The seed project's training: batches of 8, gradients gathered over 32 of them, AdamW, a scheduler,
everything unfrozen. Its README names no learning rate; this one is ours.
"""


@dataclass(frozen=True)
class Stage:
    """A run, opened for its second stage."""

    run: Path
    card: Card
    store: FeatureStore
    model: CnnLstm
    train: CropClips
    val: CropClips
    config: FinetuneConfig
    first_block: int

    @property
    def folder(self) -> Path:
        """Where the job keeps what it needs to go on."""
        return self.run / "finetune"


def open_stage(args: FinetuneArgs) -> Stage:
    """Read a run and its store's crops.

    Raises ValueError when the run reads no embeddings, or its store is gone, of another recipe, or without
    crops.
    """
    card = load_card(args.run)
    if card.recipe.pixels is None or "embeddings" not in card.dims:
        raise ValueError(f"{args.run} reads {', '.join(card.dims)} only: it has no encoder to train")
    if card.baseline != "none":
        raise ValueError(f"{args.run} reads geometry against a {card.baseline} baseline: not fine-tuned yet")
    path = args.store or Path(card.store)
    store = FeatureStore.open(path)
    parts: list[Part] = ["pixels", *(["geometry"] if "geometry" in card.dims else [])]  # type: ignore[list-item]
    require_equal(card.recipe, store.recipe, parts, where=f"run {args.run} with store {path}")
    weights = load_weights(args.run)
    encoder = encoder_of(card.recipe.encoder, weights.get("encoder"))
    head = LstmHead(card.head, card.dims, card.num_outputs)
    head.load_state_dict(weights["head"])
    first_block = args.unfreeze_from
    if first_block is None:
        first_block = 0 if args.recipe == "seed" else DEFAULT_CUT[card.recipe.encoder.name]
    if not 0 <= first_block <= len(encoder.blocks):
        raise ValueError(f"--unfreeze-from takes 0 to {len(encoder.blocks)}, got {first_block}")
    rows = {side: _rows_of(args.run, store, side) for side in ("train", "val")}
    _require_crops(store, np.concatenate(list(rows.values())))
    clips = {side: CropClips(store, card.labelling, found, inputs_of(card)) for side, found in rows.items()}
    config = SEED_RECIPE if args.recipe == "seed" else args.finetune
    model = CnnLstm(encoder, head, first_block)
    return Stage(args.run, card, store, model, clips["train"], clips["val"], config, first_block)


def _rows_of(run: Path, store: FeatureStore, side: str) -> np.ndarray:
    """Rows of the clips that the run put on this side; test clips are never asked for."""
    table = store.table()
    row_of = {clip: row for row, clip in enumerate(table.clip_id.tolist()) if clip}
    wanted = [clip for clip, (_, split) in load_split(run).items() if split == side]
    rows = np.array([row_of[clip] for clip in wanted if clip in row_of], np.int64)
    rows = rows[table.state[rows] == 1]
    if len(rows) < len(wanted):
        warn(f"{len(wanted) - len(rows)} of the run's {len(wanted)} {side} clips are not in {store.path}")
    if not len(rows):
        raise ValueError(f"{store.path} holds none of the {side} clips of {run}: is it the right store?")
    return rows


def _require_crops(store: FeatureStore, rows: np.ndarray) -> None:
    missing = len(rows) if not store.has_crops else int((~store.present("crops")[rows]).sum())
    if missing:
        size = missing * store.num_frames * BYTES_PER_CROP / 1e6
        raise ValueError(
            f"{store.path} lacks the face crops of {missing} clips, which fine-tuning learns from; add them "
            f"with: python -m extract --data YOUR_DATA --out {store.path} --crops jpeg (keeps the embeddings "
            f"and checks them; about {size:.0f} MB). Crops are pictures of people: keep the store where such"
            " pictures may lie, and remove it with python -m features delete"
        )


def settings_of(stage: Stage, args: FinetuneArgs) -> str:
    """What a checkpoint must have been made with to be gone on from."""
    asked = dataclasses.asdict(stage.config) | {
        "first_block": stage.first_block,
        "seed": args.seed,
        "augment": args.augment,
        "cut_cache": args.cut_cache,
        "store": stage.store.fingerprint(),
        "encoder": fingerprint(stage.card.recipe.encoder),
        "rows": [*stage.train.rows.tolist(), -1, *stage.val.rows.tolist()],
    }
    asked.pop("save_every_s")
    return repr(sorted(asked.items(), key=lambda item: item[0]))


def cut_sources(stage: Stage, args: FinetuneArgs, team: Team) -> tuple[Any, Any]:
    """Training and validation clips as activations at the cut, computed now where they are missing."""
    assert stage.card.recipe.pixels is not None
    crop_px = stage.card.recipe.pixels.crop_px
    encoder, cut = stage.model.encoder, stage.first_block
    shape = frame_shape(encoder, cut, crop_px)
    mirrored = False
    size = sum(
        cache_bytes(shape, len(clips), stage.store.num_frames, 1 + (mirrored and clips is stage.train))
        for clips in (stage.train, stage.val)
    )
    if team.writes:
        say(f"caching what blocks 0–{cut - 1} see: {size / 1e6:.0f} MB in {stage.folder}, deleted at the end")
    run = prefix_runner(encoder, cut, crop_px, team.device)
    sources = []
    for side, clips in (("train", stage.train), ("val", stage.val)):
        made_from = {
            "encoder": stage.card.recipe.encoder.weights_sha256,
            "cut": cut,
            "store": str(stage.store.path),
            "clips": ",".join(map(str, clips.rows.tolist())),
        }
        folder, twice = stage.folder / f"cut_{side}", mirrored and side == "train"
        if team.writes:
            open_cut_cache(folder, clips, shape, made_from, mirrored=twice)
        team.wait()
        cache = open_cut_cache(folder, clips, shape, made_from, mirrored=twice)
        rows = np.arange(len(clips))[team.rank :: team.size]
        with progress() as bar:
            task = bar.add_task(f"activations, {side}", total=len(rows), visible=team.writes)
            for _ in cache.fill(run, rows):
                bar.advance(task)
        team.wait()
        geometry = None
        if "geometry" in stage.card.dims:
            geometry = load_samples(stage.store, stage.card.labelling, clips.rows, "geometry").x["geometry"]
        sources.append(cache.source(geometry))
    return sources[0], sources[1]
