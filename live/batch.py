"""python -m live predict: unlabelled video files through the same predictor as a camera, in batch.

For each video a log in the live format and a timeline picture, and one table over all of them, which also
says what is done already: the same command does the rest, and another one adds to it. What the table does not
know in its folder was not made here and is left alone. A file that cannot be read is listed with its reason,
and the others go on.
"""

import contextlib
import csv
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extract.video.reader import read_video
from features.cli import echo, log_error, progress
from features.manifest import NOT_UTF8, Failure, readable, video_files
from live.config import PredictConfig
from live.inference.model import LiveModel, describe, open_model
from live.inference.predictor import Prediction, Predictor
from live.output.log_summary import summarise_log, timeline_png
from live.output.log_writer import Log
from seqmodel.runs.card import write_csv

TABLE = "predictions.csv"
LOCK_NAME = ".predict.lock"
HEAD = ("video", "log", "duration_s", "frames", "face_rate")
STATE = ("size", "modified_ns", "made_with")
"""First and last columns of the table; the figures of the classes lie between them."""

MAX_NAME_BYTES = 220
"""Of a name of 255, which is what disks take: a number and an ending as `.csv.partial` still fit."""


def predict(config: PredictConfig) -> tuple[dict[str, Any], int]:
    """Predict every video; gives the summary, and exit code 1 when some could not be read.

    Raises ValueError when the run or the folder cannot be used, or no video was named, or another process
    predicts into that folder.
    """
    videos, unnamable = find_videos(config.videos)
    if not videos and not unnamable:
        raise ValueError(
            "no video: name files or folders, as python -m live predict --run R --out DIR a.mp4 b/"
        )
    model = open_model(config.run, backend=config.backend)
    config.out.mkdir(parents=True, exist_ok=True)
    table = config.out / TABLE
    with only_one(config.out):
        rows = read_table(table)
        failures = [{"video": each.clip_id, "reason": each.reason} for each in unnamable]
        num_before = _predict_all(model, videos, table, rows, failures)
    num_videos = len(videos) + len(unnamable)
    num_done = num_videos - len(failures)
    for failure in failures:
        log_error(f"{failure['video']}: {failure['reason']}")
    there = f" ({num_before} of them were there already)" if num_before else ""
    echo(f"{num_done} of {num_videos} videos predicted{there}; {table}")
    return {
        "run": str(config.run),
        "model": describe(model),
        "videos": num_videos,
        "done": num_done,
        "already": num_before,
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
    """Predict what the rows do not know yet; adds to rows and failures, and gives the number of those that
    were there already."""
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
                # Rows of videos that are still to come or were not named stay: nothing is forgotten.
                write_table(table, list(rows.values()), classes)
    finally:
        predictor.close()
    write_table(table, list(rows.values()), classes)
    return num_before


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Be the only process that predicts into a folder: by the system's own lock, which nobody holds any more
    who is dead. A disk without locks has none. Raises ValueError where another is."""
    path = out / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _is_locked(descriptor):
            raise ValueError(f"{out}: another predict is writing here")
        try:
            yield
        finally:
            if sys.platform != "win32":  # which deletes no open file: there it stays, empty
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether the file is ours now, or cannot be anybody's."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(descriptor).st_nlink > 0  # else its owner, done just now, has deleted it
    except (BlockingIOError, PermissionError):  # as POSIX says that it is another's, and as Windows does
        return False
    except OSError:
        return True
    return True


def predict_video(predictor: Predictor, video: Path, log_path: Path) -> dict[str, Any]:
    """Predict one video into a log and a timeline beside it; gives its row of the table, without its state.

    Frames are those sampled. Of each class, `share_` is the share of frames in which it was named (in the
    rest none was), and `p_` its mean probability over the frames in state ok or unsure, empty without any.
    Raises ValueError when nothing in it can be decoded, OSError when its files cannot be written.
    """
    predictor.reset()
    names = predictor.model.card.labelling.names
    # Under a temporary name until the video is through: a log that stands is a whole one.
    partial = log_path.with_name(log_path.name + ".partial")
    partial.unlink(missing_ok=True)
    log = Log(str(partial), names)
    predictions: list[Prediction] = []
    try:
        for frame in read_video(video):
            prediction = predictor.push(frame)
            if prediction is not None:
                log.write(prediction)
                predictions.append(prediction)
        log.close()
        if not predictions:
            raise ValueError(f"{video}: no frame in it can be decoded")
        timeline = timeline_png(summarise_log(partial, predictor.model.card.labelling.task))
        os.replace(partial, log_path)
    finally:
        log.close()
        partial.unlink(missing_ok=True)
    log_path.with_suffix(".png").write_bytes(timeline)
    shown = [p.p for p in predictions if p.state in ("ok", "unsure")]
    mean_p = np.mean(shown, axis=0) if shown else np.full(len(names), np.nan)
    figures = {"face_rate": np.mean([p.face for p in predictions])}
    figures |= {f"share_{name}": np.mean([p.label == name for p in predictions]) for name in names}
    figures |= {f"p_{name}": p for name, p in zip(names, mean_p, strict=True)}
    return {
        "video": str(video),
        "log": log_path.name,
        "duration_s": round(predictions[-1].t_s, 3),
        "frames": len(predictions),
        **{name: "" if np.isnan(value) else round(float(value), 4) for name, value in figures.items()},
    }


def find_videos(places: Sequence[Path]) -> tuple[list[Path], list[Failure]]:
    """The files named, and the videos below the folders named, in order, none twice, by their whole paths:
    the same video has one name from wherever it is named. In folders, hidden files (`._x.mp4` of macOS) and
    links to nothing are left out and linked folders entered, as extract does. As failures, those whose path
    is not UTF-8, which no table could name.

    Raises ValueError for a place that does not exist.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            found |= dict.fromkeys(map(whole_path, video_files(place)))
        elif place.is_file() or place.is_symlink():
            # A link to nothing is a video that cannot be read, not a slip of the pen.
            found[whole_path(place)] = None
        else:
            raise ValueError(f"{place}: no such file or folder")
    named = {video: readable(str(video)) for video in found}
    return (
        [video for video, name in named.items() if name == str(video)],
        [Failure(name, NOT_UTF8) for video, name in named.items() if name != str(video)],
    )


def whole_path(video: Path) -> Path:
    """From the root, without `..` and linked folders; a file that is a link keeps its own name."""
    return video.parent.resolve() / video.name


def unique_names(videos: Sequence[Path], out: Path, rows: Mapping[str, dict[str, Any]]) -> dict[Path, str]:
    """A name for each video's files: the one in its row of the table, else its own, cut to MAX_NAME_BYTES and
    with a number where another video or a file in `out` has that."""
    kept = {video: Path(row["log"]).stem for video, row in rows.items()}
    there = (path.stem for path in out.iterdir() if path.suffix.lower() in (".csv", ".png"))
    # Case does not tell files apart everywhere.
    taken = {name.casefold() for name in (Path(TABLE).stem, *kept.values(), *there)}
    names: dict[Path, str] = {}
    for video in videos:
        if str(video) in kept:
            names[video] = kept[str(video)]
            continue
        stem = video.stem.encode()[:MAX_NAME_BYTES].decode(errors="ignore")  # whole letters
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names[video] = name
    return names


def fingerprint(model: LiveModel) -> str:
    """What a prediction hangs on beside the video: the run's weights and their precision, how and from when
    on it decides, and whether the geometry can be measured."""
    precision = model.engine.numerics["precision"] if model.engine else ""
    facts = (model.card.calibration, model.min_filled, precision, model.landmarker_file is not None)
    return f"{model.key}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"


def state_of(video: Path, made_with: str) -> dict[str, str]:
    """The columns that tell whether a row of the table is still true.

    Raises ValueError when the video is not there.
    """
    try:
        facts = video.stat()
    except OSError as error:
        raise ValueError(f"{video}: {error.strerror}") from error
    return {"size": str(facts.st_size), "modified_ns": str(facts.st_mtime_ns), "made_with": made_with}


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of the table by video; none where there is no table.

    Raises ValueError when something else wrote the file.
    """
    if not path.exists():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        if not {*HEAD, *STATE} <= set(columns):
            raise ValueError(
                f"{path} was not written by live predict (its columns are {columns[:6]}…) and is left as it "
                "is: name another --out"
            )
        return {row["video"]: dict(row) for row in reader if row["log"]}


def write_table(path: Path, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """One row a video, atomically; the columns of other classes, from another run, stay."""
    figures = [f"share_{name}" for name in names] + [f"p_{name}" for name in names]
    others = [column for row in rows for column in row if column not in STATE]
    columns = [*dict.fromkeys([*HEAD, *figures, *others]), *STATE]
    write_csv(path, [columns, *([row.get(column, "") for column in columns] for row in rows)])
