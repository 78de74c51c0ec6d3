"""Calibration: from logits to probabilities and predicted classes, with temperature, threshold and abstain
band.

`decide` is the only way from logits to a class; evaluation, batch prediction and the webcam all call it.
`fit_calibration` chooses temperature, bias and threshold on validation clips alone, never on test labels.

Shapes: N clips, C classes. Logits are (N, 1) for `binary` (the last class is the positive one), (N, C) for
`multiclass` and (N, C - 1) for `ordinal`, where logit k is the cumulative logit of "level > k".
"""

from dataclasses import dataclass, replace

import numpy as np

from features.cli import UserError
from features.labels import Task

# Without limits, (almost) perfectly separated validation clips would give extreme temperatures.
TEMPERATURE_RANGE = (0.1, 10.0)
SLACK_CLIPS = 2
"""Tolerance of `choose_threshold`. In simulations with 30 validation clips it recovers half of the loss that
the best threshold on those clips has on new ones; with 400 clips it makes no difference."""
MIN_GROUPS, NUM_FOLDS = 6, 5
"""Fewest groups of clips (subjects, and videos without one) for a threshold other than .5, and folds of the
groups that decide about it."""
CERTAIN = 1e-4
"""Probabilities nearer to 0 or 1 than this are treated as equal."""


