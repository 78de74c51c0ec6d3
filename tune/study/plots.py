"""Plots of a study: optimisation history, parameter importances, parallel coordinates and slices.

Optuna draws them from the trials, as PNG files in the run's plots/ folder.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from seqmodel.reporting.style import PNG_DPI, style
from tune.study.storage import ignore_experimental_warnings

MIN_TRIALS = 4
"""Fewest complete trials for parameter importances."""
MAX_PARAMETERS = 6
"""Maximum number of parameters in one plot, the most important ones."""


def save_study_plots(study: optuna.Study, folder: Path, metric: str) -> dict[str, float]:
    """Write study_history, study_importances, study_parallel and study_slices; returns the importances.

    Parameter importances (PED-ANOVA) are fractions that sum to one; empty with too few trials.
    """
    with style():  # imported here, after style() selects a backend without a display
        from optuna.visualization import matplotlib as draw
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    folder.mkdir(parents=True, exist_ok=True)
    found = importances(study) if len(complete) >= MIN_TRIALS else {}
    score, most = f"selection score (optimistic), {metric}", list(found)[:MAX_PARAMETERS]
    width = max(2, len(most))
    _save(folder / "study_history.png", (8, 4), draw.plot_optimization_history, study, target_name=score)
    if found:
        both: Any = {"params": most, "target_name": score}
        shares, lines, slices = draw.plot_param_importances, draw.plot_parallel_coordinate, draw.plot_slice
        size = (7, 1.2 + 0.3 * len(found))
        _save(folder / "study_importances.png", size, shares, study, target_name=score)
        _save(folder / "study_parallel.png", (3 + 1.6 * width, 5), lines, study, **both)
        _save(folder / "study_slices.png", (3 * width, 3.6), slices, study, **both)
    return found


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each parameter for good trials (PED-ANOVA), largest first; empty if it is undefined."""
    with ignore_experimental_warnings():
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return {
                k: float(v)
                for k, v in optuna.importance.get_param_importances(study, evaluator=evaluator).items()
            }
        except (ValueError, RuntimeError):
            return {}


def _save(
    path: Path, size: tuple[float, float], plot: Callable[..., Any], study: optuna.Study, **options: Any
) -> None:
    """Save one plot and restore Matplotlib's style, which Optuna changes globally.

    Warnings are ignored: they are about experimental functions and about parameters with one value only.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter

    with warnings.catch_warnings(action="ignore"), style():
        plt.rcParams["axes.grid"] = False
        plot(study, **options)
        figure = plt.gcf()
        figure.set_size_inches(size)
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "log":  # the default formatters of log axes write formulas
                    axis.set_major_formatter(LogFormatter())
                    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
                    axes.tick_params("x", which="both", rotation=45)
        figure.savefig(path, dpi=PNG_DPI)
        plt.close(figure)
