"""Contents of a report: plots, subgroups, worst errors, data table, commands."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from features.cli import log_warning, progress
from seqmodel.config import EvaluateArgs
from seqmodel.evaluation.context import EvalContext, FoldModels, face_coverage
from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.evaluation.permutation_importance import (
    Arrays,
    ImportanceScore,
    feature_groups,
    head_logits,
    importance,
    subsample_indices,
)
from seqmodel.evaluation.subgroups import Slices, all_slices
from seqmodel.metrics.calibration import Decision, certainty, decide, probabilities
from seqmodel.metrics.classification import confusion
from seqmodel.reporting import plots_analysis, plots_metrics
from seqmodel.reporting.html import ReportContent
from seqmodel.reporting.literature import literature_table
from seqmodel.reporting.methods import methods_text
from seqmodel.reporting.search_history import trials_of
from seqmodel.reporting.style import save
from seqmodel.reporting.text import TITLES, calibration_intro, count, fold_calibrations_intro, shown_baselines
from seqmodel.reporting.umap_projection import UmapJob
from seqmodel.reporting.worst_errors import hardest_clips
from seqmodel.runs.card import Card
from seqmodel.runs.files import read_log
from seqmodel.runs.predict import eval_subset, held_out_folds, open_inputs, parts_by_fold

BEST_TRIALS = 5


def build_content(
    folder: Path,
    result: EvaluationResult,
    context: EvalContext,
    args: EvaluateArgs,
    umap_job: UmapJob | None,
    *,
    fold_models: FoldModels | None = None,
) -> ReportContent:
    """Draw every plot into `folder`/plots and return the contents of the report.

    Permutation importance and worst errors come from the run's head. With `fold_models`, importance comes
    from the heads of the folds, and there are no worst errors.
    """
    content = _build(folder, result, context, args, fold_models)
    content = replace(
        content,
        methods=methods_text(
            result,
            context.card,
            content.data_statement,
            content.data_rows,
            len(trials_of(args.run)),
            content.calibration,
        ),
    )
    if umap_job is None:
        return content
    with progress("") as bar:
        row = bar.add_task(f"UMAP of {len(umap_job.indices)} clips (compiles first)", total=None)
        xy = umap_job.coordinates.result()
        bar.update(row, total=1, completed=1)
    figures, caption = umap_figures(result, context, umap_job.indices, xy, args.seed)
    drawn = {name: save(figure, folder / "plots" / f"{name}.png") for name, figure in figures.items()}
    return replace(content, plots={**content.plots, **drawn}, umap_caption=caption)


def _build(
    folder: Path,
    result: EvaluationResult,
    context: EvalContext,
    args: EvaluateArgs,
    fold_models: FoldModels | None,
) -> ReportContent:
    """Everything but the UMAP of the embeddings. Synthetic data show no people: they get no subgroups and no
    comparison with the literature."""
    card, names = context.card, result.label_names
    is_synthetic = bool(context.synthetic_notice)
    slices = [] if is_synthetic else all_slices(result.predictions, result.resamples, len(names))
    thresholds = fold_models.thresholds if fold_models else card.calibration.threshold
    figures = result_plots(result, card, slices, thresholds) | training_figures(args.run, card)
    scores = fold_models.importance_scores if fold_models else group_importance(result, context, args.seed)
    if scores:
        figures["importance"] = _importance_figure(scores, card.metric)
    with progress("plots") as bar:
        drawn = bar.track(figures.items(), description="plots")
        svgs = {name: save(figure, folder / "plots" / f"{name}.png") for name, figure in drawn}
    clips = []
    if fold_models is None:
        clips = hardest_clips(
            result,
            context.run,
            card,
            context.store,
            context.eval_subset.rows,
            folder / "plots",
            thumbnails=args.thumbnails,
        )
    if args.thumbnails and not context.store.has_crops:
        log_warning(f"--thumbnails: store {context.store.path} has no crops, so the report shows no faces")
    return ReportContent(
        title=args.run.name,
        plots=svgs,
        slices=slices,
        hardest=clips,
        calibration=fold_calibrations_intro(fold_models.calibrations, card)
        if fold_models
        else calibration_intro(card),
        importance=importance_texts(scores) if scores else None,
        data_rows=data_rows(context),
        literature=None if is_synthetic else literature_table(result, args.run.name),
        commands=commands(card, args.command),
        test_evaluations=test_evaluations_text(context),
        synthetic_notice=context.synthetic_notice,
        data_statement=context.store.data_statement if context.is_other_data else card.data_statement,
    )


def _importance_figure(scores: Sequence[ImportanceScore], metric: str) -> Any:
    """The figure of the permutation importance of each group of inputs."""
    value, low, high = (np.array([getattr(f, end) for f in scores]) for end in ("value", "low", "high"))
    title = TITLES[metric][0] if metric in TITLES else metric
    return plots_analysis.importance_plot([item.group for item in scores], value, low, high, title)


def group_importance(result: EvaluationResult, context: EvalContext, seed: int) -> list[ImportanceScore]:
    """Permutation importance of each group of inputs, on a sample of the evaluated clips.

    Empty where the head does not read geometry, no clip has a detected face, or one class is missing.
    """
    card, p = context.card, result.predictions
    features = card.recipe.geometry.features if card.recipe.geometry else ()
    if "geometry" not in card.dims or not p.measured.any():
        return []
    indices = subsample_indices(np.flatnonzero(p.measured), seed)
    if len(np.unique(p.labels[indices])) < 2:
        return []
    rows = context.eval_subset.rows[indices]
    model, samples = open_inputs(context.run, card, context.store, card.labelling, rows)

    known = -np.ones(len(rows), int)
    if not context.is_other_data:
        known = held_out_folds(context.run, context.store, rows)

    def predict(x: Arrays, valid: Arrays) -> Decision:
        logits = np.zeros((len(rows), card.num_outputs))
        for part, inside in parts_by_fold(model, known):
            arrays = ({name: each[inside] for name, each in given.items()} for given in (x, valid))
            logits[inside] = head_logits(part, *arrays)
        return decide(logits, result.task, card.calibration)

    groups = feature_groups(card.dims, features)
    with progress("groups") as bar:
        return importance(
            predict,
            samples.x,
            samples.valid,
            p.labels[indices],
            p.subjects[indices],
            groups,
            metric=card.metric,
            seed=seed,
            track=partial(bar.track, description="permutation importance"),
        )


def importance_texts(importance_scores: Sequence[ImportanceScore]) -> dict[str, str]:
    """Intro and caption of the plot of permutation importance."""
    return {
        "intro": (
            f"The most important group is {importance_scores[0].group}. "
            "Each bar is the decrease of the metric when the values of this group come from another clip. "
            "Correlated groups can replace each other, so each of them may show a small decrease."
        ),
        "caption": "Mean over 10 shuffles between clips; lines: 95 % intervals over shuffles and subjects.",
    }


def result_plots(
    result: EvaluationResult, card: Card, slices: Sequence[Slices], thresholds: float | np.ndarray
) -> dict[str, Any]:
    """Matplotlib figures of the evaluated clips, by name.

    With one threshold per clip, (N,), no figure shows the run's threshold or abstain band.
    """
    p, names, binary = result.predictions, result.label_names, result.task == "binary"
    threshold = thresholds if binary and isinstance(thresholds, float) else None
    band = card.calibration.abstain if isinstance(thresholds, float) else None
    others = [
        (b.baseline.title, b.baseline.probabilities)
        for b in shown_baselines(result)
        if b.baseline.name != "majority"
    ]
    found = {
        "confusion": plots_metrics.confusion_plot(confusion(p.labels, p.predicted, len(names)), names),
        "roc": plots_metrics.roc_plot(p.labels, p.probabilities, names, threshold, others),
        "precision_recall": plots_metrics.precision_recall_plot(
            p.labels, p.probabilities, names, result.minority, threshold
        ),
    }
    keep = p.measured
    if keep.any():
        raw = probabilities(p.logits[keep], result.task)
        found["reliability"] = plots_metrics.reliability_plot(p.labels[keep], raw, p.probabilities[keep])
        found["coverage"] = plots_analysis.coverage_plot(
            certainty(p.probabilities, result.task, thresholds)[keep],
            (p.predicted == p.labels)[keep],
            float((~p.unsure[keep]).mean()) if band else None,
        )
        if threshold is not None and len(np.unique(p.labels[keep])) == 2:
            found["threshold"] = plots_analysis.threshold_plot(
                p.probabilities[keep, 1], p.labels[keep], names, threshold
            )
    for part in slices:
        if part.column == "subject":
            found["subjects"] = plots_analysis.subjects_plot(part.rows, result.estimates["accuracy"].value)
    return found


def training_figures(run: Path, card: Card) -> dict[str, Any]:
    """Learning curves of the stages and plots of the search, where the run has them."""
    found: dict[str, Any] = {}
    stages = log_stages(run)
    if stages:
        found["learning"] = plots_metrics.learning_plot(stages, card.metric)
    done = [trial for trial in trials_of(run) if trial.value is not None]
    if done:
        numbers, values = np.array([t.number for t in done]), np.array([t.value for t in done], np.float64)
        found["search"] = plots_analysis.search_plot(numbers, values, card.metric)
        best = sorted((t for t in done if t.curve), key=lambda t: -(t.value or 0.0))[:BEST_TRIALS]
        if best:
            curves = [(f"trial {t.number}", t.curve) for t in best]
            found["trials"] = plots_analysis.trials_plot(curves, card.metric, by_fold=best[0].by_fold)
    return found


def log_stages(run: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """(stage, its entries of log.jsonl), in order of training."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for entry in read_log(run):
        if "train_loss" in entry or "val_loss" in entry:
            stages.setdefault(str(entry.get("stage", "head")), []).append(entry)
    return list(stages.items())


