"""python -m seqmodel evaluate: evaluate a run on a split and write its report.

Every evaluation on test is logged in the run's card and in the store. Writes metrics.json, predictions.csv,
plots/, report.html and MODEL_CARD.md into the run; results on another data set go into a folder in the run.
The threshold comes from the card and was chosen on validation, never on the evaluated split.
"""

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.cli import UserError, echo, log_warning, progress
from seqmodel.commands.evaluation_log import log_test_evaluation
from seqmodel.commands.export import renew_exports
from seqmodel.config import EvaluateArgs
from seqmodel.evaluation.context import (
    EvalContext,
    FoldModels,
    face_coverage,
    fit_baselines,
    folder_of,
    open_context,
    predict,
    training_clips,
)
from seqmodel.evaluation.evaluator import Baseline, EvaluationResult, evaluate_predictions
from seqmodel.evaluation.folds import FINISHED, every_clip, run_folds
from seqmodel.evaluation.metrics_json import estimates_json, replaced_metrics, summary, write_metrics
from seqmodel.evaluation.recalibration import choose_on_validation, training_store_path
from seqmodel.metrics.predictions import Predictions
from seqmodel.reporting.console import print_estimates
from seqmodel.reporting.content import build_content
from seqmodel.reporting.html import write_model_card, write_report
from seqmodel.reporting.text import with_interval
from seqmodel.reporting.umap_projection import UmapJob, umap_in_background
from seqmodel.runs.card import Card, load_card
from seqmodel.runs.files import write_text
from seqmodel.runs.predict import PREDICTIONS, write_predictions
from seqmodel.runs.writer import card_lock, only_writer, put_calibration, update_card

NO_BASELINES = "Baselines are compared on test, or with --folds"


def evaluate(args: EvaluateArgs) -> tuple[dict[str, Any], int]:
    """Handler of the command: returns (summary, exit code). Raises UserError for errors that a user can
    fix."""
    args, is_design = with_folds_of_design(args)
    if args.folds and args.abstain:
        raise UserError(
            "--abstain and --folds cannot be combined: --abstain changes the run's own calibration, and "
            "--folds trains new heads" + "; use --split val" * is_design
        )
    if not args.folds:
        renew_threshold(args)
    context = find_clips(args) if args.folds else open_split(args)
    alone = only_writer(args.run) if args.folds else nullcontext()
    with alone, umap_job_of(context, args) as umap_job:
        if args.folds:
            context, result, fold_models = evaluate_folds(context, args)
            finished = folder_of(context) / context.split / FINISHED
            folder = folder_of(context) if is_design else finished.parent
        else:
            result, fold_models = evaluate_split(context, args), None
            folder = folder_of(context)
        folder.mkdir(parents=True, exist_ok=True)
        report = write_result(folder, result, context, args, umap_job, fold_models=fold_models)
        if args.folds:
            shutil.rmtree(finished, ignore_errors=True)
            with suppress(OSError):  # not empty: the results of an evaluation with --folds
                finished.parent.rmdir()
    print_estimates(result, report, context.synthetic_notice)
    print_auroc_of_predicted(result)
    return summary(result, report), 0


def with_folds_of_design(args: EvaluateArgs) -> tuple[EvaluateArgs, bool]:
    """The options, with the folds of the run's study design if it has no test subset and the
    options name none; and whether that is so."""
    card = load_card(args.run)
    if args.folds or args.split != "test" or not card.design.folds:
        return args, False
    if args.store and open_context(args.run, card, args.store, "val", args.label_map).is_other_data:
        return args, False
    echo(f"design: {card.design.text}")
    return replace(args, folds=card.design.folds), True


def renew_threshold(args: EvaluateArgs) -> None:
    """If --threshold-metric or --abstain is given, choose a threshold or an abstain band on validation and
    save it in the run."""
    if not args.threshold_metric and not args.abstain:
        return
    context = find_clips(args)
    card, calibration = context.card, choose_on_validation(context, args.threshold_metric, args.abstain)
    if calibration != card.calibration:
        stage = {"stage": "threshold", "command": args.command}
        store = training_store_path(context)
        renew_exports(context.run, put_calibration(context.run, card, calibration, stage, store=store))


def find_clips(args: EvaluateArgs) -> EvalContext:
    """The clips to evaluate, without logging; with --folds every labelled clip."""
    subset = "val" if args.folds else args.split
    context = open_context(args.run, load_card(args.run), args.store, subset, args.label_map)
    return every_clip(context, args.folds) if args.folds else context


def open_split(args: EvaluateArgs) -> EvalContext:
    """The clips to evaluate; an evaluation on test or on another data set is logged."""
    context = find_clips(args)
    is_counted = args.split == "test" or context.is_other_data
    return replace(context, card=log_test_evaluation(context, context.card)) if is_counted else context


def evaluate_folds(
    context: EvalContext, args: EvaluateArgs
) -> tuple[EvalContext, EvaluationResult, FoldModels]:
    """Train heads in each fold, evaluate their predictions, and log the evaluation. Finished folds are saved
    until the report is written.

    Returns the context with the log entry, the result, and the heads of the folds.

    Raises UserError for a wrong K or too few subjects; then nothing is logged.
    """
    with progress("fits") as bar:
        row = bar.add_task("refitting", total=None)
        predictions, baselines, fold_models, notes = run_folds(
            context,
            args,
            folder_of(context) / context.split / FINISHED,
            lambda total: bar.update(row, total=total, advance=1),
        )
    context = replace(context, card=log_test_evaluation(context, context.card))
    return context, _evaluated(context, predictions, baselines, args, notes), fold_models


