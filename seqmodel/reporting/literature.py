"""Metrics as papers report them: accuracy, weighted F1, macro-F1 and UAR of the argmax class; also as CSV.

Papers of this field take the class with the largest probability and count the clips they could process. The
table has both: every labelled clip, and only clips with a detected face.
"""

import csv
import io
from dataclasses import dataclass

import numpy as np

from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.metrics.classification import confusion, count_metrics

NAMES = ("method", "clips", "accuracy", "weighted F1", "macro-F1", "UAR")


@dataclass(frozen=True)
class LiteratureTable:
    """Column names, rows as text, and the same as CSV text."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    csv: str


def literature_table(result: EvaluationResult, method: str) -> LiteratureTable:
    """Rows for every clip, for clips with a detected face where that differs, and for the majority class."""
    p = result.predictions
    every_clip, num_classes = np.ones(len(p), bool), len(result.label_names)
    predicted = p.probabilities.argmax(axis=1)
    rows = [_row(method, p.labels, predicted, every_clip, num_classes)]
    if not p.measured.all() and p.measured.any():
        rows.append(_row(f"{method} (clips with a face)", p.labels, predicted, p.measured, num_classes))
    for baseline in (comparison.baseline for comparison in result.comparisons):
        if baseline.name == "majority":
            rows.append(_row("majority class", p.labels, baseline.predicted, every_clip, num_classes))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([NAMES, *rows])
    return LiteratureTable(NAMES, tuple(rows), text.getvalue())


def _row(
    method: str, labels: np.ndarray, predicted: np.ndarray, keep: np.ndarray, num_classes: int
) -> tuple[str, ...]:
    metrics = count_metrics(confusion(labels[keep], predicted[keep], num_classes))
    values = (metrics[name] for name in ("accuracy", "weighted_f1", "macro_f1", "balanced_accuracy"))
    return (method, str(int(keep.sum())), *(f"{100 * float(value):.1f}" for value in values))
