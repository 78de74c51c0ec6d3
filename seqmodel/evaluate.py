"""python -m seqmodel evaluate: a run, judged on a split, with its report.

Opens the split deliberately (test is counted in the card and in the store's ledger), asks the model and what
costs nothing, and writes metrics.json, predictions.csv, plots/, report.html and MODEL_CARD.md into the run;
another data set gets a folder of its own below it. The threshold is chosen on validation and read from the
card, never on the split that is judged.

It knows nothing about how any figure is computed or drawn.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.datasets import load_samples
from features.door import say, warn
from features.recipe import Part, differences
from features.splits import known_rows
from features.storage import place_of
from seqmodel.calibration import (
    Calibration,
    abstain_band,
    fit_calibration,
    moved_band,
    probabilities,
    require_threshold,
)
from seqmodel.config import EvaluateArgs
from seqmodel.embedding_map import Map, map_meanwhile
from seqmodel.figures import figures_json, say_figures, summary, write_metrics
from seqmodel.judge import Judgement, Predictions, Yardstick, judge, make_predictions
from seqmodel.options import options_of
from seqmodel.predictions import (
    PREDICTIONS,
    Population,
    clip_labels,
    population,
    predict_rows,
    write_predictions,
)
from seqmodel.report import write_model_card, write_report
from seqmodel.rest import with_baseline
from seqmodel.run import (
    Card,
    calibration_stage,
    calibrators_of,
    load_card,
    load_split,
    save_card,
    write_text,
)
from seqmodel.train import put_calibration
from seqmodel.yardsticks import identity, logistic, majority, shares

if TYPE_CHECKING:
    from features.store import ClipTable, FeatureStore
    from seqmodel.explain import Fall


STORE_NOTE = "store.txt"
"""In a folder below `cross`: the path of the store that it is about."""


@dataclass(frozen=True)
class Asked:
    """A run, a store, and the clips of a split: everything a judgement needs, read but not yet predicted."""

    run: Path
    card: Card
    store: "FeatureStore"
    table: "ClipTable"
    labels: np.ndarray
    """(all rows,) int64 class of every row, -1 = none."""
    sides: dict[str, tuple[str, str]]
    """The run's own split: clip_id -> (subject, side)."""
    known: np.ndarray
    """(all rows,) bool, which rows are clips of that split."""
    population: Population
    split: str
    is_other_data: bool
    """True where the store shares no clip with the run."""


def evaluate(args: EvaluateArgs) -> tuple[dict[str, Any], int]:
    """The door's body: (summary, exit code). Raises ValueError for what a user can mend."""
    if args.folds:
        from seqmodel.folds import evaluate_folds

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


def folder_of(asked: Asked) -> Path:
    """Where what is found belongs: the run, or for another data set a folder of its own below it, named after
    the store."""
    if not asked.is_other_data:
        return asked.run
    store, number = Path(asked.store.path), 1
    while True:
        folder = asked.run / "cross" / (store.stem if number == 1 else f"{store.stem}-{number}")
        note = folder / STORE_NOTE
        if not folder.exists():
            folder.mkdir(parents=True)
            write_text(note, f"{_whole(store)}\n")
        # One from before notes were kept is taken for this store's.
        if not note.is_file() or note.read_text(encoding="utf-8").strip() == _whole(store):
            return folder
        number += 1


def _whole(store: Path | str) -> str:
    """A store's path from the root, or its address."""
    folder = place_of(store).folder
    return str(store) if folder is None else str(folder.resolve())


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


def ask(run: Path, card: Card, store_path: Path | None, split: str, mapping: Sequence[str] = ()) -> Asked:
    """Open the store and find the clips. Raises ValueError when there is no store or no such clip."""
    from features.store import FeatureStore

    path = store_path or Path(card.store)
    folder = place_of(path).folder
    if folder is not None and not folder.exists():
        raise ValueError(f"no store at {path}" + ("" if store_path else "; say where it is with --store"))
    store = FeatureStore.open(path)
    table = store.table()
    labels = clip_labels(table, card.labelling, mapping)
    sides = load_split(run)
    known = known_rows(table, sides, is_home=_whole(path) == _whole(card.store))
    is_other = not known.any()
    found = population(table, labels, sides, split, known, calibrators_of(run, card))
    if len(found.rows) == 0:
        raise ValueError(f"store {path} has no extracted, labelled clip in the {split} split of run {run}")
    name = f"{path.stem}:{split}" if is_other else split
    return Asked(run, card, store, table, labels, sides, known, found, name, is_other)


def predict(asked: Asked) -> Predictions:
    """What the run says about the clips of the split, by its own calibration."""
    card, table, rows = asked.card, asked.table, asked.population.rows
    coverage = face_coverage(asked.store, rows)
    failed = table.state[rows] == 2
    logits = np.full((len(rows), card.num_outputs), np.nan, np.float32)
    measured = np.zeros(len(rows), bool)
    if (~failed).any():
        logits[~failed], measured[~failed] = predict_rows(
            asked.run, card, asked.store, card.labelling, rows[~failed]
        )
    reasons = np.where(measured, "", "no face")
    reasons = np.where(failed, [f"failed: {text}" for text in table.failure[rows]], reasons)
    return make_predictions(
        clip_ids=table.clip_id[rows],
        subjects=table.subject[rows],
        labels=asked.population.labels,
        logits=logits,
        reasons=reasons,
        coverage=coverage,
        slices={name: column[rows] for name, column in table.slices.items()} | {"source": table.source[rows]},
        task=card.labelling.task,
        calibration=card.calibration,
        training_shares=training_shares(asked, training_clips(asked)),
    )