@dataclass(frozen=True)
class Calibration:
    """Parameters from raw logits to probabilities and a predicted class; stored in the card of a run."""

    temperature: float = 1.0
    """Logits are divided by it."""
    bias: float = 0.0
    """Added to the divided logit (binary and ordinal only)."""
    threshold: float = 0.5
    """Binary: predicts the positive class if p(positive) ≥ threshold. More classes: unused, the most probable
    class is predicted."""
    abstain: tuple[float, float] | None = None
    """No prediction ("unsure") in this band. Binary: low < p(positive) < high. More classes: largest
    probability < high."""
    threshold_metric: str = "balanced_accuracy"
    """Metric that the threshold was chosen for: balanced_accuracy, f1, accuracy or recall:CLASS=SHARE."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature must be a positive number, got {self.temperature}")
        if not 0.0 <= self.threshold <= 1.0:
            raise UserError(f"threshold must lie in [0, 1], got {self.threshold}")
        if self.abstain is not None and not 0.0 <= self.abstain[0] <= self.abstain[1] <= 1.0:
            raise UserError(f"abstain must be (low, high) with 0 <= low <= high <= 1, got {self.abstain}")


@dataclass(frozen=True)
class Decision:
    """Probabilities and predicted classes of N clips."""

    probabilities: np.ndarray
    """(N, C) float64, calibrated, each row sums to one."""
    label: np.ndarray
    """(N,) int64, the predicted class."""
    unsure: np.ndarray
    """(N,) bool, true inside the abstain band."""


def probabilities(logits: np.ndarray, task: Task, calibration: Calibration | None = None) -> np.ndarray:
    """Calibrated class probabilities, (N, C) float64 with rows that sum to one. UserError on a wrong
    shape."""
    calibration = calibration or Calibration()
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or z.shape[1] < 1 or (task == "binary" and z.shape[1] != 1):
        raise UserError(f"{task} logits must be (N, {1 if task == 'binary' else 'C'}), got shape {z.shape}")
    z = z / calibration.temperature
    if task == "multiclass":
        z = z - z.max(axis=1, keepdims=True)
        raised = np.exp(z)
        return raised / raised.sum(axis=1, keepdims=True)
    above = _sigmoid(z + calibration.bias)
    # Separate logits may cross; a level above k + 1 is also above k.
    above = np.minimum.accumulate(above, axis=1)
    edges = np.concatenate([np.ones((len(z), 1)), above, np.zeros((len(z), 1))], axis=1)
    return edges[:, :-1] - edges[:, 1:]


def decide(logits: np.ndarray, task: Task, calibration: Calibration | None = None) -> Decision:
    """Probabilities and predicted class of each clip, as `Calibration` defines. Shapes and errors as
    `probabilities`."""
    calibration = calibration or Calibration()
    return decide_probabilities(probabilities(logits, task, calibration), task, calibration)


def decide_probabilities(p: np.ndarray, task: Task, calibration: Calibration) -> Decision:
    """The second half of `decide`, for (N, C) probabilities that are already calibrated."""
    predicted = p[:, 1] >= calibration.threshold if task == "binary" else p.argmax(axis=1)
    unsure = np.zeros(len(p), bool)
    if calibration.abstain is not None:
        low, high = calibration.abstain
        unsure = (p[:, 1] > low) & (p[:, 1] < high) if task == "binary" else p.max(axis=1) < high
    return Decision(probabilities=p, label=predicted.astype(np.int64), unsure=unsure)


def certainty(p: np.ndarray, task: Task, threshold: float | np.ndarray) -> np.ndarray:
    """(N,) certainty of each prediction, from calibrated (N, C) probabilities.

    Binary: the distance in log-odds between p(positive) and the threshold (one for all, or (N,)). Log-odds,
    because with a threshold near 1 the plain difference would be small for every certain prediction. More
    classes: the largest probability.
    """
    return np.abs(log_odds(p[:, 1]) - log_odds(threshold)) if task == "binary" else p.max(axis=1)


def abstain_band(p: np.ndarray, task: Task, threshold: float, share: float) -> tuple[float, float]:
    """The band, as in `Calibration.abstain`, that leaves the least certain `share` of these clips without a
    prediction.

    Raises UserError unless the share lies in (0, 1).
    """
    if not 0 < share < 1:
        raise UserError(f"--abstain is the fraction of clips without a prediction, in (0, 1); got {share}")
    half_width = float(np.quantile(certainty(p, task, threshold), share))
    if task != "binary":
        return 0.0, half_width
    low, high = _sigmoid(log_odds(threshold) + np.array([-half_width, half_width])).tolist()
    return low, high


def moved_band(old: Calibration, new: Calibration, task: Task) -> tuple[float, float] | None:
    """The abstain band of `old`, moved to the threshold of `new` with the same width in logits; None if `old`
    has none.

    With more than two classes there is no threshold, and the band is unchanged.
    """
    if old.abstain is None or task != "binary":
        return old.abstain
    distances = (log_odds(np.array(old.abstain)) - log_odds(old.threshold)) * (
        old.temperature / new.temperature
    )
    low, high = _sigmoid(log_odds(new.threshold) + distances).tolist()
    return low, high


def fit_calibration(
    logits: np.ndarray,
    labels: np.ndarray,
    task: Task,
    *,
    threshold_metric: str = "balanced_accuracy",
    label_names: tuple[str, ...] = (),
    abstain: tuple[float, float] | None = None,
    always_scale: bool = False,
    groups: np.ndarray | None = None,
) -> Calibration:
    """Temperature, bias and threshold from validation clips.

    labels is (N,) int, -1 is skipped. The scaling is kept only if it improves the validation likelihood by
    the Bayesian information criterion, so that a calibrated model stays unchanged; `always_scale` keeps it in
    any case. The threshold is .5 unless another one is better for new groups (`is_better_for_new_groups`) or
    the metric names a recall. groups is (N,) str; None = each clip is one. UserError on an unknown metric or
    class.
    """
    keep = np.asarray(labels) >= 0
    z, y = np.asarray(logits, np.float64)[keep], np.asarray(labels)[keep]
    kind, _, _ = parse_threshold_metric(threshold_metric, label_names, task)
    if len(y) == 0 or len(np.unique(y)) < 2:
        return Calibration(threshold_metric=threshold_metric, abstain=abstain)
    calibration = replace(
        fit_scaling(z, y, task, always=always_scale), threshold_metric=threshold_metric, abstain=abstain
    )
    if task != "binary":
        return calibration
    positive = probabilities(z, task, calibration)[:, 1]
    group = np.arange(len(y)) if groups is None else groups[keep]
    if kind != "recall" and not is_better_for_new_groups(positive, y, group, threshold_metric):
        return calibration
    return replace(calibration, threshold=choose_threshold(positive, y, threshold_metric, label_names))


def refit_calibration(
    old: Calibration,
    logits: np.ndarray,
    labels: np.ndarray,
    task: Task,
    *,
    threshold_metric: str,
    label_names: tuple[str, ...],
    groups: np.ndarray | None = None,
) -> Calibration:
    """`fit_calibration` on these clips, with the abstain band of `old` moved to the new threshold."""
    new = fit_calibration(
        logits, labels, task, threshold_metric=threshold_metric, label_names=label_names, groups=groups
    )
    return replace(new, abstain=moved_band(old, new, task))


def fit_scaling(logits: np.ndarray, labels: np.ndarray, task: Task, *, always: bool = False) -> Calibration:
    """Temperature (and bias for binary and ordinal) that maximise the likelihood of (N,) labels.

    Temperature scaling is from Guo et al., "On Calibration of Modern Neural Networks", 2017. A standard
    normal prior on log temperature and bias keeps them finite if the validation classes are separable.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    with_bias = task != "multiclass"

    def at(theta: np.ndarray) -> Calibration:
        temperature = float(np.clip(np.exp(theta[0]), *TEMPERATURE_RANGE))
        return Calibration(temperature=temperature, bias=float(theta[1]) if with_bias else 0.0)

    def objective(theta: np.ndarray) -> float:
        return negative_log_likelihood(logits, labels, task, at(theta)) + 0.5 * float(theta @ theta)

    start = np.zeros(2 if with_bias else 1)
    found = minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-6}).x
    untouched = Calibration()
    gain = negative_log_likelihood(logits, labels, task, untouched) - negative_log_likelihood(
        logits, labels, task, at(found)
    )
    return at(found) if always or 2.0 * gain > len(start) * np.log(len(labels)) else untouched


