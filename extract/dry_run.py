"""Dry run of an extraction (`--dry-run`), and comparison with an earlier one (`--verify-sample`).

Both extract a few windows in this process and write nothing.
"""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extract.config import ExtractConfig
from extract.pipeline.extractor import FeatureExtractor, extract_video, open_extractor
from extract.pipeline.planning import WindowPlan, missing_parts, num_workers, select_shard, store_at
from extract.pipeline.types import ExtractorConfig, FailedWindow, Job, Part, Window, WindowFeatures
from extract.pipeline.writer import AGREEMENT, cosines, same_faces
from features.cli import UserError, echo, echo_failures, print_counts
from features.manifest import Clip
from features.recipe import require_equal
from features.store.store import DONE, FeatureStore

NUM_TIMED = 3
GEOMETRY_AGREEMENT = 0.05
"""Maximum difference of a geometry feature, relative above 1: of scores (0 to 1), radians (0.05 = 3°),
centimetres."""


def dry_run(
    config: ExtractConfig, window_plan: WindowPlan, extractor_config: ExtractorConfig
) -> dict[str, Any]:
    """Count the clips to extract by label column, split and class, time three of them, and extrapolate.

    Raises UserError, naming the fields, when the existing store has another recipe.
    """
    if (store := store_at(config.out)) is not None:
        _require_same_recipe(extractor_config, store)
    shard = select_shard(window_plan.windows, config.shard)
    missing = missing_parts(config, window_plan.windows)
    todo = [clip for clip in shard if clip.clip_id in missing and clip.clip_id not in window_plan.unreadable]
    extractor = open_extractor(extractor_config)
    seconds, sizes, failed = [], [], []
    for clip in _to_time(todo):
        began_s = time.perf_counter()
        outcome = _extract(clip, extractor, missing[clip.clip_id])
        if isinstance(outcome, FailedWindow):
            failed.append({"clip_id": clip.clip_id, "reason": outcome.reason})
        else:
            seconds.append(time.perf_counter() - began_s)
            sizes.append(_num_bytes(outcome))
    extractor.close()
    num_videos = len({clip.path for clip in todo})
    workers = max(1, min(num_workers(config, extractor_config.device), num_videos))  # one video per worker
    return {
        "dry_run": True,
        "clips": len(shard),
        "to_extract": len(todo),
        "videos": num_videos,
        "counts": _counts(todo),
        "timed": len(seconds),
        "timed_failures": failed,
        "hours": float(np.mean(seconds)) * len(todo) / workers / 3600 if seconds else None,
        "workers": workers,
        "bytes": int(np.mean(sizes) * len(todo)) if sizes else None,
        # One file per part; embeddings have a second one, `frames`.
        "files": sum(len(missing[clip.clip_id]) + ("embeddings" in missing[clip.clip_id]) for clip in todo),
        "unreadable": {
            clip.clip_id: window_plan.unreadable[clip.clip_id]
            for clip in shard
            if clip.clip_id in window_plan.unreadable
        },
    }


