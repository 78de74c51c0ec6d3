"""Verification of a store: read everything and list what is broken.

Checks: every chunk's checksum; shapes; embeddings of valid frames are finite; frames have a crop exactly if
they have a face; rows that `state` calls done exist; no data of deleted subjects; the arrays' metadata; the
packed copies. Nothing is repaired.
"""

from typing import Any

import numpy as np

from features.manifest import Failure
from features.store.description import LAYOUT_SUM, layout_sum
from features.store.erasure import DELETED, rows_after_deletion
from features.store.packed import verify_packed
from features.store.schema import NUMBER_COLUMNS, TEXT_COLUMNS, read_column, user_arrays
from features.store.store import FeatureStore, Part

_UNREADABLE = (ValueError, RuntimeError, OSError, KeyError, TypeError)
"""Errors that zarr raises for a truncated, corrupted or undecodable chunk."""


def verify_store(store: FeatureStore) -> list[Failure]:
    """Everything that is broken, as failures (clip id or array name, what is wrong)."""
    group, location = store.group, store.location
    attributes: Any = group.attrs
    problems: list[Failure] = []
    if attributes.get(LAYOUT_SUM) != layout_sum(location, dict(attributes)):
        problems.append(Failure("zarr.json", "the store's attributes do not match their checksum"))
    for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS, *user_arrays(attributes)):
        try:
            read_column(group, name, store.num_clips)
        except _UNREADABLE as error:
            problems.append(Failure(name, f"cannot be read: {error}"))
    if problems:
        return problems  # without these, rows have no clip id
    table = store.table()
    settled = read_column(group, "state", store.num_clips)
    for row, clip_id in enumerate(table.clip_id.tolist()):
        if not clip_id and table.source[row] != DELETED:
            problems.append(Failure(f"row {row}", "has no clip id: its chunk is missing"))
        if settled[row] == 1 and table.state[row] != 1:
            problems.append(Failure(clip_id, "state is done, but its frames are missing"))
    for row in rows_after_deletion(group, location):
        reason = "was written after its subject was deleted: the next extract or delete clears it"
        problems.append(Failure(f"row {row}", reason))
    present = {part: store.present(part) for part in store.parts}
    for row, clip_id in enumerate(table.clip_id.tolist()):
        parts = {part for part, rows in present.items() if rows[row]}
        problems += [Failure(clip_id, reason) for reason in _row_problems(store, row, parts)]
    return problems + [Failure(f"packed/{name}", "broken: delete it") for name in verify_packed(location)]


def _row_problems(store: FeatureStore, row: int, parts: set[Part]) -> list[str]:
    values: dict[str, Any] = {}
    reasons = []
    for name in sorted({*parts, "frames"} if "embeddings" in parts else parts):
        try:
            if name == "crops":
                values[name] = store.rows.read_texts(name, row)
            else:
                values[name] = store.rows.read_numbers(name, np.array([row]))[0]
        except _UNREADABLE as error:
            reasons.append(str(error))
    if "frames" in values:
        valid = np.asarray(values["frames"])[:, 5] > 0
        if "embeddings" in values and not np.isfinite(np.asarray(values["embeddings"])[valid]).all():
            reasons.append("an embedding of a valid frame is not finite")
        if "crops" in values:
            filled = np.array([len(item) > 0 for item in values["crops"]])
            if not np.array_equal(filled, valid):
                reasons.append(
                    f"{int((filled != valid).sum())} frames with a crop but no face, or the reverse"
                )
    return reasons
