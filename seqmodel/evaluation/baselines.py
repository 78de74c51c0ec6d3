"""What a model has to beat: the majority, plain statistics of the features, and knowing who it is.

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
    """Always the commonest class `of` something; as probabilities, its (C,) shares."""
    largest = int(training_class_frequencies.argmax())
    return Baseline(
        name="majority",
        title="Majority class",
        description=f"Always says {label_names[largest]}, the commonest class of {of}.",
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
    """Logistic regression on mean and spread of a stream over time, learned from training clips.

    `evaluated` holds the clips where `measured` (N,) is true; the others get the (C,) training shares.
    """
    num_classes = len(training_class_frequencies)
    p = np.tile(training_class_frequencies, (len(measured), 1))
    p[measured] = logistic_probabilities(training, evaluated, stream, num_classes)
    return Baseline(
        name=f"logistic_{stream}",
        title=f"Logistic, {stream}",
        description="Logistic regression on the mean and spread of the "
        f"{stream} over a clip, blind to order.",
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
    """Each subject's mean label, seen on that subject's *other* clips; None where no subject is known.

    The clips are dealt at random into five parts, as a random split would do, and each part is answered from
    the other four (and from training clips of the same people, if there are any). With people kept apart no
    honest model can do this: it is the leak that a random split would have rewarded.
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
    # A person's own share, drawn towards the common one as far as people are alike (the mean of a Dirichlet
    # posterior). People who do not differ give a constant: their own other clips would only mislead.
    weight = own.sum(axis=1, keepdims=True)
    trust = weight * likeness / (weight * likeness + 1.0 - likeness)
    p = trust * own / np.maximum(weight, 1.0) + (1.0 - trust) * training_class_frequencies
    return Baseline(
        name="identity",
        title="Identity (leak)",
        description="Knows only who it is: each person's mean label on their other clips, "
        "as a random split would let it.",
        probabilities=p,
        predicted=p.argmax(axis=1).astype(np.int64),
        is_leak=True,
    )


def intraclass_correlation(labels: np.ndarray, subject_index: np.ndarray, num_classes: int) -> float:
    """How alike the labels of one subject's clips are, beyond chance: 0 (not at all) to .999 (one subject,
    one label).

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
    """(N, C) labels that each clip's subject has in training."""
    names, index = np.unique(subjects, return_inverse=True)
    at = np.searchsorted(names, training_subjects).clip(max=len(names) - 1)
    same = (names[at] == training_subjects) & (training_subjects != "") & (training_labels >= 0)
    counts = np.zeros((len(names), num_classes))
    np.add.at(counts, (at[same], training_labels[same]), 1.0)
    return counts[index]
