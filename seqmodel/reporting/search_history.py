"""What a search left behind: the finished trials of a run's study.log."""

from dataclasses import dataclass
from pathlib import Path

from seqmodel.runs.card import STUDY, load_card


@dataclass(frozen=True)
class Trial:
    """One finished or pruned trial."""

    number: int
    value: float | None
    """Validation score; None where it was pruned or failed."""
    curve: tuple[float, ...]
    """Validation score of each epoch, or of each fold."""
    by_fold: bool = False
    """Whether the trial was judged by folds."""


def trials_of(run: Path) -> list[Trial]:
    """Trials of the search that the run's head came from, in order; none where it came from no search, or its
    journal is not in the run.

    Another label or another --study searches in the same journal; the card names the one that is meant.
    """
    path, name = run / STUDY, _study_of(run)
    if not name or not path.is_file():
        return []
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    # Reading takes no lock, but the default one would want rights that Windows does not give.
    storage = JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    if name not in optuna.get_all_study_names(storage):
        return []
    found = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    return [
        Trial(
            trial.number,
            trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None,
            # What trials report to the pruner is the best so far: no curve of it would ever fall.
            tuple(float(value) for value in trial.user_attrs.get("val_curve", ())),
            # Epochs are counted from 1, folds from 0.
            0 in trial.intermediate_values,
        )
        for trial in found
        if trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    ]


def _study_of(run: Path) -> str:
    """Name of the study in the run's card; '' where there is none."""
    try:
        stages = load_card(run).stages
    except ValueError:
        return ""
    return str(stages[0].get("study", "")) if stages else ""
