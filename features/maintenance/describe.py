"""Summary of a store's contents, for `python -m features info`."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from features.recipe import fingerprint
from features.store.store import FeatureStore
from features.store.table import ClipTable


def describe(store: FeatureStore) -> dict[str, Any]:
    """Counts, face rate, recipe and fingerprint of a store, JSON-ready."""
    table = store.table()
    listed = store.listed()
    known = listed | (table.source != "deleted")
    state = table.state[listed]
    return {
        "store": str(store.path),
        "clips": int(listed.sum()),
        "videos": len(set(table.source[listed].tolist())),
        "done": int((state == 1).sum()),
        "failed": int((state == 2).sum()),
        "pending": int((state == 0).sum()),
        "not_in_manifest": int((known & ~listed).sum()),
        "deleted": int((~known).sum()),
        "subjects": len(set(table.subject[listed].tolist()) - {""}),
        "without_subject": int((table.subject[listed] == "").sum()),
        "splits": dict(Counter(name or "none" for name in table.split[listed].tolist())),
        "labels": {column: _label_counts(table, column, listed) for column in table.labels},
        "label_names": {
            column: [name for name in names if name] for column, names in table.label_names.items()
        },
        "face_rate": _face_rate(store, np.flatnonzero(listed & (table.state == 1))),
        "num_frames": store.num_frames,
        "parts": {part: int(store.present(part).sum()) for part in store.parts},
        "failures": [
            {"clip_id": str(table.clip_id[row]), "reason": str(table.failure[row])}
            for row in np.flatnonzero(table.failure != "")
        ],
        "notes": notes_of(store, np.flatnonzero(listed)),
        "recipe": {
            "pixels": fingerprint(store.recipe.pixels) if store.recipe.pixels else None,
            "encoder": f"{store.recipe.encoder.name} {store.recipe.encoder.weights}",
            "geometry": fingerprint(store.recipe.geometry) if store.recipe.geometry else None,
        },
        "numerics": [store.numerics, *store.other_numerics],
        "data_statement": dataclasses.asdict(store.data_statement),
        "test_evaluations": len(store.test_evaluations),
        "packed": store.mapped_stream(store.streams[0]) is not None,
        "fingerprint": store.fingerprint(),
    }


def notes_of(store: FeatureStore, rows: np.ndarray) -> list[dict[str, str]]:
    """Clip id and notes of these rows, without rows that have no notes."""
    notes, ids = store.rows.texts("notes"), {row: clip_id for clip_id, row in store.row_of_clip().items()}
    return [{"clip_id": ids[row], "notes": notes[row]} for row in rows.tolist() if notes[row]]


def _label_counts(table: ClipTable, column: str, listed: np.ndarray) -> dict[str, dict[str, int]]:
    """Number of clips by split and label name; `none` = not labelled."""
    names = [*table.label_names[column], "none"]
    counts: dict[str, dict[str, int]] = {}
    for split in sorted(set(table.split[listed].tolist())):
        codes = table.labels[column][listed & (table.split == split)]
        times = np.bincount(np.where(codes < 0, len(names) - 1, codes), minlength=len(names)).tolist()
        counts[split or "all"] = {name: count for name, count in zip(names, times, strict=True) if count}
    return counts


def _face_rate(store: FeatureStore, rows: np.ndarray) -> float | None:
    """Fraction of sampled frames with a detected face; None without sampled frames."""
    sampled = faces = 0
    for first in range(0, len(rows), 1024):
        frames = store.read_frames(rows[first : first + 1024])
        sampled += int(np.isfinite(frames[..., 0]).sum())
        faces += int((frames[..., 5] > 0).sum())
    return faces / sampled if sampled else None
