"""Writing of run directories: `write_run` for train and tune, and changes of a run's card.

Several commands may change one card at a time, so each reads, changes and writes it under a lock. Commands
that replace the whole run do so one after the other.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from features.cli import UserError, echo, log_warning, progress
from features.datasets import labelled_rows
from features.labels import Labelling, Task
from features.splits import Split, split_hash, subset_by_clip
from features.store.store import FAILED
from features.store.table import ClipTable, groups_of
from seqmodel.config import HeadConfig, MemberConfig
from seqmodel.encoders.backbone import encoder_of
from seqmodel.encoders.model_files import face_model
from seqmodel.heads.ensemble import Ensemble
from seqmodel.metrics.calibration import Calibration, fit_calibration, probabilities
from seqmodel.metrics.classification import class_frequencies
from seqmodel.runs.card import Card, git_commit, load_card, save_card, versions
from seqmodel.runs.files import (
    CALIBRATION_CLIPS,
    CARD_LOCK,
    LOG,
    RUN_LOCK,
    WEIGHTS,
    append_log,
    keep_model_file,
    save_split,
    save_weights,
    write_csv,
)
from seqmodel.runs.settings import save_settings
from seqmodel.runs.training_stats import FILE as TRAINING_STATS
from seqmodel.runs.training_stats import write_training_stats
from seqmodel.training.cross_fit import CrossFit, Objective, average_logits, fold_score
from seqmodel.training.loop import Epoch, resolve_metric
from seqmodel.training.task import LearningClips, LearningTask, labels_of


def card_lock(run: Path) -> FileLock:
    """A lock (context manager) of what several commands may change at a time: the card, metrics.json and
    predictions.csv."""
    return FileLock(run / CARD_LOCK)


@contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """While the block replaces the weights of a run, or saves its folds, other commands that want to do so
    wait."""
    lock = FileLock(run / RUN_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        echo(f"waiting for another command that writes {run}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def update_card(run: Path, change: Callable[[Card], Card]) -> Card:
    """Replace the run's card by `change` of the card as it is now, under the lock; returns the new card.

    A card that was read earlier may be old: `change` sets only what its command has found. Raises UserError
    if the run has no readable card.
    """
    with card_lock(run):
        card = change(load_card(run))
        save_card(run, card)
    return card


def complete_head(config: HeadConfig, task: Task) -> HeadConfig:
    """The config with the fields that the task sets: ordinal heads have one score with several thresholds."""
    return dataclasses.replace(config, shared_thresholds=task == "ordinal")


@dataclass(frozen=True)
class TrainedModel:
    """The members of a run, fitted on the same folds."""

    members: tuple[CrossFit, ...]
    clips: LearningClips
    objective: Objective

    @property
    def ensemble(self) -> Ensemble:
        """What the run ships."""
        return Ensemble([member.heads for member in self.members], self.objective.task)

    @property
    def logits(self) -> np.ndarray:
        """(N, O) out-of-fold logits of the ensemble; NaN for clips without any."""
        return average_logits([member.logits for member in self.members], self.objective.task)

    def scores(self, labels: np.ndarray) -> tuple[float, list[float]]:
        """Out-of-fold score of the ensemble, and of each member. labels: (N,)."""
        task, metric = self.objective.task, resolve_metric(self.objective.metric, self.objective.task)
        found = [self.logits, *(member.logits for member in self.members)]
        scores = [fold_score(probabilities(z, task), labels, self.clips.folds, metric) for z in found]
        return scores[0], scores[1:]


def write_run(
    run: Path,
    learning_task: LearningTask,
    model: TrainedModel,
    *,
    seed: int,
    stage: Mapping[str, Any],
    warnings: Sequence[str] = (),
    settings: Sequence[MemberConfig] = (),
) -> Card:
    """Write a self-contained run directory for a trained model.

    Calibration is fitted on the out-of-fold logits. All results of an earlier run in this folder are deleted,
    except the times of its evaluations on test. settings: what the members were chosen from.
    """
    run.mkdir(parents=True, exist_ok=True)
    # If the process ends after this, the card has no weights and is rejected; it never has wrong weights.
    (run / WEIGHTS).unlink(missing_ok=True)
    drop_results(run)
    shutil.rmtree(run / "finetune", ignore_errors=True)
    all_warnings = [*learning_task.split.warnings, *warnings]

    def warn(text: str) -> None:
        log_warning(text)
        all_warnings.append(text)

    ensemble = model.ensemble
    encoder_state = _encoder_state(learning_task, ensemble, warn)
    _keep_model_files(run, learning_task, ensemble, warn)
    (run / LOG).unlink(missing_ok=True)
    log_members(run, model, "head")
    _save_subsets(run, learning_task, model.clips)
    save_settings(run, settings)
    value, member_scores = model.scores(labels_of(learning_task, model.clips.rows))
    card = dataclasses.replace(
        _card(learning_task, model, seed),
        calibration=_calibration(learning_task, model),
        member_scores=tuple(member_scores),
        stages=({"stage": "head", "val_score": value, "kept": True} | dict(stage),),
        warnings=tuple(dict.fromkeys(all_warnings)),
    )
    with card_lock(run):
        card = dataclasses.replace(card, test_evaluations=_test_evaluations(run))
        save_card(run, card)
    save_weights(run, ensemble.state_dict(), encoder_state)
    _measure_training_stats(run, learning_task.store.path)
    return card


def _card(learning_task: LearningTask, model: TrainedModel, seed: int) -> Card:
    """The card of a run: inputs, labels, split, training and versions."""
    store, split, ensemble = learning_task.store, learning_task.split, model.ensemble
    labels = labels_of(learning_task, model.clips.rows)
    return Card(
        recipe=store.recipe,
        labelling=learning_task.labelling,
        members=tuple(member.config for member in model.members),
        num_folds=ensemble.num_folds,
        dims=ensemble.dims,
        store=str(store.path),
        store_fingerprint=store.fingerprint(),
        split_description=split.description,
        split_hash=split_hash(split, learning_task.table.clip_id),
        seed=seed,
        metric=resolve_metric(model.objective.metric, model.objective.task),
        numerics=store.numerics,
        data_statement=store.data_statement,
        design=learning_task.design,
        training_class_frequencies=tuple(class_frequencies(labels, learning_task.num_classes).tolist()),
        versions=versions(),
        git_commit=git_commit(),
    )


def _calibration(learning_task: LearningTask, model: TrainedModel) -> Calibration:
    """Calibration fitted on the clips with an out-of-fold prediction."""
    logits, labelling = model.logits, learning_task.labelling
    known = ~np.isnan(logits[:, 0])
    labels = labels_of(learning_task, model.clips.rows)[known]
    groups = model.clips.groups[known]
    return fit_calibration(logits[known], labels, labelling.task, label_names=labelling.names, groups=groups)


def _save_subsets(run: Path, learning_task: LearningTask, clips: LearningClips) -> None:
    table, split = learning_task.table, learning_task.split
    subset_of = subset_by_clip(split, table.clip_id) | subsets_of_failed(
        split, table, learning_task.labelling
    )
    subject_of = dict(zip(table.clip_id.tolist(), table.subject.tolist(), strict=True))
    held_out = clips.folds >= 0
    folds = dict(
        zip(table.clip_id[clips.rows[held_out]].tolist(), clips.folds[held_out].tolist(), strict=True)
    )
    save_split(
        run, list(subset_of), [subject_of[clip] for clip in subset_of], list(subset_of.values()), folds
    )


def log_members(run: Path, model: TrainedModel, stage: str) -> None:
    """Add the epochs of all heads to log.jsonl."""
    for member in model.members:
        name = f"{stage}, {member.config.stream} {member.config.head.kind}"
        for fold, history in enumerate(member.histories):
            for epoch in history:
                append_log(run, log_entry(epoch, name) | {"fold": fold})


def put_calibration(
    run: Path,
    card: Card,
    calibration: Calibration,
    stage: Mapping[str, Any],
    *,
    store: Path | str | None = None,
    fitted_on: Sequence[Sequence[str]] = (),
) -> list[str]:
    """Save a new calibration with its stage in the card and delete the results of the old one; returns the
    formats of the deleted exports.

    card: the card that the calibration was computed from. store: the training statistics are computed again
    on it, or on the store that the card names. fitted_on: rows of `calibrated_on.csv`, with its header.
    Raises UserError if the calibration or the weights of the run have changed since `card` was read.
    """
    exports = sorted(folder.name for folder in (run / "export").glob("*") if folder.is_dir())

    def change(now: Card) -> Card:
        if (now.calibration, now.stages) != (card.calibration, card.stages):
            raise UserError(
                f"{run} was changed by another command: its calibration stays; run this command again"
            )
        # Before the card: if the process stops in between, no evaluation is wrong.
        if fitted_on:
            write_csv(run / CALIBRATION_CLIPS, fitted_on)
        drop_calibrated_results(run)
        return dataclasses.replace(
            now, calibration=calibration, stages=(*now.stages, dict(stage)), metrics={}
        )

    update_card(run, change)
    echo(f"calibration of {run} changed: old metrics, reports and exports deleted")
    _measure_training_stats(run, store)
    return exports


def _measure_training_stats(run: Path, store: Path | str | None = None) -> None:
    try:
        with progress("clips") as bar:
            write_training_stats(run, store, partial(bar.track, description="training statistics"))
    except (UserError, OSError) as error:
        log_warning(f"no training statistics, so live report --reference-run cannot use this run: {error}")


def drop_results(run: Path) -> None:
    """Delete all results of weights that will be replaced: metrics, reports, plots, folds and exports."""
    drop_calibrated_results(run)
    for folder in run.glob("folds-*"):
        shutil.rmtree(folder, ignore_errors=True)


def drop_calibrated_results(run: Path) -> None:
    """Delete all results that depend on the run's calibration; results of folds have calibrations of their
    own."""
    for name in (
        "compare.json",
        "metrics.json",
        "predictions.csv",
        "literature.csv",
        "report.html",
        "MODEL_CARD.md",
        TRAINING_STATS,
    ):
        (run / name).unlink(missing_ok=True)
    for name in ("export", "cross", "train", "val", "plots"):
        shutil.rmtree(run / name, ignore_errors=True)


def _test_evaluations(run: Path) -> tuple[str, ...]:
    """Times of the evaluations on test of an earlier run in this folder."""
    try:
        return load_card(run).test_evaluations
    except UserError:
        return ()


def subsets_of_failed(split: Split, table: ClipTable, labelling: Labelling) -> dict[str, str]:
    """Subset of each labelled clip whose extraction failed, by clip_id: that of its subject (or video), else
    the one in the manifest. So failed clips count in the evaluation."""
    rows, _ = labelled_rows(table, labelling, with_failed=True)
    rows = rows[table.state[rows] == FAILED]
    groups = {
        group: subset
        for subset, clips in split.subsets().items()
        for group in groups_of(table, clips).tolist()
    }
    found = {
        str(table.clip_id[row]): groups.get(group, str(table.split[row]))
        for row, group in zip(rows.tolist(), groups_of(table, rows).tolist(), strict=True)
    }
    return {clip: subset for clip, subset in found.items() if subset}


def log_entry(epoch: Epoch, stage: str) -> dict[str, Any]:
    """One line of log.jsonl."""
    return {
        "stage": stage,
        "epoch": epoch.index,
        "train_loss": epoch.train_loss,
        "val_loss": epoch.val_loss,
        "val_score": epoch.val_score,
        "lr": epoch.lr,
        "seconds": round(epoch.seconds, 3),
    }


def resolve_device(device: str) -> str:
    """The device: `auto` is cuda if available, else cpu. Raises UserError if this machine has no such
    device."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{index}" for index in range(cards))]
    available += ["mps"] if torch.backends.mps.is_available() else []
    if device == "auto":
        return "cuda" if cards else "cpu"
    if device not in available:
        raise UserError(f"--device {device}: this machine has {', '.join(available)}")
    return device


