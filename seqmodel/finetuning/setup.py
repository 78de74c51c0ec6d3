"""The setup of a fine-tuning job: network, crops, training options and activation caches.

Test clips are never read.
"""

import dataclasses
import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.cli import UserError, echo, log_warning, progress
from features.datasets import CropClips
from features.recipe import Part, Recipe, fingerprint, require_equal
from features.store.store import FeatureStore
from seqmodel.config import FinetuneArgs, FinetuneConfig, TrainConfig
from seqmodel.encoders.backbone import encoder_of
from seqmodel.encoders.model_files import FULL_DETECTOR, IMAGENET_WEIGHTS, SHORT_DETECTOR, sha256_of
from seqmodel.finetuning.activation_cache import (
    ActivationCache,
    frame_shape,
    open_activation_cache,
    prefix_runner,
    require_room,
)
from seqmodel.finetuning.augmentation import Augmentation
from seqmodel.finetuning.distributed import DistributedContext
from seqmodel.finetuning.network import CnnLstm
from seqmodel.heads.ensemble import Ensemble
from seqmodel.runs.card import Card, load_card
from seqmodel.runs.files import WEIGHTS, load_split, load_weights
from seqmodel.runs.predict import load_ensemble

BYTES_PER_CROP = 17_000
"""Measured size of a JPEG crop of 224 pixels at quality 95; for the estimate of what `--crops jpeg` needs."""
DEFAULT_FIRST_BLOCK = {"mobilenet_v3_large": 15, "efficientnet_lite0": 16}
"""Encoder -> first block to train; docs/finetune.md compares the choices."""
SEED_RECIPE = FinetuneConfig(
    epochs=15,
    head_only_epochs=0,
    patience=4,
    head_lr=1e-4,
    encoder_lr=1e-4,
    layer_decay=1.0,
    scheduler="plateau",
    effective_batch=8 * 32,
)
"""Training of the seed project: batches of 8, gradients accumulated over 32 of them, AdamW, a scheduler, no
frozen blocks. Its README gives no learning rate: this one was chosen for brainbuddy.
"""
SEED_LOSS = TrainConfig()
"""BCEWithLogits or cross-entropy without class weights, for every head."""
FREE = ("save_every_s",)
"""Options that do not change the result; --preset seed allows them."""


@dataclass(frozen=True)
class FinetuneSetup:
    """A run, its network, its crops and its options for fine-tuning."""

    run: Path
    card: Card
    store: FeatureStore
    model: CnnLstm
    train: CropClips
    val: CropClips
    config: FinetuneConfig
    first_block: int
    loss: TrainConfig
    """Class weights of the loss, and augmentation of features."""

    @property
    def started_from(self) -> str:
        """`stage 1`, or `stage 2` for a run that is already fine-tuned."""
        tuned = any(s.get("stage") == "finetune" and s.get("kept") for s in self.card.stages)
        return "stage 2" if tuned else "stage 1"

    @property
    def folder(self) -> Path:
        """Folder for the checkpoint and the activation caches."""
        return self.run / "finetune"


def open_setup(args: FinetuneArgs) -> FinetuneSetup:
    """Open a run and the crops of its store.

    Raises UserError if the run reads no embeddings, its store is missing, has another recipe or no crops, or
    options contradict each other.
    """
    config = config_of(args)
    card = load_card(args.run)
    if card.recipe.pixels is None:
        raise UserError(f"{args.run} was trained on imported features: it has no encoder to train")
    if all(member.family != "embeddings recurrent" for member in card.members):
        raise UserError(f"{args.run} has no recurrent member that reads embeddings: no encoder to train")
    path = args.store or Path(card.store)
    store = FeatureStore.open(path)
    parts: list[Part] = ["pixels", *(["geometry"] if "geometry" in card.dims else [])]  # type: ignore[list-item]
    require_equal(card.recipe, store.recipe, parts, where=f"run {args.run} with store {path}")
    weights = load_weights(args.run)
    encoder = encoder_of(card.recipe.encoder, weights.get("encoder"))
    # The head that has not seen the people of the first fold, which is validation here.
    ensemble, index = load_ensemble(card, weights["head"]), member_to_tune(card)
    head = Ensemble([ensemble.heads(index)[:1]], card.labelling.task)
    first_block = args.unfreeze_from
    if first_block is None:
        first_block = 0 if args.preset == "seed" else DEFAULT_FIRST_BLOCK[card.recipe.encoder.name]
    if not 0 <= first_block <= len(encoder.blocks):
        raise UserError(f"--unfreeze-from must be 0 to {len(encoder.blocks)}, got {first_block}")
    rows = {subset: _rows_of(args.run, store, subset) for subset in ("train", "val")}
    require_crops(store, np.concatenate(list(rows.values())))
    clips = {subset: CropClips(store, card.labelling, found) for subset, found in rows.items()}
    model = CnnLstm(encoder, head, first_block)
    loss = SEED_LOSS if args.preset == "seed" else card.members[index].train
    return FinetuneSetup(
        args.run, card, store, model, clips["train"], clips["val"], config, first_block, loss
    )


