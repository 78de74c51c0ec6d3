"""python -m seqmodel evaluate: a run, judged on a split, with its report.

Opens the split deliberately (test is counted in the card and in the store's ledger), asks the model and what
costs nothing, and writes metrics.json, predictions.csv, plots/, report.html and MODEL_CARD.md into the run;
another data set gets a folder of its own below it. The threshold is chosen on validation and read from the
card, never on the split that is judged.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.cli import echo, log_warning
from seqmodel.commands.export import renew_exports
from seqmodel.config import EvaluateArgs
from seqmodel.evaluation.context import (
    EvalContext,
    FoldModels,
    count_opening,
    face_coverage,
    fit_baselines,
    folder_of,
    open_context,
    predict,
    training_clips,
)
from seqmodel.evaluation.evaluator import Baseline, EvaluationResult, evaluate_predictions
from seqmodel.evaluation.folds import every_clip, run_folds
from seqmodel.evaluation.metrics_json import estimates_json, summary, write_metrics
from seqmodel.evaluation.recalibration import choose_on_validation, home_of
from seqmodel.metrics.predictions import Predictions
from seqmodel.reporting.console import print_estimates
from seqmodel.reporting.content import build_content
from seqmodel.reporting.html import write_model_card, write_report
from seqmodel.reporting.umap_projection import UmapJob, umap_in_background
from seqmodel.runs.card import Card, load_card, save_card, write_text
from seqmodel.runs.predict import PREDICTIONS, write_predictions
from seqmodel.runs.writer import put_calibration


def evaluate(args: EvaluateArgs) -> tuple[dict[str, Any], int]:
    """The door's body: (summary, exit code). Raises ValueError for what a user can mend."""
    if args.folds and args.abstain:
        raise ValueError("--abstain is a band of the run's own network, which --folds does not judge")
    if not args.folds:
        renew_threshold(args)
    context = find_clips(args) if args.folds else open_split(args)
    with umap_job_of(context, args) as umap_job:
        if args.folds:
            context, result, fold_models = judge_folds(context, args)
            folder = folder_of(context) / context.split
        else:
            result, fold_models = evaluate_split(context, args), None
            folder = folder_of(context)
        folder.mkdir(parents=True, exist_ok=True)
        report = write_result(folder, result, context, args, umap_job, fold_models=fold_models)
    print_estimates(result, report)
    say_measured(result)
    return summary(result, report), 0


def renew_threshold(args: EvaluateArgs) -> None:
    """Choose another goal's threshold or an abstain band on validation, where asked for, and put it into the
    run."""
    if not args.threshold_metric and not args.abstain:
        return
    context = find_clips(args)
    card, calibration = context.card, choose_on_validation(context, args.threshold_metric, args.abstain)
    if calibration != card.calibration:
        stage = {"stage": "threshold", "command": args.command}
        calibrated = replace(card, calibration=calibration, stages=(*card.stages, stage))
        renew_exports(context.run, put_calibration(context.run, calibrated, home_of(context)))


def find_clips(args: EvaluateArgs) -> EvalContext:
    """The clips to judge, found but not yet opened; with --folds every labelled one."""
    context = open_context(args.run, load_card(args.run), args.store, args.split, args.label_map)
    return every_clip(context, args.folds) if args.folds else context


def open_split(args: EvaluateArgs) -> EvalContext:
    """Open the split, counting it where it is test."""
    context = find_clips(args)
    is_counted = args.split == "test" or context.is_other_data
    return replace(context, card=count_opening(context, context.card)) if is_counted else context


def judge_folds(context: EvalContext, args: EvaluateArgs) -> tuple[EvalContext, EvaluationResult, FoldModels]:
    """Refit heads in each fold, judge what they say, and count the opening.

    Returns what was asked, with that count, the judgement, and what there is to tell about the heads.

    Raises ValueError for a wrong K or too few people, before the opening is counted.
    """
    predictions, baselines, fold_models, notes = run_folds(context, args)
    context = replace(context, card=count_opening(context, context.card))
    return context, _evaluated(context, predictions, baselines, args, notes), fold_models


def say_measured(result: EvaluationResult) -> None:
    """The ranking without the clips that were not measured, where there are such, of two classes."""
    if result.measured_estimates is not None and np.isfinite(result.measured_estimates["auroc"].value):
        auroc, count = result.measured_estimates["auroc"], int(result.predictions.measured.sum())
        echo(
            f"on the {count} measured clips alone: AUROC {auroc.value:.3f} "
            f"({auroc.low:.3f} to {auroc.high:.3f})"
        )


