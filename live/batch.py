"""`python -m live predict`: predictions for unlabelled video files with the same predictor as live.

Each video gets a log in the live format and a timeline picture; one table lists all videos. The table also
records which videos are done: the same command predicts only the others, and another command adds to the
table. Files in the folder that are not in the table are not changed. A file that cannot be read is listed
with its reason, and the other files are predicted.
"""

import contextlib
import csv
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extract.video.reader import probe, read_video, truncation
from features.cli import UserError, echo, log_error, progress
from features.manifest import NOT_UTF8, Failure, readable, video_files
from live.config import PredictConfig
from live.inference.model import LiveModel, describe, open_model
from live.inference.predictor import Prediction, Predictor
from live.output.log_summary import summarise_log, timeline_png
from live.output.log_writer import NEW_FACE, Log
from seqmodel.runs.files import write_csv

TABLE = "predictions.csv"
LOCK_NAME = ".predict.lock"
FIRST_COLUMNS = ("video", "label", "reason", "log", "duration_s", "frames", "face_rate")
STATE_COLUMNS = ("size", "modified_ns", "made_with")
"""First and last columns of the table; the columns of the classes are between them."""

MAX_NAME_BYTES = 220
"""File systems allow 255 bytes: a number and an extension such as `.csv.partial` still fit."""


def predict(config: PredictConfig) -> tuple[dict[str, Any], int]:
    """Predict every video; returns the summary, and exit code 1 when some could not be read.

    Raises UserError when the run or the folder cannot be used, or no video was named, or another process
    predicts into that folder.
    """
    videos, unnamable = find_videos(config.videos)
    if not videos and not unnamable:
        raise UserError(
            "no video: give files or folders, for example python -m live predict --run R --out DIR a.mp4 b/"
        )
    model = open_model(config.run, backend=config.backend)
    config.out.mkdir(parents=True, exist_ok=True)
    table = config.out / TABLE
    with folder_lock(config.out):
        rows = read_table(table)
        failures = [{"video": each.clip_id, "reason": each.reason} for each in unnamable]
        num_before = _predict_all(model, videos, table, rows, failures)
    num_videos = len(videos) + len(unnamable)
    num_done = num_videos - len(failures)
    given = [rows[str(video)] for video in videos if str(video) in rows]
    failed = {failure["video"] for failure in failures}
    labels = Counter(row["label"] or "no label" for row in given if row["video"] not in failed)
    for failure in failures:
        log_error(f"{failure['video']}: {failure['reason']}")
    earlier = f" ({num_before} of them earlier)" if num_before else ""
    counts = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
    echo(f"{num_done} of {num_videos} videos predicted{earlier}: {counts or 'none'}; table: {table}")
    return {
        "run": str(config.run),
        "model": describe(model),
        "videos": num_videos,
        "done": num_done,
        "already": num_before,
        "labels": dict(labels),
        "failed": failures,
        "out": str(table),
    }, 1 if failures else 0


def _predict_all(
    model: LiveModel,
    videos: Sequence[Path],
    table: Path,
    rows: dict[str, dict[str, Any]],
    failures: list[dict[str, str]],
) -> int:
    """Predict the videos that are not in `rows`; adds to rows and failures.

    Returns the number of videos that were predicted before.
    """
    predictor = Predictor(model)
    classes, made_with = model.card.labelling.names, fingerprint(model)
    names = unique_names(videos, table.parent, rows)
    num_before = 0
    try:
        with progress("videos") as bar:
            for video in bar.track(videos, description="predict"):
                log = table.parent / f"{names[video]}.csv"
                try:
                    state = state_of(video, made_with)
                    if state.items() <= rows.get(str(video), {}).items() and log.is_file():
                        num_before += 1
                        continue
                    rows[str(video)] = predict_video(predictor, video, log) | state
                except (ValueError, OSError) as error:
                    failures.append({"video": str(video), "reason": str(error).removeprefix(f"{video}: ")})
                # Rows of later videos and of videos that were not given stay in the table.
                write_table(table, list(rows.values()), classes)
    finally:
        predictor.close()
    write_table(table, list(rows.values()), classes)
    return num_before


@contextlib.contextmanager
def folder_lock(out: Path) -> Iterator[None]:
    """Lock a folder, so that only one process predicts into it.

    The operating system frees the lock when the process dies. A disk without file locks has no lock. Raises
    UserError where another process holds the lock.
    """
    path = out / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _is_locked(descriptor):
            raise UserError(
                f"{out}: another `live predict` process is writing to this folder; wait until it ends"
            )
        try:
            yield
        finally:
            if sys.platform != "win32":  # Windows cannot delete an open file: the empty file stays
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether this process holds the lock, or the disk has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(descriptor).st_nlink > 0  # 0: the last owner has just deleted it
    except (BlockingIOError, PermissionError):  # another process holds it (POSIX, Windows)
        return False
    except OSError:
        return True
    return True


