"""Plots of metrics: confusion matrix, ROC, precision-recall, reliability, learning curves.

Each function returns a Matplotlib figure.

Shapes: N clips, C classes.
"""

import itertools
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from seqmodel.metrics.classification import NUM_BINS, calibration_bins
from seqmodel.reporting.style import INK, LEAK, MODEL, OTHER, class_colour, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_plot(counts: np.ndarray, label_names: Sequence[str]) -> "Figure":
    """Confusion matrix (C, C) with counts and the share of each row."""
    from matplotlib.patches import Rectangle

    num_classes = len(label_names)
    side = max(4.2, 1.1 + 0.85 * num_classes)
    with drawing(side * 4.6 / 4.2, side) as (figure, axes):
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for row in range(num_classes):
            for column in range(num_classes):
                value = share[row, column]
                # Opacity instead of a colour map: it works on any background.
                axes.add_patch(
                    Rectangle(
                        (column - 0.48, row - 0.48),
                        0.96,
                        0.96,
                        facecolor=MODEL if row == column else LEAK,
                        alpha=0.06 + 0.62 * value,
                        linewidth=0,
                    )
                )
                axes.text(
                    column,
                    row - 0.08,
                    f"{counts[row, column]:d}",
                    ha="center",
                    va="center",
                    fontsize=14,
                    fontweight="bold",
                )
                axes.text(column, row + 0.22, f"{value:.0%}", ha="center", va="center", fontsize=9)
        axes.set(
            xlim=(-0.5, num_classes - 0.5),
            ylim=(num_classes - 0.5, -0.5),
            aspect="equal",
            xlabel="predicted",
            ylabel="true",
        )
        axes.set_xticks(range(num_classes), list(label_names))
        axes.set_yticks(range(num_classes), list(label_names), rotation=90, va="center")
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def roc_plot(
    labels: np.ndarray,
    probabilities: np.ndarray,
    label_names: Sequence[str],
    threshold: float | None,
    baselines: Sequence[tuple[str, np.ndarray]] = (),
) -> "Figure":
    """ROC of the positive class, or of each class against all others; `baselines` are (title, (N, C))."""
    from sklearn.metrics import roc_curve

    with drawing(4.6, 4.2) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=OTHER, linewidth=1, linestyle=":")
        for (title, scores), dashes in zip(baselines, cycle(("--", "-.", (0, (1, 1.5)))), strict=False):
            if len(label_names) == 2 and len(np.unique(labels)) == 2:
                x, y, _ = roc_curve(labels == 1, scores[:, 1])
                axes.plot(
                    x,
                    y,
                    color=LEAK if "leak" in title.lower() else OTHER,
                    linewidth=1.2,
                    linestyle=dashes,
                    label=title,
                )
        for k in _curve_classes(labels, label_names):
            colour = MODEL if len(label_names) == 2 else class_colour(k)
            x, y, _ = roc_curve(labels == k, probabilities[:, k])
            axes.plot(x, y, color=colour, label="model" if len(label_names) == 2 else label_names[k])
        if threshold is not None and len(np.unique(labels)) == 2:
            predicted = probabilities[:, 1] >= threshold
            axes.plot(
                (predicted & (labels == 0)).sum() / (labels == 0).sum(),
                (predicted & (labels == 1)).sum() / (labels == 1).sum(),
                "o",
                color=INK,
                markersize=7,
                label=f"threshold {threshold:.2f}",
            )
        axes.set(
            xlabel="false positive rate",
            ylabel="true positive rate",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            aspect="equal",
        )
        _legend(axes, "lower right")
    return figure


def precision_recall_plot(
    labels: np.ndarray,
    probabilities: np.ndarray,
    label_names: Sequence[str],
    minority: int,
    threshold: float | None,
) -> "Figure":
    """Precision against recall of the rarest class; dotted: its share (a random classifier)."""
    from sklearn.metrics import precision_recall_curve

    positive = labels == minority
    with drawing(4.6, 4.2) as (figure, axes):
        axes.axhline(
            positive.mean(),
            color=OTHER,
            linewidth=1,
            linestyle=":",
            label=f"share of {label_names[minority]}",
        )
        if 0 < positive.sum() < len(labels):
            precision, recall, _ = precision_recall_curve(positive, probabilities[:, minority])
            axes.step(recall, precision, where="post", color=MODEL, label="model")
        if threshold is not None and positive.any():
            predicted = (probabilities[:, 1] >= threshold) == (minority == 1)
            if predicted.any():
                axes.plot(
                    (predicted & positive).sum() / positive.sum(),
                    (predicted & positive).sum() / predicted.sum(),
                    "o",
                    color=INK,
                    markersize=7,
                    label=f"threshold {threshold:.2f}",
                )
        axes.set(
            xlabel=f"recall of {label_names[minority]}",
            ylabel="precision",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
        )
        _legend(axes, "lower left")
    return figure


