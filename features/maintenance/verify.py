"""Verification of a store: read everything, list what is broken, and reset broken rows.

Checks: every chunk's checksum; shapes; embeddings of valid frames are finite; frames have a crop exactly if
they have a face; rows that `state` calls done exist; no data of deleted subjects; the arrays' metadata; the
packed copies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.store.description import LAYOUT_SUM, layout_sum
from features.store.erasure import DELETED, rows_after_deletion
from features.store.location import delete_keys
from features.store.packed import drop_packed, verify_packed
from features.store.rows import DAMAGED
from features.store.schema import (
    NUMBER_COLUMNS,
    ROW_ARRAYS,
    TEXT_COLUMNS,
    chunk_key,
    read_column,
    user_arrays,
)
from features.store.store import FeatureStore, Part

_MARKED = ("frames", "embeddings")  # deleted together, the marker first
_UNREADABLE = (ValueError, RuntimeError, OSError, KeyError, TypeError)
"""Errors that zarr raises for a truncated, corrupted or undecodable chunk."""


@dataclass(frozen=True)
class Problem:
    """Something that is broken: what it is and why, and how `repair_store` resets it."""

    clip_id: str
    """A clip, or an array, a packed copy or a row without a clip."""
    reason: str
    chunks: tuple[str, ...] | None = None
    """Keys of the chunks to delete; () = an update of the store is enough; None = it cannot be repaired."""


def verify_store(store: FeatureStore) -> list[Problem]:
    """Everything that is broken."""
    group, location = store.group, store.location
    attributes: Any = group.attrs
    problems: list[Problem] = []
    if attributes.get(LAYOUT_SUM) != layout_sum(location, dict(attributes)):
        problems.append(
            Problem("zarr.json", "does not match its checksum; after an interruption, run the command again")
        )
    for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS, *user_arrays(attributes)):
        try:
            read_column(group, name, store.num_clips)
        except _UNREADABLE as error:
            problems.append(Problem(name, f"cannot be read: {error}"))
    if problems:
        return problems  # without these, rows have no clip id
    table = store.table()
    settled = read_column(group, "state", store.num_clips)
    for row, clip_id in enumerate(table.clip_id.tolist()):
        if not clip_id and table.source[row] != DELETED:
            problems.append(Problem(f"row {row}", "has no clip id: its chunk is missing"))
        if settled[row] == 1 and table.state[row] != 1:
            problems.append(Problem(clip_id, "state is done, but its frames are missing", ()))
    for row in rows_after_deletion(group, location):
        reason = "was written after its subject was deleted: the next extract or delete clears it"
        problems.append(Problem(f"row {row}", reason, ()))
    present = {part: store.present(part) for part in store.parts}
    texts = {name: store.rows.texts(name) for name in ("failure", "notes")}
    for row, clip_id in enumerate(table.clip_id.tolist()):
        damaged = [((name,), f"{name}: {DAMAGED}") for name, of in texts.items() if of[row] == DAMAGED]
        parts = {part for part, rows in present.items() if rows[row]}
        for names, reason in (*damaged, *_row_problems(store, row, parts)):
            chunks = tuple(chunk_key(name, row, ROW_ARRAYS[name]) for name in names)
            # clips of imported features share chunks
            problems.append(Problem(clip_id, reason, chunks if attributes["rows_per_chunk"] == 1 else None))
    return problems + [Problem(f"packed/{name}", "broken", ()) for name in verify_packed(location)]


def repair_store(store: FeatureStore, problems: Sequence[Problem]) -> list[Problem]:
    """Reset what is broken, as far as possible; returns the problems that are left.

    Broken parts of a row are deleted, so that extract does them again; packed copies too.
    """
    for problem in problems:
        delete_keys(store.location, problem.chunks or ())
    if any(problem.chunks is not None for problem in problems):
        drop_packed(store.location)
        store.finalize()
    return [problem for problem in problems if problem.chunks is None]


def _row_problems(store: FeatureStore, row: int, parts: set[Part]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(arrays whose chunks are broken, reason) of what is wrong in a row."""
    values: dict[str, Any] = {}
    for name in sorted({*parts, "frames"} if "embeddings" in parts else parts):
        try:
            if name == "crops":
                values[name] = store.rows.read_texts(name, row)
            else:
                values[name] = store.rows.read_numbers(name, np.array([row]))[0]
        except _UNREADABLE as error:
            yield (_MARKED if name in _MARKED else (name,)), f"{name}: {error.__cause__ or error}"
    if "frames" in values:
        valid = np.asarray(values["frames"])[:, 5] > 0
        if "embeddings" in values and not np.isfinite(np.asarray(values["embeddings"])[valid]).all():
            yield _MARKED, "an embedding of a valid frame is not finite"
        if "crops" in values:
            filled = np.array([len(item) > 0 for item in values["crops"]])
            if count := int((filled != valid).sum()):
                yield (*_MARKED, "crops"), f"{count} frames with a crop but no face, or the reverse"
