"""State and outputs of a running session: predictions, marks, labels, log and recordings.

A session takes frames, predictions, gaps and keys, and draws the picture of the view. It opens no source and
makes no prediction.
"""

import contextlib
import csv
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from extract.video.reader import Frame
from features.cli import log_warning
from live.config import SUBJECT, log_files, manifest_file, new_file, novelty_file
from live.inference.predictor import Prediction
from live.inference.state_machine import State
from live.output.annotations import Labels, write_manifest
from live.output.log_writer import NEW_FACE, Log, LogStats
from live.output.recorder import Recorder
from live.ui.overlay import TIMELINE_S, Status, draw, draw_boxes, timeline_point
from live.ui.timeline import TimelinePoint

ABSENT_ROW_S = 1.0
"""Interval of log rows while the camera is lost or paused, seconds."""
MAX_POINTS = 4000
"""Longest timeline in memory: the view needs a few minutes, the log has everything."""
FPS_SPAN = 30
"""Number of frames over which the displayed frame rate is averaged."""


@dataclass(frozen=True)
class OutputOptions:
    """Files that a session writes; by default none."""

    log: str | None = None
    record: Path | None = None
    record_raw: Path | None = None
    subject: str = SUBJECT


class Session:
    """One live session, from the first frame to the last; nothing is written before `begin`."""

    def __init__(self, names: tuple[str, ...], output_options: OutputOptions, notice: str = "") -> None:
        """notice: a text that views show all the time, for example that the model learned synthetic data."""
        self.names, self.notice = names, notice
        self.log: Log | None = None
        self.log_path: Path | None = None
        """The log's file, after it is open."""
        self.log_stats = LogStats()
        self.points: deque[TimelinePoint] = deque(maxlen=MAX_POINTS)
        self.last: Prediction | None = None
        self.absent: State | None = None
        """`paused` or `camera_lost` in a gap, else None."""
        self.personal = self.message = ""
        self.marks: list[tuple[float, str]] = []
        self.files: list[Path] = []
        """Files written, for the summary."""
        self.failures: list[tuple[Path, str]] = []
        """Incomplete recordings and logs, and the reasons."""
        self.num_frames = 0
        self.shows_signals = False
        """Whether the view shows the strongest geometry signals."""
        self._options = output_options
        self._overlay: Recorder | None = None
        self._raw: Recorder | None = None
        self._labels = Labels()
        self._pending_marks: list[tuple[float, str]] = []
        self._absent_row_s = -math.inf
        self._shown: deque[float] = deque(maxlen=FPS_SPAN)
        self._novelty: _Novelty | None = None

    def begin(self) -> list[str]:
        """Open the requested files when source and model are ready; returns messages for the user.

        A file gets the next free name if its name exists. Raises OSError when a file cannot be written.
        """
        options, lines = self._options, []
        if options.log == "-":
            self.log = Log("-", self.names)
        elif options.log:
            requested = Path(options.log)
            path = self.log_path = new_file(requested, log_files)
            self.log = Log(str(path), self.names, durable=True)
            self._novelty = _Novelty(novelty_file(path))
            lines.append(f"log: {path}" + ("" if path == requested else f" ({requested} exists already)"))
        if options.record and self._overlay is None:  # else key r started it while the model loaded
            self._overlay = Recorder(new_file(options.record))
            lines.append(f"recording to {self._overlay.path}")
        if options.record_raw:
            path = new_file(options.record_raw, lambda video: (video, manifest_file(video)))
            self._raw = Recorder(path)
            lines.append(f"recording to {path}")
        return lines

    @property
    def recording(self) -> bool:
        """Whether pictures are recorded."""
        return self._overlay is not None or self._raw is not None

    @property
    def wants_pictures(self) -> bool:
        """Whether the overlay of every frame is recorded."""
        return self._overlay is not None

    @property
    def label(self) -> str:
        """The label of the running interval, or empty."""
        return self._labels.running

    def add_frame(self, frame: Frame, prediction: Prediction | None) -> None:
        """Add a frame and its prediction to counts, timeline, log and recording."""
        self.num_frames += 1
        self.absent = None
        self._shown.append(time.perf_counter())
        if self._raw is not None:
            with self._ends_on_error(self._raw):
                self._raw.write(frame.rgb(), frame.pts_s)
        if prediction is None:
            return
        self.last = prediction
        self.log_stats.add(prediction)
        if prediction.new_face:
            self.mark(prediction.t_s, NEW_FACE)
        mark = self._take_mark()
        self.points.append(timeline_point(prediction, mark))
        with self._log_ends_on_error():
            if self.log is not None:
                self.log.write(prediction, mark)
            if self._novelty is not None:
                self._novelty.add(prediction)

    def add_gap(self, t_s: float, state: State) -> None:
        """Note that there is no frame at `t_s`: `paused` or `camera_lost`. Logged once per second."""
        begins = self.absent != state
        self.absent = state
        if begins and self._raw is not None:
            # A gap in the recording has no label.
            self._keep_labels(self._labels.stop(self._raw.end_s))
        if begins or t_s - self._absent_row_s >= ABSENT_ROW_S:
            self._absent_row_s = t_s
            self.log_stats.states[state] += 1
            mark = self._take_mark()
            self.points.append(TimelinePoint(t_s, state, math.nan, mark=mark))
            with self._log_ends_on_error():
                if self.log is not None:
                    self.log.write_state(t_s, state, mark)

    def mark(self, t_s: float, text: str = "") -> None:
        """Add a mark at this time; the next row of the log has it."""
        text = text or f"mark {len(self.marks) + 1}"
        self.marks.append((t_s, text))
        self._pending_marks.append((t_s, text))

    def begin_label(self, number: int, t_s: float) -> str:
        """Label the recording from `t_s` on with class `number` (1 to C), or end the interval with 0.

        Returns a message for the user.
        """
        if self._raw is None:
            if self._options.record_raw is None:
                return "labels need --record-raw FILE.mp4"
            return "the recording has ended" if self.failures else "the recording has not started yet"
        if not 0 <= number <= len(self.names):
            return f"label keys are 1 to {len(self.names)}: {', '.join(self.names)}"
        at_s = t_s - (self._raw.start_s if self._raw.start_s is not None else t_s)
        if number == 0:
            self._keep_labels(self._labels.stop(at_s))
            return "label ended"
        if self.absent is not None:
            return "nothing is recorded now: press the label key again when the camera works"
        self._keep_labels(self._labels.begin(self.names[number - 1], at_s))
        return f"label from now on: {self.names[number - 1]}"

    def toggle_recording(self) -> str:
        """Start or end the recording with overlay; returns a message for the user."""
        if self._overlay is not None:
            return self._end(self._overlay)
        try:
            self._overlay = Recorder(new_file(self._options.record or Path("brainbuddy.mp4")))
        except OSError as error:
            return f"nothing is recorded: {error}"
        return f"recording to {self._overlay.path}"

    def picture(self, image: np.ndarray, pts_s: float) -> np.ndarray:
        """The picture with overlay, RGB uint8 (H, W, 3); also written to the recording."""
        message = self.message or (f"labelling: {self.label}" if self.label else "")
        status = Status(
            self.fps, self.recording, self.personal, message, self.absent, self.shows_signals, self.notice
        )
        picture = draw(image, self.last, self.timeline, status)
        if self._overlay is not None and self.absent is None:
            with self._ends_on_error(self._overlay):
                self._overlay.write(picture, pts_s)
        return picture

    def scene(self, image: np.ndarray) -> np.ndarray:
        """The picture with only the face boxes, RGB uint8 (H, W, 3), for a view with its own panel."""
        return draw_boxes(image, self.last if self.absent is None else None)

    @property
    def timeline(self) -> list[TimelinePoint]:
        """The visible points of the timeline, oldest first."""
        latest = self.points[-1].t_s if self.points else 0.0
        return [point for point in self.points if point.t_s > latest - TIMELINE_S]

    @property
    def fps(self) -> float:
        """Frames per second over the last FPS_SPAN frames."""
        if len(self._shown) < 2:
            return 0.0
        return (len(self._shown) - 1) / max(self._shown[-1] - self._shown[0], 1e-6)

    def close(self) -> None:
        """Finish every file, also when another file fails."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._log_ends_on_error())
            stack.callback(self._close_log)
            for recorder in (self._overlay, self._raw):
                if recorder is not None:
                    stack.callback(self._end, recorder)
            if self._pending_marks and self.log is not None:
                # Marks after the last row: the source is closed and there are no more predictions.
                state: State = self.absent or "paused"
                self.log_stats.states[state] += 1
                self.log.write_state(self._pending_marks[0][0], state, self._take_mark())

    def summary(self) -> dict[str, Any]:
        """Counts, marks, files and failures, ready for JSON."""
        return {
            "frames": self.num_frames,
            **self.log_stats.summary(),
            "marks": [{"t_s": round(t_s, 3), "mark": text} for t_s, text in self.marks],
            "files": [str(path) for path in self.files],
            "failed": [{"file": str(path), "reason": reason} for path, reason in self.failures],
        }

    def _take_mark(self) -> str:
        text = "; ".join(mark for _, mark in self._pending_marks)
        self._pending_marks.clear()
        return text

    def _keep_labels(self, is_new: bool) -> None:
        """Write the manifest when an interval ends: a power cut loses only the running interval."""
        if is_new and self._raw is not None:
            with self._ends_on_error(self._raw):
                write_manifest(self._raw.path, self._labels.intervals, self._options.subject)

    @contextlib.contextmanager
    def _ends_on_error(self, recorder: Recorder) -> Iterator[None]:
        """Write to a recording; on a disk error end this recording and continue the session."""
        try:
            yield
        except OSError as error:
            log_warning(self._end(recorder, str(error)))

    @contextlib.contextmanager
    def _log_ends_on_error(self) -> Iterator[None]:
        """Write to the log; on a disk error end the log and continue the session."""
        try:
            yield
        except OSError as error:
            if self.log_path is None:
                raise  # stdout: the program that reads it has ended
            with contextlib.suppress(OSError):
                self._close_log()
            self.failures.append((self.log_path, str(error)))
            log_warning(f"log {self.log_path} stopped, the session continues: {error}")

    def _close_log(self) -> None:
        files, self.log, self._novelty = (self.log, self._novelty), None, None
        with contextlib.ExitStack() as stack:
            for file in files:
                if file is not None:
                    stack.callback(file.close)

    def _end(self, recorder: Recorder, reason: str = "") -> str:
        """End a recording and keep its file; returns a message for the user.

        With a reason, or after an error at its end, the recording counts as a failure.
        """
        files = [recorder.path]
        try:
            if recorder is self._overlay:
                self._overlay = None
            else:
                self._raw = None
                files.append(manifest_file(recorder.path))
                if self._labels.stop(recorder.end_s):
                    write_manifest(recorder.path, self._labels.intervals, self._options.subject)
        except OSError as error:
            reason = reason or str(error)
        try:
            recorder.close()
        except OSError as error:
            reason = reason or str(error)
        self.files += [path for path in files if path.is_file()]
        if not reason:
            return f"recording written: {recorder.path}"
        self.failures.append((recorder.path, reason))
        return f"recording {recorder.path} stopped: {reason}"


class _Novelty:
    """Writes each face's novelty (distance from the training data) next to a log, for the drift report."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("x", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(["t_s", "novelty"])

    def add(self, prediction: Prediction) -> None:
        if not math.isnan(prediction.novelty):
            self._writer.writerow([round(prediction.t_s, 4), round(prediction.novelty, 4)])
            self._file.flush()

    def close(self) -> None:
        self._file.close()
