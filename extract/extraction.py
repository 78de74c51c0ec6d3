"""The extract door's body: read the data's layout, plan the store, run the jobs.

Knows nothing about pixels or about how rows are written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.markup import escape

from extract.config import ExtractConfig
from extract.forecast import forecast, print_forecast, verify_sample
from extract.layouts import read_layout, sample_clips
from extract.pipeline import Job, Setup
from extract.planning import Cut, cut_windows, jobs_of, make_setup, own_share, versions
from extract.summary import Tally, print_reading, print_summary, summarise
from extract.workers import Event, run_jobs
from features.cores import usable_cores
from features.door import progress, say
from features.manifest import Failure
from features.store import plan


def extract_all(config: ExtractConfig) -> tuple[dict[str, Any], int]:
    """Extract what is missing; returns the summary and the exit code."""
    reading = read_layout(config.data, config.layout, config.subject_regex)
    clips = reading.manifest.clips
    if config.limit is not None:
        clips = tuple(sample_clips(clips, config.limit))
    if not clips:
        raise ValueError(f"{config.data} lists no usable clip: {_first(reading.manifest.problems)}")
    cut = cut_windows(clips, config.window)
    if config.limit is not None:  # one long video is many windows
        cut = replace(cut, windows=tuple(sample_clips(cut.windows, config.limit)))
    print_reading(reading)
    setup, numerics = make_setup(config)
    chosen = f"{numerics['backend']} ({numerics['device']}, {numerics['precision']})"
    say(f"{setup.recipe.encoder.name} with weights {setup.recipe.encoder.weights} on {chosen}")
    if config.dry_run or config.verify_sample:
        return _look_only(config, cut, setup)
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
    summary = summarise(config, reading, cut, store, tally, mine)
    print_summary(summary)
    return summary, 1 if summary["failed"] or summary["problems"] else 0


def _look_only(config: ExtractConfig, cut: Cut, setup: Setup) -> tuple[dict[str, Any], int]:
    """The doors that write nothing."""
    if config.dry_run:
        readable = [clip for clip in cut.windows if clip.clip_id not in cut.unreadable]
        summary = forecast(config, readable, setup)
        summary["unreadable"] = cut.unreadable
        print_forecast(summary)
        for clip_id, reason in cut.unreadable.items():
            say(f"[red]{escape(clip_id)}[/red]: {escape(reason)}")
        return summary, 1 if cut.unreadable or summary["timed_failures"] else 0
    summary, differing = verify_sample(config, cut.windows, setup)
    for item in differing:
        say(f"[red]{escape(item['clip_id'])}[/red]: {escape(item['reason'])}")
    say(
        f"{summary['compared']} clips extracted again, {summary['identical']} identical, "
        f"worst cosine {summary['worst_cosine']:.6f}"
    )
    return summary, 1 if differing else 0


def _events(jobs: Sequence[Job], setup: Setup, config: ExtractConfig) -> Iterator[Event]:
    workers = config.workers or usable_cores()
    if config.engine == "ray":
        from extract.ray import run_jobs_on_ray

        return run_jobs_on_ray(jobs, setup, config.out, config.workers)
    return run_jobs(jobs, setup, config.out, workers)


def _with_progress(events: Iterator[Event], total: int) -> Iterator[Event]:
    if total == 0:
        yield from events
        return
    with progress("clips") as bar:
        task = bar.add_task("extract", total=total)
        for event in events:
            if event.row is not None:
                bar.advance(task)
            yield event


def _first(problems: Sequence[Failure]) -> str:
    return problems[0].reason if problems else "it is empty"
