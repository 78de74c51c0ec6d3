"""What a search left behind: the finished trials of a run's study.log.

It knows nothing about search spaces or how a study is run.
"""

from dataclasses import dataclass
from pathlib import Path

STUDY = "study.log"


@dataclass(frozen=True)
class Trial:
    """One finished or pruned trial."""

    number: int
    value: float | None
    """Validation score; None where it was pruned or failed."""
    curve: tuple[float, ...]
    """Validation score by epoch."""


def trials_of(run: Path) -> list[Trial]:
    """Trials of the run's own journal, in order; none where there was no search or it was kept elsewhere."""
    path = run / STUDY
    if not path.is_file():
        return []
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    # Reading takes no lock, but the default one would want rights that Windows does not give.
    storage = JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    names = optuna.get_all_study_names(storage)
    if not names:
        return []
    found = optuna.load_study(study_name=names[-1], storage=storage).get_trials(deepcopy=False)
    return [
        Trial(
            trial.number,
            trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None,
            tuple(float(trial.intermediate_values[step]) for step in sorted(trial.intermediate_values)),
        )
        for trial in found
        if trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    ]
