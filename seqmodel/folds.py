"""evaluate --folds K|loso: for few people. Refits a head in each fold and pools what is said about those
left out.

Nested: in each fold the people who are left out choose nothing. Of the others, some are held back to choose
among a few fixed heads, to stop early, and to fit temperature and threshold. The run lends its question
(labels, streams, store), not its tuned head, because that head was chosen by looking at people who are left
out here.

It knows nothing about searches, crops or reports. Features are the store's: the encoder stays as the store
has it.

Shapes: N clips, O logits, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from features.datasets import Samples, load_samples, subset
from features.door import progress
from features.splits import grouped_folds, leave_one_subject_out
from seqmodel.calibration import Calibration, decide, fit_calibration
from seqmodel.config import EvaluateArgs, HeadConfig, TrainConfig
from seqmodel.evaluate import (
    Asked,
    ask,
    count_opening,
    face_coverage,
    map_of,
    write_judgement,
)
from seqmodel.figures import say_figures, summary
from seqmodel.judge import Predictions, Yardstick, judge
from seqmodel.predictions import inputs_of
from seqmodel.rest import with_baseline
from seqmodel.run import Card, load_card
from seqmodel.training import fit, fit_best, predict_logits, resolve_metric
from seqmodel.yardsticks import identity, logistic, majority, shares

CANDIDATES = (
    HeadConfig(hidden=64, projection=64, pooling="mean"),
    HeadConfig(hidden=64, projection=64, pooling="attention"),
    HeadConfig(hidden=32, projection=32, pooling="max", dropout=0.5),
)
"""Heads that each fold chooses among; fixed here, so that no person's clips had a say in them."""
BATCH_SIZE, LEARNING_RATE = 8, 2e-3
STEPS = 400
"""A handful of people are a handful of batches: epochs are counted so that a head sees about this many."""
INNER_FOLDS = 4
"""One in four of a fold's training people chooses and calibrates."""


@dataclass(frozen=True)
class FoldAnswer:
    """What one fold says about the clips that it left out."""

    places: np.ndarray
    """(n,) places among the judged clips."""
    logits: np.ndarray
    probabilities: np.ndarray
    said: np.ndarray
    candidate: int
    """Which of CANDIDATES it chose."""
    training_shares: np.ndarray


def evaluate_folds(args: EvaluateArgs) -> tuple[dict[str, Any], int]:
    """The door's body with --folds: (summary, exit code). ValueError for a wrong K or too few people."""
    card = load_card(args.run)
    asked = every_clip(ask(args.run, card, args.store, args.split, args.map), args.folds)
    asked = replace(asked, card=count_opening(asked, card))
    with map_of(asked, args) as embedding_map:
        predictions, yardsticks, notes = answer_all(asked, args)
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
        folder = args.run / asked.split
        folder.mkdir(parents=True, exist_ok=True)
        report = write_judgement(folder, judgement, asked, args, embedding_map, with_network=False)
    say_figures(judgement, report)
    return summary(judgement, report), 0


def every_clip(asked: Asked, folds: str) -> Asked:
    """All labelled clips of the store, whatever side they stood on; failed ones too."""
    rows = np.flatnonzero((asked.labels >= 0) & (asked.table.state != 0))
    found = replace(asked.population, rows=rows, labels=asked.labels[rows], how="every labelled clip")
    return replace(asked, population=found, split=f"folds-{folds}")


def answer_all(asked: Asked, args: EvaluateArgs) -> tuple[Predictions, list[Yardstick], list[str]]:
    """Out-of-fold predictions of every clip, yardsticks of the same folds, and what readers have to know."""
    card, rows, labels = asked.card, asked.population.rows, asked.population.labels
    num_classes = len(card.labelling.names)
    subjects = asked.table.subject[rows]
    failed = asked.table.state[rows] == 2
    samples = load_samples(asked.store, card.labelling, rows, inputs_of(card))
    samples = with_baseline(samples, card.baseline, asked.store)
    measured = ~failed & np.any([np.asarray(mask).any(axis=1) for mask in samples.valid.values()], axis=0)
    folds = split_folds(args.folds, labels, subjects, args.seed)
    logits = np.full((len(rows), card.num_outputs), np.nan, np.float32)
    p = np.zeros((len(rows), num_classes))
    said = np.zeros(len(rows), np.int64)
    rivals: dict[str, Yardstick] = {}
    chosen = []
    with progress("folds") as bar:
        task = bar.add_task("refitting", total=len(folds))
        for number, (learn, left_out) in enumerate(folds):
            answer = answer_fold(card, samples, measured, learn, left_out, args.seed + number)
            chosen.append(answer.candidate)
            p[left_out], said[left_out] = answer.training_shares, int(answer.training_shares.argmax())
            p[answer.places], said[answer.places] = answer.probabilities, answer.said
            logits[answer.places] = answer.logits
            _add_rivals(rivals, card, samples, measured, learn, left_out, answer)
            bar.advance(task)
    reasons = np.where(failed, "failed", np.where(measured, "", "no face"))
    predictions = Predictions(
        clip_ids=asked.table.clip_id[rows],
        subjects=subjects,
        labels=labels,
        logits=logits,
        probabilities=p,
        said=said,
        unsure=np.zeros(len(rows), bool),
        reasons=reasons,
        coverage=face_coverage(asked.store, rows),
        slices={name: column[rows] for name, column in asked.table.slices.items()},
    )
    known = identity(labels, subjects, shares(labels, num_classes), seed=args.seed)
    yardsticks = [*rivals.values(), *([known] if known is not None else [])]
    return predictions, yardsticks, _notes(len(folds), chosen, bool((subjects == "").any()))