def print_auroc_of_predicted(result: EvaluationResult) -> None:
    """Print AUROC without the clips that failed or have no face, if there are such clips."""
    if result.measured_estimates is not None and np.isfinite(result.measured_estimates["auroc"].value):
        auroc, count = result.measured_estimates["auroc"], int(result.predictions.measured.sum())
        echo(f"AUROC on the {count} clips with a prediction: {with_interval(auroc)}")


def umap_job_of(context: EvalContext, args: EvaluateArgs) -> AbstractContextManager[UmapJob | None]:
    """The UMAP plot of embeddings, computed in the background; None without --umap."""
    if not args.umap:
        return nullcontext()
    rows = context.eval_subset.rows
    return umap_in_background(context.store, rows, face_coverage(context.store, rows), args.seed)


def evaluate_split(context: EvalContext, args: EvaluateArgs) -> EvaluationResult:
    """Predict the clips, and evaluate the predictions and the baselines."""
    training, predictions = training_clips(context), predict(context)
    seen = np.intersect1d(predictions.subjects, training.subjects)
    seen = seen[seen != ""] if context.split == "test" else seen[:0]
    warnings = [*context.card.warnings, *_subset_warnings(context)]
    if context.split == "train":
        warnings.append(f"the run was trained on these clips: selection scores (optimistic). {NO_BASELINES}")
    if context.split == "val":
        warnings.append(
            "this head and its threshold were chosen on these clips: selection scores (optimistic). "
            + NO_BASELINES
        )
    if len(seen):
        warnings.append(
            f"subjects with clips in both test and training: {len(seen)} (as named in the store: "
            f"{', '.join(map(str, seen[:5]))}{', …' if len(seen) > 5 else ''}); metrics are too optimistic"
        )
    is_selection = context.split in ("train", "val")
    baselines = [] if is_selection else fit_baselines(context, predictions, training, args.seed)
    result = _evaluated(context, predictions, baselines, args, warnings)
    is_unseen = context.split == "test" and not len(seen) and not context.synthetic_notice
    return replace(result, is_unseen=is_unseen)


def _evaluated(
    context: EvalContext,
    predictions: Predictions,
    comparisons: Sequence[Baseline],
    args: EvaluateArgs,
    warnings: Sequence[str],
) -> EvaluationResult:
    with progress("methods") as bar:
        return evaluate_predictions(
            predictions,
            bar.track(comparisons, description="confidence intervals"),
            split=context.split,
            label_names=context.card.labelling.names,
            task=context.card.labelling.task,
            rounds=args.bootstrap_rounds,
            seed=args.seed,
            warnings=warnings,
            scope="" if context.is_other_data else context.card.design.scope,
        )


def open_and_predict(args: EvaluateArgs) -> tuple[EvalContext, Predictions]:
    """The clips to evaluate and their predictions, with the requested threshold; an evaluation on test is
    logged."""
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
    """Write every file of an evaluation, each atomically; returns the path of the report.

    Reports on train or validation clips go into a folder of their own, so that report.html and the model card
    of the run are about test. Importance and worst errors are computed with the run's network, or with the
    heads of `fold_models`.
    """
    metrics = estimates_json(result)
    with card_lock(args.run):
        write_metrics(folder / "metrics.json", result.split, metrics)
        write_predictions(folder / PREDICTIONS, result.predictions, result.label_names, result.split)
    card = replace(context.card, metrics=replaced_metrics(context.card.metrics, result.split, metrics))
    if not context.is_other_data:
        _keep_metrics(args.run, context.card, result.split, metrics)
    if result.split in ("train", "val"):
        folder = folder / result.split
        folder.mkdir(exist_ok=True)
    context = replace(context, card=card)
    content = build_content(folder, result, context, args, umap_job, fold_models=fold_models)
    if content.literature is not None:
        write_text(folder / "literature.csv", content.literature.csv)
    write_report(folder / "report.html", result, card, content)
    write_model_card(folder / "MODEL_CARD.md", result, card, content)
    return folder / "report.html"


def _keep_metrics(run: Path, evaluated: Card, split: str, metrics: dict[str, Any]) -> None:
    """Add the metrics to the card file, unless the run was changed during the evaluation."""

    def change(now: Card) -> Card:
        if (now.calibration, now.stages) != (evaluated.calibration, evaluated.stages):
            log_warning(
                f"{run} was changed during the evaluation: these metrics are not saved in its card; run "
                "evaluate again"
            )
            return now
        return replace(now, metrics=replaced_metrics(now.metrics, split, metrics))

    update_card(run, change)


def _subset_warnings(context: EvalContext) -> list[str]:
    found = []
    if context.eval_subset.pending:
        found.append(
            f"{context.eval_subset.pending} labelled clips of this split are not extracted yet and are left "
            "out"
        )
    if context.is_other_data:
        found.append(context.eval_subset.description)
        named = int(np.isin(context.table.clip_id, list(context.subsets)).sum())
        if named:
            found.append(
                f"{named} of its clips have the same names as clips of this run, but other subjects; if this "
                "is the run's own data with renamed subjects, training clips are evaluated here"
            )
    return found
