"""A new threshold or abstain band for a run, chosen on its own validation clips only."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from features.cli import UserError
from features.store.table import groups_of
from seqmodel.evaluation.context import EvalContext, open_context
from seqmodel.metrics.calibration import (
    Calibration,
    abstain_band,
    probabilities,
    refit_calibration,
    require_threshold,
)
from seqmodel.runs.card import calibration_stage
from seqmodel.runs.predict import held_out_folds, predict_rows


def training_store_path(context: EvalContext) -> Path:
    """Path of the store with the run's own clips: the evaluated store, unless that is another data set."""
    return Path(context.card.store if context.is_other_data else context.store.path)


def choose_on_validation(context: EvalContext, new_metric: str, abstain: float) -> Calibration:
    """The calibration for another threshold metric ('' = the run's own), with another abstain band (0 = the
    run's own, moved along with the threshold).

    Raises UserError if the run is calibrated for a new domain, or the validation clips have one class only.
    """
    card, training_store = context.card, training_store_path(context)
    task, names = card.labelling.task, card.labelling.names
    if new_metric:
        require_threshold(task)
    if (stage := calibration_stage(card)) is not None:
        raise UserError(
            f"{context.run} is calibrated for {stage['store']}; --threshold-metric and --abstain would "
            "replace that by a calibration on the run's own validation clips. Use `calibrate "
            "--threshold-metric` instead"
        )
    parts = [open_context(context.run, card, training_store, split) for split in ("train", "val")]
    store, table = parts[0].store, parts[0].table
    rows, labels = (
        np.concatenate([getattr(part.eval_subset, name) for part in parts]) for name in ("rows", "labels")
    )
    folds = held_out_folds(context.run, store, rows)
    usable = (folds >= 0) & (table.state[rows] == 1)
    rows, labels, folds = rows[usable], labels[usable], folds[usable]
    logits, measured = predict_rows(context.run, card, store, card.labelling, rows, folds=folds)
    logits, labels = logits[measured], labels[measured]
    groups = groups_of(table, rows)[measured]
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"the {len(labels)} validation clips with a face in {training_store} have one class only: "
            "a threshold needs both classes"
        )
    threshold_metric = new_metric or card.calibration.threshold_metric
    chosen = refit_calibration(
        card.calibration,
        logits,
        labels,
        task,
        threshold_metric=threshold_metric,
        label_names=names,
        groups=groups,
    )
    if not abstain:
        return chosen
    band = abstain_band(probabilities(logits, task, chosen), task, chosen.threshold, abstain)
    return replace(chosen, abstain=band)