def negative_log_likelihood(
    logits: np.ndarray, labels: np.ndarray, task: Task, calibration: Calibration
) -> float:
    """Summed over clips, in nats; labels (N,) int, none of them -1."""
    p = probabilities(logits, task, calibration)[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(p, 1e-12, 1.0)).sum())


def parse_threshold_metric(
    threshold_metric: str, label_names: tuple[str, ...], task: Task = "binary"
) -> tuple[str, int, float]:
    """(kind, class index, recall): class and recall only for recall:CLASS=SHARE, else -1 and 0. Raises
    UserError for any other text."""
    if threshold_metric in ("balanced_accuracy", "f1", "accuracy"):
        return threshold_metric, -1, 0.0
    wanted = "balanced_accuracy, f1, accuracy or recall:CLASS=SHARE"
    if not threshold_metric.startswith("recall:") or "=" not in threshold_metric:
        raise UserError(f"--threshold-metric must be {wanted}, got {threshold_metric!r}")
    name, _, share_text = threshold_metric.removeprefix("recall:").rpartition("=")
    if task != "binary":
        raise UserError(
            f"--threshold-metric {threshold_metric!r} needs a task with two classes; a {task} run predicts "
            "the most probable class"
        )
    if name not in label_names:
        raise UserError(
            f"--threshold-metric {threshold_metric!r}: no class {name!r}; classes are "
            f"{', '.join(label_names)}"
        )
    try:
        share = float(share_text)
    except ValueError:
        share = -1.0
    if not 0.0 < share <= 1.0:
        raise UserError(
            f"--threshold-metric {threshold_metric!r}: SHARE must be a number in (0, 1], got {share_text!r}"
        )
    return "recall", label_names.index(name), share


def require_threshold(task: Task) -> None:
    """Raises UserError if the task has no threshold."""
    if task != "binary":
        raise UserError(
            f"--threshold-metric needs a binary task; a {task} run predicts the most probable class and has "
            "no threshold"
        )


def choose_threshold(
    positive: np.ndarray, labels: np.ndarray, threshold_metric: str, label_names: tuple[str, ...] = ()
) -> float:
    """The threshold on p(positive) that maximises the metric on these clips.

    positive is (N,) in [0, 1], labels (N,) in {0, 1}. With a few dozen clips the single best threshold is
    random, so all thresholds within SLACK_CLIPS clips of the best count as equal, and the middle (in
    log-odds) of their widest interval is taken. `f1` is the macro average, because the F1 of a majority class
    is highest if every clip is predicted as that class. `recall:CLASS=SHARE` considers the thresholds that
    reach this recall, and takes those with the highest recall of the other class, without this tolerance.
    """
    kind, index, share = parse_threshold_metric(threshold_metric, label_names)
    candidates, tp, fp = threshold_counts(positive, labels)
    num_positive, num_negative = int((labels == 1).sum()), int((labels == 0).sum())
    if not num_positive or not num_negative:
        return 0.5
    recall = np.stack([1.0 - fp / num_negative, tp / num_positive])
    slack = SLACK_CLIPS / (2.0 * min(num_positive, num_negative))
    if kind == "recall":
        value, slack = np.where(recall[index] >= share - 1e-12, recall[1 - index], -1.0), 0.0
    else:
        value = _metric_values(kind, tp, fp, num_positive, num_negative)
        slack = SLACK_CLIPS / len(labels) if kind == "accuracy" else slack
    good = np.flatnonzero(value >= value.max() - slack - 1e-12)
    return _middle_of_widest(positive, candidates, np.split(good, np.flatnonzero(np.diff(good) > 1) + 1))


