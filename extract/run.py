"""The command `python -m extract`: read the data set, plan the store, run the jobs."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from extract.config import ExtractConfig
from extract.datasets.detect import read_dataset, sample_clips
from extract.datasets.index import DatasetIndex
from extract.dry_run import dry_run, print_dry_run, verify_sample
from extract.executors.pool import run_jobs
from extract.executors.worker import Event
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
from extract.pipeline.types import ExtractorConfig, Job, Part
from extract.summary import RunStats, print_index, print_summary, summarise
from features.cli import UserError, echo, echo_failures, log_warning, progress
from features.manifest import Clip
from features.store.data_statement import FILE, TEMPLATE, DataStatement, read_statement
from features.store.store import FeatureStore, plan

LAST_WAIT_S = 5.0
"""Maximum wait for the planner lock after an interruption; the next run cleans up too."""
NUM_COMPARED = 2
"""Number of clips to extract again if numerics differ: takes a minute at most."""


def extract_all(config: ExtractConfig) -> tuple[dict[str, Any], int]:
    """Extract what is missing; returns (summary, exit code).

    Raises UserError for data, options or a store that cannot be used, StoreWriteError when the store cannot
    be written.
    """
    if config.engine == "ray":
        config = resolved(config)
    index = read_dataset(config.data, config.layout, config.subject_regex, config.columns)
    statement = read_statement(index.manifest.root)
    window_plan = _plan_windows(config, index)
    print_index(index)
    extractor_config, numerics = make_extractor_config(config)
    backend = f"{numerics['backend']} ({numerics['device']}, {numerics['precision']})"
    echo(
        f"{extractor_config.recipe.encoder.name} with weights "
        f"{extractor_config.recipe.encoder.weights} on {backend}"
    )
    if config.dry_run or config.verify_sample:
        return _run_without_writing(config, window_plan, extractor_config)
    store = _plan_store(config, index, window_plan, extractor_config, numerics, statement)
    _write_template(index.manifest.root / FILE)
    shard_ids = {clip.clip_id for clip in select_shard(window_plan.windows, config.shard)}
    missing = missing_parts(config, window_plan.windows, store)
    _update_failures(config, window_plan, store, shard_ids, missing)
    jobs = jobs_of(store, window_plan, config, missing)
    if jobs:
        _log_difference(config, window_plan, extractor_config, store, numerics)
    run_stats = _run(jobs, extractor_config, config, store, num_workers(config, numerics["device"]))
    still_missing = missing_parts(replace(config, retry_failed=True), window_plan.windows, store)
    summary = summarise(config, index, window_plan, store, run_stats, shard_ids, still_missing)
    print_summary(summary)
    return summary, 1 if summary["failed"] or summary["problems"] else 0


def _plan_windows(config: ExtractConfig, index: DatasetIndex) -> WindowPlan:
    """The windows to extract; windows of videos that cannot be opened get no end time.

    Raises UserError when there is no usable clip.
    """
    clips, problems = index.manifest.clips, index.manifest.problems
    if config.limit is not None:
        clips = tuple(sample_clips(clips, config.limit))
    if not clips:
        reason = f"{problems[0].clip_id}: {problems[0].reason}" if problems else "it is empty"
        raise UserError(f"{config.data} has no usable clip: {reason}")
    window_plan = plan_windows(clips, config.window, config.out)
    windows: Sequence[Clip] = window_plan.windows
    if config.limit is not None:  # a long video gives many windows
        windows = sample_clips(windows, config.limit)
    known = (
        replace(each, end_s=None) if each.clip_id in window_plan.unreadable else each for each in windows
    )
    return replace(window_plan, windows=tuple(known))


def _plan_store(
    config: ExtractConfig,
    index: DatasetIndex,
    window_plan: WindowPlan,
    extractor_config: ExtractorConfig,
    numerics: dict[str, Any],
    statement: DataStatement,
) -> FeatureStore:
    """The store with a row for every window; warns about clips that changed since an earlier extraction."""
    is_whole = not index.manifest.problems and not index.unpaired_labels
    store = plan(
        config.out,
        window_plan.windows,
        extractor_config.recipe,
        numerics=numerics,
        crops=config.crops == "jpeg",
        versions=versions(),
        listing_complete=config.limit is None and is_whole,
        data_statement=statement,
    )
    if config.limit is None and not is_whole:
        _log_unnamed(config, window_plan, store)
    if changed := store.changes.changed:
        log_warning(
            f"{len(changed)} clips are extracted again, because their video's size or time or their end time "
            f"has changed (for example {changed[0]})"
        )
    return store


def _write_template(path: Path) -> None:
    """Write an empty data statement if there is none; does nothing where the folder cannot be written.

    The file is opened for creation only, so that no statement is ever replaced, not even one that another
    process writes at the same time.
    """
    with contextlib.suppress(OSError), path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(TEMPLATE)
        echo(f"wrote {path}: state there where the data come from, then run the same command again")


def _update_failures(
    config: ExtractConfig,
    window_plan: WindowPlan,
    store: FeatureStore,
    shard_ids: set[str],
    missing: dict[str, set[Part]],
) -> None:
    """With `--retry-failed`, delete failure reasons of rows without missing parts (the failed part exists now
    or is no longer requested). Write failure reasons of videos that cannot be opened."""
    row_of = store.row_of_clip()
    if config.retry_failed:
        failures = store.rows.texts("failure")
        for row in (row_of[clip_id] for clip_id in shard_ids - missing.keys()):
            if failures[row]:
                store.rows.forget_texts(row, "failure")
    for clip_id, reason in window_plan.unreadable.items():
        if clip_id in missing:
            store.write_failure(row_of[clip_id], reason)


def _run(
    jobs: Sequence[Job],
    extractor_config: ExtractorConfig,
    config: ExtractConfig,
    store: FeatureStore,
    workers: int,
) -> RunStats:
    """Run the jobs with a progress bar and finalize the store; returns the run's statistics."""
    run_stats = RunStats()
    try:
        for event in _with_progress(_events(jobs, extractor_config, config, workers), jobs):
            run_stats.add(event)
    except BaseException:
        with contextlib.suppress(UserError, OSError):  # the first error is the one to report
            store.finalize(LAST_WAIT_S)
        raise
    try:
        store.finalize()
    except (UserError, OSError) as error:  # all rows are written; finalize only cleans up
        log_warning(f"{error}; all rows are written, and the next extraction into this store cleans up")
    return run_stats


