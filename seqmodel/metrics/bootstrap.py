"""Bootstrap confidence intervals by subject, and paired differences between two sets of predictions.

Whole subjects are drawn with replacement, because clips of one subject are not independent. A round is a
vector of how often each subject is drawn. Metrics that count are computed from sums of per-subject confusion
matrices, and metrics that rank take the counts as weights: a thousand rounds over nine thousand clips take
about a second. Two sets of predictions are compared on the same bootstrap samples, round by round.

Shapes: N clips, S units (subjects, and clips without a subject), R rounds, C classes. labels and predictions
(N,) int64, probabilities (N, C).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from features.cli import UserError
from seqmodel.metrics.classification import (
    NUM_BINS,
    brier_terms,
    calibration_bins,
    compute_metrics,
    count_metrics,
    ece_from_sums,
    macro_auroc,
    ranking_metrics,
)

SIGNIFICANT, ENOUGH_SUBJECTS, FEW_SUBJECTS = 0.05, 6, 20
"""Significance level; the fewest subjects for an interval and a p-value (five subjects all differ in the same
direction by chance in one of 16 cases, six in one of 32); fewer than the last are warned about."""
COVERAGE = ((6, 0.913), (8, 0.928), (10, 0.945), (12, 0.930), (15, 0.944))
"""(subjects, share of 95 % intervals that hold the true value; accuracy or AUROC, the lower one), from 1,000
simulated data sets each: tests/bench/coverage.py."""
# Rounds whose (rounds, clips) weights are in memory at once: 100 x 9,000 float64 are 7 MB.
ROUNDS_AT_ONCE = 100


@dataclass(frozen=True)
class BootstrapWeights:
    """The bootstrap samples of subjects, shared by all predictions that are compared."""

    weights: np.ndarray
    """(R, S) float64, how often each unit was drawn in each round."""
    unit_index: np.ndarray
    """(N,) int64, index of each clip's unit: its subject, or the clip itself if it has no subject."""
    num_subjects: int
    """Number of named subjects."""

    @property
    def num_units(self) -> int:
        """S, the number of units that are drawn: named subjects, and clips without a subject."""
        return self.weights.shape[1]

    @property
    def by_subject(self) -> bool:
        """False if no clip has a subject; then clips are drawn."""
        return self.num_subjects > 0


