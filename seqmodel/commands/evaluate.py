"""python -m seqmodel evaluate: a run, judged on a split, with its report.

Opens the split deliberately (test is counted in the card and in the store's ledger), asks the model and what
costs nothing, and writes metrics.json, predictions.csv, plots/, report.html and MODEL_CARD.md into the run;
another data set gets a folder of its own below it. The threshold is chosen on validation and read from the
card, never on the split that is judged.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.cli import say, warn
from seqmodel.commands.export import renew_exports
from seqmodel.config import EvaluateArgs
from seqmodel.evaluation.context import (
    Asked,
    Refitted,
    Training,
    ask,
    count_opening,
    face_coverage,
    folder_of,
    predict,
    training_clips,
    yardsticks,
)
from seqmodel.evaluation.evaluator import Judgement, judge
from seqmodel.evaluation.folds import answer_all, every_clip
from seqmodel.evaluation.metrics_json import figures_json, summary, write_metrics
from seqmodel.metrics.calibration import (
    abstain_band,
    fit_calibration,
    moved_band,
    probabilities,
    require_threshold,
)
from seqmodel.metrics.predictions import Predictions
from seqmodel.reporting.console import say_figures
from seqmodel.reporting.content import tell
from seqmodel.reporting.html import write_model_card, write_report
from seqmodel.reporting.umap_projection import Map, map_meanwhile
from seqmodel.runs.card import Card, calibration_stage, load_card, save_card, write_text
from seqmodel.runs.predict import PREDICTIONS, predict_rows, write_predictions
from seqmodel.runs.writer import put_calibration


def evaluate(args: EvaluateArgs) -> tuple[dict[str, Any], int]:
    """The door's body: (summary, exit code). Raises ValueError for what a user can mend."""
    if args.folds:
        return evaluate_folds(args)
    asked = open_split(args)
    with map_of(asked, args) as embedding_map:
        judgement = judge_split(asked, args)
        folder = folder_of(asked)
        folder.mkdir(parents=True, exist_ok=True)
        report = write_judgement(folder, judgement, asked, args, embedding_map)
    say_figures(judgement, report)
    say_measured(judgement)
    return summary(judgement, report), 0


def evaluate_folds(args: EvaluateArgs) -> tuple[dict[str, Any], int]:
    """The command's body with --folds: (summary, exit code). ValueError for a wrong K, too few people or an
    abstain band, before the opening is counted."""
    if args.abstain:
        raise ValueError("--abstain is a band of the run's own network, which --folds does not judge")
    card = load_card(args.run)
    asked = every_clip(ask(args.run, card, args.store, args.split, args.map), args.folds)
    with map_of(asked, args) as embedding_map:
        predictions, yardsticks, refitted, notes = answer_all(asked, args)
        asked = replace(asked, card=count_opening(asked, card))
        judgement = judge(
            predictions,
            yardsticks,
            split=asked.split,
            label_names=card.labelling.names,
            task=card.labelling.task,
            rounds=args.rounds,
            seed=args.seed,
            warnings=notes,
        )
        folder = folder_of(asked) / asked.split
        folder.mkdir(parents=True, exist_ok=True)
        report = write_judgement(folder, judgement, asked, args, embedding_map, refitted=refitted)
    say_figures(judgement, report)
    say_measured(judgement)
    return summary(judgement, report), 0


def say_measured(judgement: Judgement) -> None:
    """The ranking without the clips that were not measured, where there are such, of two classes."""
    if judgement.measured_figures is not None and np.isfinite(judgement.measured_figures["auroc"].value):
        auroc, count = judgement.measured_figures["auroc"], int(judgement.predictions.measured.sum())
        between = f"{auroc.low:.3f} to {auroc.high:.3f}"
        say(f"on the {count} measured clips alone: AUROC {auroc.value:.3f} ({between})")


def map_of(asked: Asked, args: EvaluateArgs) -> AbstractContextManager[Map | None]:
    """The map of embeddings in the making, where one was asked for."""
    if not args.umap:
        return nullcontext()
    rows = asked.population.rows
    return map_meanwhile(asked.store, rows, face_coverage(asked.store, rows), args.seed)


