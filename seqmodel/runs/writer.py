"""How a trained head becomes a run directory; train and tune both end with `write_run`."""

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from features.cli import echo, log_warning
from features.datasets import labelled_rows, load_samples
from features.labels import Labelling, Task
from features.splits import Split, split_hash, subset_by_clip
from features.store.store import FAILED
from features.store.table import ClipTable, groups_of
from seqmodel.config import HeadConfig, TrainConfig
from seqmodel.encoders.backbone import encoder_of
from seqmodel.encoders.model_files import face_model
from seqmodel.heads.recurrent import LstmHead
from seqmodel.metrics.calibration import Calibration, fit_calibration
from seqmodel.metrics.classification import class_frequencies
from seqmodel.runs.card import (
    LOG,
    WEIGHTS,
    Card,
    append_log,
    git_commit,
    keep_model_file,
    load_card,
    save_card,
    save_split,
    save_weights,
    versions,
)
from seqmodel.runs.training_stats import FILE as REFERENCE
from seqmodel.runs.training_stats import write_training_stats
from seqmodel.training.loop import Epoch, Fitted
from seqmodel.training.task import LearningTask, labels_of


def complete_head(config: HeadConfig, task: Task) -> HeadConfig:
    """The config with what the task decides: ordinal heads share one score among their thresholds."""
    return dataclasses.replace(config, shared_thresholds=task == "ordinal")


def write_run(
    run: Path,
    learning_task: LearningTask,
    head: LstmHead,
    fitted: Fitted,
    config: TrainConfig,
    *,
    seed: int,
    metric: str,
    stage: Mapping[str, Any],
    warnings: Sequence[str] = (),
    center: str = "none",
) -> Card:
    """Write a self-contained run directory for a fitted head: the card makes it a run.

    Calibration is chosen on the validation logits of the epoch that was kept, of clips that were measured.
    What the training data looked like, and from what share of a window live may speak, comes last. Of an
    earlier head under the same name nothing stays but the count of its test openings.
    """
    run.mkdir(parents=True, exist_ok=True)
    openings = _test_openings(run)
    # A kill from here on leaves a card without weights, which is refused, never one with another's weights.
    (run / WEIGHTS).unlink(missing_ok=True)
    drop_results(run)
    shutil.rmtree(run / "finetune", ignore_errors=True)
    calibration = _calibration(learning_task, head, fitted)
    found = [*learning_task.split.warnings, *warnings]

    def build_content(text: str) -> None:
        log_warning(text)
        found.append(text)

    encoder_state = _encoder_state(learning_task, head, build_content)
    _keep_model_files(run, learning_task, head, build_content)
    (run / LOG).unlink(missing_ok=True)
    for epoch in fitted.history:
        append_log(run, log_entry(epoch, str(stage.get("stage", "head"))))
    _save_subsets(run, learning_task)
    card = dataclasses.replace(
        _card(learning_task, head, config, seed, metric),
        calibration=calibration,
        center=center,
        stages=({"stage": "head", "val_score": fitted.best.val_score, "kept": True} | dict(stage),),
        test_openings=openings,
        warnings=tuple(dict.fromkeys(found)),
    )
    save_card(run, card)
    save_weights(run, head.state_dict(), encoder_state)
    _measure_training_stats(run, learning_task.store.path)
    return card


def _card(learning_task: LearningTask, head: LstmHead, config: TrainConfig, seed: int, metric: str) -> Card:
    """What a run says of what its head reads, from whom it learned, and how."""
    store, split = learning_task.store, learning_task.split
    return Card(
        recipe=store.recipe,
        labelling=learning_task.labelling,
        head=head.config,
        train=config,
        dims=head.dims,
        store=str(store.path),
        store_fingerprint=store.fingerprint(),
        split_description=split.description,
        split_hash=split_hash(split, learning_task.table.clip_id),
        seed=seed,
        metric=metric,
        numerics=store.numerics,
        training_class_frequencies=tuple(
            class_frequencies(labels_of(learning_task, split.train), learning_task.num_classes).tolist()
        ),
        versions=versions(),
        git_commit=git_commit(),
    )


def _calibration(learning_task: LearningTask, head: LstmHead, fitted: Fitted) -> Calibration:
    """Chosen on validation clips that were measured: about others nothing is ever decided."""
    rows, labelling = learning_task.split.val, learning_task.labelling
    measured = measured_clips(learning_task, rows, head.dims)
    logits, labels = fitted.best.val_logits[measured], labels_of(learning_task, rows)[measured]
    return fit_calibration(logits, labels, labelling.task, label_names=labelling.names)


def _save_subsets(run: Path, learning_task: LearningTask) -> None:
    table, split = learning_task.table, learning_task.split
    subset_of = subset_by_clip(split, table.clip_id) | subsets_of_failed(
        split, table, learning_task.labelling
    )
    subject_of = dict(zip(table.clip_id.tolist(), table.subject.tolist(), strict=True))
    save_split(run, list(subset_of), [subject_of[clip] for clip in subset_of], list(subset_of.values()))


