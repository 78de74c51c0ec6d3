"""Pictures of a study: its history, which parameters mattered, and where the good trials lie.

Drawn by Optuna from the trials alone, as PNG files under the run's plots/ folder.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from seqmodel.reporting.style import PNG_DPI, style
from tune.study.storage import experimental_is_fine

FEWEST = 4
"""Complete trials below which nothing can be said about parameters."""
MOST_DRAWN = 6
"""Parameters beside each other in one picture, those that mattered most."""


def save_study_plots(study: optuna.Study, folder: Path, metric: str) -> dict[str, float]:
    """Write study_history, study_importances, study_parallel and study_slices; returns the importances.

    Importances are shares of the score's variance by parameter (PED-ANOVA), empty with too few trials.
    """
    with style():  # imported here: Matplotlib must know before that there is no display
        from optuna.visualization import matplotlib as draw
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    folder.mkdir(parents=True, exist_ok=True)
    found = importances(study) if len(complete) >= FEWEST else {}
    score, most = f"validation {metric}", list(found)[:MOST_DRAWN]
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
    """Share of each parameter in what made good trials good, largest first; empty where it cannot be told."""
    with experimental_is_fine():
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
    """Draw in Optuna's own style, which it sets for all of Matplotlib, and undo that.

    Silent: the functions are called experimental, and parameters that were never varied are warned of.
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
                if axis.get_scale() == "log":  # whose own formatters write formulas
                    axis.set_major_formatter(LogFormatter())
                    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
                    axes.tick_params("x", which="both", rotation=45)
        figure.savefig(path, dpi=PNG_DPI)
        plt.close(figure)
