"""What an extraction did, counted and told: for people on stderr, for programs as JSON."""

import shlex
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from extract.config import ExtractConfig
from extract.datasets.index import DatasetIndex
from extract.executors.pool import Event
from extract.pipeline.planning import WindowPlan
from features.cli import console, echo, echo_failures, log_warning
from features.store.store import DONE, FeatureStore

MAX_UNPAIRED = 5


@dataclass
class RunStats:
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


def print_index(index: DatasetIndex) -> None:
    """What was found where the user pointed, on stderr."""

    clips = index.manifest.clips
    subjects = {clip.subject for clip in clips} - {""}
    echo(f"layout {index.layout}: {len(clips)} clips, {len(subjects)} subjects")
    for kind, names in (
        ("videos without a label", index.unpaired_videos),
        ("labels without a video", index.unpaired_labels),
    ):
        if names:
            more = ", … (--json lists all)" if len(names) > MAX_UNPAIRED else ""
            echo(f"{len(names)} {kind}: {', '.join(names[:MAX_UNPAIRED])}{more}")
    for why, count in index.dropped:
        echo(f"{count} labels left out: {why}")
    for note in index.notes:
        log_warning(note)


def summarise(
    config: ExtractConfig,
    index: DatasetIndex,
    window_plan: WindowPlan,
    store: FeatureStore,
    run_stats: RunStats,
    mine: set[str],
    lacking: Collection[str],
) -> dict[str, Any]:
    """What `--json` prints. mine: ids of this shard's clips. lacking: of those that still lack a part that
    was asked for; only these can have failed, whatever went wrong with other parts before."""
    table = store.table()
    own = [row for row, clip_id in enumerate(table.clip_id) if clip_id in mine]
    failed = [row for row in own if table.failure[row] and table.clip_id[row] in lacking]
    num_done = sum(int(table.state[row] == DONE) for row in set(own) - set(failed))
    return {
        "store": str(store.path),
        "clips": len(own),
        "videos": len({table.source[row] for row in own}),
        "done": run_stats.done,
        "skipped": num_done - run_stats.done,
        "failed": len(failed),
        "face_rate": _face_rate(store, [row for row in own if table.state[row] == DONE]),
        "clips_per_s": round(run_stats.clips_per_s, 3),
        "stage_s": {name: round(seconds, 2) for name, seconds in run_stats.stage_s.most_common()},
        "dropped_s": round(window_plan.dropped_s, 1),
        "changed": len(store.changes.changed),
        "corrected": len(store.changes.corrected),
        "vanished": list(store.changes.vanished),
        "layout": index.layout,
        "unpaired_videos": list(index.unpaired_videos),
        "unpaired_labels": list(index.unpaired_labels),
        "left_out": dict(index.dropped),
        "notes": list(index.notes),
        "problems": [{"where": item.clip_id, "reason": item.reason} for item in index.manifest.problems],
        "failures": [
            {"clip_id": str(table.clip_id[row]), "reason": str(table.failure[row])} for row in failed
        ],
        "next": _next_command(config, num_done),
    }


def _face_rate(store: FeatureStore, rows: list[int]) -> float | None:
    """Share of sampled frames with a face, over all rows that are done; None without any."""
    sampled = faces = 0
    for first in range(0, len(rows), 512):
        frames = store.read_frames(np.array(rows[first : first + 512]))
        sampled += int(np.isfinite(frames[..., 0]).sum())
        faces += int((frames[..., 5] > 0).sum())
    return round(faces / sampled, 4) if sampled else None


def _next_command(config: ExtractConfig, num_done: int) -> str:
    if not num_done:
        return f"python -m extract check   # nothing was extracted into {config.out}"
    run = f"runs/{Path(config.out).stem or 'first'}"
    return f"python -m tune --store {shlex.quote(config.out)} --out {shlex.quote(run)}"


def print_summary(summary: dict[str, Any]) -> None:
    """The summary for people, on stderr."""
    from rich.table import Column, Table

    echo_failures((item["where"], item["reason"]) for item in summary["problems"])
    more = f": python -m features info {shlex.quote(summary['store'])} --json"
    echo_failures(((item["clip_id"], item["reason"]) for item in summary["failures"]), more)
    if summary["failures"]:
        echo("once these are mended: the same command with --retry-failed (changed files are noticed anyway)")
    if gone := summary["vanished"]:
        log_warning(f"{len(gone)} clips in the store are no longer in the manifest, {gone[0]} for one")
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
        table.add_row(name, str(value))
    console().print(table)