def face_coverage(store: "FeatureStore", rows: np.ndarray) -> np.ndarray:
    """(N,) share of frames with a face; 0 where nothing was extracted. Of imported features, the share of a
    clip's own frames that lack no feature."""
    frames = store.read_frames(rows)
    seen = np.nan_to_num(frames[:, :, 5]) > 0
    if store.recipe.pixels is None:
        return np.asarray(seen.sum(axis=1) / np.maximum(np.isfinite(frames[:, :, 0]).sum(axis=1), 1))
    return np.asarray(seen.mean(axis=1), np.float64)


@dataclass(frozen=True)
class Refitted:
    """What there is to tell about heads of folds, which are judged in place of the run's network."""

    falls: Sequence["Fall"]
    """What shuffling each group of inputs costs them."""
    calibrations: Sequence[Calibration]
    """One a fold."""
    thresholds: np.ndarray
    """(N,) of the fold that answered each clip."""


@dataclass(frozen=True)
class Training:
    """The run's own training clips, wherever they are; none where their store cannot be opened."""

    store: "FeatureStore"
    rows: np.ndarray
    """(M,) rows of that store, extracted and labelled."""
    labels: np.ndarray
    """(M,) int64."""
    subjects: np.ndarray
    """(M,) str."""


def training_clips(asked: Asked) -> Training:
    """The clips on the run's training side: in the judged store, or for another data set in the run's home
    store."""
    store, table, labels = asked.store, asked.table, asked.labels
    home = _home(asked.card) if asked.is_other_data else store
    if home is not None and home is not store:
        store, table = home, home.table()
        labels = clip_labels(table, asked.card.labelling)
    # Where their store is gone: clips of another data set may go by their names.
    sides = asked.sides if home is not None else {}
    on_side = np.array([sides.get(str(c), ("", ""))[1] == "train" for c in table.clip_id], bool)
    rows = np.flatnonzero(on_side & (labels >= 0) & (table.state == 1))
    return Training(store, rows, labels[rows], table.subject[rows])


def _home(card: Card) -> "FeatureStore | None":
    from features.store import FeatureStore

    try:
        return FeatureStore.open(card.store)
    except (ValueError, OSError):
        return None


def training_shares(asked: Asked, training: Training) -> np.ndarray:
    """(C,) shares of the classes in training: of its clips, or where they are not here as the card has them,
    else equal shares."""
    if not len(training.labels) and asked.card.training_shares:
        return np.array(asked.card.training_shares)
    return shares(training.labels, len(asked.card.labelling.names))


def yardsticks(asked: Asked, predictions: Predictions, training: Training, seed: int) -> list[Yardstick]:
    """Majority, logistic regression on each stream that the store holds (read by the head or not), and where
    subjects are known identity, for the judged clips."""
    card, prior = asked.card, training_shares(asked, training)
    found = [majority(prior, len(predictions), card.labelling.names)]
    if len(np.unique(training.labels)) > 1 and predictions.measured.any():
        rows = asked.population.rows[predictions.measured]
        for stream in asked.store.streams:
            # Another encoder's embeddings mean something else.
            part: Part = "encoder" if stream == "embeddings" else "geometry"
            if stream in training.store.streams and not differences(
                training.store.recipe, asked.store.recipe, [part]
            ):
                learned, judged = (
                    with_baseline(load_samples(store, card.labelling, places, stream), card.baseline, store)
                    for store, places in ((training.store, training.rows), (asked.store, rows))
                )
                found.append(logistic(learned, judged, stream, predictions.measured, prior))
    known = identity(
        predictions.labels,
        predictions.subjects,
        prior,
        seed=seed,
        training_labels=training.labels,
        training_subjects=training.subjects,
    )
    return [*found, *([known] if known is not None else [])]


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
    from seqmodel.story import tell

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
    write_text(folder / "literature.tex", story.literature.latex + "\n")
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
    # As seqmodel.story finds them again.
    chosen = options_of(EvaluateArgs(args.run, threshold_for=args.threshold_for, abstain=args.abstain))
    stage = {"stage": "threshold", "options": chosen}
    put_calibration(asked.run, replace(card, calibration=calibration, stages=(*card.stages, stage)), home)
    return load_card(asked.run)


def count_opening(asked: Asked, card: Card) -> Card:
    """Count this opening of the test split, in the card as it is now and in the store's ledger; gives `card`
    with it."""
    time_utc = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    now = load_card(asked.run)
    openings = (*now.test_openings, time_utc)
    save_card(asked.run, replace(now, test_openings=openings))
    card = replace(card, test_openings=openings)
    try:
        asked.store.record_test_opening(asked.run.name)
    except (OSError, ValueError) as error:  # object storage says it with the latter
        warn(f"the store's ledger could not be written ({error}); the card counts this opening")
    return card


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
    if not len(training.labels) and not asked.card.training_shares:
        found.append(
            f"the run's training clips are not here ({asked.card.store}): nobody knows their commonest "
            "class, and the first stands for it"
        )
    return found
