"""The log of evaluations on test, in a run's card and in the store."""

from dataclasses import replace
from datetime import UTC, datetime

from features.cli import UserError, log_warning
from seqmodel.evaluation.context import EvalContext
from seqmodel.runs.card import Card
from seqmodel.runs.writer import update_card


def log_test_evaluation(context: EvalContext, card: Card) -> Card:
    """Log this evaluation on test in the run's card file and in the store; returns `card` with it."""
    time_utc = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    now = update_card(
        context.run, lambda now: replace(now, test_evaluations=(*now.test_evaluations, time_utc))
    )
    card = replace(card, test_evaluations=now.test_evaluations)
    try:
        context.store.record_test_evaluation(context.run.name)
    except (OSError, UserError) as error:  # object storage raises the latter
        log_warning(
            f"the store's log of test evaluations could not be written ({error}); this evaluation is logged "
            "in the run's card only"
        )
    return card
