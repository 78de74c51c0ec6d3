"""What a report tells beside the figures: drawings, slices, hardest clips, the data, how to get the same
again.
"""

from collections.abc import Sequence
from dataclasses import replace
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
    some_places,
)
from seqmodel.evaluation.subgroups import Slices, all_slices
from seqmodel.metrics.calibration import certainty, probabilities
from seqmodel.metrics.classification import confusion
from seqmodel.reporting import plots_metrics, plots_people
from seqmodel.reporting.html import ReportContent
from seqmodel.reporting.literature import literature_table
from seqmodel.reporting.search_history import trials_of
from seqmodel.reporting.style import save
from seqmodel.reporting.text import TITLES, calibration_lede, fold_calibrations_lede
from seqmodel.reporting.umap_projection import UmapJob
from seqmodel.reporting.worst_errors import hardest_clips
from seqmodel.runs.card import Card, read_log
from seqmodel.runs.predict import eval_subset, open_inputs

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
    """Draw every plot into `folder`/plots and gather the rest; the run's network is asked for importance and
    the hardest clips, unless `fold_models` heads were judged in its place."""
    content = _build(folder, result, context, args, fold_models)
    if umap_job is None:
        return content
    with progress("") as bar:
        row = bar.add_task(f"UMAP of {len(umap_job.places)} clips (compiles first)", total=None)
        xy = umap_job.coordinates.result()
        bar.update(row, total=1, completed=1)
    figures, caption = umap_figures(result, context, umap_job.places, xy, args.seed)
    drawn = {name: save(figure, folder / "plots" / f"{name}.png") for name, figure in figures.items()}
    return replace(content, plots={**content.plots, **drawn}, umap_caption=caption)


def _build(
    folder: Path,
    result: EvaluationResult,
    context: EvalContext,
    args: EvaluateArgs,
    fold_models: FoldModels | None,
) -> ReportContent:
    """All but the map of embeddings."""
    card, names = context.card, result.label_names
    slices = all_slices(result.predictions, result.resamples, len(names))
    thresholds = fold_models.thresholds if fold_models else card.calibration.threshold
    figures = result_plots(result, card, slices, thresholds) | training_figures(args.run, card)
    importance_scores = (
        fold_models.importance_scores if fold_models else group_importance(result, context, args.seed)
    )
    if importance_scores:
        value, low, high = (
            np.array([getattr(f, end) for f in importance_scores]) for end in ("value", "low", "high")
        )
        metric = TITLES[card.metric][0] if card.metric in TITLES else card.metric
        figures["importance"] = plots_people.importance_plot(
            [item.group for item in importance_scores], value, low, high, metric
        )
    svgs = {name: save(figure, folder / "plots" / f"{name}.png") for name, figure in figures.items()}
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
        log_warning(f"--thumbnails: store {context.store.path} keeps no crops, so the report shows no faces")
    return ReportContent(
        title=args.run.name,
        plots=svgs,
        slices=slices,
        hardest=clips,
        calibration=fold_calibrations_lede(fold_models.calibrations, card)
        if fold_models
        else calibration_lede(card),
        importance=importance_words(importance_scores) if importance_scores else None,
        data_rows=data_rows(context),
        literature=literature_table(result, args.run.name),
        commands=commands(card, args.command),
        ledger=ledger(context),
    )


def group_importance(result: EvaluationResult, context: EvalContext, seed: int) -> list[ImportanceScore]:
    """What shuffling each group of inputs costs, on a sample of the judged clips where they are many; empty
    where the head reads one group."""
    card, p = context.card, result.predictions
    features = card.recipe.geometry.features if card.recipe.geometry else ()
    if "geometry" not in card.dims or not p.measured.any():
        return []
    places = some_places(np.flatnonzero(p.measured), seed)
    if len(np.unique(p.labels[places])) < 2:
        return []
    rows = context.eval_subset.rows[places]
    head, samples = open_inputs(context.run, card, context.store, card.labelling, rows)

    def answer(x: Arrays, valid: Arrays) -> np.ndarray:
        return probabilities(head_logits(head, x, valid), result.task)

    groups = feature_groups(card.dims, features)
    return importance(
        answer,
        samples.x,
        samples.valid,
        p.labels[places],
        p.subjects[places],
        groups,
        metric=card.metric,
        seed=seed,
    )


def importance_words(importance_scores: Sequence[ImportanceScore]) -> dict[str, str]:
    """What the report says around the drawing of the falls."""
    return {
        "lede": (
            f"Most rests on {importance_scores[0].group}. Each bar is how much "
            "worse the ranking gets when that group of "
            "inputs is taken from another clip; groups that tell the same story cover for each other."
        ),
        "caption": "Mean of 10 shuffles between clips; lines are 95 % intervals over shuffles and people.",
    }


