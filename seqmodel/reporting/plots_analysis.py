"""Plots of thresholds, subjects, searches, embeddings, single clips and run comparisons.

Each function returns a Matplotlib figure.

Shapes: N clips, C classes, T frames.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seqmodel.metrics.calibration import threshold_counts
from seqmodel.reporting.style import FAINT, INK, LEAK, MODEL, OTHER, SOFT, class_colour, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from seqmodel.evaluation.subgroups import SliceRow

MAX_NAMED_SUBJECTS = 40
MAX_COLOURS = 7


def threshold_plot(
    positive: np.ndarray, labels: np.ndarray, label_names: Sequence[str], chosen: float
) -> "Figure":
    """Recall of both classes and balanced accuracy at every threshold on (N,) p(positive)."""
    thresholds, tp, fp = threshold_counts(positive, labels)
    recall_last = tp / max(1, int((labels == 1).sum()))
    recall_first = 1.0 - fp / max(1, int((labels == 0).sum()))
    with drawing(4.6, 4.2) as (figure, axes):
        axes.plot(
            thresholds, recall_first, color=class_colour(0), linewidth=1.4, label=f"recall {label_names[0]}"
        )
        axes.plot(
            thresholds, recall_last, color=class_colour(1), linewidth=1.4, label=f"recall {label_names[1]}"
        )
        axes.plot(thresholds, (recall_first + recall_last) / 2, color=INK, label="balanced accuracy")
        axes.axvline(chosen, color=SOFT, linewidth=1, linestyle="--")
        axes.text(chosen, 1.04, f"chosen: {chosen:.2f}", ha="center", fontsize=9, color=SOFT)
        axes.set(xlabel=f"threshold on p({label_names[1]})", ylabel="share", xlim=(0, 1), ylim=(-0.02, 1.1))
        axes.legend(loc="lower center")
    return figure


def coverage_plot(confidence: np.ndarray, right: np.ndarray, coverage: float | None) -> "Figure":
    """Accuracy against coverage, most confident clips first.

    confidence (N,) float, right (N,) bool. `coverage` is the coverage of the abstain band, 0..1.
    """
    order = np.argsort(-confidence, kind="stable")
    share = np.arange(1, len(order) + 1) / len(order)
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # The first few clips alone are noise, not accuracy.
    start = min(len(order) - 1, max(4, len(order) // 20))
    with drawing(4.6, 4.2) as (figure, axes):
        axes.plot(share[start:], accuracy[start:], color=MODEL)
        axes.axhline(accuracy[-1], color=OTHER, linewidth=1, linestyle=":", label="all clips")
        if coverage is not None:
            axes.axvline(
                coverage,
                color=SOFT,
                linewidth=1,
                linestyle="--",
                label=f"abstain band: coverage {coverage:.0%}",
            )
        low = min(float(accuracy[start:].min()), float(accuracy[-1])) - 0.05
        axes.set(
            xlabel="coverage (share of clips with a prediction)",
            ylabel="accuracy",
            xlim=(0, 1.02),
            ylim=(max(0, low), 1.02),
        )
        axes.legend(loc="lower left")
    return figure


def subjects_plot(rows: Sequence["SliceRow"], overall: float) -> "Figure":
    """Accuracy of each subject with its 95 % interval, worst first; names for up to MAX_NAMED_SUBJECTS."""
    ordered = sorted(rows, key=lambda row: row.accuracy.value)
    value = np.array([row.accuracy.value for row in ordered])
    low, high = (np.array([getattr(row.accuracy, end) for row in ordered]) for end in ("low", "high"))
    x = np.arange(len(ordered))
    with drawing(11.5, 3.6) as (figure, axes):
        for small, colour in ((False, MODEL), (True, OTHER)):
            here = np.array([row.small == small for row in ordered], bool)
            axes.vlines(x[here], low[here], high[here], color=colour, linewidth=2, alpha=0.4)
            axes.scatter(
                x[here],
                value[here],
                s=[10 + 4 * min(30, row.clips) for row, k in zip(ordered, here, strict=True) if k],
                color=colour,
                zorder=3,
            )
        axes.axhline(overall, color=SOFT, linewidth=1, linestyle="--")
        axes.set(ylabel="accuracy", ylim=(-0.03, 1.05), xlim=(-0.7, len(ordered) - 0.3))
        axes.grid(axis="x", visible=False)
        if len(ordered) <= MAX_NAMED_SUBJECTS:
            axes.set_xticks(
                x,
                [row.name for row in ordered],
                rotation=40 if len(ordered) > 8 else 0,
                ha="right" if len(ordered) > 8 else "center",
            )
        else:
            axes.set_xticks([])
            axes.set_xlabel(f"{len(ordered)} subjects, worst first")
    return figure


def search_plot(numbers: np.ndarray, values: np.ndarray, metric: str) -> "Figure":
    """Selection score (n,), on validation, of finished trials by their number, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    order = np.argsort(numbers)
    with drawing(4.6, 4.2) as (figure, axes):
        axes.scatter(numbers[order], values[order], color=MODEL, s=22, alpha=0.55, linewidth=0)
        axes.step(
            numbers[order],
            np.maximum.accumulate(values[order]),
            where="post",
            color=INK,
            linewidth=1.4,
            label="best so far",
        )
        axes.set(xlabel="trial", ylabel=f"selection score (optimistic), {metric}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower right")
    return figure


