"""The log of evaluations on test, in a run's card and in the store."""

from dataclasses import replace
from datetime import UTC, datetime

from features.cli import log_warning
from seqmodel.evaluation.context import EvalContext
from seqmodel.runs.card import Card, load_card, save_card


def log_test_evaluation(context: EvalContext, card: Card) -> Card:
    """Log this evaluation on test in the run's card file and in the store; returns `card` with it."""
    time_utc = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    now = load_card(context.run)
    evaluations = (*now.test_evaluations, time_utc)
    save_card(context.run, replace(now, test_evaluations=evaluations))
    card = replace(card, test_evaluations=evaluations)
    try:
        context.store.record_test_evaluation(context.run.name)
    except (OSError, ValueError) as error:  # object storage raises the latter
        log_warning(
            f"the store's log of test evaluations could not be written ({error}); this evaluation is logged "
            "in the run's card only"
        )
    return card
