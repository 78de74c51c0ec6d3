"""Frozen simple methods on statistics of windows: what a model is compared with, in every version.

Nothing here changes any more, and nothing is imported from the packages, so that figures of different
versions can be compared. N windows, T frames, D columns, C classes.
"""

import warnings

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

METHODS = ("logistic", "trees", "boosting")
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Values of scikit-learn's C, of which inner folds by group choose one."""


def statistics(x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(N, 9 D + 1): mean, standard deviation, minimum, quartiles, maximum, slope and mean absolute change of
    the valid frames by column, and the share of valid frames. x: (N,T,D); valid: (N,T) bool."""
    found = np.zeros((len(x), 9 * x.shape[2] + 1))
    for index, (window, mask) in enumerate(zip(x, valid, strict=True)):
        seen, at = np.asarray(window[mask], np.float64), np.flatnonzero(mask)
        if len(seen):
            centred = at - at.mean()
            pairs = mask[1:] & mask[:-1]
            changes = np.abs(np.diff(np.asarray(window, np.float64), axis=0))[pairs]
            found[index, :-1] = np.concatenate(
                [
                    seen.mean(axis=0),
                    seen.std(axis=0),
                    *np.quantile(seen, (0, 0.25, 0.5, 0.75, 1), axis=0),
                    centred @ seen / max((centred**2).sum(), 1e-6),
                    changes.mean(axis=0) if len(changes) else np.zeros(x.shape[2]),
                ]
            )
        found[index, -1] = mask.mean()
    return found


def predict(
    method: str, train: np.ndarray, labels: np.ndarray, groups: np.ndarray, target: np.ndarray, seed: int = 0
) -> np.ndarray:
    """(len(target), C) probabilities of a method of METHODS, fitted on `train` (N, columns) with its labels
    (N,) 0 … C - 1 and its people (N,)."""
    model = {
        "logistic": lambda: _logistic(_strength(train, labels, groups)),
        "trees": lambda: ExtraTreesClassifier(
            300, min_samples_leaf=3, class_weight="balanced", random_state=seed
        ),
        "boosting": lambda: HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.06, min_samples_leaf=10, early_stopping=False, random_state=seed
        ),
    }[method]()
    return np.asarray(model.fit(train, labels).predict_proba(target))


def _logistic(strength: float):  # type: ignore[no-untyped-def]
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def _strength(train: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """The value of STRENGTHS with the lowest log loss over five inner folds by group."""
    folds = min(5, len(np.unique(groups)))
    if folds < 2:
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer clips than folds
        parts = list(StratifiedGroupKFold(folds).split(train, labels, groups))
    parts = [part for part in parts if len(np.unique(labels[part[0]])) == len(np.unique(labels))]

    def loss(strength: float) -> float:
        found = [_logistic(strength).fit(train[a], labels[a]).predict_proba(train[b]) for a, b in parts]
        target = np.concatenate([labels[b] for _, b in parts])
        return float(log_loss(target, np.concatenate(found), labels=np.unique(labels)))

    return min(STRENGTHS, key=loss) if parts else 1.0
