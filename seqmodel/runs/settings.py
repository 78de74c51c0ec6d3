"""The settings that a run was chosen from: what `evaluate --folds` chooses from in each fold, again.

File settings.json of a run: the first trials of the search, or the settings of `train`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from seqmodel.config import MemberConfig
from seqmodel.runs.card import Card, member_from_json
from seqmodel.runs.files import SETTINGS, read_json, write_json


def save_settings(run: Path, settings: Sequence[MemberConfig]) -> None:
    """Write settings.json, atomically; without settings, delete it."""
    if not settings:
        (run / SETTINGS).unlink(missing_ok=True)
        return
    write_json(run / SETTINGS, [asdict(setting) for setting in settings])


def load_settings(run: Path, card: Card) -> tuple[MemberConfig, ...]:
    """The settings in settings.json; without the file, those of the run's own members."""
    if not (run / SETTINGS).is_file():
        return card.members
    return tuple(map(member_from_json, read_json(run / SETTINGS)))
