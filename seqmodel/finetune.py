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
from pathlib import Path
from typing import Any

import numpy as np

from features.door import console, progress, say
from features.recipe import EncoderId
from seqmodel.augment import Augmentation
from seqmodel.calibration import fit_calibration
from seqmodel.checkpoint import load_checkpoint, save_checkpoint
from seqmodel.config import FinetuneArgs
from seqmodel.encoder import state_sha256
from seqmodel.end_to_end import EndToEnd
from seqmodel.position import Goal, Outcome
from seqmodel.re_extract import re_extract
from seqmodel.reference import FILE as REFERENCE
from seqmodel.run import (
    Card,
    append_log,
    git_commit,
    save_card,
    save_weights,
    versions,
)
from seqmodel.stage_two import Stage, cut_sources, open_stage, settings_of
from seqmodel.team import Team, join_team, leave_team
from seqmodel.train import resolve_device


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
    job = start_job(stage, args, team)
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


def start_job(stage: Stage, args: FinetuneArgs, team: Team) -> EndToEnd:
    """The training job, at its beginning or where it was stopped."""
    augmentation = Augmentation() if args.augment else None
    train, val = stage.train, stage.val
    if args.cut_cache == "on" and stage.first_block > 0:
        train, val = cut_sources(stage, args, team)
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
    if found is not None and found[1]["settings"] == settings_of(stage, args):
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
    settings = settings_of(stage, args)

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
    # These speak of the network that was here before.
    for stale in ("metrics.json", "predictions.csv", REFERENCE):
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