def count_parameters(model: torch.nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores rounded to four decimals."""
    return {name: round(float(value), 4) for name, value in scores.items()}


def _encoder_state(
    learning_task: LearningTask, model: Ensemble, warn: Callable[[str], None]
) -> dict[str, torch.Tensor] | None:
    """Weights of the recipe's encoder, so that the run works without its store; None if the run needs
    none."""
    if learning_task.store.recipe.pixels is None or "embeddings" not in model.dims:
        return None
    try:
        return dict(encoder_of(learning_task.store.recipe.encoder).state_dict())
    except UserError as error:
        warn(f"the run is written without encoder weights: {error}")
        return None


def _keep_model_files(
    run: Path, learning_task: LearningTask, model: Ensemble, warn: Callable[[str], None]
) -> None:
    """Copy the detector (and landmarker) files that the recipe names into the run."""
    recipe = learning_task.store.recipe
    if recipe.pixels is None:
        return
    wanted = list(recipe.pixels.detectors)
    if "geometry" in model.dims and recipe.geometry is not None:
        wanted.append(recipe.geometry.model_sha256)
    for sha256 in wanted:
        try:
            source = face_model(sha256)
            keep_model_file(run, source, source.name)
        except UserError as error:
            warn(f"the run cannot be used with live: {error}")
