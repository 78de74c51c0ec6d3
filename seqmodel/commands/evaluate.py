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
    Asked,
    Refitted,
    ask,
    count_opening,
    face_coverage,
    folder_of,
    predict,
    training_clips,
    yardsticks,
)
from seqmodel.evaluation.evaluator import Judgement, Yardstick, judge
from seqmodel.evaluation.folds import answer_all, every_clip
from seqmodel.evaluation.metrics_json import figures_json, summary, write_metrics
from seqmodel.evaluation.recalibration import choose_on_validation, home_of
from seqmodel.metrics.predictions import Predictions
from seqmodel.reporting.console import say_figures
from seqmodel.reporting.content import tell
from seqmodel.reporting.html import write_model_card, write_report
from seqmodel.reporting.umap_projection import Map, map_meanwhile
from seqmodel.runs.card import Card, load_card, save_card, write_text
from seqmodel.runs.predict import PREDICTIONS, write_predictions
from seqmodel.runs.writer import put_calibration


def evaluate(args: EvaluateArgs) -> tuple[dict[str, Any], int]:
    """The door's body: (summary, exit code). Raises ValueError for what a user can mend."""
    if args.folds and args.abstain:
        raise ValueError("--abstain is a band of the run's own network, which --folds does not judge")
    if not args.folds:
        renew_threshold(args)
    asked = find_clips(args) if args.folds else open_split(args)
    with map_of(asked, args) as embedding_map:
        if args.folds:
            asked, judgement, refitted = judge_folds(asked, args)
            folder = folder_of(asked) / asked.split
        else:
            judgement, refitted = judge_split(asked, args), None
            folder = folder_of(asked)
        folder.mkdir(parents=True, exist_ok=True)
        report = write_judgement(folder, judgement, asked, args, embedding_map, refitted=refitted)
    say_figures(judgement, report)
    say_measured(judgement)
    return summary(judgement, report), 0


def renew_threshold(args: EvaluateArgs) -> None:
    """Choose another goal's threshold or an abstain band on validation, where asked for, and put it into the
    run."""
    if not args.threshold_for and not args.abstain:
        return
    asked = find_clips(args)
    card, calibration = asked.card, choose_on_validation(asked, args.threshold_for, args.abstain)
    if calibration != card.calibration:
        stage = {"stage": "threshold", "command": args.command}
        calibrated = replace(card, calibration=calibration, stages=(*card.stages, stage))
        renew_exports(asked.run, put_calibration(asked.run, calibrated, home_of(asked)))


def find_clips(args: EvaluateArgs) -> Asked:
    """The clips to judge, found but not yet opened; with --folds every labelled one."""
    asked = ask(args.run, load_card(args.run), args.store, args.split, args.map)
    return every_clip(asked, args.folds) if args.folds else asked


def open_split(args: EvaluateArgs) -> Asked:
    """Open the split, counting it where it is test."""
    asked = find_clips(args)
    is_counted = args.split == "test" or asked.is_other_data
    return replace(asked, card=count_opening(asked, asked.card)) if is_counted else asked


def judge_folds(asked: Asked, args: EvaluateArgs) -> tuple[Asked, Judgement, Refitted]:
    """Refit heads in each fold, judge what they say, and count the opening.

    Returns what was asked, with that count, the judgement, and what there is to tell about the heads.

    Raises ValueError for a wrong K or too few people, before the opening is counted.
    """
    predictions, yardsticks, refitted, notes = answer_all(asked, args)
    asked = replace(asked, card=count_opening(asked, asked.card))
    return asked, _judged(asked, predictions, yardsticks, args, notes), refitted


def say_measured(judgement: Judgement) -> None:
    """The ranking without the clips that were not measured, where there are such, of two classes."""
    if judgement.measured_figures is not None and np.isfinite(judgement.measured_figures["auroc"].value):
        auroc, count = judgement.measured_figures["auroc"], int(judgement.predictions.measured.sum())
        echo(
            f"on the {count} measured clips alone: AUROC {auroc.value:.3f} "
            f"({auroc.low:.3f} to {auroc.high:.3f})"
        )