def predict_video(predictor: Predictor, video: Path, log_path: Path) -> dict[str, Any]:
    """Predict one video into a log and a timeline next to it; returns its row, without STATE_COLUMNS.

    `label` is the most frequent label of its frames; without any, `reason` says why. `frames` counts sampled
    frames. For each class, `share_` is the share of frames with this label (frames in other states have no
    label), and `p_` is the mean probability over the frames in state ok or unsure, empty without any.

    Raises UserError when no frame can be decoded or the video is truncated, as in extract; OSError when a
    file cannot be written.
    """
    predictor.reset()
    names = predictor.model.card.labelling.names
    # A temporary name until the video ends: a log without `.partial` is complete.
    partial = log_path.with_name(log_path.name + ".partial")
    partial.unlink(missing_ok=True)
    log = Log(str(partial), names, is_live=False)
    predictions, end_s = list[Prediction](), 0.0
    try:
        for frame in read_video(video):
            end_s = frame.pts_s + frame.duration_s
            prediction = predictor.push(frame)
            if prediction is not None:
                log.write(prediction, NEW_FACE if prediction.new_face else "")
                predictions.append(prediction)
        log.close()
        if not predictions:
            raise UserError(f"{video}: no frame can be decoded")
        if reason := truncation(end_s, probe(video).duration_s):
            raise UserError(f"{video}: {reason}")
        timeline = timeline_png(summarise_log(partial, predictor.model.card.labelling.task))
        os.replace(partial, log_path)
    finally:
        log.close()
        partial.unlink(missing_ok=True)
    log_path.with_suffix(".png").write_bytes(timeline)
    shown = [p.p for p in predictions if p.state in ("ok", "unsure")]
    mean_p = np.mean(shown, axis=0) if shown else np.full(len(names), np.nan)
    labels = Counter(p.label for p in predictions if p.label)
    values = {"face_rate": np.mean([p.face for p in predictions])}
    values |= {f"share_{name}": np.mean([p.label == name for p in predictions]) for name in names}
    values |= {f"p_{name}": p for name, p in zip(names, mean_p, strict=True)}
    return {
        "video": str(video),
        "label": labels.most_common(1)[0][0] if labels else "",
        "reason": "" if labels else _why_no_label(predictions),
        "log": log_path.name,
        "duration_s": round(predictions[-1].t_s, 3),
        "frames": len(predictions),
        **{name: "" if np.isnan(value) else round(float(value), 4) for name, value in values.items()},
    }


def _why_no_label(predictions: Sequence[Prediction]) -> str:
    """Why no frame of a video has a label: its most frequent state."""
    states = Counter(p.state for p in predictions)
    state, count = states.most_common(1)[0]
    texts = {"no_face": "no face", "unsure": "unsure", "warming_up": "too short: no prediction yet"}
    return f"{texts.get(state, state)} in {count} of {len(predictions)} frames"


def find_videos(paths: Sequence[Path]) -> tuple[list[Path], list[Failure]]:
    """Videos of the given files and folders as absolute paths, in order and without duplicates; and failures.

    In folders, hidden files (`._x.mp4` of macOS) and broken links are left out and linked folders are
    entered, as in extract. Failures are paths that are not UTF-8: a table cannot hold them.

    Raises UserError for a path that does not exist.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found |= dict.fromkeys(map(absolute_path, video_files(path)))
        elif path.is_file() or path.is_symlink():
            # A broken link is a video that cannot be read, not a wrong argument.
            found[absolute_path(path)] = None
        else:
            raise UserError(f"{path}: no such file or folder")
    named = {video: readable(str(video)) for video in found}
    return (
        [video for video, name in named.items() if name == str(video)],
        [Failure(name, NOT_UTF8) for video, name in named.items() if name != str(video)],
    )


def absolute_path(video: Path) -> Path:
    """Absolute path without `..` and linked folders; a file that is a link keeps its own name."""
    return video.parent.resolve() / video.name


def unique_names(videos: Sequence[Path], out: Path, rows: Mapping[str, dict[str, Any]]) -> dict[Path, str]:
    """A file name (without extension) for each video: the one in its row of the table, else the video's name.

    Names are cut to MAX_NAME_BYTES and get a number where another video or a file in `out` has that name.
    """
    kept = {video: Path(row["log"]).stem for video, row in rows.items()}
    existing = (path.stem for path in out.iterdir() if path.suffix.lower() in (".csv", ".png"))
    # Some file systems ignore case.
    taken = {name.casefold() for name in (Path(TABLE).stem, *kept.values(), *existing)}
    names: dict[Path, str] = {}
    for video in videos:
        if str(video) in kept:
            names[video] = kept[str(video)]
            continue
        stem = video.stem.encode()[:MAX_NAME_BYTES].decode(errors="ignore")  # no partial character
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names[video] = name
    return names


def fingerprint(model: LiveModel) -> str:
    """Hash of what a prediction depends on besides the video.

    That is the run's weights, their precision, calibration, `min_filled` and whether there is a landmarker.
    """
    precision = model.engine.numerics["precision"] if model.engine else ""
    inputs = (model.card.calibration, model.min_filled, precision, model.landmarker_file is not None)
    return f"{model.key}-{hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]}"


def state_of(video: Path, made_with: str) -> dict[str, str]:
    """The `STATE_COLUMNS`, which show whether a row of the table is up to date.

    Raises UserError when the video does not exist.
    """
    try:
        status = video.stat()
    except OSError as error:
        raise UserError(f"{video}: {error.strerror}") from error
    return {"size": str(status.st_size), "modified_ns": str(status.st_mtime_ns), "made_with": made_with}


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of the table by video; empty where there is no table.

    Raises UserError when the file is another table.
    """
    if not path.exists():
        return {}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        if not {*FIRST_COLUMNS, *STATE_COLUMNS} <= set(columns):
            raise UserError(
                f"{path} was not written by live predict (its columns are {columns[:6]}…) and is not "
                "changed: choose another --out"
            )
        return {row["video"]: dict(row) for row in reader if row["log"]}


def write_table(path: Path, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Write one row per video, atomically; columns of classes from another run are kept."""
    class_columns = [f"share_{name}" for name in names] + [f"p_{name}" for name in names]
    others = [column for row in rows for column in row if column not in STATE_COLUMNS]
    columns = [*dict.fromkeys([*FIRST_COLUMNS, *class_columns, *others]), *STATE_COLUMNS]
    write_csv(path, [columns, *([row.get(column, "") for column in columns] for row in rows)])
