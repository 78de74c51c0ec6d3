"""Summary of an extraction: statistics, text on stderr, JSON for `--json`."""

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
from extract.executors.worker import Event
from extract.pipeline.planning import WindowPlan
from features.cli import console, echo, echo_failures, echo_near_duplicates, echo_notes, log_warning
from features.maintenance.describe import notes_of
from features.maintenance.near_duplicates import duplicate_lines
from features.store.store import DONE, FeatureStore

MAX_UNPAIRED = 5


@dataclass
class RunStats:
    """Statistics of an extraction: extracted rows, seconds per stage, start and end (`time.time()`)."""

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
        """Rows per second, from the first decode to the last write."""
        elapsed_s = self.ended_s - self.began_s
        return self.done / elapsed_s if self.done and elapsed_s > 0 else 0.0


def print_index(index: DatasetIndex) -> None:
    """Print what the data set contains on stderr."""
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
    for reason, count in index.dropped:
        echo(f"{count} labels left out: {reason}")
    for note in index.notes:
        log_warning(note)


def summarise(
    config: ExtractConfig,
    index: DatasetIndex,
    window_plan: WindowPlan,
    store: FeatureStore,
    run_stats: RunStats,
    shard_ids: set[str],
    missing: Collection[str],
) -> dict[str, Any]:
    """The summary that `--json` prints. shard_ids: clip ids of this shard. missing: clip ids that still miss
    a requested part; only these count as failed, because an older failure may be about another part."""
    table = store.table()
    rows = [row for row, clip_id in enumerate(table.clip_id) if clip_id in shard_ids]
    failed = [row for row in rows if table.failure[row] and table.clip_id[row] in missing]
    num_done = sum(int(table.state[row] == DONE) for row in set(rows) - set(failed))
    return {
        "store": str(store.path),
        "clips": len(rows),
        "videos": len({table.source[row] for row in rows}),
        "done": run_stats.done,
        "skipped": num_done - run_stats.done,
        "failed": len(failed),
        "face_rate": _face_rate(store, [row for row in rows if table.state[row] == DONE]),
        "clips_per_s": round(run_stats.clips_per_s, 3),
        "stage_s": {name: round(seconds, 2) for name, seconds in run_stats.stage_s.most_common()},
        "dropped_s": round(window_plan.dropped_s, 1),
        "changed": len(store.changes.changed),
        "corrected": len(store.changes.corrected),
        "not_in_manifest": list(store.changes.not_in_manifest),
        "layout": index.layout,
        "unpaired_videos": list(index.unpaired_videos),
        "unpaired_labels": list(index.unpaired_labels),
        "left_out": dict(index.dropped),
        "notes": list(index.notes),
        "problems": [{"where": item.clip_id, "reason": item.reason} for item in index.manifest.problems],
        "failures": [
            {"clip_id": str(table.clip_id[row]), "reason": str(table.failure[row])} for row in failed
        ],
        "clip_notes": notes_of(store, np.array([row for row in rows if table.state[row] == DONE], np.int64)),
        "near_duplicates": duplicate_lines(store),
        "next": _next_command(config, num_done),
    }


def _face_rate(store: FeatureStore, rows: list[int]) -> float | None:
    """Fraction of sampled frames with a detected face, over all done rows; None without sampled frames."""
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
    """Print the summary on stderr."""
    from rich.table import Column, Table

    echo_failures((item["where"], item["reason"]) for item in summary["problems"])
    more = f": python -m features info {shlex.quote(summary['store'])} --json"
    echo_failures(((item["clip_id"], item["reason"]) for item in summary["failures"]), more)
    echo_notes(summary["clip_notes"])
    echo_near_duplicates(summary["near_duplicates"])
    if summary["failures"]:
        echo(
            "after fixing these files, run the same command with --retry-failed (changed files: also without)"
        )
    if unlisted := summary["not_in_manifest"]:
        log_warning(
            f"{len(unlisted)} clips of the store are no longer in the manifest (for example {unlisted[0]}): "
            "they are kept, but not used"
        )
    total_s = sum(summary["stage_s"].values())
    stages = ", ".join(f"{name} {s / total_s:.0%}" for name, s in summary["stage_s"].items() if total_s)
    table = Table("", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0))
    rate = summary["face_rate"]
    for name, value in (
        ("clips", f"{summary['clips']} of {summary['videos']} videos"),
        ("extracted now", f"{summary['done']}, {summary['clips_per_s']:.2f} clips per second"),
        ("extracted before", summary["skipped"]),
        ("failed", summary["failed"]),
        ("frames with a face", "—" if rate is None else f"{rate:.1%}"),
        ("time by stage", stages or "—"),
        ("dropped", f"{summary['dropped_s']:.1f} s, trailing segments under half a window"),
        ("store", summary["store"]),
        ("next", summary["next"]),
    ):
        table.add_row(name, str(value))
    console().print(table)