def umap_job_of(context: EvalContext, args: EvaluateArgs) -> AbstractContextManager[UmapJob | None]:
    """The map of embeddings in the making, where one was asked for."""
    if not args.umap:
        return nullcontext()
    rows = context.eval_subset.rows
    return umap_in_background(context.store, rows, face_coverage(context.store, rows), args.seed)


def evaluate_split(context: EvalContext, args: EvaluateArgs) -> EvaluationResult:
    """Predict the clips, and judge that beside the yardsticks."""
    training, predictions = training_clips(context), predict(context)
    seen = np.intersect1d(predictions.subjects, training.subjects)
    seen = seen[seen != ""] if context.split == "test" else seen[:0]
    warnings = [*context.card.warnings, *_subset_warnings(context)]
    if context.split == "train":
        warnings.append("the run has learned from these clips: figures say what it remembers")
    if context.split == "val":
        warnings.append("these clips have chosen this head, and its threshold: figures are too good")
    if len(seen):
        warnings.append(
            f"{len(seen)} of the people judged have training clips too, as the store names them now "
            f"({', '.join(map(str, seen[:5]))}{', …' if len(seen) > 5 else ''}): figures are too good"
        )
    result = _evaluated(
        context, predictions, fit_baselines(context, predictions, training, args.seed), args, warnings
    )
    return replace(result, is_unseen=context.split == "test" and not len(seen))


def _evaluated(
    context: EvalContext,
    predictions: Predictions,
    comparisons: Sequence[Baseline],
    args: EvaluateArgs,
    warnings: Sequence[str],
) -> EvaluationResult:
    return evaluate_predictions(
        predictions,
        comparisons,
        split=context.split,
        label_names=context.card.labelling.names,
        task=context.card.labelling.task,
        rounds=args.bootstrap_rounds,
        seed=args.seed,
        warnings=warnings,
    )


def open_and_predict(args: EvaluateArgs) -> tuple[EvalContext, Predictions]:
    """Open the split with the threshold that is asked for, counting it where it is test, and predict."""
    renew_threshold(args)
    context = open_split(args)
    return context, predict(context)


def write_result(
    folder: Path,
    result: EvaluationResult,
    context: EvalContext,
    args: EvaluateArgs,
    umap_job: UmapJob | None,
    *,
    fold_models: FoldModels | None = None,
) -> Path:
    """Every file of an evaluation, each written atomically; returns the report's path.

    Pages about training or validation clips get a folder of their own, so that report.html and the model
    card are about test. The run's network is asked once more, for importance and the hardest clips, unless
    `fold_models` heads were judged in its place.
    """
    metrics = estimates_json(result)
    write_metrics(folder / "metrics.json", metrics)
    write_predictions(folder / PREDICTIONS, result.predictions, result.label_names, result.split)
    card = replace(context.card, metrics=dict(context.card.metrics) | metrics)
    if not context.is_other_data:
        _keep_metrics(args.run, context.card, metrics)
    if result.split in ("train", "val"):
        folder = folder / result.split
        folder.mkdir(exist_ok=True)
    context = replace(context, card=card)
    content = build_content(folder, result, context, args, umap_job, fold_models=fold_models)
    write_text(folder / "literature.csv", content.literature.csv)
    write_report(folder / "report.html", result, card, content)
    write_model_card(folder / "MODEL_CARD.md", result, card, content)
    return folder / "report.html"


def _keep_metrics(run: Path, evaluated: Card, metrics: dict[str, Any]) -> None:
    """Add figures to the card as it is now, unless the run became another one while it was judged."""
    card = load_card(run)
    if (card.calibration, card.stages) != (evaluated.calibration, evaluated.stages):
        log_warning(
            f"{run} was changed while it was judged: its card does not take these figures, judge it again"
        )
        return
    save_card(run, replace(card, metrics=dict(card.metrics) | metrics))


def _subset_warnings(context: EvalContext) -> list[str]:
    found = []
    if context.eval_subset.pending:
        found.append(
            f"{context.eval_subset.pending} labelled clips of this split "
            "are not extracted yet and do not count"
        )
    if context.is_other_data:
        found.append(context.eval_subset.description)
        named = int(np.isin(context.table.clip_id, list(context.subsets)).sum())
        if named:
            found.append(
                f"{named} of its clips go by the names of this run's clips, but their people have other "
                "names; if it is the run's own data under new names, training clips are judged here"
            )
    return found
