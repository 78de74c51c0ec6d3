"""Extraction of a video's windows into the store: each window is written and its result is yielded.

If some parts of a row exist already (crops or geometry are added to a store), the new parts must belong to
the same faces and the same encoder.

Shapes: T frames of a window, D embedding.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from extract.pipeline.extractor import FeatureExtractor, StageTimer, extract_video
from extract.pipeline.types import FailedWindow, Job, WindowFeatures
from features.store.planner import TIME_SLACK_NS
from features.store.store import FeatureStore

AGREEMENT = 0.98
"""Minimum cosine between a stored and a new embedding; below it, no crops or geometry are added to a row."""

FRAME_TOLERANCE = np.array([0.001, 0.1, 0.1, 0.1, 0.1, 0.01])
"""Maximum differences of a frame's time (seconds), box edges (pixels) and score between two extractions of
the same frame. Rounding on different processors stays far below; another frame or another face does not."""


class StoreWriteError(OSError):
    """The store cannot be written; the extraction ends."""


def extract_and_write(
    store: FeatureStore, job: Job, extractor: FeatureExtractor, *, threads: int, timer: StageTimer
) -> Iterator[WindowFeatures | FailedWindow]:
    """Extract a job; write every result into the store, then yield it.

    If some parts of a row exist already, the new ones must belong to the same faces; otherwise the window
    fails with that reason. It also fails if the file has changed since planning.

    Raises StoreWriteError when the store cannot be written.
    """
    requested = {window.row: window.parts for window in job.windows}
    windows = list(job.windows)
    for index, window in enumerate(windows):
        if "embeddings" not in window.parts:  # one new embedding per video is enough to detect other weights
            windows[index] = replace(window, parts=window.parts | {"embeddings"})
            break
    extended = replace(job, windows=tuple(windows))
    for outcome in extract_video(extended, extractor, threads=threads, timer=timer):
        parts = requested[outcome.window.row]
        if isinstance(outcome, WindowFeatures) and not _is_finite(outcome):
            outcome = FailedWindow(outcome.window, "the encoder returned values that are not finite")
        elif isinstance(outcome, WindowFeatures) and "embeddings" not in parts:
            outcome = _checked(store, outcome)
        if isinstance(outcome, WindowFeatures) and _has_changed(job):
            outcome = FailedWindow(outcome.window, "the file has changed since planning: extract it again")
        with timer.stage("write"):
            _write(store, outcome, with_embeddings="embeddings" in parts)
        yield outcome


def file_state(path: Path) -> tuple[int, int] | None:
    """A file's size in bytes and modification time in ns; None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def same_faces(stored: np.ndarray, fresh: np.ndarray) -> bool:
    """Whether two tables of frames (T, 6) show the same faces at the same times, within FRAME_TOLERANCE."""
    differences = np.abs(stored.astype(np.float64) - fresh)
    is_close = (differences <= FRAME_TOLERANCE) | (np.isnan(stored) & np.isnan(fresh))
    return bool(is_close.all())


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity (n,) float32 of the rows of two arrays (n, D)."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-9)


def _has_changed(job: Job) -> bool:
    now = file_state(job.path)
    if now is None or job.file_state is None:
        return False
    return now[0] != job.file_state[0] or abs(now[1] - job.file_state[1]) > TIME_SLACK_NS


def _write(store: FeatureStore, outcome: WindowFeatures | FailedWindow, *, with_embeddings: bool) -> None:
    try:
        if isinstance(outcome, FailedWindow):
            store.write_failure(outcome.window.row, outcome.reason)
        else:
            store.write_row(
                outcome.window.row,
                embeddings=outcome.embeddings if with_embeddings else None,
                frames=outcome.frames if with_embeddings else None,
                geometry=outcome.geometry,
                crops=outcome.crops,
                notes=outcome.notes,
            )
    except (OSError, ValueError) as error:
        raise StoreWriteError(f"the store cannot be written: {error}") from error


def _is_finite(row: WindowFeatures) -> bool:
    return row.embeddings is None or bool(np.isfinite(row.embeddings).all())


def _checked(store: FeatureStore, row: WindowFeatures) -> WindowFeatures | FailedWindow:
    """The row, if its faces (and its embeddings, if it has them) agree with the store; else a failure."""
    index = np.array([row.window.row])
    if not same_faces(store.read_frames(index)[0], row.frames):
        return FailedWindow(row.window, "the detected faces differ from those of the stored embeddings")
    if row.embeddings is not None:
        stored, _ = store.read_stream("embeddings", index)
        valid = row.frames[:, 5] > 0
        lowest = cosines(stored[0][valid], row.embeddings[valid]).min(initial=1.0)
        if lowest < AGREEMENT:
            return FailedWindow(
                row.window, f"the new embeddings differ from the stored ones (cosine {lowest:.3f})"
            )
    return row
