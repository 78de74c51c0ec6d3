"""Nested cross-validation by subject (evaluate --folds K|loso), for data sets with few subjects.

In each fold the run's model is made again, by the procedure of `train` and `tune`: settings are cross-fitted
on the fold's training subjects, the members are selected and calibrated by their out-of-fold predictions, and
the held-out subjects are used for the evaluation only. The settings to choose from are the starting points of
the run's search, on which nobody's labels had a say, or those of `train`. Labels and store are those of the
run. The run's own model is not used, because it was chosen on subjects that are held out here.

The encoder is not trained: the features are the store's.

Shapes: N clips, O logits, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from features.cli import UserError
from features.datasets import (
    Samples,
    load_samples,
    sample_groups,
    select_samples,
)
from features.maintenance.near_duplicates import COPY_COSINE, near_duplicates
from features.recipe import GeometryId
from features.splits import grouped_folds, joined_groups, leave_one_subject_out
from features.store.table import groups_of
from seqmodel.config import EvaluateArgs, MemberConfig, Metric
from seqmodel.evaluation.baselines import identity, majority, simple_baselines
from seqmodel.evaluation.context import EvalContext, FoldModels, every_labelled, face_coverage
from seqmodel.evaluation.evaluator import Baseline
from seqmodel.evaluation.fold_result import FoldResult, fingerprint_of, load_fold, save_fold
from seqmodel.evaluation.permutation_importance import (
    Arrays,
    ImportanceScore,
    feature_groups,
    head_logits,
    importance,
    subsample_indices,
)
from seqmodel.evaluation.simple_methods import principal_components, stream_statistics
from seqmodel.heads.ensemble import Ensemble
from seqmodel.metrics.calibration import (
    Decision,
    decide,
    fit_calibration,
    parse_threshold_metric,
    require_threshold,
)
from seqmodel.metrics.classification import class_frequencies
from seqmodel.metrics.predictions import Predictions
from seqmodel.runs.card import Card, git_commit, versions
from seqmodel.runs.settings import load_settings
from seqmodel.training.cross_fit import FoldInputs, Objective, assign_folds, average_logits
from seqmodel.training.design import PERSON, units_of
from seqmodel.training.loop import predict_logits
from seqmodel.training.select import fit_ensemble
from seqmodel.training.task import encoder_leak_warning

Fold = tuple[np.ndarray, np.ndarray]
"""(training, held-out) indices of the clips."""
Folds = list[Fold]


FINISHED = "finished"
"""Folder, in that of the results, with the results of finished folds until all are done."""
NOT_TRAINED = "no trained fold"
"""Reason for a clip without a prediction, if its fold has only one class for training."""


def every_clip(context: EvalContext, folds: str) -> EvalContext:
    """All labelled clips of the store, of all subsets, failed clips included."""
    return replace(every_labelled(context), split=f"folds-{folds}")


def dims_of(context: EvalContext, settings: Sequence[MemberConfig]) -> dict[str, int]:
    """Width in the store of each stream that some head reads.

    Raises UserError if the store does not have all of them.
    """
    streams = {setting.stream for setting in settings}
    missing = streams - set(context.store.streams)
    if missing:
        raise UserError(
            f"{context.run} reads {', '.join(sorted(missing))}, but {context.store.path} has only "
            f"{', '.join(context.store.streams)}; give another store with --store"
        )
    return {name: context.store.array(name).shape[-1] for name in sorted(streams)}


def threshold_metric_of(card: Card, args: EvaluateArgs) -> str:
    """The metric that each fold chooses its threshold for. Raises UserError if the task does not allow
    it."""
    if args.threshold_metric:
        require_threshold(card.labelling.task)
        parse_threshold_metric(args.threshold_metric, card.labelling.names)
    return args.threshold_metric or card.calibration.threshold_metric


def run_folds(
    context: EvalContext, args: EvaluateArgs, folder: Path, on_fit: Callable[[int], None] = lambda total: None
) -> tuple[Predictions, list[Baseline], FoldModels, list[str]]:
    """Out-of-fold predictions of every clip, baselines on the same folds, the folds' heads, and warnings.

    folder: where finished folds are saved; those that an interrupted command saved are not trained again.
    on_fit: called after each fit of a head, with the number of fits in all.

    Raises UserError for a wrong K, and if training is not possible in any fold.
    """
    card, rows, labels = context.card, context.eval_subset.rows, context.eval_subset.labels
    calibration = replace(card.calibration, threshold_metric=threshold_metric_of(card, args))
    settings = load_settings(context.run, card)
    card = replace(card, dims=dims_of(context, settings), calibration=calibration)
    all_samples, samples, reasons = samples_of(context, card)
    measured, subjects = reasons == "", samples.subjects
    grouped = replace(samples, subjects=fold_groups(context, samples, args.folds))
    folds = split_folds(args.folds, labels, grouped.subjects, args.seed, context.table.fold[rows])
    # The same for all folds: the training frequencies of a fold are biased against its held-out clips.
    prior = class_frequencies(labels, len(card.labelling.names))
    results = fit_folds(card, settings, grouped, measured, folds, args.seed, folder, on_fit)
    chosen = [result for result in results if result.setting]
    if not chosen:
        raise UserError(
            f"--folds {args.folds}: no fold can be trained: the training part of a fold must have clips of "
            "two classes or more"
        )
    untrained = np.zeros(len(rows), bool)
    for (_, held_out), result in zip(folds, results, strict=True):
        untrained[held_out] = measured[held_out] & (result.setting == "")
    predictions = _pooled(context, folds, results, prior, np.where(untrained, NOT_TRAINED, reasons))
    baselines = _baselines(card, all_samples, grouped, measured, folds, prior, args.seed)
    identity_baseline = identity(labels, subjects, prior, seed=args.seed)
    baselines += [identity_baseline] if identity_baseline is not None else []
    fold_models = FoldModels(
        importance_scores=group_importance(card, context.store.recipe.geometry, samples, results, args.seed),
        calibrations=[result.calibration for result in chosen],
        thresholds=_thresholds(results, len(rows)),
    )
    num_untrained = sum(bool(untrained[held_out].any()) for _, held_out in folds)
    leak = encoder_leak_warning(context.store, groups_of(context.table, rows))
    notes = [leak] * bool(leak)
    notes += _notes(card, len(folds), num_untrained, len(settings), some_unknown=(subjects == "").any())
    return predictions, baselines, fold_models, notes


def _thresholds(results: Sequence[FoldResult], num_clips: int) -> np.ndarray:
    """(num_clips,) threshold of the fold that predicted each clip; .5 if none did."""
    thresholds = np.full(num_clips, 0.5)
    for result in results:
        thresholds[result.indices] = result.calibration.threshold
    return thresholds


def fit_folds(
    card: Card,
    settings: Sequence[MemberConfig],
    samples: Samples,
    measured: np.ndarray,
    folds: Folds,
    seed: int,
    folder: Path,
    on_fit: Callable[[int], None],
) -> list[FoldResult]:
    """The result of every fold: from its file in `folder`, or trained and saved there."""
    described = {
        "task": card.labelling.task,
        "names": card.labelling.names,
        "metric": card.metric,
        "threshold_metric": card.calibration.threshold_metric,
        "settings": [asdict(setting) for setting in settings],
        "code": versions() | {"commit": git_commit()},
    }
    arrays = [samples.labels, samples.subjects, measured, *samples.x.values(), *samples.valid.values()]
    shared = {"shared": fingerprint_of(described, arrays)}
    paths = [
        folder / f"{fingerprint_of(shared | {'seed': seed + number}, fold)}.safetensors"
        for number, fold in enumerate(folds)
    ]
    classes = len(card.labelling.names)
    saved = [load_fold(path, card.dims, card.labelling.task, classes) for path in paths]
    after_fit, results = partial(on_fit, saved.count(None) * len(settings)), []
    for number, (fold, path, result) in enumerate(zip(folds, paths, saved, strict=True)):
        if result is None:
            result = run_fold(card, settings, samples, measured, *fold, seed + number, after_fit)
            if result.setting:
                save_fold(path, result if "geometry" in card.dims else replace(result, head=None))
        results.append(result)
    return results


def _pooled(
    context: EvalContext, folds: Folds, results: Sequence[FoldResult], prior: np.ndarray, reasons: np.ndarray
) -> Predictions:
    """The predictions of all folds; clips without one get the (C,) class frequencies and the largest
    class."""
    rows, table = context.eval_subset.rows, context.table
    logits = np.full((len(rows), context.card.num_outputs), np.nan, np.float32)
    p, predicted = np.tile(prior, (len(rows), 1)), np.full(len(rows), prior.argmax(), np.int64)
    fold = np.zeros(len(rows), np.int64)
    for number, ((_, held_out), result) in enumerate(zip(folds, results, strict=True), start=1):
        fold[held_out] = number
        p[result.indices], predicted[result.indices] = result.probabilities, result.predicted
        logits[result.indices] = result.logits
    return Predictions(
        clip_ids=table.clip_id[rows],
        subjects=table.subject[rows],
        labels=context.eval_subset.labels,
        logits=logits,
        probabilities=p,
        predicted=predicted,
        unsure=np.zeros(len(rows), bool),
        reasons=reasons,
        coverage=face_coverage(context.store, rows),
        slices={name: column[rows] for name, column in table.slices.items()},
        fold=fold,
    )


def samples_of(context: EvalContext, card: Card) -> tuple[Samples, Samples, np.ndarray]:
    """All streams of the evaluated clips; the streams that the run's head reads; and (N,) str why a clip
    cannot be predicted (failed, no face), '' if it can."""
    rows, streams = context.eval_subset.rows, context.store.streams
    all_samples = load_samples(
        context.store, card.labelling, rows, "both" if len(streams) > 1 else streams[0]
    )
    all_samples = replace(all_samples, labels=context.eval_subset.labels)
    x, valid = ({name: arrays[name] for name in card.dims} for arrays in (all_samples.x, all_samples.valid))
    seen = np.any([np.asarray(mask).any(axis=1) for mask in valid.values()], axis=0)
    reasons = np.where(context.table.state[rows] == 2, "failed", np.where(seen, "", "no face"))
    return all_samples, replace(all_samples, x=x, valid=valid), reasons


def fold_groups(context: EvalContext, samples: Samples, folds: str) -> np.ndarray:
    """(N,) str: group of each evaluated clip; clips of one group are on one side of every fold. It is the
    subject (or video), or what the run's design holds out; groups with nearly equal clips are one group."""
    unit = PERSON if context.is_other_data else context.card.design.unit
    if folds == "loso" and unit == PERSON and (samples.subjects == "").any():
        return samples.subjects  # split_folds refuses them
    extracted = samples.rows[context.table.state[samples.rows] == 1]
    pairs = near_duplicates(context.store, extracted, COPY_COSINE)
    return joined_groups(units_of(context.table, samples.rows, unit), samples.rows, pairs)