def is_better_for_new_groups(
    positive: np.ndarray, labels: np.ndarray, groups: np.ndarray, threshold_metric: str
) -> bool:
    """Whether thresholds chosen on some groups have a higher metric on other groups than .5, over NUM_FOLDS
    folds of the groups; False with fewer than MIN_GROUPS groups. groups is (N,), the others as in
    `choose_threshold`."""
    names, index = np.unique(groups, return_inverse=True)
    if len(names) < MIN_GROUPS:
        return False
    fold, tuned = np.random.default_rng(0).permutation(len(names))[index] % NUM_FOLDS, np.zeros(len(labels))
    for held_out in (fold == k for k in range(NUM_FOLDS)):
        threshold = choose_threshold(positive[~held_out], labels[~held_out], threshold_metric)
        tuned[held_out] = positive[held_out] >= threshold
    is_positive, hits = labels == 1, np.stack([tuned > 0, positive >= 0.5])
    tp, fp = hits[:, is_positive].sum(axis=1), hits[:, ~is_positive].sum(axis=1)
    of_tuned, of_half = _metric_values(threshold_metric, tp, fp, is_positive.sum(), (~is_positive).sum())
    return bool(of_tuned > of_half)


def _metric_values(
    kind: str, tp: np.ndarray, fp: np.ndarray, num_positive: int, num_negative: int
) -> np.ndarray:
    """Balanced accuracy, accuracy or macro-F1 of (K,) true and false positives."""
    fn, tn = num_positive - tp, num_negative - fp
    if kind == "balanced_accuracy":
        return np.asarray((tp / num_positive + tn / num_negative) / 2.0)
    if kind == "accuracy":
        return np.asarray((tp + tn) / (num_positive + num_negative))
    return np.asarray((tp / (tp + 0.5 * (fp + fn)) + tn / (tn + 0.5 * (fp + fn))) / 2.0)


def _middle_of_widest(positive: np.ndarray, candidates: np.ndarray, stretches: list[np.ndarray]) -> float:
    """Middle, in log-odds, of the widest interval of candidates; `stretches` holds indices of candidates."""
    # Candidate k represents every threshold above edge k, up to and including edge k + 1.
    edges = np.concatenate([[0.0], np.unique(positive), [1.0]])
    odds = log_odds(edges)
    widest = max(stretches, key=lambda part: odds[part[-1] + 1] - odds[part[0]])
    low, high = widest[0], widest[-1] + 1
    middle = min(float(_sigmoid((odds[low] + odds[high]) / 2.0)), float(edges[high]))
    # Between neighbouring floats the middle may round down to the lower one, which >= would accept.
    return middle if middle > edges[low] else float(candidates[widest[0]])


def threshold_counts(positive: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(candidate thresholds (K,), true positives (K,), false positives (K,)), thresholds in ascending order.

    Candidates are the midpoints between neighbouring distinct probabilities, one below all and one above all.
    """
    distinct = np.unique(positive)
    middles = (distinct[:-1] + distinct[1:]) / 2.0
    # Two neighbouring floats have no number between them: the upper one separates them too (rule: >=).
    middles = np.where(middles > distinct[:-1], middles, distinct[1:])
    candidates = np.concatenate([[distinct[0] / 2.0], middles, [(1.0 + distinct[-1]) / 2.0]])
    if distinct[-1] >= 1.0:
        candidates = candidates[:-1]
    by_class = [np.sort(positive[labels == k]) for k in (1, 0)]
    tp, fp = (len(values) - np.searchsorted(values, candidates, side="left") for values in by_class)
    return candidates, tp, fp


def log_odds(p: float | np.ndarray) -> np.ndarray:
    p = np.clip(p, CERTAIN, 1.0 - CERTAIN)
    return np.asarray(np.log(p / (1.0 - p)))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    # Written with tanh, which does not overflow.
    return 0.5 * (1.0 + np.tanh(0.5 * z))
