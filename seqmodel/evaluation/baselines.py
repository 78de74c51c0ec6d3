"""Baselines of an evaluation: majority class, logistic regression, and subject identity.

Shapes: N clips, C classes.
"""

import numpy as np

from features.datasets import Samples
from seqmodel.evaluation.evaluator import Baseline
from seqmodel.evaluation.logistic import logistic_probabilities

NUM_PARTS = 5


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


def logistic(
    training: Samples,
    evaluated: Samples,
    stream: str,
    measured: np.ndarray,
    training_class_frequencies: np.ndarray,
) -> Baseline:
    """Logistic regression on a stream's mean and standard deviation over time, fitted on training clips.

    `evaluated` holds the clips where `measured` (N,) is true; the others get the (C,) class frequencies of
    training.
    """
    num_classes = len(training_class_frequencies)
    p = np.tile(training_class_frequencies, (len(measured), 1))
    p[measured] = logistic_probabilities(training, evaluated, stream, num_classes)
    return Baseline(
        name=f"logistic_{stream}",
        title=f"Logistic regression, {stream}",
        description=f"Logistic regression on the mean and standard deviation of the {stream} over a clip. "
        "It ignores temporal order.",
        probabilities=p,
        predicted=p.argmax(axis=1).astype(np.int64),
    )


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