def group_importance(
    card: Card, geometry: GeometryId | None, samples: Samples, results: Sequence[FoldResult], seed: int
) -> list[ImportanceScore]:
    """Permutation importance of the folds' heads, each on its held-out subjects; empty if the heads read one
    group of inputs only."""
    task = card.labelling.task
    indices = subsample_indices(np.sort(np.concatenate([result.indices for result in results])), seed)
    if "geometry" not in card.dims or len(np.unique(samples.labels[indices])) < 2:
        return []
    by_fold = [(np.flatnonzero(np.isin(indices, result.indices)), result) for result in results]

    def predict_folds(x: Arrays, valid: Arrays) -> Decision:
        p, predicted = np.zeros((len(indices), len(card.labelling.names))), np.zeros(len(indices), np.int64)
        for inside, fold in by_fold:
            if len(inside):
                inputs = [{name: values[inside] for name, values in arrays.items()} for arrays in (x, valid)]
                assert fold.head is not None, "saved without its head"
                found = decide(head_logits(fold.head, *inputs), task, fold.calibration)
                p[inside], predicted[inside] = found.probabilities, found.label
        return Decision(p, predicted, np.zeros(len(indices), bool))

    x, valid, labels = samples.batch(indices)
    groups = feature_groups(card.dims, geometry.features if geometry else ())
    return importance(
        predict_folds, x, valid, labels, samples.subjects[indices], groups, metric=card.metric, seed=seed
    )