def result_plots(
    result: EvaluationResult, card: Card, slices: Sequence[Slices], thresholds: float | np.ndarray
) -> dict[str, Any]:
    """Matplotlib figures about the judged clips, by name. With thresholds of each clip's own, (N,), none
    marks the run's threshold or abstain band."""
    p, names, binary = result.predictions, result.label_names, result.task == "binary"
    threshold = thresholds if binary and isinstance(thresholds, float) else None
    band = card.calibration.abstain if isinstance(thresholds, float) else None
    others = [
        (b.baseline.title, b.baseline.probabilities)
        for b in result.comparisons
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
        found["coverage"] = plots_people.coverage_plot(
            certainty(p.probabilities, result.task, thresholds)[keep],
            (p.predicted == p.labels)[keep],
            float((~p.unsure[keep]).mean()) if band else None,
        )
        if threshold is not None and len(np.unique(p.labels[keep])) == 2:
            found["threshold"] = plots_people.threshold_plot(
                p.probabilities[keep, 1], p.labels[keep], names, threshold
            )
    for part in slices:
        if part.title == "By subject":
            found["subjects"] = plots_people.people_plot(part.rows, result.estimates["accuracy"].value)
    return found


def training_figures(run: Path, card: Card) -> dict[str, Any]:
    """Learning curves of the stages, and the search, as far as the run kept them."""
    found: dict[str, Any] = {}
    stages = log_stages(run)
    if stages:
        found["learning"] = plots_metrics.learning_plot(stages, card.metric)
    done = [trial for trial in trials_of(run) if trial.value is not None]
    if done:
        numbers, values = np.array([t.number for t in done]), np.array([t.value for t in done], np.float64)
        found["search"] = plots_people.search_plot(numbers, values, card.metric)
        best = sorted((t for t in done if t.curve), key=lambda t: -(t.value or 0.0))[:BEST_TRIALS]
        if best:
            curves = [(f"trial {t.number}", t.curve) for t in best]
            found["trials"] = plots_people.trials_plot(curves, card.metric, by_fold=best[0].by_fold)
    return found


def log_stages(run: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Entries of log.jsonl by stage, in the order in which the stages came."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for entry in read_log(run):
        if "train_loss" in entry or "val_loss" in entry:
            stages.setdefault(str(entry.get("stage", "head")), []).append(entry)
    return list(stages.items())


def umap_figures(
    result: EvaluationResult, context: EvalContext, places: np.ndarray, xy: np.ndarray, seed: int
) -> tuple[dict[str, Any], str]:
    """(drawings by label and by person, caption) of the clips at `places`."""
    p = result.predictions
    labels, names = p.labels[places], result.label_names
    found = {"umap_label": plots_people.scatter_plot(xy, labels, names, by_class=True)}
    people, index = np.unique(p.subjects[places], return_inverse=True)
    if len(people) > 1:
        found["umap_subject"] = plots_people.scatter_plot(
            xy, index, [str(name) or "unknown" for name in people], by_class=False
        )
    encoder = context.store.recipe.encoder
    return (
        found,
        f"{len(places)} clips of {result.split}, {encoder.name} ({encoder.weights}), seed {seed}.",
    )


def data_rows(context: EvalContext) -> list[dict[str, Any]]:
    """One row a split for the report's table of the data."""
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
                "people": len(subjects) or "–",
                "classes": np.bincount(context.labels[rows], minlength=num_classes).tolist(),
                "face_rate": float(coverage[~failed].mean()) if (~failed).any() else float("nan"),
                "failed": int(failed.sum()),
                "faceless": int((~failed & (coverage == 0)).sum()),
            }
        )
    return out


def commands(card: Card, command: str) -> list[str]:
    """The commands that made the run, in order, and the one that judges it, as they were given; those of
    callers that gave none are left out."""
    given = [str(stage.get("command", "")) for stage in card.stages]
    last = [] if given[-1:] == [command] else [command]  # else it has just chosen the threshold
    return [line for line in given + last if line]


def ledger(context: EvalContext) -> str:
    """How often the test clips of this store were looked at, by whom; '' where never."""
    openings = context.store.test_openings
    if not openings:
        return ""
    runs = sorted({str(opening["run"]) for opening in openings})
    shown = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
    last = str(openings[-1]["time_utc"])[:16].replace("T", " ")
    return (
        f"The store's ledger counts {len(openings)} openings of its test split, by {shown}; "
        f"the last at {last} UTC."
    )
