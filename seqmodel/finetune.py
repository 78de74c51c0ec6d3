"""python -m seqmodel finetune: stage two. Encoder and best head learn together, end to end, from stored
crops.

What comes out is never worse on validation than what came in: the best of the run as it was and of every
epoch is kept, and the card tells the story. A job that was stopped goes on from its last checkpoint. Knows
nothing about how a step is made (end_to_end.py) or what the test people look like. N clips, T frames.
"""

import dataclasses
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.datasets import CropClips, load_samples
from features.door import console, progress, say, warn
from features.recipe import EncoderId, Part, fingerprint, require_equal
from features.store import FeatureStore
from seqmodel.augment import Augmentation
from seqmodel.calibration import fit_calibration
from seqmodel.checkpoint import load_checkpoint, save_checkpoint
from seqmodel.cnn_lstm import CnnLstm
from seqmodel.config import FinetuneArgs, FinetuneConfig
from seqmodel.cut_cache import cache_bytes, frame_shape, open_cut_cache, prefix_runner
from seqmodel.encoder import encoder_of, state_sha256
from seqmodel.end_to_end import EndToEnd, Goal, Outcome
from seqmodel.heads import LstmHead
from seqmodel.predictions import inputs_of
from seqmodel.re_extract import re_extract
from seqmodel.run import (
    Card,
    append_log,
    git_commit,
    load_card,
    load_split,
    load_weights,
    save_card,
    save_weights,
    versions,
)
from seqmodel.team import Team, join_team, leave_team
from seqmodel.train import resolve_device

BYTES_PER_CROP = 17_000
"""A JPEG crop of 224 pixels at quality 95, as measured; for telling what `--crops jpeg` will take."""
DEFAULT_CUT = {"mobilenet_v3_large": 15, "efficientnet_lite0": 13}
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


def finetune(args: FinetuneArgs) -> tuple[dict[str, Any], int]:
    """The command's body: trains, updates the run, returns (summary, exit code)."""
    team = join_team(resolve_device(args.device))
    try:
        return _finetune(args, team)
    except RuntimeError as error:
        if team.size == 1 or not _is_lost_peer(error):
            raise
        raise ValueError(
            f"a process of this job of {team.size} went away ({str(error).splitlines()[0][:120]}); the last "
            f"checkpoint is kept in {args.run / 'finetune'}: start the same command again to go on"
        ) from error
    finally:
        leave_team()


def _finetune(args: FinetuneArgs, team: Team) -> tuple[dict[str, Any], int]:
    started = time.perf_counter()
    stage = open_stage(args)
    job = _start_job(stage, args, team)
    outcome = _run_job(stage, job, args)
    summary: dict[str, Any] = {}
    if team.writes:
        kept = "stage 1" if outcome.phase == "stage 1" else "stage 2"
        first = job.at.history[0]
        card = _write(stage, job, outcome)
        summary = {
            "run": str(args.run),
            "metric": card.metric,
            "stage_1": first.val_score,
            "stage_2": max((o.val_score for o in job.at.history[1:]), default=math.nan),
            "kept": kept,
            "epochs": len(job.at.history) - 1,
            "unfreeze_from": stage.first_block,
            "encoder": dataclasses.asdict(card.recipe.encoder),
            "frames_per_s": job.at.history[-1].frames_per_s,
            "seconds": round(time.perf_counter() - started, 1),
        }
        _say_story(job.at.history, outcome, card)
        shutil.rmtree(stage.folder, ignore_errors=True)
        if args.re_extract is not None and card.recipe.encoder == stage.card.recipe.encoder:
            say(f"the encoder is the one that was: {args.re_extract} is not needed")
        elif args.re_extract is not None:
            summary["re_extract"] = re_extract(args.run, Path(stage.store.path), args.re_extract)
    team.wait()
    return summary, 0


def open_stage(args: FinetuneArgs) -> Stage:
    """Read a run and its store's crops.

    Raises ValueError when the run reads no embeddings, its store is gone, has another recipe, or no crops.
    """
    card = load_card(args.run)
    if card.recipe.pixels is None or "embeddings" not in card.dims:
        raise ValueError(f"{args.run} reads {', '.join(card.dims)} only: it has no encoder to train")
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


def _start_job(stage: Stage, args: FinetuneArgs, team: Team) -> EndToEnd:
    """The training job, at its beginning or where it was stopped."""
    augmentation = Augmentation() if args.augment else None
    train, val = stage.train, stage.val
    if args.cut_cache == "on" and stage.first_block > 0:
        train, val = _cut_sources(stage, args, team)
    goal = Goal(
        stage.card.labelling.task, len(stage.card.labelling.names), stage.card.metric, stage.card.train
    )
    job = EndToEnd(
        stage.model,
        train,
        val,
        goal,
        stage.config,
        first_block=stage.first_block,
        seed=args.seed,
        team=team,
        augmentation=augmentation,
    )
    found = load_checkpoint(stage.folder / "checkpoint.safetensors")
    if found is not None and found[1]["settings"] == _settings(stage, args):
        job.go_on(found[0], found[1]["position"])
        if team.writes:
            say(f"going on at epoch {job.at.epoch}, step {job.at.step} of {job.num_steps}")
    else:
        if found is not None and team.writes:
            say("the checkpoint found belongs to other settings: starting anew")
        job.judge_start()
    return job


