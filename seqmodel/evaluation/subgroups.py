"""Results by subgroup: accuracy by subject, source, face coverage and further columns, lowest first.

Shapes: N clips, S subjects, R rounds, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from seqmodel.metrics.bootstrap import (
    ENOUGH_SUBJECTS,
    BootstrapWeights,
    Estimate,
    interval,
    per_unit_confusion,
)
from seqmodel.metrics.classification import count_metrics
from seqmodel.metrics.predictions import Predictions

# Fewer clips are too uncertain: with 8 of 10 clips correct the confidence interval is .49 to .94.
ENOUGH_CLIPS = 10
MOST_VALUES = 40
"""A column with more distinct values identifies clips and does not group them."""

COVERAGE_NAMES = ("no face", "under half", "half to 90 %", "90 % and more")


@dataclass(frozen=True)
class SliceRow:
    """Metrics of one subgroup of clips."""

    name: str
    accuracy: Estimate
    balanced_accuracy: Estimate
    predicted: float
    """Fraction of clips predicted to be the last class."""
    true: float
    """Fraction of clips whose label is the last class."""
    clips: int
    subjects: int
    small: bool
    """True if it has fewer than ENOUGH_CLIPS clips."""


@dataclass(frozen=True)
class Slices:
    """The subgroups of one column; lowest accuracy first, small subgroups last."""

    title: str
    column: str
    rows: tuple[SliceRow, ...]
    note: str = ""


def all_slices(p: Predictions, resamples: BootstrapWeights, num_classes: int) -> list[Slices]:
    """The subgroups of every column with at least two of them."""
    found = []
    for title, column, values in _groupings(p):
        names, note = [str(name) for name in np.unique(values) if name], ""
        if resamples.by_subject and column != "subject":
            single = [name for name in names if len(np.unique(resamples.unit_index[values == name])) == 1]
            names = [name for name in names if name not in single]
            note = f"Left out, because they have clips of one subject only: {len(single)}. " * bool(single)
        if len(names) < 2 or (len(names) > MOST_VALUES and title != "By subject"):
            continue
        rows = [slice_row(name, values == name, p, resamples, num_classes) for name in names]
        unnamed = int((values == "").sum())
        note += f"{unnamed} clips without a value are left out of this table." if unnamed else ""
        rows.sort(key=lambda row: (row.small, row.accuracy.value))
        found.append(Slices(title, column, tuple(rows), note))
    return found


def slice_row(
    name: str, inside: np.ndarray, p: Predictions, resamples: BootstrapWeights, num_classes: int
) -> SliceRow:
    """Metrics of the clips where `inside` (N,) bool is true."""
    labels, predicted = p.labels[inside], p.predicted[inside]
    units = np.unique(resamples.unit_index[inside])
    unit = np.searchsorted(units, resamples.unit_index[inside])
    confusions = per_unit_confusion(labels, predicted, unit, len(units), num_classes)
    point = count_metrics(confusions.sum(axis=0))
    accuracy, balanced = float(point["accuracy"]), float(point["balanced_accuracy"])
    if len(units) >= ENOUGH_SUBJECTS and resamples.by_subject:
        counts = resamples.weights[:, units] @ confusions.reshape(len(units), -1)
        rounds = count_metrics(counts.reshape(-1, num_classes, num_classes))
        accuracy_interval = interval(rounds["accuracy"], len(units))
        balanced_interval = interval(rounds["balanced_accuracy"], len(units))
    else:  # no interval for fewer subjects; clips without subjects count as independent
        by_clip = wilson(int((labels == predicted).sum()), len(labels))
        balanced_interval = (float("nan"), float("nan"))
        accuracy_interval = balanced_interval if resamples.by_subject else by_clip
    one_class = len(np.unique(labels)) < 2
    return SliceRow(
        name=name,
        accuracy=Estimate(accuracy, *accuracy_interval),
        # Balanced accuracy is undefined with one class.
        balanced_accuracy=Estimate(float("nan"), float("nan"), float("nan"))
        if one_class
        else Estimate(balanced, *balanced_interval),
        predicted=float((predicted == num_classes - 1).mean()),
        true=float((labels == num_classes - 1).mean()),
        clips=len(labels),
        subjects=len(np.unique(p.subjects[inside & (p.subjects != "")])),
        small=len(labels) < ENOUGH_CLIPS,
    )


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion of independent clips (Wilson, 1927); NaN without clips."""
    if total == 0:
        return float("nan"), float("nan")
    from scipy.stats import binomtest

    low, high = binomtest(right, total).proportion_ci(method="wilson")
    return float(low), float(high)


def coverage_names(coverage: np.ndarray) -> np.ndarray:
    """(N,) str, one of COVERAGE_NAMES, for (N,) fractions of frames with a face."""
    return np.asarray(COVERAGE_NAMES)[np.digitize(coverage, [1e-9, 0.5, 0.9])]


def source_groups(sources: Sequence[str] | np.ndarray) -> np.ndarray:
    """(N,) str: the video if videos have two clips or more on average, else the first folder of its path."""
    sources = np.asarray(sources, dtype=str)
    if len(np.unique(sources)) * 2 <= len(sources):
        return sources
    return np.array([text.replace("\\", "/").rpartition("/")[0].partition("/")[0] for text in sources], str)


def _groupings(p: Predictions) -> Iterator[tuple[str, str, np.ndarray]]:
    yield "By subject", "subject", p.subjects.astype(str)
    yield "By face coverage", "frames with a face", coverage_names(p.coverage)
    for column, values in p.slices.items():
        yield f"By {column}", column, source_groups(values) if column == "source" else values.astype(str)
