"""The settings that a run was chosen from: what `evaluate --folds` chooses from in each fold, again.

File settings.json of a run: the first trials of the search, or the settings of `train`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from seqmodel.config import HeadConfig, TrainConfig, TrialConfig
from seqmodel.runs.card import Card
from seqmodel.runs.files import SETTINGS, read_json, write_json
from seqmodel.runs.predict import inputs_of


def save_settings(run: Path, settings: Sequence[TrialConfig]) -> None:
    """Write settings.json, atomically; without settings, delete it."""
    if not settings:
        (run / SETTINGS).unlink(missing_ok=True)
        return
    write_json(run / SETTINGS, [asdict(setting) for setting in settings])


def load_settings(run: Path, card: Card) -> tuple[TrialConfig, ...]:
    """The settings in settings.json; without the file, those of the run's own head."""
    if not (run / SETTINGS).is_file():
        return (TrialConfig(card.head, card.train, inputs_of(card)),)
    return tuple(
        TrialConfig(HeadConfig(**each["head"]), TrainConfig(**each["train"]), each["inputs"])
        for each in read_json(run / SETTINGS)
    )
