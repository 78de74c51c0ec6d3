"""Baselines of a search: the majority class, and logistic regression on each stream's mean and standard
deviation over time.

N clips, T frames, D width of a stream, C classes.
"""

import numpy as np

from features.datasets import Samples
from seqmodel.metrics.classification import class_frequencies, score

REGULARISATION = 0.01
"""scikit-learn's C on standardised statistics: a thousand columns on a few hundred clips need strong
regularisation."""


def time_statistics(samples: Samples, stream: str, rows_at_once: int = 512) -> np.ndarray:
    """(N, 2 D) float32: mean and standard deviation of a stream over a clip's valid steps; zeros if there are
    none."""
    parts = []
    for start in range(0, len(samples), rows_at_once):
        x, valid, _ = samples.batch(np.arange(start, min(start + rows_at_once, len(samples))))
        keep = valid[stream].astype(np.float32)[..., None]
        values = np.where(keep > 0, x[stream].astype(np.float32), 0.0)
        count = np.maximum(keep.sum(axis=1), 1.0)
        mean = values.sum(axis=1) / count
        spread = np.sqrt((((values - mean[:, None]) * keep) ** 2).sum(axis=1) / count)
        parts.append(np.concatenate([mean, spread], axis=1))
    return np.concatenate(parts).astype(np.float32)


def logistic_probabilities(train: Samples, target: Samples, stream: str, num_classes: int) -> np.ndarray:
    """(len(target), C) probabilities of a class-weighted logistic regression on `time_statistics`, fitted on
    `train`."""
    from sklearn.linear_model import LogisticRegression

    known = train.labels >= 0
    statistics = time_statistics(train, stream)[known]
    mean, std = statistics.mean(axis=0), statistics.std(axis=0)
    std = np.where(std < 1e-6, 1.0, std)
    model = LogisticRegression(C=REGULARISATION, max_iter=300, class_weight="balanced")
    model.fit((statistics - mean) / std, train.labels[known])
    found = model.predict_proba((time_statistics(target, stream) - mean) / std)
    probabilities = np.zeros((len(target), num_classes))
    probabilities[:, model.classes_] = found
    return probabilities


def baseline_scores(train: Samples, val: Samples, num_classes: int, metric: str) -> dict[str, float]:
    """Validation score of each baseline by name: `majority`, `logistic_<stream>`."""
    majority = np.tile(class_frequencies(train.labels, num_classes), (len(val), 1))
    predicted = {"majority": majority} | {
        f"logistic_{stream}": logistic_probabilities(train, val, stream, num_classes) for stream in train.x
    }
    return {name: score(metric, val.labels, probabilities) for name, probabilities in predicted.items()}