def split_folds(
    folds: str, labels: np.ndarray, subjects: np.ndarray, seed: int, names: np.ndarray | None = None
) -> Folds:
    """(training, held-out) indices of each fold, for `loso`, a number of folds, or `column`. Raises UserError
    otherwise.

    subjects: (N,) str; with a number of folds, groups of clips that stay in one fold. Each '' is a group of
    its own. names: (N,) str, the manifest's column `fold`.
    """
    if folds == "column":
        return _named_folds(np.full(len(labels), "") if names is None else names, subjects)
    if folds == "loso":
        return leave_one_subject_out(subjects)
    if not folds.isdigit():
        raise UserError(f"--folds must be a number, loso or column, got {folds!r}")
    return grouped_folds(labels, subjects, int(folds), seed)


def _named_folds(names: np.ndarray, groups: np.ndarray) -> Folds:
    """The folds that the manifest names. Raises UserError if a clip has none, or a group is in two."""
    known = np.unique(names).tolist()
    if "" in known or len(known) < 2:
        raise UserError(
            "--folds column needs a column fold in the manifest with two folds or more, and one for every "
            "labelled clip"
        )
    for group in np.unique(groups[groups != ""]).tolist():
        found = np.unique(names[groups == group]).tolist()
        if len(found) > 1:
            raise UserError(
                f"--folds column: the clips of {group} (or nearly equal ones) are in the folds "
                f"{' and '.join(found)}: the folds would share people"
            )
    return [(np.flatnonzero(names != name), np.flatnonzero(names == name)) for name in known]


