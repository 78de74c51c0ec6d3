"""python -m live predict: unlabelled video files through the same predictor as a camera, in batch.

For each video a log in the live format and a timeline picture, and one table over all of them. A file that
cannot be read is listed with its reason, and the others go on.

Knows nothing about cameras or windows on a screen.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extract.video import read_video
from features.door import fail, progress, say
from features.manifest import VIDEO_SUFFIXES
from live.config import PredictConfig
from live.log import Log
from live.model import describe, open_model
from live.predictor import Prediction, Predictor
from live.story import tell, timeline_png

TABLE = "predictions.csv"


@dataclass(frozen=True)
class VideoResult:
    """What was predicted over one video."""

    path: Path
    log: Path
    num_frames: int
    """Sampled frames."""
    duration_s: float
    face_rate: float
    shares: dict[str, float]
    """Share of the sampled frames in which each class was named; in the rest none was."""
    mean_p: tuple[float, ...]
    """Mean probabilities over the frames in state ok or unsure, C numbers; NaN where there were none."""


def predict(config: PredictConfig) -> tuple[dict[str, Any], int]:
    """Predict every video; gives the summary, and exit code 1 when some could not be read.

    Raises ValueError when the run cannot be used or no video was named.
    """
    videos = find_videos(config.videos)
    if not videos:
        raise ValueError(
            "no video: name files or folders, as python -m live predict --run R --out DIR a.mp4 b/"
        )
    model = open_model(config.run, backend=config.backend)
    config.out.mkdir(parents=True, exist_ok=True)
    predictor = Predictor(model)
    done: list[VideoResult] = []
    failures: list[dict[str, str]] = []
    names = unique_names(videos)
    try:
        with progress("videos") as bar:
            for video in bar.track(videos, description="predict"):
                try:
                    done.append(predict_video(predictor, video, config.out / f"{names[video]}.csv"))
                except ValueError as error:
                    failures.append({"video": str(video), "reason": str(error).removeprefix(f"{video}: ")})
    finally:
        predictor.close()
    write_table(config.out / TABLE, done, model.card.labelling.names)
    for failure in failures:
        fail(f"{failure['video']}: {failure['reason']}")
    say(f"{len(done)} of {len(videos)} videos predicted; {config.out / TABLE}")
    summary = {
        "run": str(config.run),
        "model": describe(model),
        "videos": len(videos),
        "done": len(done),
        "failed": failures,
        "out": str(config.out / TABLE),
    }
    return summary, 1 if failures else 0


def predict_video(predictor: Predictor, video: Path, log_path: Path) -> VideoResult:
    """Predict one video into a log and a timeline beside it.

    Raises ValueError when nothing in it can be decoded.
    """
    predictor.reset()
    names = predictor.model.card.labelling.names
    # Under a temporary name until the video is through: a log that stands is a whole one.
    partial = log_path.with_name(log_path.name + ".partial")
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
        os.replace(partial, log_path)
    finally:
        log.close()
        partial.unlink(missing_ok=True)
    log_path.with_suffix(".png").write_bytes(
        timeline_png(tell(log_path, predictor.model.card.labelling.task))
    )
    said = [p.p for p in predictions if p.state in ("ok", "unsure")]
    mean_p = np.mean(said, axis=0) if said else np.full(len(names), np.nan)
    return VideoResult(
        video,
        log_path,
        len(predictions),
        predictions[-1].t_s,
        float(np.mean([p.face for p in predictions])),
        {name: float(np.mean([p.label == name for p in predictions])) for name in names},
        tuple(mean_p.tolist()),
    )


def find_videos(places: Sequence[Path]) -> list[Path]:
    """The files named, and the videos below the folders named, in order, none twice.

    Raises ValueError for a place that does not exist.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
            found |= dict.fromkeys(inside)
        elif place.is_file():
            found[place] = None
        else:
            raise ValueError(f"{place}: no such file or folder")
    return list(found)


def unique_names(videos: Sequence[Path]) -> dict[Path, str]:
    """A name for each video's files: its own, with a number where two share one."""
    names: dict[Path, str] = {}
    taken: set[str] = {Path(TABLE).stem}
    for video in videos:
        name, number = video.stem, 1
        # Case does not tell files apart everywhere.
        while name.casefold() in taken:
            number += 1
            name = f"{video.stem}-{number}"
        taken.add(name.casefold())
        names[video] = name
    return names


def write_table(path: Path, results: Sequence[VideoResult], names: Sequence[str]) -> None:
    """One row a video, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        shares, means = [f"share_{name}" for name in names], [f"p_{name}" for name in names]
        writer.writerow(["video", "log", "duration_s", "frames", "face_rate", *shares, *means])
        for r in results:
            figures = [round(value, 4) for value in (r.face_rate, *r.shares.values(), *r.mean_p)]
            cells = ["" if np.isnan(value) else value for value in figures]
            writer.writerow([str(r.path), r.log.name, round(r.duration_s, 3), r.num_frames, *cells])
    os.replace(temporary, path)
