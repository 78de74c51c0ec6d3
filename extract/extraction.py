"""The extract door's body: plan, run, count, and tell what happened.

Knows nothing about pixels or about how rows are written.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from extract.config import ExtractConfig
from extract.layouts import read_layout, sample_clips
from extract.pipeline import Job, Setup
from extract.planning import Cut, cut_windows, jobs_of, make_setup, own_share, versions
from extract.workers import Event, run_jobs
from features.cores import usable_cores
from features.door import console, progress, say, warn
from features.manifest import Failure, Manifest
from features.store import DONE, FeatureStore, plan

MAX_LISTED = 30
"""Failures printed one by one; all of them are in the store and in `--json`."""


@dataclass
class Tally:
    """What a run did."""

    done: int = 0
    stage_s: Counter[str] = field(default_factory=Counter)
    began_s: float = float("inf")
    ended_s: float = 0.0

    def add(self, event: Event) -> None:
        """Count one event."""
        if event.row is None:
            self.stage_s.update(event.stage_s)
            self.began_s = min(self.began_s, event.began_s or time.time())
            return
        self.ended_s = time.time()
        self.done += not event.reason

    @property
    def clips_per_s(self) -> float:
        """Rows a second from the first decode to the last write."""
        elapsed_s = self.ended_s - self.began_s
        return self.done / elapsed_s if self.done and elapsed_s > 0 else 0.0


def extract_all(config: ExtractConfig) -> tuple[dict[str, Any], int]:
    """Extract what is missing; returns the summary and the exit code."""
    manifest = read_layout(config.data, config.layout)
    clips = manifest.clips if config.limit is None else sample_clips(manifest.clips, config.limit)
    if not clips:
        raise ValueError(f"{config.data} lists no usable clip: {_first(manifest.problems)}")
    cut = cut_windows(clips, config.window)
    setup, numerics = make_setup(config)
    chosen = f"{numerics['backend']} ({numerics['device']}, {numerics['precision']})"
    say(f"{setup.recipe.encoder.name} with weights {setup.recipe.encoder.weights} on {chosen}")
    store = plan(
        config.out,
        cut.windows,
        setup.recipe,
        numerics=numerics,
        crops=config.crops == "jpeg",
        versions=versions(),
        listing_complete=config.limit is None,
    )
    mine = {clip.clip_id for clip in own_share(cut.windows, config.shard)}
    for row, clip_id in enumerate(store.table().clip_id):
        if clip_id in cut.unreadable and clip_id in mine:
            store.write_failure(row, cut.unreadable[clip_id])
    jobs = jobs_of(store, cut, config, with_geometry=setup.recipe.geometry is not None)
    tally = Tally()
    try:
        for event in _with_progress(_events(jobs, setup, config), sum(len(job.windows) for job in jobs)):
            tally.add(event)
    finally:
        store.settle()
    summary = _summary(config, manifest, cut, store, tally, mine)
    _print(summary)
    return summary, 1 if summary["failed"] or summary["problems"] else 0


def _events(jobs: Sequence[Job], setup: Setup, config: ExtractConfig) -> Iterator[Event]:
    workers = config.workers or usable_cores()
    if config.engine == "ray":
        from extract.ray import run_jobs_on_ray

        return run_jobs_on_ray(jobs, setup, config.out, config.workers)
    return run_jobs(jobs, setup, config.out, workers)


def _with_progress(events: Iterator[Event], total: int) -> Iterator[Event]:
    with progress("clips") as bar:
        task = bar.add_task("extract", total=total)
        for event in events:
            if event.row is not None:
                bar.advance(task)
            yield event


def _summary(
    config: ExtractConfig, manifest: Manifest, cut: Cut, store: FeatureStore, tally: Tally, mine: set[str]
) -> dict[str, Any]:
    table = store.table()
    own = [row for row, clip_id in enumerate(table.clip_id) if clip_id in mine]
    failures = [
        {"clip_id": str(table.clip_id[row]), "reason": str(table.failure[row])}
        for row in own
        if table.failure[row]
    ]
    num_done = sum(int(table.state[row] == DONE and not table.failure[row]) for row in own)
    return {
        "store": str(store.path),
        "clips": len(own),
        "videos": len({table.source[row] for row in own}),
        "done": tally.done,
        "skipped": num_done - tally.done,
        "failed": len(failures),
        "face_rate": _face_rate(store, [row for row in own if table.state[row] == DONE]),
        "clips_per_s": round(tally.clips_per_s, 3),
        "stage_s": {name: round(seconds, 2) for name, seconds in tally.stage_s.most_common()},
        "dropped_s": round(cut.dropped_s, 1),
        "changed": len(store.changes.changed),
        "corrected": len(store.changes.corrected),
        "vanished": list(store.changes.vanished),
        "problems": [{"where": item.clip_id, "reason": item.reason} for item in manifest.problems],
        "failures": failures,
        "next": _next_command(config, store, num_done),
    }


def _face_rate(store: FeatureStore, rows: list[int]) -> float | None:
    """Share of sampled frames with a face, over all rows that are done; None without any."""
    sampled = faces = 0
    for first in range(0, len(rows), 512):
        frames = store.read_frames(np.array(rows[first : first + 512]))
        sampled += int(np.isfinite(frames[..., 0]).sum())
        faces += int((frames[..., 5] > 0).sum())
    return round(faces / sampled, 4) if sampled else None


def _next_command(config: ExtractConfig, store: FeatureStore, num_done: int) -> str:
    if not num_done:
        return f"python -m extract check   # nothing was extracted into {config.out}"
    name = Path(config.out).stem or "first"
    return f"python -m tune --store {config.out} --out runs/{name}"


def _print(summary: dict[str, Any]) -> None:
    """The summary for people, on stderr."""
    from rich.markup import escape
    from rich.table import Column, Table

    for kind, key in (("line", "problems"), ("clip", "failures")):
        items = summary[key]
        for item in items[:MAX_LISTED]:
            say(f"[red]{escape(item.get('clip_id') or item['where'])}[/red]: {escape(item['reason'])}")
        if len(items) > MAX_LISTED:
            more = f"… and {len(items) - MAX_LISTED} more {kind}s"
            say(f"{more}: python -m features info {escape(summary['store'])}")
    if summary["vanished"]:
        count = len(summary["vanished"])
        warn(f"{count} clips in the store are no longer in the manifest, {summary['vanished'][0]} for one")
    total_s = sum(summary["stage_s"].values())
    stages = ", ".join(f"{name} {s / total_s:.0%}" for name, s in summary["stage_s"].items() if total_s)
    table = Table("", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0))
    rate = summary["face_rate"]
    for name, value in (
        ("clips", f"{summary['clips']} of {summary['videos']} videos"),
        ("extracted now", f"{summary['done']}, {summary['clips_per_s']:.2f} a second"),
        ("there already", summary["skipped"]),
        ("failed", summary["failed"]),
        ("frames with a face", "—" if rate is None else f"{rate:.1%}"),
        ("time by stage", stages or "—"),
        ("left out", f"{summary['dropped_s']:.1f} s in remainders shorter than half a window"),
        ("store", summary["store"]),
        ("next", summary["next"]),
    ):
        table.add_row(name, escape(str(value)))
    console().print(table)


def _first(problems: Sequence[Failure]) -> str:
    return problems[0].reason if problems else "it is empty"