def config_of(args: FinetuneArgs) -> FinetuneConfig:
    """The training options. Raises UserError for options that --preset seed sets, negative epochs, and
    batches or copies below 1."""
    if min(args.finetune.epochs, args.finetune.head_only_epochs) < 0:
        raise UserError(
            f"--epochs and --head-only-epochs must be at least 0, got {args.finetune.epochs} and "
            f"{args.finetune.head_only_epochs}"
        )
    if args.finetune.effective_batch < 1 or args.finetune.augmented_copies < 1:
        raise UserError(
            "--effective-batch and --augmented-copies must be at least 1, got "
            f"{args.finetune.effective_batch} and {args.finetune.augmented_copies}"
        )
    if args.preset != "seed":
        return args.finetune
    given, defaults = dataclasses.asdict(args.finetune), dataclasses.asdict(FinetuneConfig())
    fixed = [name for name in given if given[name] != defaults[name] and name not in FREE]
    if fixed:
        options = ", ".join("--" + name.replace("_", "-") for name in fixed)
        raise UserError(f"--preset seed sets {options} itself: leave out these options, or --preset seed")
    return dataclasses.replace(SEED_RECIPE, **{name: given[name] for name in FREE})


def _rows_of(run: Path, store: FeatureStore, subset: str) -> np.ndarray:
    """Extracted rows of the clips in this subset of the run's split (train or val)."""
    table = store.table()
    row_of = {clip: row for row, clip in enumerate(table.clip_id.tolist()) if clip}
    wanted = [clip for clip, (_, split) in load_split(run).items() if split == subset]
    rows = np.array([row_of[clip] for clip in wanted if clip in row_of], np.int64)
    rows = rows[table.state[rows] == 1]
    if len(rows) < len(wanted):
        log_warning(
            f"{len(wanted) - len(rows)} of the run's {len(wanted)} {subset} clips are not in {store.path}"
        )
    if not len(rows):
        raise UserError(
            f"{store.path} has none of the {subset} clips of {run}: give the store of the run with --store"
        )
    return rows


def require_crops(store: FeatureStore, rows: np.ndarray) -> None:
    """Check that these rows of a store have face crops.

    Raises UserError with the command that adds them, the disk space that they need, and a note on privacy.
    """
    if store.recipe.pixels is None:
        raise UserError(f"{store.path} has imported features: there is no encoder to fine-tune")
    missing = len(rows) if not store.has_crops else int((~store.present("crops")[rows]).sum())
    if missing:
        size = missing * store.num_frames * BYTES_PER_CROP / 1e6
        raise UserError(
            f"{store.path} has no face crops of {missing} clips, which fine-tuning needs; add them with: "
            f"{crops_command(store)} (it keeps the embeddings and checks them; about {size:.0f} MB). Crops "
            "are pictures of people: keep the store in a protected place, and delete it with python -m "
            "features delete"
        )


def crops_command(store: FeatureStore) -> str:
    """The command that adds crops to a store; values that the store does not have are placeholders in
    capitals."""
    recipe: Recipe = store.recipe
    assert recipe.pixels is not None
    encoder, known = recipe.encoder, IMAGENET_WEIGHTS[recipe.encoder.name].sha256
    weights = "imagenet" if encoder.weights_sha256.startswith(known) else f"FILE_OF_{encoder.weights}"
    if encoder.weights.startswith("random:"):
        weights = "random"
    detectors = {(SHORT_DETECTOR.sha256,): "short", (SHORT_DETECTOR.sha256, FULL_DETECTOR.sha256): "full"}
    options = {
        "--data": "YOUR_DATA",
        "--out": str(store.path),
        "--encoder": encoder.name,
        "--weights": weights,
        "--detector": detectors.get(recipe.pixels.detectors, "YOUR_DETECTOR"),
        "--fps": f"{recipe.pixels.fps:g}",
        "--window": f"{recipe.pixels.window_s:g}",
        "--geometry": "on" if recipe.geometry is not None else "off",
        "--crops": "jpeg",
    }
    return shlex.join(["python", "-m", "extract", *(word for pair in options.items() for word in pair)])