def judge_split(asked: Asked, args: EvaluateArgs) -> Judgement:
    """Predict the clips, and judge that beside the yardsticks."""
    card, training, predictions = asked.card, training_clips(asked), predict(asked)
    seen = np.intersect1d(predictions.subjects, training.subjects)
    seen = seen[seen != ""] if asked.split == "test" else seen[:0]
    warnings = [*card.warnings, *_population_warnings(asked), *_training_warnings(asked, training)]
    if len(seen):
        warnings.append(
            f"{len(seen)} of the people judged have training clips too, as the store names them now "
            f"({', '.join(map(str, seen[:5]))}{', …' if len(seen) > 5 else ''}): figures are too good"
        )
    judgement = judge(
        predictions,
        yardsticks(asked, predictions, training, args.seed),
        split=asked.split,
        label_names=card.labelling.names,
        task=card.labelling.task,
        rounds=args.rounds,
        seed=args.seed,
        warnings=warnings,
    )
    return replace(judgement, is_unseen=asked.split == "test" and not len(seen))


def open_and_predict(args: EvaluateArgs) -> tuple[Asked, Predictions]:
    """Open the split, counting it where it is test, and predict its clips."""
    asked = open_split(args)
    return asked, predict(asked)


def open_split(args: EvaluateArgs) -> Asked:
    """Open the split, counting it where it is test."""
    asked = ask(args.run, load_card(args.run), args.store, args.split, args.map)
    card = _calibrated(asked, args)
    if args.split == "test" or asked.is_other_data:
        card = count_opening(asked, card)
    return replace(asked, card=card)


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
        warn(f"{run} was changed while it was judged: its card does not take these figures, judge it again")
        return
    save_card(run, replace(card, metrics=dict(card.metrics) | metrics))


def _calibrated(asked: Asked, args: EvaluateArgs) -> Card:
    """The card, with another goal's threshold or an abstain band where asked for, from validation alone."""
    if not args.threshold_for and not args.abstain:
        return asked.card
    card = asked.card
    if args.threshold_for:
        require_threshold(card.labelling.task)
    if (stage := calibration_stage(card)) is not None:
        raise ValueError(
            f"{asked.run} is calibrated for {stage['store']}; --threshold-for and --abstain would choose on "
            "its own validation again. calibrate takes --threshold-for, too"
        )
    # The store at hand, wherever it was moved to, unless it is another data set.
    home = Path(card.store if asked.is_other_data else asked.store.path)
    validation = ask(asked.run, card, home, "val")
    logits, measured = predict_rows(
        asked.run, card, validation.store, card.labelling, validation.population.rows
    )
    goal = args.threshold_for or card.calibration.goal
    labels = validation.population.labels[measured]
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"the {len(labels)} measured validation clips in {home} are of one class: nothing can be chosen "
            "on them"
        )
    calibration = fit_calibration(
        logits[measured], labels, card.labelling.task, goal=goal, label_names=card.labelling.names
    )
    calibration = replace(calibration, abstain=moved_band(card.calibration, calibration, card.labelling.task))
    if args.abstain:
        p = probabilities(logits[measured], card.labelling.task, calibration)
        band = abstain_band(p, card.labelling.task, calibration.threshold, args.abstain)
        calibration = replace(calibration, abstain=band)
    if calibration == card.calibration:
        return card
    stage = {"stage": "threshold", "command": args.command}
    calibrated = replace(card, calibration=calibration, stages=(*card.stages, stage))
    renew_exports(asked.run, put_calibration(asked.run, calibrated, home))
    return load_card(asked.run)


def _population_warnings(asked: Asked) -> list[str]:
    found = []
    if asked.population.pending:
        found.append(
            f"{asked.population.pending} labelled clips of this split are not extracted yet and do not count"
        )
    if asked.is_other_data:
        found.append(f"{asked.population.how}")
        named = int(np.isin(asked.table.clip_id, list(asked.sides)).sum())
        if named:
            found.append(
                f"{named} of its clips go by the names of this run's clips, but their people have other "
                "names; if it is the run's own data under new names, training clips are judged here"
            )
    return found


def _training_warnings(asked: Asked, training: Training) -> list[str]:
    """What clips that the run has learned from or chosen by are worth, and where there are none to compare
    with."""
    found = []
    if asked.split == "train":
        found.append("the run has learned from these clips: figures say what it remembers")
    if asked.split == "val":
        found.append("these clips have chosen this head, and its threshold: figures are too good")
    return found