def run_fold(
    card: Card,
    settings: Sequence[MemberConfig],
    samples: Samples,
    measured: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    seed: int,
    on_fit: Callable[[], None] = lambda: None,
) -> FoldResult:
    """Choose, cross-fit and calibrate on `train`, then predict `held_out`, which is used for nothing else.

    on_fit: called after each setting.
    Temperature scaling is always applied, so that probabilities of different folds can be ranked together.
    """
    task, names = card.labelling.task, card.labelling.names
    indices = held_out[measured[held_out]]
    inner = select_samples(samples, train[measured[train]])
    groups = inner_groups(inner)
    empty = np.zeros(0, np.int64)
    nothing = FoldResult(empty, np.zeros((0, card.num_outputs)), np.zeros((0, len(names))), empty, "")
    if len(indices) == 0 or len(np.unique(inner.labels)) < 2 or len(np.unique(groups)) < 2:
        return nothing
    objective = Objective(task, len(names), cast(Metric, card.metric))
    try:
        inputs = FoldInputs(inner, assign_folds(inner.labels, groups, seed))
    except UserError:  # each class has clips in one inner fold only
        return nothing
    members = fit_ensemble(inputs, settings, objective, seed=seed, on_fit=on_fit)
    inner_logits = average_logits([member.logits for member in members], task)
    known = ~np.isnan(inner_logits[:, 0])
    calibration = fit_calibration(
        inner_logits[known],
        inner.labels[known],
        task,
        threshold_metric=card.calibration.threshold_metric,
        label_names=names,
        always_scale=True,
        groups=groups[known],
    )
    model = Ensemble([member.heads for member in members], task).eval()
    logits = predict_logits(model, select_samples(samples, indices))
    found, configs = decide(logits, task, calibration), tuple(member.config for member in members)
    of_clips = indices, logits, found.probabilities, found.label
    return FoldResult(*of_clips, _name_of(configs), model, calibration, configs)