def settings_hash(setup: FinetuneSetup, args: FinetuneArgs) -> str:
    """Hash, sixteen hex digits, of all settings of a fine-tuning job except its initial weights."""
    settings = dataclasses.asdict(setup.config) | {
        "first_block": setup.first_block,
        "seed": args.seed,
        "augment": args.augment,
        "activation_cache": args.activation_cache,
        "clips": [clips.clip_ids.tolist() for clips in (setup.train, setup.val)],
        "labels": [clips.labels.tolist() for clips in (setup.train, setup.val)],
        "labelling": dataclasses.asdict(setup.card.labelling),
        "members": [dataclasses.asdict(member) for member in setup.card.members],
        "loss": dataclasses.asdict(setup.loss),
        "metric": setup.card.metric,
    }
    settings.pop("save_every_s")
    text = repr(sorted(settings.items(), key=lambda item: item[0]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def start_of(setup: FinetuneSetup) -> str:
    """Hashes of the initial weights, the encoder and the store of a fine-tuning job."""
    parts = sha256_of(setup.run / WEIGHTS), fingerprint(setup.card.recipe.encoder), setup.store.fingerprint()
    return " ".join(parts)


def member_to_tune(card: Card) -> int:
    """Index of the first recurrent member that reads embeddings: the encoder is tuned under its head."""
    return next(index for index, member in enumerate(card.members) if member.family == "embeddings recurrent")


def _open_caches(setup: FinetuneSetup, args: FinetuneArgs, crop_px: int) -> list[ActivationCache]:
    """The caches of the training and the validation clips, filled or not."""
    shape = frame_shape(setup.model.encoder, setup.first_block, crop_px)
    train_copies = setup.config.augmented_copies if args.augment else 1
    found = []
    for subset, clips, copies in (("train", setup.train, train_copies), ("val", setup.val, 1)):
        made_from = {
            "encoder": setup.card.recipe.encoder.weights_sha256,
            "first_block": setup.first_block,
            "store": setup.store.fingerprint(),
            "clips": ",".join(map(str, clips.rows.tolist())),
            # Original crops do not depend on the seed.
            "seed": args.seed if copies > 1 else None,
        }
        folder = setup.folder / f"activations_{subset}"
        found.append(open_activation_cache(folder, clips, shape, made_from, copies))
    return found


def activation_datasets(
    setup: FinetuneSetup, args: FinetuneArgs, distributed: DistributedContext
) -> tuple[Any, Any]:
    """Training and validation clips as cached activations; missing ones are computed now."""
    assert setup.card.recipe.pixels is not None
    crop_px, first_block = setup.card.recipe.pixels.crop_px, setup.first_block
    if distributed.is_main:
        caches = _open_caches(setup, args, crop_px)
        size_mb = sum(cache.num_bytes for cache in caches) / 1e6
        echo(
            f"caching the output of blocks 0–{first_block - 1}: {size_mb:.0f} MB in {setup.folder}, deleted "
            "at the end"
        )
        require_room(setup.folder, caches)
        if args.augment and setup.config.augmented_copies == 1:
            echo(
                "crops are not augmented, because only the original activations are cached "
                "(--augmented-copies 2 or more, or --activation-cache off, augments them)"
            )
    distributed.barrier()
    run = prefix_runner(setup.model.encoder, first_block, crop_px, distributed.device)
    sources = []
    subsets = (("train", setup.train), ("val", setup.val))
    for (subset, clips), cache in zip(subsets, _open_caches(setup, args, crop_px), strict=True):
        rows = np.arange(len(clips))[distributed.rank :: distributed.size]
        with progress() as bar:
            task = bar.add_task(f"activations, {subset}", total=len(rows), visible=distributed.is_main)
            for _ in cache.fill(run, rows, Augmentation(), args.seed):
                bar.advance(task)
        distributed.barrier()
        sources.append(cache.source())
    return sources[0], sources[1]