@dataclass(frozen=True)
class Estimate:
    """A metric value with its 95 % confidence interval; NaN = undefined."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Value, low and high by name; None = undefined."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


def resample_subjects(subjects: Sequence[str] | np.ndarray, rounds: int, seed: int) -> BootstrapWeights:
    """R bootstrap samples of the subjects, each as large as their number. A clip without a subject ('') is a
    unit of its own.

    Raises UserError if there is no clip or no round.
    """
    names = np.asarray(subjects, dtype=str)
    if len(names) == 0 or rounds < 1:
        raise UserError(
            "a bootstrap needs 1 clip and 1 round at least (--bootstrap-rounds), "
            f"got {len(names)} clips and {rounds} rounds"
        )
    known = names != ""
    unit = np.where(known, names, np.char.add("\0", np.arange(len(names)).astype(str)))
    _, index = np.unique(unit, return_inverse=True)
    num, rng = int(index.max()) + 1, np.random.default_rng(seed)
    weights = rng.multinomial(num, np.full(num, 1.0 / num), size=rounds)
    return BootstrapWeights(weights.astype(np.float64), index.astype(np.int64), len(np.unique(names[known])))


def bootstrap_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predictions: np.ndarray,
    resamples: BootstrapWeights,
    minority: int,
) -> dict[str, np.ndarray]:
    """Every metric of `compute_metrics` (without support) in every round: name -> (R,) float64."""
    num_classes, num_units = probabilities.shape[1], resamples.num_units
    per_unit = per_unit_confusion(labels, predictions, resamples.unit_index, num_units, num_classes)
    counts = (resamples.weights @ per_unit.reshape(num_units, -1)).reshape(-1, num_classes, num_classes)
    out = count_metrics(counts)
    brier = np.bincount(resamples.unit_index, brier_terms(labels, probabilities), num_units)
    size = np.bincount(resamples.unit_index, minlength=num_units).astype(np.float64)
    out["brier"] = (resamples.weights @ brier) / (resamples.weights @ size)
    out["ece"] = ece_from_sums(_binned(labels, probabilities, resamples))
    return out | _ranking(labels, probabilities, resamples, minority)


def per_unit_confusion(
    labels: np.ndarray,
    predictions: np.ndarray,
    unit_index: np.ndarray,
    num_units: int,
    num_classes: int,
) -> np.ndarray:
    """(S, C, C) float64 confusion matrices, row = true class."""
    cells = num_classes**2
    flat = np.bincount(unit_index * cells + labels * num_classes + predictions, minlength=num_units * cells)
    return flat.reshape(num_units, num_classes, num_classes).astype(np.float64)


def few_subjects_text(num_subjects: int) -> str:
    """What fewer than FEW_SUBJECTS subjects mean for the intervals, as a sentence without its full stop."""
    people = f"only {num_subjects} subject{'s' if num_subjects > 1 else ''}"
    if num_subjects < ENOUGH_SUBJECTS:
        return f"{people}: no confidence intervals and no p-values, which need {ENOUGH_SUBJECTS} subjects"
    share = 100 * max(pair for pair in COVERAGE if pair[0] <= num_subjects)[1]
    return (
        f"{people}: in simulations with so few, 95 % intervals hold the true value in {share:.0f} % of cases"
    )


def interval(rounds: np.ndarray, num_units: int, num_subjects: int = 0) -> tuple[float, float]:
    """95 % confidence interval of (R,) round values; NaN with fewer than ENOUGH_SUBJECTS subjects (units, if
    the number of subjects is 0), or if most rounds are NaN.

    The percentile interval, widened for few subjects: Hesterberg, "What Teachers Should Know About the
    Bootstrap", 2015 ("expanded percentile interval").
    """
    from scipy.special import ndtr, stdtrit  # type: ignore[import-untyped]

    defined = rounds[~np.isnan(rounds)]
    if (num_subjects or num_units) < ENOUGH_SUBJECTS or len(defined) < len(rounds) / 2:
        return float("nan"), float("nan")
    t = float(stdtrit(num_units - 1, 0.975))
    tail = float(ndtr(-np.sqrt(num_units / (num_units - 1)) * t))
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """Difference of a metric between two sets of predictions for the same clips."""

    difference: Estimate
    """First minus second."""
    p_value: float
    """Two-sided bootstrap p-value: twice the fraction of rounds on the other side of zero. At least 1 / (R +
    1), and at least 2^(1 − subjects), which is the smallest p-value of a sign test with so many subjects. NaN
    with fewer than ENOUGH_SUBJECTS subjects."""

    @property
    def is_higher(self) -> bool:
        """Whether the difference is significantly above zero: the whole interval is above zero and the
        p-value is below SIGNIFICANT, which needs six subjects."""
        return self.difference.low > 0 and self.p_value < SIGNIFICANT

    @property
    def is_lower(self) -> bool:
        """Whether the difference is significantly below zero, as `is_higher`."""
        return self.difference.high < 0 and self.p_value < SIGNIFICANT


def paired(
    value: float,
    other: float,
    rounds: np.ndarray,
    other_rounds: np.ndarray,
    num_units: int,
    num_subjects: int = 0,
) -> PairedDifference:
    """Difference of two metric values on the same bootstrap samples.

    num_subjects: number of named subjects, so that clips without a subject do not count as subjects; 0 if
    none or all are named.
    """
    difference = rounds - other_rounds
    defined = difference[~np.isnan(difference)]
    if len(defined) == 0 or (num_subjects or num_units) < ENOUGH_SUBJECTS:
        return PairedDifference(Estimate(value - other, float("nan"), float("nan")), float("nan"))
    below, above = int((defined <= 0).sum()), int((defined >= 0).sum())
    least = 2.0 ** (1 - (num_subjects or num_units))
    p_value = min(1.0, max(2.0 * (min(below, above) + 1) / (len(defined) + 1), least))
    return PairedDifference(Estimate(value - other, *interval(difference, num_units, num_subjects)), p_value)


@dataclass(frozen=True)
class Resampled:
    """Metrics of one set of predictions, and their values in each bootstrap round."""

    values: dict[str, float]
    rounds: dict[str, np.ndarray]
    """(R,) float64 by name; supports have no rounds."""
    resamples: BootstrapWeights

    def estimates(self) -> dict[str, Estimate]:
        """Each value with its confidence interval; NaN for a value without rounds."""
        missing, units = np.full(1, np.nan), (self.resamples.num_units, self.resamples.num_subjects)
        return {
            name: Estimate(value, *interval(self.rounds.get(name, missing), *units))
            for name, value in self.values.items()
        }

    def minus(self, other: "Resampled") -> dict[str, PairedDifference]:
        """Difference of each metric from that of another set on the same bootstrap samples."""
        units = self.resamples.num_units, self.resamples.num_subjects
        return {
            name: paired(self.values[name], other.values[name], rounds, other.rounds[name], *units)
            for name, rounds in self.rounds.items()
        }


def resample(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predictions: np.ndarray,
    resamples: BootstrapWeights,
    minority: int,
    without: Collection[str] = (),
) -> Resampled:
    """Every metric of one set of predictions in each round, except those in `without`."""
    values = compute_metrics(labels, probabilities, predictions, minority)
    rounds = bootstrap_metrics(labels, probabilities, predictions, resamples, minority)
    return Resampled(
        {name: value for name, value in values.items() if name not in without},
        {name: value for name, value in rounds.items() if name not in without},
        resamples,
    )


def _binned(labels: np.ndarray, probabilities: np.ndarray, resamples: BootstrapWeights) -> np.ndarray:
    """(R, NUM_BINS, 3) sums of count, probability and outcome in each calibration bin."""
    bins, p, outcome = calibration_bins(labels, probabilities)
    cell = resamples.unit_index * NUM_BINS + bins
    sums = np.stack(
        [np.bincount(cell, w, resamples.num_units * NUM_BINS) for w in (np.ones_like(p), p, outcome)],
        axis=1,
    )
    return (resamples.weights @ sums.reshape(resamples.num_units, -1)).reshape(-1, NUM_BINS, 3)


def _ranking(
    labels: np.ndarray, probabilities: np.ndarray, resamples: BootstrapWeights, minority: int
) -> dict[str, np.ndarray]:
    auroc, precision = [], []
    for start in range(0, len(resamples.weights), ROUNDS_AT_ONCE):
        clip_weights = resamples.weights[start : start + ROUNDS_AT_ONCE][:, resamples.unit_index]
        auroc.append(macro_auroc(labels, probabilities, clip_weights))
        precision.append(ranking_metrics(labels == minority, probabilities[:, minority], clip_weights)[1])
    return {
        "auroc": np.concatenate([np.broadcast_to(a, w.shape) for a, w in zip(auroc, precision, strict=True)]),
        "average_precision": np.concatenate(precision),
    }