def put_calibration(run: Path, card: Card, store: Path | str | None = None) -> list[str]:
    """Save a card whose calibration is another, without what speaks of the old one's decisions; returns the
    names of the exports that were dropped.

    The training data, in `store` or where the card says, are measured by it again.
    """
    exports = sorted(folder.name for folder in (run / "export").glob("*") if folder.is_dir())
    drop_decisions(run)
    save_card(run, dataclasses.replace(card, metrics={}))
    echo(f"{run} decides otherwise now: figures, reports and exports from before are dropped")
    _measure_training_stats(run, store)
    return exports


def _measure_training_stats(run: Path, store: Path | str | None = None) -> None:
    try:
        write_training_stats(run, store)
    except (ValueError, OSError) as error:
        log_warning(f"live report --reference-run has nothing to compare with: {error}")


def drop_results(run: Path) -> None:
    """Remove what speaks of weights that are about to be replaced: figures, reports, plots and exports."""
    drop_decisions(run)
    for folder in run.glob("folds-*"):
        shutil.rmtree(folder, ignore_errors=True)


def drop_decisions(run: Path) -> None:
    """Remove what speaks of a run's decisions: all that but folds, which decide for themselves."""
    for name in (
        "compare.json",
        "metrics.json",
        "predictions.csv",
        "literature.csv",
        "report.html",
        "MODEL_CARD.md",
        REFERENCE,
    ):
        (run / name).unlink(missing_ok=True)
    for folder in (run / "export", run / "cross", run / "train", run / "val"):
        shutil.rmtree(folder, ignore_errors=True)
    for plot in (run / "plots").glob("*"):
        if plot.is_file() and not plot.name.startswith("study_"):  # those are the search's
            plot.unlink()


def _test_openings(run: Path) -> tuple[str, ...]:
    """When the test split was opened by the run that is there already."""
    try:
        return load_card(run).test_openings
    except ValueError:
        return ()


def measured_clips(learning_task: LearningTask, rows: np.ndarray, streams: Iterable[str]) -> np.ndarray:
    """(len(rows),) bool: in which clips some of these streams is valid in some frame."""
    samples = load_samples(
        learning_task.store, learning_task.labelling, rows, learning_task.inputs, mapped=True
    )
    return np.any([samples.valid[name][:].any(axis=1) for name in streams], axis=0)


def subsets_of_failed(split: Split, table: ClipTable, labelling: Labelling) -> dict[str, str]:
    """Side of each labelled clip whose extraction failed, by clip_id: that of its person, or video, else the
    one it is marked for. So it stays in the denominator of whoever judges the run."""
    rows, _ = labelled_rows(table, labelling, with_failed=True)
    rows = rows[table.state[rows] == FAILED]
    groups = {
        who: subset for subset, clips in split.subsets().items() for who in groups_of(table, clips).tolist()
    }
    found = {
        str(table.clip_id[row]): groups.get(who, str(table.split[row]))
        for row, who in zip(rows.tolist(), groups_of(table, rows).tolist(), strict=True)
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
    """`auto` as cuda where there is one, else cpu. Raises ValueError for a device this machine lacks."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{index}" for index in range(cards))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if device == "auto":
        return "cuda" if cards else "cpu"
    if device not in there:
        raise ValueError(f"--device {device}: this machine has {', '.join(there)}")
    return device


def count_parameters(model: torch.nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores at four places, for people."""
    return {name: round(float(value), 4) for name, value in scores.items()}


def _encoder_state(
    learning_task: LearningTask, head: LstmHead, build_content: Callable[[str], None]
) -> dict[str, torch.Tensor] | None:
    """Weights of the recipe's encoder, so that the run moves without its store; None where a run has no
    use."""
    if learning_task.store.recipe.pixels is None or "embeddings" not in head.dims:
        return None
    try:
        return dict(encoder_of(learning_task.store.recipe.encoder).state_dict())
    except ValueError as error:
        build_content(f"the run holds no encoder weights: {error}")
        return None


def _keep_model_files(
    run: Path, learning_task: LearningTask, head: LstmHead, build_content: Callable[[str], None]
) -> None:
    """Copy the detector (and landmarker) files that the recipe names into the run."""
    recipe = learning_task.store.recipe
    if recipe.pixels is None:
        return
    wanted = list(recipe.pixels.detectors)
    if "geometry" in head.dims and recipe.geometry is not None:
        wanted.append(recipe.geometry.model_sha256)
    for sha256 in wanted:
        try:
            source = face_model(sha256)
            keep_model_file(run, source, source.name)
        except ValueError as error:
            build_content(f"the run cannot go live: {error}")
