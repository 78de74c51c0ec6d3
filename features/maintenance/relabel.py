"""Update labels, subjects, splits and slices of a store from a manifest; features do not change.

Used by `python -m features label`. Running extract again with the corrected manifest does the same, and also
extracts new and changed videos.
"""

import dataclasses
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.cli import UserError
from features.manifest import Clip, Manifest, read_csv, read_folder, walk
from features.store import planner
from features.store.description import recipe_of
from features.store.location import existing_group, location_of
from features.store.lock import planner_lock
from features.store.store import FeatureStore
from features.store.table import ClipTable

SLACK_S = 1e-3
"""Tolerance of start times: clip ids hold whole milliseconds."""
AIHUB_LABELS = "라벨링데이터"
"""End of the names of AIHub's label folders, NFC."""


@dataclass(frozen=True)
class Relabelling:
    """Result of a relabelling, as clip ids."""

    corrected: tuple[str, ...]
    unnamed: tuple[str, ...]
    """Clips of the store that are not in the manifest: unchanged."""
    unknown: tuple[str, ...]
    """Clips of the manifest that are not in the store."""


def read_corrections(data: Path) -> Manifest:
    """Read a manifest CSV, the `labels.csv` in a folder, or a folder with one subfolder per class.

    The videos of a CSV may be missing, and it may have only subjects, splits or folds. Raises UserError like
    `read_csv` and `read_folder`, and for a folder whose subfolders are not classes (they would change the
    label of every clip).
    """
    if not data.is_dir():
        return read_csv(data, require_files=False, require_labels=False)
    instead = "; use a manifest CSV, or extract again, which updates labels too"
    if _is_known_layout(data):
        raise UserError(f"{data} has the layout of a known data set, which only extract can read{instead}")
    if (data / "labels.csv").is_file():
        return read_csv(data / "labels.csv", require_files=False, require_labels=False)
    manifest = read_folder(data)
    names = {clip.labels["label"] for clip in manifest.clips}
    if len(names) < 2:
        found = f"only {names.pop()!r}" if names else "none"
        raise UserError(f"{data}: expected at least two folders named by class, found {found}{instead}")
    return manifest


def _is_known_layout(folder: Path) -> bool:
    """Whether a folder has the layout of DAiSEE or AIHub 71715."""
    if (folder / "DataSet").is_dir() and (folder / "Labels").is_dir():
        return True
    names = (name for _, subfolders, _ in walk(folder) for name in subfolders)
    return any(unicodedata.normalize("NFC", name).endswith(AIHUB_LABELS) for name in names)


def relabel(path: Path | str, clips: Sequence[Clip]) -> Relabelling:
    """Update labels, subjects, splits and slices. Features do not change, and clips that are no longer in the
    manifest stay so.

    clips: as in the manifest. A row belongs to the clip of its video that has a window at the row's start
    time; rows without such a clip do not change. Columns that the manifest does not have do not change.

    Raises UserError when there is no store, or none of the clips is in it.
    """
    location = location_of(path)
    existing_group(location, read_only=True)  # before the lock, which is written into the store's folder
    with planner_lock(location) as held:
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
            raise UserError(
                f"none of these {len(clips)} clips is in {location.text}: check that the paths are the same"
            )
        changes = planner.write_rows(
            group,
            held,
            named,
            recipe,
            has_crops=False,
            listing="none",
            file_states=np.full((len(named), 2), -1),
        )
    ids = table.clip_id.tolist()
    found = {clip.clip_id for clip in owners if clip is not None}
    return Relabelling(
        changes.corrected,
        tuple(name for name, clip in zip(ids, owners, strict=True) if name and clip is None),
        tuple(clip.clip_id for clip in clips if clip.clip_id not in found),
    )


def _owner(table: ClipTable, row: int, by_source: dict[str, list[Clip]], window_s: float) -> Clip | None:
    """The clip that the row is a window of; None if no clip has a window at the row's start. Of several clips
    it is the one that starts last: if an earlier clip had that window too, two rows would share an id."""
    start_s = float(table.start_s[row])
    candidates = [
        clip
        for clip in by_source.get(str(table.source[row]), ())
        if clip.start_s - SLACK_S <= start_s < (math.inf if clip.end_s is None else clip.end_s)
        and abs(math.remainder(start_s - clip.start_s, window_s)) <= SLACK_S
    ]
    return min(candidates, key=lambda clip: abs(start_s - clip.start_s), default=None)


def _as_row(clip: Clip, table: ClipTable, row: int) -> Clip:
    """The clip with the id and the times of the row."""
    end_s = float(table.end_s[row])
    return dataclasses.replace(
        clip,
        clip_id=str(table.clip_id[row]),
        start_s=float(table.start_s[row]),
        end_s=None if np.isnan(end_s) else end_s,
    )
