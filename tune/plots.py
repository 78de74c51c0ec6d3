"""Pictures of a study: its history, which parameters mattered, and where the good trials lie.

Drawn from the trials alone, as PNG files under the run's plots/ folder. Knows nothing about heads or stores.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from seqmodel.drawing import MODEL, OTHER, PNG_DPI, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 4
"""Complete trials below which nothing can be said about parameters."""
LOGARITHMIC = ("lr", "weight_decay")


def save_study_plots(study: optuna.Study, folder: Path, metric: str) -> dict[str, float]:
    """Write study_history, study_importances, study_parallel and study_slices; returns the importances.

    Importances are shares of the score's variance by parameter (PED-ANOVA), empty with too few trials.
    """
    complete = [
        t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE and t.value is not None
    ]
    pruned = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.PRUNED]
    folder.mkdir(parents=True, exist_ok=True)
    found = importances(study) if len(complete) >= FEWEST else {}
    with style():
        _save(_history(complete, pruned, metric), folder / "study_history.png")
        if found:
            _save(_importances(found), folder / "study_importances.png")
            _save(_parallel(complete, list(found)[:8], metric), folder / "study_parallel.png")
            _save(_slices(complete, list(found)[:8], metric), folder / "study_slices.png")
    return found


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in what made good trials good, largest first; empty where it cannot be told."""
    import warnings

    with warnings.catch_warnings():
        # Optuna calls the evaluator experimental, and says so each time.
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return {
                k: float(v)
                for k, v in optuna.importance.get_param_importances(study, evaluator=evaluator).items()
            }
        except (ValueError, RuntimeError):
            return {}


def _history(complete: list[FrozenTrial], pruned: list[FrozenTrial], metric: str) -> "Figure":
    figure, axes = _figure(7, 3.6)
    numbers = [trial.number for trial in complete]
    values = [float(trial.value or 0.0) for trial in complete]
    seen = [t for t in pruned if t.intermediate_values]
    axes.plot(
        [t.number for t in seen],
        [_worth(t) for t in seen],
        "x",
        color=OTHER,
        label="pruned",
    )
    axes.plot(numbers, values, "o", color=MODEL, label="complete")
    if values:
        axes.step(
            numbers, np.maximum.accumulate(values), where="post", color=MODEL, alpha=0.5, label="best so far"
        )
    axes.set(xlabel="trial", ylabel=f"validation {metric}", title="History")
    axes.legend()
    return figure


def _worth(pruned: FrozenTrial) -> float:
    """What a pruned trial was worth when it was stopped: its best epoch, or the mean of its folds."""
    values = list(pruned.intermediate_values.values())
    # Epochs are counted from 1, folds from 0.
    return float(np.mean(values)) if 0 in pruned.intermediate_values else max(values)


def _importances(found: dict[str, float]) -> "Figure":
    names = list(found)[:12][::-1]
    figure, axes = _figure(6, 0.6 + 0.3 * len(names))
    axes.barh(names, [found[name] for name in names], color=MODEL)
    axes.set(xlabel="share", title="What mattered")
    axes.grid(axis="y", visible=False)
    return figure


def _parallel(complete: list[FrozenTrial], names: list[str], metric: str) -> "Figure":
    figure, axes = _figure(1.6 + 1.15 * len(names), 4)
    ranked = sorted(complete, key=lambda trial: float(trial.value or 0.0))
    columns = [_places(ranked, name) for name in names]
    scores = _unit(np.array([float(trial.value or 0.0) for trial in ranked]))
    for row in range(len(ranked)):
        line = [places[row] for places, _ in columns] + [scores[row]]
        best = row >= len(ranked) - max(1, len(ranked) // 5)
        axes.plot(line, color=MODEL if best else OTHER, alpha=0.9 if best else 0.25, linewidth=1.4)
    for column, (_, ends) in enumerate(columns):
        axes.annotate(ends[0], (column, -0.04), ha="center", va="top", fontsize=7)
        axes.annotate(ends[1], (column, 1.03), ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(names) + 1), [*names, metric], rotation=20)
    axes.set(yticks=[], ylim=(-0.12, 1.12), title="Best fifth of the trials against the rest")
    axes.tick_params(axis="x", pad=10)
    return figure


def _slices(complete: list[FrozenTrial], names: list[str], metric: str) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    columns = 4
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.4 * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        name = names[place]
        have = [trial for trial in complete if name in trial.params]
        values = [trial.params[name] for trial in have]
        is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        axes.plot(
            values if is_number else [str(v) for v in values],
            [trial.value for trial in have],
            "o",
            color=MODEL,
            markersize=4,
            alpha=0.7,
        )
        if name in LOGARITHMIC:
            axes.set_xscale("log")
            # Those of the scale write formulas.
            axes.xaxis.set_major_formatter(LogFormatter())
            axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        axes.set_xlabel(name)
        if place % columns == 0:
            axes.set_ylabel(metric)
    return figure


def _places(trials: list[FrozenTrial], name: str) -> tuple[np.ndarray, tuple[str, str]]:
    """Where each trial stands on a parameter's axis, 0 to 1, and what its ends are called."""
    values: list[Any] = [trial.params.get(name) for trial in trials]
    known = [v for v in values if v is not None]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        numbers = np.array([np.nan if v is None else float(v) for v in values])
        numbers = np.log10(numbers) if name in LOGARITHMIC else numbers
        return _unit(numbers), (f"{min(known):.3g}", f"{max(known):.3g}")
    names = sorted({str(v) for v in known})
    return _unit(np.array([np.nan if v is None else names.index(str(v)) for v in values])), (
        names[0],
        names[-1],
    )


def _unit(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values), np.nanmax(values)
    return (values - low) / (high - low) if high > low else np.where(np.isnan(values), np.nan, 0.5)


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=PNG_DPI)
