"""The methods paragraph of a report, to be pasted into a paper.

Its order is that of the methods items of TRIPOD+AI (Collins et al., BMJ 2024;385:e078378): data,
participants, outcome, predictors, sample size, design, model, analysis, software.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from features.store.data_statement import DataStatement, as_text
from seqmodel.config import MemberConfig
from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.reporting.text import TITLES, metrics_intro
from seqmodel.runs.card import Card


def methods_text(
    result: EvaluationResult,
    card: Card,
    statement: DataStatement,
    data_rows: Sequence[Mapping[str, Any]],
    num_trials: int,
    calibration: str,
) -> str:
    """What was done, in plain sentences; what the data statement does not say is "not stated".

    data_rows: clips and subjects of each subset. num_trials: finished trials of the search that chose the
    head. calibration: how the probabilities are calibrated, as sentences.
    """
    s = {name: as_text(value) for name, value in vars(statement).items()}
    people = f"recruitment: {s['recruitment']}; consent or ethics number: {s['consent']}"
    encoder, pixels = card.recipe.encoder, card.recipe.pixels
    window = f", from windows of {pixels.window_s:g} s at {pixels.fps:g} frames/s" if pixels else ""
    sizes = [f"{row['split']} {row['clips']} clips of {row['subjects']} subjects" for row in data_rows]
    return (
        f"Data: {s['name']} (version: {s['version']}; licence: {s['licence']}; camera: {s['camera']}; "
        f"language: {s['language']}). "
        f"Participants: {'none, the data are synthetic' if statement.synthetic else people}. "
        f"Outcome: {card.labelling.column}, with the classes {', '.join(card.labelling.names)} (what is "
        f"labelled: {s['labelled']}; raters: {s['raters']}; number of raters: {s['num_raters']}; "
        f"agreement: {s['agreement']}). "
        f"Predictors: {' and '.join(card.dims)} of the face (encoder: {encoder.name}, {encoder.weights})"
        f"{window}. Sample: {'; '.join(sizes)}. {_design(result, card, num_trials)} {calibration} "
        f"{metrics_intro(result)} "
        f"Software: {', '.join(f'{name} {version}' for name, version in card.versions.items())}."
    )


def _design(result: EvaluationResult, card: Card, num_trials: int) -> str:
    """The split, the head and the number of settings that were tried; or the folds and what each chooses
    from."""
    if (fold := result.predictions.fold) is not None:
        return (
            f"Design: nested cross-validation by {card.design.unit} in {fold.max()} folds; each fold makes "
            "the model again on its training clips, with the choice of settings."
        )
    metric = TITLES[card.metric][0] if card.metric in TITLES else card.metric
    stages = ", ".join(str(stage.get("stage")) for stage in card.stages if stage.get("kept", True))
    return (
        f"Design: {card.split_description}; evaluated on {result.split}. Model: mean of "
        f"{len(card.members)} members ({'; '.join(map(_member, card.members))}), each with {card.num_folds} "
        f"models fitted without one fold of people, seed {card.seed}, chosen by {metric} out of fold "
        f"(settings: {f'the best of {num_trials} trials of a search' if num_trials else 'no search'}; "
        f"stages: {stages or 'head'})."
    )


def _member(member: MemberConfig) -> str:
    """A member in a few words."""
    head, train = member.head, member.train
    if head.kind == "trees":
        return f"extremely randomised trees on window statistics of {member.stream}"
    return (
        f"{head.kind.upper()} on {member.stream} with {head.hidden} hidden units and {head.pooling} pooling, "
        f"trained with AdamW for {train.epochs} epochs"
    )
