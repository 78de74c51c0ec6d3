"""python -m seqmodel finetune: stage 2, train encoder and head of a run together, end to end, on stored
crops.

The best weights on validation are kept, of all epochs and of the run before fine-tuning, so the validation
score never drops. The card records all epochs. A stopped job resumes from its last checkpoint, and a finished
one is not repeated. N clips, T frames.
"""

import dataclasses
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from features.cli import UserError, console, echo, log_warning, progress
from features.recipe import EncoderId
from seqmodel.config import FinetuneArgs
from seqmodel.encoders.backbone import state_sha256
from seqmodel.finetuning.augmentation import Augmentation
from seqmodel.finetuning.distributed import DistributedContext, join_distributed, leave_distributed
from seqmodel.finetuning.reextract import re_extract
from seqmodel.finetuning.refit import MIN_SHARE, compare, refit
from seqmodel.finetuning.setup import (
    FinetuneSetup,
    activation_datasets,
    open_setup,
    settings_hash,
    start_of,
)
from seqmodel.finetuning.state import EpochResult, Objective
from seqmodel.finetuning.trainer import EndToEnd, keep_freed_memory
from seqmodel.metrics.calibration import refit_calibration
from seqmodel.runs.card import (
    Card,
    calibration_stage,
    card_from_json,
    card_to_json,
    git_commit,
    load_card,
    versions,
)
from seqmodel.runs.files import append_log, keep_first_fold, load_weights, read_json, save_weights, write_json
from seqmodel.runs.training_stats import FILE as TRAINING_STATS
from seqmodel.runs.training_stats import write_training_stats
from seqmodel.runs.writer import TrainedModel, drop_results, log_members, resolve_device, update_card
from seqmodel.training.checkpoint import load_checkpoint, save_checkpoint
from seqmodel.training.loop import evaluate_logits
from seqmodel.training.losses import loss_for

PENDING = Path("finetune", "card.json")
"""The card of a run whose weights are being replaced."""
LOST_PEER = ("connection closed", "connection reset", "gloo", "nccl", "peer")
"""Words in errors of torch.distributed if another process has ended."""


def finetune(args: FinetuneArgs) -> tuple[dict[str, Any], int]:
    """Handler of the command: trains, updates the run, returns (summary, exit code)."""
    started_s = time.perf_counter()
    keep_freed_memory()
    distributed = join_distributed(resolve_device(args.device))
    with ExitStack() as stack:
        try:
            if distributed.is_main:
                stack.enter_context(_only_command(args.run))
            _train(args, distributed)
            distributed.barrier()
        except RuntimeError as error:
            if distributed.size == 1 or not any(word in str(error).lower() for word in LOST_PEER):
                raise
            raise UserError(
                f"one of the {distributed.size} processes of this job ended "
                f"({str(error).splitlines()[0][:120]}); the last checkpoint is in {args.run / 'finetune'}: "
                "run the same command again to resume"
            ) from error
        finally:
            leave_distributed()
        if not distributed.is_main:
            return {}, 0
        # The other processes have ended: what follows takes longer than their timeout.
        summary, code = _finish(args)
    return summary | {"seconds": round(time.perf_counter() - started_s, 1)}, code