def split_folds(
    folds: str, labels: np.ndarray, subjects: np.ndarray, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(learned from, left out) places for `loso` or a number. Raises ValueError for anything else."""
    if folds == "loso":
        return leave_one_subject_out(subjects)
    if not folds.isdigit():
        raise ValueError(f"--folds is a number or loso, got {folds!r}")
    return grouped_folds(labels, subjects, int(folds), seed)


def answer_fold(
    card: Card, samples: Samples, measured: np.ndarray, learn: np.ndarray, left_out: np.ndarray, seed: int
) -> FoldAnswer:
    """Choose, fit and calibrate on `learn`, and answer `left_out`; nothing of the latter is seen before.

    Every fold is scaled, so that probabilities of different folds can be ranked together.
    """
    task, names = card.labelling.task, card.labelling.names
    learn = learn[measured[learn]]
    prior = shares(samples.labels[learn], len(names))
    places = left_out[measured[left_out]]
    inner = _inner_split(samples, learn, seed)
    if inner is None or len(places) == 0:
        empty = np.zeros(0, np.int64)
        return FoldAnswer(empty, np.zeros((0, card.num_outputs)), np.zeros((0, len(names))), empty, -1, prior)
    train, choose = (subset(samples, part) for part in inner)
    best: tuple[float, int, Any, np.ndarray] | None = None
    for k, head_config in enumerate(CANDIDATES):
        model, score, choose_logits = _fit_head(head_config, card, train, choose, seed)
        if best is None or score > best[0]:
            best = (score, k, model, choose_logits)
    assert best is not None
    calibration: Calibration = fit_calibration(
        best[3], choose.labels, task, goal=card.calibration.goal, label_names=names, always_scale=True
    )
    logits = predict_logits(best[2], subset(samples, places))
    decision = decide(logits, task, calibration)
    return FoldAnswer(places, logits, decision.probabilities, decision.label, best[1], prior)


def training_config(num_clips: int) -> TrainConfig:
    """About STEPS steps, in 12 to 40 epochs."""
    epochs = int(np.clip(np.ceil(STEPS * BATCH_SIZE / num_clips), 12, 40))
    return TrainConfig(epochs=epochs, patience=max(4, epochs // 4), batch_size=BATCH_SIZE, lr=LEARNING_RATE)


def _inner_split(samples: Samples, learn: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(train, choose) places among `learn`, by person; None where no class is left to tell apart."""
    labels, subjects = samples.labels[learn], samples.subjects[learn]
    people = len(np.unique(subjects[subjects != ""])) + int((subjects == "").sum())
    if people < 2 or len(np.unique(labels)) < 2:
        return None
    folds = grouped_folds(labels, subjects, min(INNER_FOLDS, people), seed)
    # The part that chooses should see every class, where one does.
    kept, held = max(folds, key=lambda fold: (len(np.unique(labels[fold[1]])), -len(fold[1])))
    return learn[kept], learn[held]


def _fit_head(
    config: HeadConfig, card: Card, train: Samples, choose: Samples, seed: int
) -> tuple[Any, float, np.ndarray]:
    """(head with its best epoch's weights, score, logits of `choose`)."""
    from seqmodel.heads import build_head

    task, classes = card.labelling.task, len(card.labelling.names)
    config = replace(config, shared_thresholds=task == "ordinal")
    head = build_head(config, card.dims, card.num_outputs, seed=seed)
    head.set_statistics(train)
    metric: Any = resolve_metric("auto", task)
    training = training_config(len(train))
    epochs = fit(head, train, choose, training, task=task, num_classes=classes, seed=seed, metric=metric)
    fitted = fit_best(head, epochs, training.patience)
    score = fitted.best.val_score if np.isfinite(fitted.best.val_score) else -fitted.best.val_loss
    return head, float(score), fitted.best.val_logits


def _add_rivals(
    rivals: dict[str, Yardstick],
    card: Card,
    samples: Samples,
    measured: np.ndarray,
    learn: np.ndarray,
    left_out: np.ndarray,
    answer: FoldAnswer,
) -> None:
    """Answer the fold by majority and logistic regression too, and write it into the pooled yardsticks."""
    prior, inside = answer.training_shares, measured[left_out]
    found = [majority(prior, len(left_out), card.labelling.names)]
    learn = learn[measured[learn]]
    if len(np.unique(samples.labels[learn])) > 1 and inside.any():
        judged = subset(samples, left_out[inside])
        found += [logistic(subset(samples, learn), judged, stream, inside, prior) for stream in card.dims]
    for part in found:
        pooled = rivals.get(part.name)
        if pooled is None:
            p = np.tile(prior, (len(measured), 1))
            pooled = replace(part, probabilities=p, said=p.argmax(axis=1).astype(np.int64))
            rivals[part.name] = pooled
        pooled.probabilities[left_out] = part.probabilities
        pooled.said[left_out] = part.said


def _notes(num_folds: int, chosen: Sequence[int], some_unknown: bool) -> list[str]:
    counts = ", ".join(f"head {k + 1} in {chosen.count(k)}" for k in sorted(set(chosen)) if k >= 0)
    found = [
        f"out-of-fold: {num_folds} folds refitted on the store's features ({counts}); "
        "this judges the recipe, not the weights of this run"
    ]
    if some_unknown:
        found.append(
            "clips without a subject stand for themselves: their person may be on both sides of a fold"
        )
    return found