def trials_plot(
    curves: Sequence[tuple[str, Sequence[float]]], metric: str, *, by_fold: bool = False
) -> "Figure":
    """Selection score, on validation, of the best trials, best first: lines over epochs, or dots per fold."""
    from matplotlib.ticker import MaxNLocator

    with drawing(4.6, 4.2) as (figure, axes):
        for k, (name, values) in reversed(list(enumerate(curves))):
            colour = MODEL if k == 0 else OTHER
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                color=colour,
                linestyle="none" if by_fold else "-",
                linewidth=2.2 if k == 0 else 1.2,
                alpha=1 if k == 0 else 0.7,
                marker="o",
                markersize=5 if by_fold else 3,
                label=name if k == 0 else None,
            )
        axes.set(xlabel="fold" if by_fold else "epoch", ylabel=f"selection score (optimistic), {metric}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower right")
    return figure


def scatter_plot(xy: np.ndarray, groups: np.ndarray, names: Sequence[str], *, by_class: bool) -> "Figure":
    """(N, 2) points coloured by group, groups (N,) int. A legend for up to 2 * MAX_COLOURS."""
    with drawing(4.6, 4.6) as (figure, axes):
        marks = "osD^vP*X"
        size = float(np.clip(4000 / len(xy), 6, 34))
        for k, name in enumerate(names):
            here = groups == k
            mark = marks[k // MAX_COLOURS % len(marks)] if not by_class else "o"
            axes.scatter(
                xy[here, 0],
                xy[here, 1],
                s=size,
                marker=mark,
                color=class_colour(k),
                alpha=0.75,
                linewidth=0,
                label=name,
                rasterized=len(xy) > 1000,
            )
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_color(FAINT)
        if len(names) <= 2 * MAX_COLOURS:
            figure.legend(loc="outside lower center", ncols=min(4, len(names)), fontsize=8)
    return figure


def timeline_plot(
    probability: np.ndarray,
    valid: np.ndarray,
    fps: float,
    threshold: float | None,
    true_is_high: bool,
    signals: Mapping[str, np.ndarray] | None = None,
) -> "Figure":
    """Probability (T,) over the growing window, and a strip of the frames with a face.

    The shaded area is where the prediction is correct. A second panel shows (T,) signals, -1..1, if any.
    """
    time_s = np.arange(len(probability)) / fps
    size = (3.6, 2.2, (1.35, 0.85)) if signals else (3.6, 1.35)
    with drawing(*size) as (figure, panels):
        axes, *below = np.atleast_1d(panels)
        edge = 0.5 if threshold is None else threshold
        axes.axhspan(*((edge, 1.0) if true_is_high else (0.0, edge)), color=MODEL, alpha=0.1, linewidth=0)
        axes.axhline(edge, color=SOFT, linewidth=0.8, linestyle="--")
        axes.plot(time_s, probability, color=INK, linewidth=1.6)
        step = 1.0 / fps
        axes.bar(
            time_s, 0.07, width=step, bottom=-0.17, color=[MODEL if v else FAINT for v in valid], linewidth=0
        )
        axes.set(ylim=(-0.2, 1.03), xlim=(-step / 2, time_s[-1] + step / 2), yticks=[0, 1])
        for panel in below:
            for (name, values), colour in zip((signals or {}).items(), (MODEL, OTHER, LEAK), strict=False):
                panel.plot(time_s, values, color=colour, linewidth=1.2, label=name)
            panel.set(ylim=(-1.1, 1.1), yticks=[-1, 0, 1])
            panel.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=3, fontsize=7, frameon=False)
        figure.axes[-1].set_xticks([0, round(float(time_s[-1]) + step)], ["0", f"{time_s[-1] + step:.0f} s"])
        for panel in figure.axes:
            panel.grid(False)
            panel.tick_params(labelsize=8, length=0)
    return figure


def importance_plot(
    names: Sequence[str], drops: np.ndarray, lows: np.ndarray, highs: np.ndarray, metric: str
) -> "Figure":
    """Decrease of the metric when a group of features is shuffled, with 95 % intervals; largest first."""
    order = np.argsort(drops)
    with drawing(11.5, 0.7 + 0.34 * len(names)) as (figure, axes):
        y = np.arange(len(names))
        axes.barh(
            y, drops[order], color=np.where(drops[order] > 0, MODEL, OTHER).tolist(), alpha=0.75, height=0.62
        )
        axes.hlines(y, lows[order], highs[order], color=INK, linewidth=1.2)
        axes.axvline(0, color=LEAK if (drops < 0).all() else SOFT, linewidth=1)
        axes.set_yticks(y, [names[k] for k in order])
        axes.set(xlabel=f"decrease of {metric} when shuffled")
        axes.grid(axis="y", visible=False)
    return figure


def compare_plot(runs: Sequence[str], metrics: Sequence[str], estimates: Sequence[Sequence[Any]]) -> "Figure":
    """Value and 95 % interval of each metric and run; estimates[run][metric] has value, low and high."""
    with drawing(7.2, 0.9 + len(metrics) * (0.22 * len(runs) + 0.22)) as (figure, axes):
        for r, run in enumerate(runs):
            y = np.arange(len(metrics)) + (r - (len(runs) - 1) / 2) * 0.22
            value, low, high = (
                np.array([getattr(f, end) for f in estimates[r]]) for end in ("value", "low", "high")
            )
            axes.hlines(y, low, high, color=class_colour(r), linewidth=4, alpha=0.35)
            axes.scatter(value, y, color=class_colour(r), zorder=3, label=run)
        axes.set_yticks(range(len(metrics)), list(metrics))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper center", ncols=min(4, len(runs)))
    return figure
