"""Finished trials of a hyperparameter search, read from a run's study.log."""

from dataclasses import dataclass
from pathlib import Path

from features.cli import UserError
from seqmodel.runs.card import load_card
from seqmodel.runs.files import STUDY


@dataclass(frozen=True)
class Trial:
    """One finished or pruned trial."""

    number: int
    value: float | None
    """Validation score; None where it was pruned or failed."""
    curve: tuple[float, ...]
    """Validation score of each epoch, or of each fold."""
    by_fold: bool = False
    """Whether the trial was scored by cross-validation."""


def trials_of(run: Path) -> list[Trial]:
    """Trials of the search that made the run's head, in order.

    Empty where the head comes from no search or the run has no journal. A journal may hold several studies
    (another label, another --study); the card names the right one.
    """
    path, name = run / STUDY, _study_of(run)
    if not name or not path.is_file():
        return []
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    # Reading takes no lock, but the default lock needs rights that Windows does not give.
    storage = JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    if name not in optuna.get_all_study_names(storage):
        return []
    trials = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    return [
        Trial(
            trial.number,
            trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None,
            tuple(float(value) for value in trial.user_attrs.get("val_curve", ())),
            # Epochs are counted from 1, folds from 0.
            0 in trial.intermediate_values,
        )
        for trial in trials
        if trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    ]


def _study_of(run: Path) -> str:
    """Name of the study in the run's card; '' where it has none."""
    try:
        stages = load_card(run).stages
    except UserError:
        return ""
    return str(stages[0].get("study", "")) if stages else ""
