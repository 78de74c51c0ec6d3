"""What an extraction would do and cost (`--dry-run`), and whether an earlier one still comes out the same
(`--verify-sample`). Both run a few windows in this very process and write nothing.

Knows nothing about worker processes.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from extract.config import ExtractConfig
from extract.filling import AGREEMENT, cosines, same_faces
from extract.pipeline import Job, Kernels, Lost, Part, Row, Setup, Window, extract_video, open_kernels
from features.cores import usable_cores
from features.door import console, say
from features.manifest import Clip
from features.store import DONE, FeatureStore

NUM_TIMED = 3
MIN_CHUNK_FILES = 2
"""embeddings and frames; geometry and crops come on top."""


def forecast(config: ExtractConfig, clips: Sequence[Clip], setup: Setup) -> dict[str, Any]:
    """Count what is to do by split and class, time three windows, and extrapolate."""
    parts: set[Part] = {"embeddings"}
    parts |= {"geometry"} if setup.recipe.geometry is not None else set()
    parts |= {"crops"} if config.crops == "jpeg" else set()
    todo = _still_to_do(config.out, clips)
    kernels = open_kernels(setup)
    seconds, sizes, failed = [], [], []
    for clip in random.Random(0).sample(list(todo), min(NUM_TIMED, len(todo))):
        began_s = time.perf_counter()
        outcome = _extract(clip, kernels, setup, frozenset(parts))
        if isinstance(outcome, Lost):
            failed.append({"clip_id": clip.clip_id, "reason": outcome.reason})
        else:
            seconds.append(time.perf_counter() - began_s)
            sizes.append(_num_bytes(outcome))
    kernels.close()
    workers = config.workers or usable_cores()
    counts = Counter((clip.split, *clip.labels.values()) for clip in todo)
    hours = float(np.mean(seconds)) * len(todo) / workers / 3600 if seconds else None
    columns = ["split", *(todo[0].labels if todo else ())]
    return {
        "dry_run": True,
        "clips": len(clips),
        "to_extract": len(todo),
        "videos": len({clip.path for clip in todo}),
        "counts": [dict(zip(columns, key, strict=True)) | {"clips": n} for key, n in sorted(counts.items())],
        "timed": len(seconds),
        "timed_failures": failed,
        "hours": hours,
        "workers": workers,
        "bytes": int(np.mean(sizes) * len(todo)) if sizes else None,
        "files": len(todo) * (MIN_CHUNK_FILES + len(parts) - 1),
    }


def verify_sample(
    config: ExtractConfig, clips: Sequence[Clip], setup: Setup
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Extract some finished windows again and compare; returns the summary and what does not agree."""
    store = FeatureStore.open(config.out)
    table = store.table()
    row_of = {str(name): row for row, name in enumerate(table.clip_id) if table.state[row] == DONE}
    finished = [clip for clip in clips if clip.clip_id in row_of]
    if not finished:
        raise ValueError(f"{config.out} has none of these clips to compare with")
    kernels = open_kernels(setup)
    worst, identical, differing = 1.0, 0, []
    chosen = random.Random(0).sample(finished, min(config.verify_sample, len(finished)))
    for clip in chosen:
        row = np.array([row_of[clip.clip_id]])
        fresh = _extract(clip, kernels, setup, frozenset({"embeddings"}))
        if isinstance(fresh, Lost):
            differing.append({"clip_id": clip.clip_id, "reason": fresh.reason})
            continue
        stored, _ = store.read_stream("embeddings", row)
        if not same_faces(store.read_frames(row)[0], fresh.frames):
            differing.append({"clip_id": clip.clip_id, "reason": "other faces are found now"})
            continue
        assert fresh.embeddings is not None
        valid = fresh.frames[:, 5] > 0
        lowest = float(cosines(stored[0][valid], fresh.embeddings[valid]).min(initial=1.0))
        worst = min(worst, lowest)
        identical += bool(np.array_equal(stored[0][valid], fresh.embeddings[valid]))
        if lowest < AGREEMENT:
            differing.append({"clip_id": clip.clip_id, "reason": f"embeddings differ (cosine {lowest:.4f})"})
    kernels.close()
    summary = {
        "compared": len(chosen),
        "identical": identical,
        "worst_cosine": round(worst, 6),
        "differing": differing,
        "stored_numerics": store.numerics,
    }
    return summary, differing


def print_forecast(summary: dict[str, Any]) -> None:
    """The forecast for people, on stderr."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in summary["counts"][0] if summary["counts"] else ():
        table.add_column(escape(name))
    for row in summary["counts"]:
        table.add_row(*(escape(str(value) or "—") for value in row.values()))
    console().print(table)
    for item in summary["timed_failures"]:
        say(f"[red]{escape(item['clip_id'])}[/red]: {escape(item['reason'])}")
    say(f"{summary['to_extract']} of {summary['clips']} clips to extract, from {summary['videos']} videos")
    if summary["hours"] is not None:
        size = summary["bytes"] / 1e6
        say(
            f"about {_duration(summary['hours'])} with {summary['workers']} workers "
            f"(from {summary['timed']} clips), {size:,.1f} MB in {summary['files']:,} files"
        )


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _still_to_do(out: str, clips: Sequence[Clip]) -> Sequence[Clip]:
    try:
        table = FeatureStore.open(out).table()
    except ValueError:  # no store yet
        return clips
    done = {str(name) for name, state in zip(table.clip_id, table.state, strict=True) if state == DONE}
    return [clip for clip in clips if clip.clip_id not in done]


def _extract(clip: Clip, kernels: Kernels, setup: Setup, parts: frozenset[Part]) -> Row | Lost:
    window = Window(0, clip.start_s, clip.end_s, parts)
    return next(extract_video(Job(clip.path, (window,)), kernels, decode=setup.decode))


def _num_bytes(row: Row) -> int:
    arrays = (row.frames, row.embeddings, row.geometry)
    return sum(array.nbytes for array in arrays if array is not None) + sum(map(len, row.crops or ()))
