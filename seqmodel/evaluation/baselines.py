"""Baselines of an evaluation: majority class, simple methods on statistics of clips, and subject identity.

Shapes: N clips, C classes.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np

from features.labels import Task
from seqmodel.evaluation.evaluator import Baseline
from seqmodel.evaluation.simple_methods import MAX_CLIPS, MAX_COLUMNS, METHODS, WIDEST, predict_simple

NUM_PARTS = 5
SIMPLE_TEXT = (
    "{} on statistics of {} over a clip: mean, standard deviation, minimum, quartiles, maximum, slope, mean "
    f"change, share of valid frames. A stream wider than {WIDEST} columns is reduced to {WIDEST} principal "
    f"components. Trees and boosting read {MAX_CLIPS:,} clips at most, boosting {MAX_COLUMNS} columns. "
    "Calibrated like the model, on training subjects."
)


def majority(
    training_class_frequencies: np.ndarray,
    num_clips: int,
    label_names: tuple[str, ...],
    *,
    of: str = "training",
) -> Baseline:
    """The most frequent class for every clip; the probabilities are the (C,) class frequencies.

    of: which clips the frequencies come from, for the description.
    """
    largest = int(training_class_frequencies.argmax())
    return Baseline(
        name="majority",
        title="Majority-class baseline",
        description=f"Always predicts {label_names[largest]}, the most frequent class of {of}.",
        probabilities=np.tile(training_class_frequencies, (num_clips, 1)),
        predicted=np.full(num_clips, largest, np.int64),
    )


def simple_baselines(
    train: Mapping[str, np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    evaluated: Mapping[str, np.ndarray],
    measured: np.ndarray,
    training_class_frequencies: np.ndarray,
    *,
    task: Task,
    label_names: tuple[str, ...],
    threshold_metric: str,
    seed: int,
) -> list[Baseline]:
    """Every method of METHODS on each stream and on all together; none where the training groups are too few.

    train and evaluated: `stream_statistics`. `evaluated` holds the clips where `measured` (N,) is true; the
    others get the (C,) class frequencies of training.
    """
    inputs = [(name, name, [name]) for name in train]
    inputs += [("both", "both streams", list(train))] * (len(train) > 1)
    found = []
    for method, (name, title, streams) in product(METHODS, inputs):
        x, target = (np.concatenate([part[s] for s in streams], axis=1) for part in (train, evaluated))
        decision = predict_simple(
            method,
            x,
            labels,
            groups,
            target,
            task=task,
            label_names=label_names,
            threshold_metric=threshold_metric,
            seed=seed,
        )
        if decision is not None:
            p = np.tile(training_class_frequencies, (len(measured), 1))
            predicted = p.argmax(axis=1).astype(np.int64)
            p[measured], predicted[measured] = decision.probabilities, decision.label
            text = SIMPLE_TEXT.format(METHODS[method], title)
            found.append(Baseline(f"{method}_{name}", f"{METHODS[method]}, {title}", text, p, predicted))
    return found


def identity(
    labels: np.ndarray,
    subjects: np.ndarray,
    training_class_frequencies: np.ndarray,
    *,
    seed: int,
    training_labels: np.ndarray | None = None,
    training_subjects: np.ndarray | None = None,
) -> Baseline | None:
    """Each subject's class frequencies on that subject's *other* clips; None if no subject is known.

    The clips are divided at random into five parts, as in a random split. Each part is predicted from the
    labels of the other four (and of the same subjects' training clips, if there are any). A model cannot use
    these labels when subjects are disjoint between train and test. So this baseline shows how much of the
    score a random split would give to recognising subjects (leakage).
    """
    known = subjects != ""
    if not known.any():
        return None
    num_classes = len(training_class_frequencies)
    part = np.random.default_rng(seed).permutation(len(labels)) % NUM_PARTS
    _, index = np.unique(subjects, return_inverse=True)
    counts = np.zeros((int(index.max()) + 1, NUM_PARTS, num_classes))
    np.add.at(counts, (index, part, labels), 1.0)
    own = (counts.sum(axis=1, keepdims=True) - counts)[index, part]
    if training_labels is not None and training_subjects is not None:
        own += _training_counts(subjects, training_labels, training_subjects, num_classes)
    own[~known] = 0.0
    likeness = intraclass_correlation(labels[known], index[known], num_classes)
    # A subject's class frequencies, shrunk towards those of training as far as subjects are alike (the mean
    # of a Dirichlet posterior). If subjects do not differ, the result is constant.
    weight = own.sum(axis=1, keepdims=True)
    trust = weight * likeness / (weight * likeness + 1.0 - likeness)
    p = trust * own / np.maximum(weight, 1.0) + (1.0 - trust) * training_class_frequencies
    return Baseline(
        name="identity",
        title="Subject-identity baseline (leakage check)",
        description="Uses the subject only, not the features: predicts from the labels of the subject's "
        "other clips. A random split by clip would make this possible.",
        probabilities=p,
        predicted=p.argmax(axis=1).astype(np.int64),
        is_leak=True,
    )


def intraclass_correlation(labels: np.ndarray, subject_index: np.ndarray, num_classes: int) -> float:
    """Intraclass correlation of the labels by subject: 0 (subjects do not differ) to .999 (each subject has
    one label only).

    The one-way analysis-of-variance estimate (Fleiss, "Statistical Methods for Rates and Proportions"),
    summed over classes. labels and subject_index are (N,) int.
    """
    _, index, size = np.unique(subject_index, return_inverse=True, return_counts=True)
    num_subjects, num_clips = len(size), len(labels)
    if num_subjects < 2 or num_clips <= num_subjects:
        return 0.0
    target = np.eye(num_classes)[labels]
    means = np.stack([np.bincount(index, target[:, k]) for k in range(num_classes)], axis=1) / size[:, None]
    between = (size[:, None] * (means - target.mean(axis=0)) ** 2).sum() / (num_subjects - 1)
    within = ((target - means[index]) ** 2).sum() / (num_clips - num_subjects)
    typical = (num_clips - (size**2).sum() / num_clips) / (num_subjects - 1)
    spread = between + (typical - 1.0) * within
    return float(np.clip((between - within) / spread, 0.0, 0.999)) if spread > 0 else 0.0


def _training_counts(
    subjects: np.ndarray, training_labels: np.ndarray, training_subjects: np.ndarray, num_classes: int
) -> np.ndarray:
    """(N, C) number of training clips of each clip's subject, by class."""
    names, index = np.unique(subjects, return_inverse=True)
    at = np.searchsorted(names, training_subjects).clip(max=len(names) - 1)
    same = (names[at] == training_subjects) & (training_subjects != "") & (training_labels >= 0)
    counts = np.zeros((len(names), num_classes))
    np.add.at(counts, (at[same], training_labels[same]), 1.0)
    return counts[index]
