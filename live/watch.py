"""A live session from its options to its summary: frames in, predictions, picture and log out.

Knows nothing about how a prediction is made or drawn.
"""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from extract.video import Frame
from features.door import say
from live.capture import camera_frames, open_camera, video_frames, window_problem
from live.config import LiveConfig
from live.model import describe, open_model
from live.overlay import TIMELINE_S, Moment, Status, draw, level_of
from live.predictor import Prediction, Predictor
from live.session import Log, Recorder, Tally
from seqmodel.run import load_card

TITLE = "brainbuddy"


def watch(config: LiveConfig) -> tuple[dict[str, Any], int]:
    """Run a session until the source ends, the user quits or the time is over; gives summary and exit code.

    Raises ValueError when the run, the source or a window cannot be had.
    """
    load_card(config.run)  # a wrong run is said before a camera is opened
    if not config.headless and (problem := window_problem()):
        raise ValueError(f"no window can be shown ({problem}); use --headless")
    frames = _source(config)
    predictor = Predictor(open_model(config.run, backend=config.backend))
    log = Log(config.log, predictor.model.card.labelling.names) if config.log else None
    recorder = Recorder(config.record) if config.record else None
    tally, started = Tally(), time.perf_counter()
    recording = f"recording to {config.record}" if recorder else "not recording"
    say(f"running {config.run}: local only, {recording}")
    try:
        duration_s, num_frames = _loop(frames, config, predictor, log, recorder, tally)
    finally:
        predictor.close()
        for sink in (log, recorder):
            if sink is not None:
                sink.close()
    seconds = time.perf_counter() - started
    summary = {
        "run": str(config.run),
        "model": describe(predictor.model),
        "duration_s": round(duration_s, 3),
        "frames": num_frames,
        "encoded": predictor.num_encoded,
        "seconds": round(seconds, 3),
        **tally.summary(),
        "log": config.log,
        "record": str(config.record) if config.record else None,
    }
    _tell(summary)
    return summary, 0


def _source(config: LiveConfig) -> Iterator[Frame]:
    """The frames, with the first problem raised now and not after the model is loaded."""
    if config.video is None:
        open_camera(config.camera).release()
        return camera_frames(config.camera)
    if "://" not in config.video and not Path(config.video).is_file():
        raise ValueError(f"{config.video}: no such video file")
    return video_frames(config.video)


def _loop(
    frames: Iterator[Frame],
    config: LiveConfig,
    predictor: Predictor,
    log: Log | None,
    recorder: Recorder | None,
    tally: Tally,
) -> tuple[float, int]:
    """Push every frame; gives the last frame's time and the number of frames."""
    shows = not config.headless
    moments: deque[Moment] = deque(maxlen=round(TIMELINE_S * 10))
    last: Prediction | None = None
    pts_s, num_frames, clock = 0.0, 0, deque([time.perf_counter()], maxlen=30)
    if shows:
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
    for frame in frames:
        if config.seconds is not None and frame.pts_s >= config.seconds:
            break
        pts_s, num_frames = frame.pts_s, num_frames + 1
        prediction = predictor.push(frame)
        if prediction is not None:
            last = prediction
            tally.add(prediction)
            moments.append(Moment(prediction.t_s, prediction.state, level_of(prediction.p, prediction.task)))
            if log:
                log.write(prediction)
        clock.append(time.perf_counter())
        if not (shows or recorder):
            continue
        fps = (len(clock) - 1) / max(clock[-1] - clock[0], 1e-6)
        status = Status(fps=fps, latency_ms=last.latency_ms if last else 0.0, recording=recorder is not None)
        picture = draw(frame.rgb(), last, moments, status)
        if recorder:
            recorder.write(picture, frame.pts_s)
        if shows:
            cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
                break
    if shows:
        cv2.destroyAllWindows()
    return pts_s, num_frames


def _tell(summary: dict[str, Any]) -> None:
    states = ", ".join(f"{state} {count}" for state, count in summary["states"].items()) or "no frame"
    labels = ", ".join(f"{label} {count}" for label, count in summary["labels"].items())
    say(f"{summary['duration_s']:.1f} s of video in {summary['seconds']:.1f} s; rows: {states}")
    if labels:
        say(f"said: {labels}; latency median {summary['latency_ms']['median']} ms")
