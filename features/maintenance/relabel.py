"""Correct labels, subjects, splits and slices of a store from a manifest, without touching features.

The body of `python -m features label`; running extract again with the corrected manifest does it too, and
looks for new and changed videos besides.
"""

import dataclasses
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.manifest import Clip, Manifest, read_csv, read_folder, walk
from features.store import planner
from features.store.description import recipe_of
from features.store.location import existing_group, location_of
from features.store.lock import planner_lock
from features.store.store import FeatureStore
from features.store.table import ClipTable

SLACK_S = 1e-3
"""Clips go by whole milliseconds."""
AIHUB_LABELS = "라벨링데이터"
"""How the folders of AIHub's labels end, NFC."""


@dataclass(frozen=True)
class Relabelling:
    """What a correction did; clip ids."""

    corrected: tuple[str, ...]
    unnamed: tuple[str, ...]
    """Clips of the store that the manifest does not speak of: they stay as they were."""
    unknown: tuple[str, ...]
    """Clips of the manifest that the store does not have."""


def read_corrections(data: Path) -> Manifest:
    """Clips of a manifest CSV, of the `labels.csv` in a folder, or of a folder of classes.

    A CSV's videos may be elsewhere, and it may name subjects, splits or folds only. Raises ValueError for
    what `read_csv` and `read_folder` refuse, and for a folder whose own folders are no classes: they would
    label every clip.
    """
    if not data.is_dir():
        return read_csv(data, require_files=False, require_labels=False)
    instead = "; name a manifest CSV, or extract again, which corrects labels too"
    if _is_known_layout(data):
        raise ValueError(f"{data} is a data set's own folder, whose labels are read by extract only{instead}")
    if (data / "labels.csv").is_file():
        return read_csv(data / "labels.csv", require_files=False, require_labels=False)
    manifest = read_folder(data)
    names = {clip.labels["label"] for clip in manifest.clips}
    if len(names) < 2:
        found = f"only {names.pop()!r}" if names else "none"
        raise ValueError(f"{data}: wanted folders named by class, at least two, found {found}{instead}")
    return manifest


def _is_known_layout(folder: Path) -> bool:
    """Whether a folder is laid out as DAiSEE or AIHub 71715 are."""
    if (folder / "DataSet").is_dir() and (folder / "Labels").is_dir():
        return True
    names = (name for _, subfolders, _ in walk(folder) for name in subfolders)
    return any(unicodedata.normalize("NFC", name).endswith(AIHUB_LABELS) for name in names)


def relabel(path: Path | str, clips: Sequence[Clip]) -> Relabelling:
    """Bring labels, subjects, splits and slices up to date; features stay as they are, and what has vanished
    stays so.

    clips as the manifest names them: a row belongs to the clip of its video that has a window where the row
    starts, and stays as it was where none has. What the manifest has no column for stays as it was.

    Raises ValueError when there is no store, or no clip of it is named.
    """
    location = location_of(path)
    existing_group(location, read_only=True)  # before the lock, which would lie in it
    with planner_lock(location):
        group = existing_group(location, read_only=False)
        table = FeatureStore(location, group, writable=False).table()
        recipe = recipe_of(group, location)
        window_s = math.inf if recipe.pixels is None else recipe.pixels.window_s
        by_source: dict[str, list[Clip]] = {}
        for clip in clips:
            by_source.setdefault(clip.clip_id.rpartition("#")[0], []).append(clip)
        owners = [_owner(table, row, by_source, window_s) for row in range(len(table.state))]
        named = [_as_row(owner, table, row) for row, owner in enumerate(owners) if owner is not None]
        if not named:
            raise ValueError(
                f"none of these {len(clips)} clips is in {location.text}: are the paths the same?"
            )
        changes = planner.write_rows(
            group,
            location,
            named,
            recipe,
            has_crops=False,
            listing="none",
            file_states=np.full((len(named), 2), -1),
        )
    ids = table.clip_id.tolist()
    met = {clip.clip_id for clip in owners if clip is not None}
    return Relabelling(
        changes.corrected,
        tuple(name for name, clip in zip(ids, owners, strict=True) if name and clip is None),
        tuple(clip.clip_id for clip in clips if clip.clip_id not in met),
    )


def _owner(table: ClipTable, row: int, by_source: dict[str, list[Clip]], window_s: float) -> Clip | None:
    """The clip that the row was cut from; None where no clip of these has a window at its start. Of several
    it is the one that starts last: had an earlier one a window there too, two rows would go by one name."""
    start_s = float(table.start_s[row])
    cut = [
        clip
        for clip in by_source.get(str(table.source[row]), ())
        if clip.start_s - SLACK_S <= start_s < (math.inf if clip.end_s is None else clip.end_s)
        and abs(math.remainder(start_s - clip.start_s, window_s)) <= SLACK_S
    ]
    return min(cut, key=lambda clip: abs(start_s - clip.start_s), default=None)


def _as_row(clip: Clip, table: ClipTable, row: int) -> Clip:
    """The clip with the row's own id and times."""
    end_s = float(table.end_s[row])
    return dataclasses.replace(
        clip,
        clip_id=str(table.clip_id[row]),
        start_s=float(table.start_s[row]),
        end_s=None if np.isnan(end_s) else end_s,
    )