def _name_of(members: Sequence[MemberConfig]) -> str:
    return ", ".join(f"{member.stream} {member.head.kind}" for member in members)


def inner_groups(samples: Samples) -> np.ndarray:
    """(N,) str: what inner folds hold out: subjects; the videos of a single subject; the clips of a single
    video."""
    videos = np.array([clip.rpartition("#")[0] for clip in samples.clip_ids.tolist()], str)
    options = (sample_groups(samples), videos, samples.clip_ids)
    return next((one for one in options if len(np.unique(one)) > 1), samples.clip_ids)


def _baselines(
    card: Card,
    all_samples: Samples,
    samples: Samples,
    measured: np.ndarray,
    folds: Folds,
    prior: np.ndarray,
    seed: int,
) -> list[Baseline]:
    """The majority of all clips, and the simple methods on all streams, fitted in each fold."""
    constant = majority(prior, len(samples), card.labelling.names, of="all clips")
    found: dict[str, Baseline] = {constant.name: constant}
    for fold in folds:
        statistics = stream_statistics(all_samples, principal_components(all_samples, seed, fold[0]))
        _add_baselines(found, card, statistics, samples, measured, fold, prior, seed)
    return list(found.values())


def _add_baselines(
    fold_baselines: dict[str, Baseline],
    card: Card,
    statistics: dict[str, np.ndarray],
    samples: Samples,
    measured: np.ndarray,
    fold: Fold,
    prior: np.ndarray,
    seed: int,
) -> None:
    """Add the simple methods, fitted in this fold, to the pooled baselines; a fold without one keeps the (C,)
    class frequencies. `statistics`: those of all clips, of the principal components of this fold's training
    clips."""
    (train, held_out), groups = fold, sample_groups(samples)
    inside, train = measured[held_out], train[measured[train]]
    if not inside.any():
        return
    of_train, of_held_out = (
        {name: values[rows] for name, values in statistics.items()} for rows in (train, held_out[inside])
    )
    for baseline in simple_baselines(
        of_train,
        samples.labels[train],
        groups[train],
        of_held_out,
        inside,
        prior,
        task=card.labelling.task,
        label_names=card.labelling.names,
        threshold_metric=card.calibration.threshold_metric,
        seed=seed,
    ):
        if baseline.name not in fold_baselines:
            p = np.tile(prior, (len(samples), 1))
            fold_baselines[baseline.name] = replace(
                baseline, probabilities=p, predicted=p.argmax(axis=1).astype(np.int64)
            )
        fold_baselines[baseline.name].probabilities[held_out] = baseline.probabilities
        fold_baselines[baseline.name].predicted[held_out] = baseline.predicted


def _notes(card: Card, num_folds: int, num_untrained: int, settings: int, *, some_unknown: bool) -> list[str]:
    chosen = f"; each fold chose its members among {settings} settings" if settings > 1 else ""
    found = [
        f"cross-validation: new models trained in {num_folds} folds on the store's features, as this run's "
        f"was{chosen}. This evaluates the training method, not the weights of this run"
    ]
    if any(stage.get("stage") == "finetune" and stage.get("kept") for stage in card.stages):
        found.append("the run's encoder was fine-tuned; folds use the store's features, without fine-tuning")
    if num_untrained:
        found.append(
            f"{num_untrained} of {num_folds} folds could not be trained: their training part has only one "
            "class"
        )
    if some_unknown:
        found.append(
            "clips without a subject are grouped by video: the same subject may be in the training part and "
            "in the held-out part of a fold"
        )
    return found