def _log_unnamed(config: ExtractConfig, window_plan: WindowPlan, store: FeatureStore) -> None:
    """Warn about clips of the store that are not in the data, if the data could not be read completely."""
    named, listed = {window.clip_id for window in window_plan.windows}, store.listed()
    unnamed = sum(bool(listed[row]) for name, row in store.row_of_clip().items() if name not in named)
    if unnamed:
        log_warning(
            f"{unnamed} clips of the store are not in {config.data}, but parts of it could not be read: they "
            "keep their labels"
        )


def _log_difference(
    config: ExtractConfig,
    window_plan: WindowPlan,
    extractor_config: ExtractorConfig,
    store: FeatureStore,
    numerics: dict[str, Any],
) -> None:
    """Warn if this run's numerics differ from those of the store, and how much the embeddings differ."""
    before = store.numerics
    keys = [key for key in numerics if key != "crops" and key in before and before[key] != numerics[key]]
    if not keys:
        return
    changes = ", ".join(f"{key} {before[key]} before, {numerics[key]} now" for key in keys)
    try:
        found, _ = verify_sample(
            replace(config, verify_sample=NUM_COMPARED), window_plan.windows, extractor_config
        )
    except UserError:  # no clip is finished
        return
    log_warning(
        f"the store was written with other settings ({changes}): for {found['compared']} clips extracted "
        f"again, the lowest cosine between stored and new embeddings is {found['worst_cosine']:.4f}"
    )
    for item in found["differing"]:
        log_warning(f"{item['clip_id']}: {item['reason']}")


def _run_without_writing(
    config: ExtractConfig, window_plan: WindowPlan, extractor_config: ExtractorConfig
) -> tuple[dict[str, Any], int]:
    """`--dry-run` and `--verify-sample`: write nothing; returns (summary, exit code)."""
    if config.dry_run:
        summary = dry_run(config, window_plan, extractor_config)
        print_dry_run(summary)
        echo_failures(summary["unreadable"].items())
        return summary, 1 if summary["unreadable"] or summary["timed_failures"] else 0
    summary, differing = verify_sample(config, window_plan.windows, extractor_config)
    echo_failures((item["clip_id"], item["reason"]) for item in differing)
    worst = summary["worst_geometry"]
    geometry = f", largest geometry difference {worst:.4f}" if worst is not None else ""
    echo(
        f"{summary['compared']} clips extracted again, {summary['identical']} identical, "
        f"lowest cosine {summary['worst_cosine']:.6f}{geometry}"
    )
    return summary, 1 if differing else 0


def _events(
    jobs: Sequence[Job], extractor_config: ExtractorConfig, config: ExtractConfig, workers: int
) -> Iterator[Event]:
    if config.engine == "ray" and jobs:
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