@contextmanager
def _only_command(run: Path) -> Iterator[None]:
    """Raises UserError if another command fine-tunes this run: it would continue from the same checkpoint and
    replace the same weights. The lock is free again when its process ends, however it ends."""
    load_card(run)  # raises UserError before a file is made in a folder that is not a run
    try:
        with FileLock(run / ".finetune.lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"another command fine-tunes {run}: wait until it ends") from error


def _train(args: FinetuneArgs, distributed: DistributedContext) -> None:
    """Fine-tune and update the run, unless its card says that the same fine-tuning is done."""
    if distributed.is_main:
        _finish_replacing(args.run)
    distributed.barrier()
    setup = open_setup(args)
    if (done := _last_entry(setup.card)) is not None and done.get("settings") == settings_hash(setup, args):
        if distributed.is_main:
            echo(f"nothing to do: {args.run} is already fine-tuned with these settings (kept: {_kept(done)})")
        return
    if args.re_extract is not None and args.re_extract.exists():
        raise UserError(f"--re-extract {args.re_extract} already exists: give a new path")
    if distributed.is_main and setup.started_from != "stage 1":
        echo(f"{args.run} was already fine-tuned with other settings: continuing from those weights")
    job = start_job(setup, args, distributed)
    result = _run_job(setup, job, args)
    if distributed.is_main:
        _write(setup, job, result, args)
        _print_history(job.state.history, result, setup)


def _finish(args: FinetuneArgs) -> tuple[dict[str, Any], int]:
    """Re-extract and write training statistics after the update of the run; if the process stops here, the
    same command resumes."""
    card = load_card(args.run)
    summary, code, store = _summary(args.run, card), 0, args.store or Path(card.store)
    if args.re_extract is not None:
        summary["re_extract"], code = re_extract(args.run, store, args.re_extract)
        store = args.re_extract  # has the new embeddings: no crop must be embedded again
    if not (args.run / TRAINING_STATS).is_file():
        echo("writing training statistics for live")
        try:
            write_training_stats(args.run, store)
        except UserError as error:
            log_warning(f"no training statistics; live will predict only after a full window: {error}")
    shutil.rmtree(args.run / "finetune", ignore_errors=True)
    return summary, code


def _last_entry(card: Card) -> Mapping[str, Any] | None:
    """The card's entry of the last fine-tuning, if there is one."""
    return next((s for s in reversed(card.stages) if s.get("stage") == "finetune"), None)


def _kept(entry: Mapping[str, Any]) -> str:
    """Which stage's weights a run has after this fine-tuning."""
    return "stage 2" if entry["kept"] else str(entry["started_from"])


def _summary(run: Path, card: Card) -> dict[str, Any]:
    """The summary that `--json` prints, from the card alone, so that a repeated command prints the same."""
    entry = _last_entry(card)
    assert entry is not None
    epochs = entry["epochs"]
    return {
        "run": str(run),
        "metric": card.metric,
        "stage_1": entry["stage_1"],
        "stage_2": entry["stage_2"],
        "share_better": entry["share_better"],
        "kept": _kept(entry),
        "epochs": len(epochs),
        "unfreeze_from": entry["unfreeze_from"],
        "encoder": dataclasses.asdict(card.recipe.encoder),
        "frames_per_s": epochs[-1]["frames_per_s"] if epochs else None,
    }


def start_job(setup: FinetuneSetup, args: FinetuneArgs, distributed: DistributedContext) -> EndToEnd:
    """The training job, new or resumed from its checkpoint."""
    augmentation = Augmentation() if args.augment else None
    train, val = setup.train, setup.val
    if args.activation_cache == "on" and setup.first_block > 0:
        train, val = activation_datasets(setup, args, distributed)
    objective = Objective(
        setup.card.labelling.task, len(setup.card.labelling.names), setup.card.metric, setup.loss
    )
    job = EndToEnd(
        setup.model,
        train,
        val,
        objective,
        setup.config,
        first_block=setup.first_block,
        seed=args.seed,
        distributed=distributed,
        augmentation=augmentation,
    )
    found = load_checkpoint(setup.folder / "checkpoint.safetensors")
    wanted = {"settings_hash": settings_hash(setup, args), "start": start_of(setup)}
    if found is not None and found[1]["settings"] == wanted:
        job.load_state_dict(found[0], found[1]["position"])
        if distributed.is_main:
            echo(f"resuming at epoch {job.state.epoch}, step {job.state.step} of {job.num_steps}")
    else:
        if found is not None and distributed.is_main:
            echo("the checkpoint belongs to other settings: starting from the beginning")
        job.evaluate_start()
    return job


def _run_job(setup: FinetuneSetup, job: EndToEnd, args: FinetuneArgs) -> EpochResult:
    """Train until the job is finished; returns the result of the kept epoch, whose weights are in the model.

    After Ctrl-C or SIGTERM, it finishes the current step, saves a checkpoint and raises KeyboardInterrupt.
    """
    saved = time.monotonic()
    settings = {"settings_hash": settings_hash(setup, args), "start": start_of(setup)}

    with progress("steps") as bar, stop_requested() as stop_here:
        left = (job.num_epochs - job.state.epoch) * job.num_steps - job.state.step
        row = bar.add_task("fine-tuning", total=left, visible=job.distributed.is_main)
        while not job.finished:
            result = job.step()
            bar.advance(row)
            if result is not None:
                bar.update(
                    row, description=f"fine-tuning, selection score (optimistic) {result.val_score:.4f}"
                )
            stops = _any_process_stops(stop_here(), job.distributed)
            if stops or result is not None or time.monotonic() - saved >= setup.config.save_every_s:
                if job.distributed.is_main:
                    note = {"settings": settings, "position": job.note()}
                    save_checkpoint(setup.folder / "checkpoint.safetensors", job.tensors(), note)
                saved = time.monotonic()
            if stops:
                raise KeyboardInterrupt
    return job.restore_best()


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """A function that returns whether Ctrl-C or SIGTERM was received. A second signal ends the job at
    once."""
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which handles signals
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _any_process_stops(stop: bool, distributed: DistributedContext) -> bool:
    """Whether any process received a stop signal: all must stop at the same step."""
    return (
        stop
        if distributed.size == 1
        else bool(distributed.all_reduce(torch.tensor(float(stop), device=distributed.device)) > 0)
    )


def _write(setup: FinetuneSetup, job: EndToEnd, result: EpochResult, args: FinetuneArgs) -> None:
    """Fit the members on the tuned encoder, and save them with it if they are better than the run's own."""
    model, found = None, None
    if result.phase == "both" and setup.first_block < len(setup.model.encoder.blocks):
        echo("fitting the members on the tuned encoder")
        model = refit(setup, setup.model, (job.train, job.val), job.distributed.device)
        found = compare(setup, model)
    is_kept = found is not None and found.is_better
    labels, task = np.asarray(setup.val.labels), setup.card.labelling.task
    plain = loss_for(task, len(setup.card.labelling.names))
    scores = [
        evaluate_logits(logits, labels, plain, task, job.objective.metric)[1]
        for logits in ((found.before, found.after) if found else ())
    ]
    entry = {
        "stage": "finetune",
        "val_score": scores[1] if is_kept else None,
        "kept": is_kept,
        "started_from": setup.started_from,
        "stage_1": scores[0] if scores else None,
        "stage_2": scores[1] if scores else None,
        "share_better": found.share if found else None,
        "kept_epoch": result.index,
        "unfreeze_from": setup.first_block,
        "epochs": [_history_json(epoch) for epoch in job.state.history[1:]],
        "settings": settings_hash(setup, args),
        "command": args.command,
    }
    if model is None or not is_kept:
        _log(setup.run, job.state.history)
        update_card(setup.run, lambda now: dataclasses.replace(now, stages=(*now.stages, entry)))
        return
    if (moved := calibration_stage(load_card(setup.run))) is not None:
        log_warning(
            f"the calibration for {moved['store']} is deleted with the old weights: run calibrate again"
        )
    write_json(setup.run / PENDING, card_to_json(_card_of(load_card(setup.run), setup, model, entry)))
    drop_results(setup.run)
    _log(setup.run, job.state.history)
    log_members(setup.run, model, "finetune, refit")
    save_weights(setup.run, model.ensemble.state_dict(), setup.model.encoder.state_dict())
    _finish_replacing(setup.run)


def _finish_replacing(run: Path) -> None:
    """Bring split.csv and the card to the weights that a fine-tuning has just written, or that one wrote
    which ended before it could; does nothing if there are none."""
    if not (run / PENDING).is_file():
        return
    new, encoder = card_from_json(read_json(run / PENDING)), load_weights(run).get("encoder", {})
    if state_sha256(encoder) == new.recipe.encoder.weights_sha256:
        keep_first_fold(run)
        fields = ("recipe", "member_scores", "calibration", "stages", "metrics", "versions", "git_commit")
        changes = {name: getattr(new, name) for name in fields}
        update_card(run, lambda now: dataclasses.replace(now, **changes))
    (run / PENDING).unlink()


def _card_of(card: Card, setup: FinetuneSetup, model: TrainedModel, entry: dict[str, Any]) -> Card:
    """The run's card with the identity of the new encoder, a new calibration and the entry as last stage."""
    old, logits = setup.card.recipe.encoder, model.logits
    sha256 = state_sha256(setup.model.encoder.state_dict())
    encoder = EncoderId(old.name, f"finetuned:{setup.run.name}", sha256, old.dim)
    known = ~np.isnan(logits[:, 0]) & (model.clips.folds == 0)
    labels = np.concatenate([setup.train.labels, setup.val.labels])
    return dataclasses.replace(
        card,
        recipe=dataclasses.replace(card.recipe, encoder=encoder),
        member_scores=tuple(model.scores(labels)[1]),
        calibration=refit_calibration(
            card.calibration,
            logits[known],
            labels[known],
            card.labelling.task,
            threshold_metric=card.calibration.threshold_metric,
            label_names=card.labelling.names,
            groups=model.clips.groups[known],
        ),
        stages=(*(dict(stage) | {"kept": False} for stage in card.stages), entry),
        metrics={},
        versions=versions(),
        git_commit=git_commit(),
    )


def _log(run: Path, history: list[EpochResult]) -> None:
    """Add the epochs to log.jsonl."""
    for epoch in history[1:]:
        append_log(run, {"stage": f"finetune, {epoch.phase}"} | _history_json(epoch))


def _history_json(result: EpochResult) -> dict[str, Any]:
    return {
        "epoch": result.index,
        "phase": result.phase,
        "train_loss": result.train_loss,
        "val_loss": result.val_loss,
        "val_score": result.val_score,
        "lr": result.lr,
        "seconds": round(result.seconds, 2),
        "frames_per_s": round(result.frames_per_s, 1),
    }


def _print_history(history: list[EpochResult], kept: EpochResult, setup: FinetuneSetup) -> None:
    from rich.table import Table

    table = Table(
        "epoch",
        "trains",
        "train loss",
        "val loss",
        f"selection score (optimistic), val {setup.card.metric}",
        "frames/s",
        "",
    )
    for epoch in history:
        what = {"stage 1": "—", "head": "head", "both": "encoder and head"}[epoch.phase]
        speed, train = (
            (f"{epoch.frames_per_s:.0f}", f"{epoch.train_loss:.4f}") if epoch.index >= 0 else ("", "")
        )
        name = str(epoch.index) if epoch.index >= 0 else setup.started_from
        table.add_row(
            name,
            what,
            train,
            f"{epoch.val_loss:.4f}",
            f"{epoch.val_score:.4f}",
            speed,
            "kept" if epoch is kept else "",
        )
    console().print(table)
    entry = _last_entry(load_card(setup.run))
    assert entry is not None
    if entry["share_better"] is None:
        echo("no epoch was better on validation than the run before fine-tuning: its weights are unchanged")
        return
    echo(
        f"members on the tuned encoder, validation {setup.card.metric}: {entry['stage_1']:.4f} before, "
        f"{entry['stage_2']:.4f} after; lower log loss in {entry['share_better']:.0%} of bootstrap samples "
        f"of the people, {'kept' if entry['kept'] else f'not kept (at least {MIN_SHARE:.0%} needed)'}"
    )