def map_of(asked: Asked, args: EvaluateArgs) -> AbstractContextManager[Map | None]:
    """The map of embeddings in the making, where one was asked for."""
    if not args.umap:
        return nullcontext()
    rows = asked.population.rows
    return map_meanwhile(asked.store, rows, face_coverage(asked.store, rows), args.seed)


def judge_split(asked: Asked, args: EvaluateArgs) -> Judgement:
    """Predict the clips, and judge that beside the yardsticks."""
    training, predictions = training_clips(asked), predict(asked)
    seen = np.intersect1d(predictions.subjects, training.subjects)
    seen = seen[seen != ""] if asked.split == "test" else seen[:0]
    warnings = [*asked.card.warnings, *_population_warnings(asked)]
    if asked.split == "train":
        warnings.append("the run has learned from these clips: figures say what it remembers")
    if asked.split == "val":
        warnings.append("these clips have chosen this head, and its threshold: figures are too good")
    if len(seen):
        warnings.append(
            f"{len(seen)} of the people judged have training clips too, as the store names them now "
            f"({', '.join(map(str, seen[:5]))}{', …' if len(seen) > 5 else ''}): figures are too good"
        )
    judgement = _judged(
        asked, predictions, yardsticks(asked, predictions, training, args.seed), args, warnings
    )
    return replace(judgement, is_unseen=asked.split == "test" and not len(seen))


def _judged(
    asked: Asked,
    predictions: Predictions,
    beside: Sequence[Yardstick],
    args: EvaluateArgs,
    warnings: Sequence[str],
) -> Judgement:
    return judge(
        predictions,
        beside,
        split=asked.split,
        label_names=asked.card.labelling.names,
        task=asked.card.labelling.task,
        rounds=args.rounds,
        seed=args.seed,
        warnings=warnings,
    )


def open_and_predict(args: EvaluateArgs) -> tuple[Asked, Predictions]:
    """Open the split with the threshold that is asked for, counting it where it is test, and predict."""
    renew_threshold(args)
    asked = open_split(args)
    return asked, predict(asked)


def write_judgement(
    folder: Path,
    judgement: Judgement,
    asked: Asked,
    args: EvaluateArgs,
    embedding_map: Map | None,
    *,
    refitted: Refitted | None = None,
) -> Path:
    """Every file of an evaluation, each written atomically; returns the report's path.

    Pages about training or validation clips get a folder of their own, so that report.html and the model
    card are about test. The run's network is asked once more, for importance and the hardest clips, unless
    `refitted` heads were judged in its place.
    """
    metrics = figures_json(judgement)
    write_metrics(folder / "metrics.json", metrics)
    write_predictions(folder / PREDICTIONS, judgement.predictions, judgement.label_names, judgement.split)
    card = replace(asked.card, metrics=dict(asked.card.metrics) | metrics)
    if not asked.is_other_data:
        _keep_metrics(args.run, asked.card, metrics)
    if judgement.split in ("train", "val"):
        folder = folder / judgement.split
        folder.mkdir(exist_ok=True)
    asked = replace(asked, card=card)
    story = tell(folder, judgement, asked, args, embedding_map, refitted=refitted)
    write_text(folder / "literature.csv", story.literature.csv)
    write_report(folder / "report.html", judgement, card, story)
    write_model_card(folder / "MODEL_CARD.md", judgement, card, story)
    return folder / "report.html"


def _keep_metrics(run: Path, judged: Card, metrics: dict[str, Any]) -> None:
    """Add figures to the card as it is now, unless the run became another one while it was judged."""
    card = load_card(run)
    if (card.calibration, card.stages) != (judged.calibration, judged.stages):
        log_warning(
            f"{run} was changed while it was judged: its card does not take these figures, judge it again"
        )
        return
    save_card(run, replace(card, metrics=dict(card.metrics) | metrics))


def _population_warnings(asked: Asked) -> list[str]:
    found = []
    if asked.population.pending:
        found.append(
            f"{asked.population.pending} labelled clips of this split are not extracted yet and do not count"
        )
    if asked.is_other_data:
        found.append(asked.population.how)
        named = int(np.isin(asked.table.clip_id, list(asked.sides)).sum())
        if named:
            found.append(
                f"{named} of its clips go by the names of this run's clips, but their people have other "
                "names; if it is the run's own data under new names, training clips are judged here"
            )
    return found
