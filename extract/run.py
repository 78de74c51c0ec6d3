"""The extract door's body: read the data's layout, plan the store, run the jobs."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from extract.config import ExtractConfig
from extract.datasets.detect import read_dataset, sample_clips
from extract.datasets.index import DatasetIndex
from extract.dry_run import dry_run, print_dry_run, verify_sample
from extract.executors.pool import Event, run_jobs
from extract.pipeline.extractor import ExtractorConfig, Job, Part
from extract.pipeline.planning import (
    WindowPlan,
    jobs_of,
    make_extractor_config,
    missing_parts,
    num_workers,
    plan_windows,
    resolved,
    select_shard,
    versions,
)
from extract.summary import RunStats, print_index, print_summary, summarise
from features.cli import echo, echo_failures, log_warning, progress
from features.manifest import Clip
from features.store.store import FeatureStore, plan

LAST_WAIT_S = 5.0
"""For other planners, when the run is being ended: the next one tidies up as well."""
NUM_COMPARED = 2
"""Clips extracted again where numerics differ: a minute at most."""


def extract_all(config: ExtractConfig) -> tuple[dict[str, Any], int]:
    """Extract what is missing; returns the summary and the exit code.

    Raises ValueError for data, options or a store that cannot be used at all, StoreLost when the store
    cannot be written.
    """
    if config.engine == "ray":
        config = resolved(config)
    index = read_dataset(config.data, config.layout, config.subject_regex)
    window_plan = _cut(config, index)
    print_index(index)
    extractor_config, numerics = make_extractor_config(config)
    chosen = f"{numerics['backend']} ({numerics['device']}, {numerics['precision']})"
    echo(
        f"{extractor_config.recipe.encoder.name} with weights "
        f"{extractor_config.recipe.encoder.weights} on {chosen}"
    )
    if config.dry_run or config.verify_sample:
        return _look_only(config, window_plan, extractor_config)
    store = _planned(config, index, window_plan, extractor_config, numerics)
    mine = {clip.clip_id for clip in select_shard(window_plan.windows, config.shard)}
    lacking = missing_parts(config, window_plan.windows, store)
    _settle_failures(config, window_plan, store, mine, lacking)
    jobs = jobs_of(store, window_plan, config, lacking)
    if jobs:
        _log_difference(config, window_plan, extractor_config, store, numerics)
    run_stats = _run(jobs, extractor_config, config, store, num_workers(config, numerics["device"]))
    still_lacking = missing_parts(replace(config, retry_failed=True), window_plan.windows, store)
    summary = summarise(config, index, window_plan, store, run_stats, mine, still_lacking)
    print_summary(summary)
    return summary, 1 if summary["failed"] or summary["problems"] else 0


def _cut(config: ExtractConfig, index: DatasetIndex) -> WindowPlan:
    """The windows that are wanted, without the end that was assumed where a video cannot be opened."""
    clips, problems = index.manifest.clips, index.manifest.problems
    if config.limit is not None:
        clips = tuple(sample_clips(clips, config.limit))
    if not clips:
        reason = problems[0].reason if problems else "it is empty"
        raise ValueError(f"{config.data} lists no usable clip: {reason}")
    window_plan = plan_windows(clips, config.window, config.out)
    windows: Sequence[Clip] = window_plan.windows
    if config.limit is not None:  # one long video is many windows
        windows = sample_clips(windows, config.limit)
    known = (
        replace(each, end_s=None) if each.clip_id in window_plan.unreadable else each for each in windows
    )
    return replace(window_plan, windows=tuple(known))


def _planned(
    config: ExtractConfig,
    index: DatasetIndex,
    window_plan: WindowPlan,
    extractor_config: ExtractorConfig,
    numerics: dict[str, Any],
) -> FeatureStore:
    """The store with a row for every window; says what changed in it since an earlier extraction."""
    is_whole = not index.manifest.problems and not index.unpaired_labels
    store = plan(
        config.out,
        window_plan.windows,
        extractor_config.recipe,
        numerics=numerics,
        crops=config.crops == "jpeg",
        versions=versions(),
        listing_complete=config.limit is None and is_whole,
    )
    if config.limit is None and not is_whole:
        _log_unnamed(config, window_plan, store)
    if changed := store.changes.changed:
        log_warning(
            f"{len(changed)} clips are extracted again: their videos have another size or time "
            f"than before, or they end elsewhere ({changed[0]} for one)"
        )
    return store


def _settle_failures(
    config: ExtractConfig,
    window_plan: WindowPlan,
    store: FeatureStore,
    mine: set[str],
    lacking: dict[str, set[Part]],
) -> None:
    """Forget the failures of rows that lack nothing, when failed ones are tried again (what failed is not
    asked for any more, or is there by now); note those of videos that cannot be opened."""
    row_of = store.row_of_clip()
    if config.retry_failed:
        failures = store.rows.failures()
        for row in (row_of[clip_id] for clip_id in mine - lacking.keys()):
            if failures[row]:
                store.rows.forget_failure(row)
    for clip_id, reason in window_plan.unreadable.items():
        if clip_id in lacking:
            store.write_failure(row_of[clip_id], reason)


def _run(
    jobs: Sequence[Job],
    extractor_config: ExtractorConfig,
    config: ExtractConfig,
    store: FeatureStore,
    workers: int,
) -> RunStats:
    """Do the jobs, show how far they are, and tidy the store up; gives what was done."""
    run_stats = RunStats()
    try:
        for event in _with_progress(_events(jobs, extractor_config, config, workers), jobs):
            run_stats.add(event)
    except BaseException:
        with contextlib.suppress(ValueError, OSError):  # what ended the run is what is to be told
            store.finalize(LAST_WAIT_S)
        raise
    try:
        store.finalize()
    except (ValueError, OSError) as error:  # every row is written: this only tidies up
        log_warning(f"{error}; the next extraction into this store tidies up")
    return run_stats


def _log_unnamed(config: ExtractConfig, window_plan: WindowPlan, store: FeatureStore) -> None:
    """How many clips of the store the data do not name, where not all of them could be read."""
    named, listed = {window.clip_id for window in window_plan.windows}, store.listed()
    unnamed = sum(bool(listed[row]) for name, row in store.row_of_clip().items() if name not in named)
    if unnamed:
        log_warning(
            f"{unnamed} clips in the store were not found in {config.data}, not all of which could be read: "
            "they keep their labels"
        )


def _log_difference(
    config: ExtractConfig,
    window_plan: WindowPlan,
    extractor_config: ExtractorConfig,
    store: FeatureStore,
    numerics: dict[str, Any],
) -> None:
    """Where this run computes otherwise than the store was begun: how, and how far embeddings differ."""
    before = store.numerics
    keys = [key for key in numerics if key != "crops" and key in before and before[key] != numerics[key]]
    if not keys:
        return
    how = ", ".join(f"{key} {before[key]} then, {numerics[key]} now" for key in keys)
    try:
        found, _ = verify_sample(
            replace(config, verify_sample=NUM_COMPARED), window_plan.windows, extractor_config
        )
    except ValueError:  # nothing is finished
        return
    log_warning(
        f"the store was begun with other numerics ({how}): in {found['compared']} clips extracted again the "
        f"worst cosine between embeddings is {found['worst_cosine']:.4f}"
    )
    for item in found["differing"]:
        log_warning(f"{item['clip_id']}: {item['reason']}")


def _look_only(
    config: ExtractConfig, window_plan: WindowPlan, extractor_config: ExtractorConfig
) -> tuple[dict[str, Any], int]:
    """The doors that write nothing."""
    if config.dry_run:
        summary = dry_run(config, window_plan, extractor_config)
        print_dry_run(summary)
        echo_failures(summary["unreadable"].items())
        return summary, 1 if summary["unreadable"] or summary["timed_failures"] else 0
    summary, differing = verify_sample(config, window_plan.windows, extractor_config)
    echo_failures((item["clip_id"], item["reason"]) for item in differing)
    worst = summary["worst_geometry"]
    geometry = f", worst geometry {worst:.4f}" if worst is not None else ""
    echo(
        f"{summary['compared']} clips extracted again, {summary['identical']} identical, "
        f"worst cosine {summary['worst_cosine']:.6f}{geometry}"
    )
    return summary, 1 if differing else 0


def _events(
    jobs: Sequence[Job], extractor_config: ExtractorConfig, config: ExtractConfig, workers: int
) -> Iterator[Event]:
    if config.engine == "ray":
        from extract.executors.ray_executor import run_jobs_on_ray

        return run_jobs_on_ray(jobs, extractor_config, config.out, config.workers)
    return run_jobs(jobs, extractor_config, config.out, workers)


def _with_progress(events: Iterator[Event], jobs: Sequence[Job]) -> Iterator[Event]:
    if not jobs:
        yield from events
        return
    with progress("clips") as bar:
        task = bar.add_task("extract", total=sum(len(job.windows) for job in jobs))
        for event in events:
            if event.row is not None:
                bar.advance(task)
            yield event
