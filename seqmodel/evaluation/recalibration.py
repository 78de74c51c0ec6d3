"""Another threshold, or an abstain band, for a run: chosen on its own validation clips, never on the judged
ones.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from seqmodel.evaluation.context import EvalContext, open_context
from seqmodel.metrics.calibration import (
    Calibration,
    abstain_band,
    probabilities,
    refit_calibration,
    require_threshold,
)
from seqmodel.runs.card import calibration_stage
from seqmodel.runs.predict import predict_rows


def home_of(context: EvalContext) -> Path:
    """The store of the run's own clips: the one at hand, wherever it was moved to, unless it is another data
    set."""
    return Path(context.card.store if context.is_other_data else context.store.path)


def choose_on_validation(context: EvalContext, threshold_for: str, abstain: float) -> Calibration:
    """The calibration for another goal ('' keeps the run's), with another abstain band (0 moves the run's).

    Raises ValueError where the run is calibrated for a new place, or validation has nothing to choose on.
    """
    card, home = context.card, home_of(context)
    task, names = card.labelling.task, card.labelling.names
    if threshold_for:
        require_threshold(task)
    if (stage := calibration_stage(card)) is not None:
        raise ValueError(
            f"{context.run} is calibrated for {stage['store']}; "
            "--threshold-metric and --abstain would choose on "
            "its own validation again. calibrate takes --threshold-metric, too"
        )
    validation = open_context(context.run, card, home, "val")
    logits, measured = predict_rows(
        context.run, card, validation.store, card.labelling, validation.eval_subset.rows
    )
    logits, labels = logits[measured], validation.eval_subset.labels[measured]
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"the {len(labels)} measured validation clips in {home} are of one class: nothing can be chosen "
            "on them"
        )
    threshold_metric = threshold_for or card.calibration.threshold_metric
    chosen = refit_calibration(
        card.calibration, logits, labels, task, threshold_metric=threshold_metric, label_names=names
    )
    if not abstain:
        return chosen
    band = abstain_band(probabilities(logits, task, chosen), task, chosen.threshold, abstain)
    return replace(chosen, abstain=band)