def umap_figures(
    result: EvaluationResult, context: EvalContext, indices: np.ndarray, xy: np.ndarray, seed: int
) -> tuple[dict[str, Any], str]:
    """(UMAP figures coloured by label and by subject, caption) of the clips at the indices `indices`."""
    p = result.predictions
    labels, names = p.labels[indices], result.label_names
    found = {"umap_label": plots_analysis.scatter_plot(xy, labels, names, by_class=True)}
    subjects, index = np.unique(p.subjects[indices], return_inverse=True)
    if len(subjects) > 1:
        found["umap_subject"] = plots_analysis.scatter_plot(
            xy, index, [str(name) or "unknown" for name in subjects], by_class=False
        )
    encoder = context.store.recipe.encoder
    caption = (
        f"{count(len(indices), 'clip')} of {result.split}, {encoder.name} ({encoder.weights}), seed {seed}."
    )
    if context.store.streams[0] == "geometry":
        caption = f"{count(len(indices), 'clip')} of {result.split}, geometry, seed {seed}."
    elif encoder.weights_sha256 != context.card.recipe.encoder.weights_sha256:
        caption += " These are the embeddings in the store, not those of the run's fine-tuned encoder."
    return found, caption


def data_rows(context: EvalContext) -> list[dict[str, Any]]:
    """One row per subset for the report's table of the data."""
    table, num_classes = context.table, len(context.card.labelling.names)
    rows_of = {
        subset: eval_subset(table, context.labels, context.subsets, subset, context.known).rows
        for subset in ("train", "val", "test")
    }
    if context.is_other_data:
        rows_of = {context.split: context.eval_subset.rows}
    out = []
    for split, rows in rows_of.items():
        coverage, failed = face_coverage(context.store, rows), table.state[rows] == 2
        subjects = {str(s) for s in table.subject[rows] if s}
        out.append(
            {
                "split": split,
                "clips": len(rows),
                "subjects": len(subjects) or "–",
                "classes": np.bincount(context.labels[rows], minlength=num_classes).tolist(),
                "face_rate": float(coverage[~failed].mean()) if (~failed).any() else float("nan"),
                "failed": int(failed.sum()),
                "without_face": int((~failed & (coverage == 0)).sum()),
            }
        )
    return out


def commands(card: Card, command: str) -> list[str]:
    """The commands that made the run, in order, and the one that evaluates it.

    A stage that was made without a command is left out.
    """
    given = [str(stage.get("command", "")) for stage in card.stages]
    last = [] if given[-1:] == [command] else [command]  # the same command has just chosen the threshold
    return [line for line in given + last if line]


def test_evaluations_text(context: EvalContext) -> str:
    """How often the test set of this store was evaluated, and by which runs; '' if never."""
    evaluations = context.store.test_evaluations
    if not evaluations:
        return ""
    runs = sorted({str(evaluation["run"]) for evaluation in evaluations})
    shown = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
    last = str(evaluations[-1]["time_utc"])[:16].replace("T", " ")
    return f"Evaluations on the test set of this store: {len(evaluations)} (runs: {shown}; last: {last} UTC)."