def _run_job(stage: Stage, job: EndToEnd, args: FinetuneArgs) -> Outcome:
    """Step until the job is finished; returns the outcome of the weights that are kept, now in the model."""
    saved = time.monotonic()
    settings = _settings(stage, args)

    def save() -> None:
        if job.team.writes:
            note = {"settings": settings, "position": job.note()}
            save_checkpoint(stage.folder / "checkpoint.safetensors", job.tensors(), note)

    with progress("steps") as bar:
        left = (job.num_epochs - job.at.epoch) * job.num_steps - job.at.step
        row = bar.add_task("fine-tuning", total=left, visible=job.team.writes)
        while not job.finished:
            outcome = job.step()
            bar.advance(row)
            if outcome is not None:
                bar.update(row, description=f"fine-tuning, validation {outcome.val_score:.4f}")
            if outcome is not None or time.monotonic() - saved >= stage.config.save_every_s:
                save()
                saved = time.monotonic()
    return job.take_best()


def _settings(stage: Stage, args: FinetuneArgs) -> str:
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


def _cut_sources(stage: Stage, args: FinetuneArgs, team: Team) -> tuple[Any, Any]:
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
            "clips": state_of_rows(clips),
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


def state_of_rows(clips: CropClips) -> str:
    """What the rows of a source are, for a note."""
    return ",".join(map(str, clips.rows.tolist()))


def _write(stage: Stage, job: EndToEnd, outcome: Outcome) -> Card:
    """Put the kept weights and the story into the run."""
    card = stage.card
    entry = {
        "stage": "finetune",
        "val_score": outcome.val_score,
        "kept": outcome.phase != "stage 1",
        "stage_1": job.at.history[0].val_score,
        "kept_epoch": outcome.index,
        "unfreeze_from": stage.first_block,
        "epochs": [_story(o) for o in job.at.history[1:]],
    }
    for o in job.at.history[1:]:
        append_log(stage.run, {"stage": f"finetune, {o.phase}"} | _story(o))
    if outcome.phase == "stage 1":
        card = dataclasses.replace(card, stages=(*card.stages, entry))
        save_card(stage.run, card)
        return card
    encoder_id = card.recipe.encoder
    state = stage.model.encoder.state_dict()
    if outcome.phase == "both":
        encoder_id = EncoderId(
            encoder_id.name, f"finetuned:{stage.run.name}", state_sha256(state), encoder_id.dim
        )
    calibration = fit_calibration(
        job.best_logits,
        np.asarray(stage.val.labels),
        card.labelling.task,
        goal=card.calibration.goal,
        label_names=card.labelling.names,
    )
    stages = tuple(dict(s) | {"kept": False} for s in card.stages)
    card = dataclasses.replace(
        card,
        recipe=dataclasses.replace(card.recipe, encoder=encoder_id),
        calibration=calibration,
        stages=(*stages, entry),
        metrics={},
        versions=versions(),
        git_commit=git_commit(),
    )
    save_weights(stage.run, stage.model.head.state_dict(), state)
    save_card(stage.run, card)
    for stale in ("metrics.json", "predictions.csv"):  # they speak of the network that was here before
        (stage.run / stale).unlink(missing_ok=True)
    return card


def _story(outcome: Outcome) -> dict[str, Any]:
    return {
        "epoch": outcome.index,
        "phase": outcome.phase,
        "train_loss": outcome.train_loss,
        "val_loss": outcome.val_loss,
        "val_score": outcome.val_score,
        "lr": outcome.lr,
        "seconds": round(outcome.seconds, 2),
    }


def _say_story(history: list[Outcome], kept: Outcome, card: Card) -> None:
    from rich.table import Table

    table = Table("epoch", "trains", "train loss", "val loss", f"val {card.metric}", "frames/s", "")
    for o in history:
        what = {"stage 1": "—", "warm": "head", "both": "encoder and head"}[o.phase]
        speed, train = (f"{o.frames_per_s:.0f}", f"{o.train_loss:.4f}") if o.index >= 0 else ("", "")
        name = str(o.index) if o.index >= 0 else "stage 1"
        table.add_row(
            name, what, train, f"{o.val_loss:.4f}", f"{o.val_score:.4f}", speed, "kept" if o is kept else ""
        )
    console().print(table)
    if kept.phase == "stage 1":
        say("no epoch was better on validation than the run as it was: it stays as it was")


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error of torch.distributed says that another process ended."""
    text = str(error).lower()
    return any(word in text for word in ("connection closed", "connection reset", "gloo", "nccl", "peer"))