def verify_sample(
    config: ExtractConfig, clips: Sequence[Clip], extractor_config: ExtractorConfig
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Extract some finished windows again and compare them; returns (summary, windows that differ).

    Raises UserError, naming the fields, when the store has another recipe.
    """
    store = FeatureStore.open(config.out)
    with_geometry = "geometry" in store.streams and extractor_config.recipe.geometry is not None
    parts: set[Part] = {"embeddings", "geometry"} if with_geometry else {"embeddings"}
    _require_same_recipe(extractor_config, store)
    table = store.table()
    row_of = {str(name): row for row, name in enumerate(table.clip_id) if table.state[row] == DONE}
    finished = [clip for clip in clips if clip.clip_id in row_of]
    if not finished:
        raise UserError(f"{config.out} has no finished clip of {config.data}: there is nothing to compare")
    extractor = open_extractor(extractor_config)
    found: list[Difference] = []
    differing = []
    for clip in random.Random(0).sample(finished, min(config.verify_sample, len(finished))):
        found.append(_difference(store, row_of[clip.clip_id], _extract(clip, extractor, parts)))
        if found[-1].reason:
            differing.append({"clip_id": clip.clip_id, "reason": found[-1].reason})
    extractor.close()
    return {
        "compared": len(found),
        "identical": sum(item.is_identical for item in found),
        "worst_cosine": round(min(item.cosine for item in found), 6),
        "worst_geometry": round(max(item.geometry for item in found), 6) if with_geometry else None,
        "differing": differing,
        "stored_numerics": store.numerics,
    }, differing


def _require_same_recipe(extractor_config: ExtractorConfig, store: FeatureStore) -> None:
    """Check the recipe as planning does: geometry may be added to a store that has none."""
    with_geometry = store.recipe.geometry is not None and extractor_config.recipe.geometry is not None
    require_equal(
        extractor_config.recipe,
        store.recipe,
        ("pixels", "encoder", "geometry") if with_geometry else ("pixels", "encoder"),
        where=f"this extraction and store {store.path}",
    )


@dataclass(frozen=True)
class Difference:
    """Difference between a row of the store and the same window extracted again."""

    reason: str = ""
    """Why they differ too much; '' = they agree."""
    is_identical: bool = False
    """Whether all values are equal bit for bit."""
    cosine: float = 1.0
    """Lowest cosine similarity between the two embeddings of a frame."""
    geometry: float = 0.0
    """Largest difference of a geometry value; relative for values above 1."""


def _difference(store: FeatureStore, row: int, fresh: WindowFeatures | FailedWindow) -> Difference:
    if isinstance(fresh, FailedWindow):
        return Difference(fresh.reason)
    index = np.array([row])
    if not same_faces(store.read_frames(index)[0], fresh.frames):
        return Difference("the face boxes differ from the stored ones")
    assert fresh.embeddings is not None
    valid = fresh.frames[:, 5] > 0
    stored, again = store.read_stream("embeddings", index)[0][0][valid], fresh.embeddings[valid]
    cosine = float(cosines(stored, again).min(initial=1.0))
    if cosine < AGREEMENT:
        return Difference(f"embeddings differ (cosine {cosine:.4f})", cosine=cosine)
    is_identical, geometry = np.array_equal(stored, again), 0.0
    if fresh.geometry is not None and store.present("geometry")[row]:
        values, measured = (part[0] for part in store.read_stream("geometry", index))
        if not np.array_equal(measured, np.isfinite(fresh.geometry).all(axis=1)):
            return Difference("geometry is valid in other frames than in the store", cosine=cosine)
        values, again = values[measured], fresh.geometry[measured]
        is_identical &= np.array_equal(values, again)
        gaps = (np.abs(values - again) / np.maximum(1, np.abs(again))).max(axis=0, initial=0)
        geometry = float(gaps.max())
        if geometry > GEOMETRY_AGREEMENT:
            assert store.recipe.geometry is not None
            name = store.recipe.geometry.features[int(gaps.argmax())]
            return Difference(f"geometry differs ({name} by {geometry:.4f})", False, cosine, geometry)
    return Difference("", is_identical, cosine, geometry)


def print_dry_run(summary: dict[str, Any]) -> None:
    """Print the summary of a dry run on stderr."""
    for column, splits in summary["counts"].items():
        names = sorted({name for counts in splits.values() for name in counts})
        print_counts(column, splits, names)
    echo_failures((item["clip_id"], item["reason"]) for item in summary["timed_failures"])
    echo(f"{summary['to_extract']} of {summary['clips']} clips to extract, from {summary['videos']} videos")
    if (hours := summary["hours"]) is not None:
        duration = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
        echo(
            f"about {duration} with {summary['workers']} workers "
            f"(from {summary['timed']} clips), {summary['bytes'] / 1e6:,.1f} MB in {summary['files']:,} files"
        )


def _counts(clips: Sequence[Clip]) -> dict[str, dict[str, dict[str, int]]]:
    """Number of clips by label column, split and label, as in `python -m features info`."""
    counts: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(Counter))
    for clip in sorted(clips, key=lambda clip: clip.split):
        for column, label in clip.labels.items():
            counts[column][clip.split or "all"][label or "none"] += 1
    return counts


def _to_time(clips: Sequence[Clip]) -> list[Clip]:
    """NUM_TIMED random windows, early ones first: for a late window, the whole video before it is decoded."""
    index_in_video: dict[str, int] = {}
    seen: Counter[Path] = Counter()
    for clip in sorted(clips, key=lambda clip: clip.start_s):
        index_in_video[clip.clip_id] = seen[clip.path]
        seen[clip.path] += 1
    drawn = random.Random(0).sample(clips, len(clips))
    return sorted(drawn, key=lambda clip: index_in_video[clip.clip_id])[:NUM_TIMED]


def _extract(clip: Clip, extractor: FeatureExtractor, parts: set[Part]) -> WindowFeatures | FailedWindow:
    job = Job(clip.path, (Window(0, clip.start_s, clip.end_s, frozenset(parts)),))
    return next(extract_video(job, extractor))


def _num_bytes(row: WindowFeatures) -> int:
    arrays = (row.frames, row.embeddings, row.geometry)
    return sum(array.nbytes for array in arrays if array is not None) + sum(map(len, row.crops or ()))