def reliability_plot(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> "Figure":
    """Reliability diagram before and after calibration, and a histogram of the calibrated probabilities."""
    with drawing(4.6, 4.2, (3, 1)) as (figure, (axes, below)):
        axes.plot([0, 1], [0, 1], color=OTHER, linewidth=1, linestyle=":")
        for title, p, colour, width in (("before", before, OTHER, 1.4), ("after", after, MODEL, 2.2)):
            bins, predicted, outcome = calibration_bins(labels, p)
            count = np.bincount(bins, minlength=NUM_BINS)
            used = count > 0
            x = np.bincount(bins, predicted, NUM_BINS)[used] / count[used]
            y = np.bincount(bins, outcome, NUM_BINS)[used] / count[used]
            axes.plot(x, y, color=colour, linewidth=width, zorder=2, label=f"{title} calibration")
            axes.scatter(x, y, s=8 + 90 * count[used] / count.max(), color=colour, alpha=0.75, zorder=3)
        edges = np.linspace(0, 1, NUM_BINS + 1)
        below.bar((edges[:-1] + edges[1:]) / 2, count, width=0.9 / NUM_BINS, color=MODEL, alpha=0.5)
        axes.set(ylabel="observed frequency", ylim=(-0.03, 1.03))
        below.set(
            xlabel="predicted probability" if after.shape[1] == 2 else "largest predicted probability",
            ylabel="clips",
            xlim=(-0.02, 1.02),
        )
        _legend(axes, "upper left")
    return figure


def learning_plot(stages: Sequence[tuple[str, Sequence[dict[str, Any]]]], metric: str) -> "Figure":
    """Loss and selection score (held out) by epoch, one stage after the other; a line for each fold.

    entries: lines of log.jsonl.
    """
    with drawing(4.6, 4.6, (1, 1)) as (figure, (loss_axes, score_axes)):
        start = 0
        for k, (title, entries) in enumerate(stages):
            folds = [list(part) for _, part in itertools.groupby(entries, lambda entry: entry.get("fold"))]
            look: dict[str, Any] = {"color": class_colour(k), "linewidth": 1.0 if len(folds) > 1 else 1.8}
            for number, part in enumerate(folds):
                epochs = start + np.arange(len(part)) + 1
                marker = "o" if len(epochs) < 3 else None
                for key, dash in (("train_loss", "--"), ("val_loss", "-")):
                    values = _column(part, key)
                    label = f"{title}, {key.removesuffix('_loss')}" if number == 0 else None
                    if values is not None:
                        loss_axes.plot(epochs, values, dash, label=label, marker=marker, **look)
                values = _column(part, "val_score")
                if values is not None:
                    score_axes.plot(epochs, values, marker=marker, **look)
            start += max(len(part) for part in folds)
        loss_axes.set(ylabel="loss")
        score_axes.set(xlabel="epoch", ylabel=f"selection score\n(optimistic), {metric}")
        score_axes.xaxis.get_major_locator().set_params(integer=True)
        if loss_axes.get_legend_handles_labels()[0]:
            loss_axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=7)
    return figure


def _curve_classes(labels: np.ndarray, label_names: Sequence[str]) -> list[int]:
    present = [k for k in range(len(label_names)) if 0 < (labels == k).sum() < len(labels)]
    return [k for k in present if k == 1] if len(label_names) == 2 else present


def _column(entries: Sequence[dict[str, Any]], key: str) -> np.ndarray | None:
    values = [entry.get(key) for entry in entries]
    if not values or any(value is None for value in values):
        return None
    return np.asarray(values, np.float64)


def _legend(axes: Any, location: str) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=location)
