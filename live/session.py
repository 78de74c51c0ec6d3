"""A session while it runs: what was said, marked, labelled, and what is written because somebody asked.

It takes predictions, absences and keys, and gives the picture that a viewer sees. It opens no source and
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
from live.config import SUBJECT, free_name, log_files, manifest_file, novelty_file
from live.inference.predictor import Prediction
from live.inference.state_machine import State
from live.output.log_writer import Log, LogStats
from live.output.recorder import Labels, Recorder, write_manifest
from live.ui.drawing import TimelinePoint
from live.ui.overlay import TIMELINE_S, Status, draw, draw_boxes, timeline_point

ABSENT_ROW_S = 1.0
"""While the camera is away or paused, a row a second shows the gap."""
MAX_POINTS = 4000
"""Longest timeline kept in memory: the view needs minutes, the log keeps the rest."""
FPS_SPAN = 30
"""Frames over which the shown rate is averaged."""


@dataclass(frozen=True)
class OutputOptions:
    """What a session shall leave behind; nothing unless asked."""

    log: str | None = None
    record: Path | None = None
    record_raw: Path | None = None
    subject: str = SUBJECT


class Session:
    """One run of the live door, from its first frame to its last; nothing is written before `begin`."""

    def __init__(self, names: tuple[str, ...], output_options: OutputOptions) -> None:
        self.names = names
        self.log: Log | None = None
        self.log_path: Path | None = None
        """The log's file, once it is open."""
        self.log_stats = LogStats()
        self.points: deque[TimelinePoint] = deque(maxlen=MAX_POINTS)
        self.last: Prediction | None = None
        self.absent: State | None = None
        """`paused` or `camera_lost` while that is so."""
        self.personal = self.message = ""
        self.marks: list[tuple[float, str]] = []
        self.files: list[Path] = []
        """What was written, for the summary."""
        self.failures: list[tuple[Path, str]] = []
        """Recordings that could not be written to their end, and why."""
        self.num_frames = 0
        self.shows_signals = False
        """Whether the viewer sees the strongest signals of the geometry."""
        self._wishes = output_options
        self._overlay: Recorder | None = None
        self._raw: Recorder | None = None
        self._labels = Labels()
        self._pending_marks: list[tuple[float, str]] = []
        self._absent_row_s = -math.inf
        self._shown: deque[float] = deque(maxlen=FPS_SPAN)
        self._novelty: _Novelty | None = None

    def begin(self) -> list[str]:
        """Open what was asked for, now that there are a source and a model; gives lines for the user.

        Each file gets the next free name where one of its name is there. Raises OSError when it cannot be
        written.
        """
        output_options, lines = self._wishes, []
        if output_options.log == "-":
            self.log = Log("-", self.names)
        elif output_options.log:
            wanted = Path(output_options.log)
            path = self.log_path = free_name(wanted, log_files)
            self.log = Log(str(path), self.names, durable=True)
            self._novelty = _Novelty(novelty_file(path))
            lines.append(f"log: {path}" + ("" if path == wanted else f" ({wanted} is there already)"))
        if output_options.record and self._overlay is None:  # else key r began it while the model loaded
            self._overlay = Recorder(free_name(output_options.record))
            lines.append(f"recording to {self._overlay.path}")
        if output_options.record_raw:
            taken = self._overlay.path if self._overlay else None  # no file before its first picture
            path = free_name(output_options.record_raw, lambda video: (video, manifest_file(video)), taken)
            self._raw = Recorder(path)
            lines.append(f"recording to {path}")
        return lines

    @property
    def recording(self) -> bool:
        """Whether pictures are being kept."""
        return self._overlay is not None or self._raw is not None

    @property
    def wants_pictures(self) -> bool:
        """Whether every frame's overlay is recorded."""
        return self._overlay is not None

    @property
    def label(self) -> str:
        """The label that the running interval wears, or empty."""
        return self._labels.running

    def saw(self, frame: Frame, prediction: Prediction | None) -> None:
        """Count a frame, and what was predicted at it."""
        self.num_frames += 1
        self.absent = None
        self._shown.append(time.perf_counter())
        if self._raw is not None:
            with self._or_without(self._raw):
                self._raw.write(frame.rgb(), frame.pts_s)
        if prediction is None:
            return
        self.last = prediction
        self.log_stats.add(prediction)
        mark = self._take_mark()
        self.points.append(timeline_point(prediction, mark))
        if self.log is not None:
            self.log.write(prediction, mark)
        if self._novelty is not None:
            self._novelty.add(prediction)

    def missed(self, t_s: float, state: State) -> None:
        """There is no frame now, for a reason: `paused` or `camera_lost`. Logged once a second."""
        begins = self.absent != state
        self.absent = state
        if begins and self._raw is not None:
            # What nobody recorded has no label.
            self._keep_labels(self._labels.stop(self._raw.end_s))
        if begins or t_s - self._absent_row_s >= ABSENT_ROW_S:
            self._absent_row_s = t_s
            self.log_stats.states[state] += 1
            mark = self._take_mark()
            self.points.append(TimelinePoint(t_s, state, math.nan, mark=mark))
            if self.log is not None:
                self.log.write_state(t_s, state, mark)

    def mark(self, t_s: float, words: str = "") -> None:
        """Mark this moment; it is written with the next row."""
        words = words or f"mark {len(self.marks) + 1}"
        self.marks.append((t_s, words))
        self._pending_marks.append((t_s, words))

    def begin_label(self, number: int, t_s: float) -> str:
        """Label what is recorded from here on with class `number`, 1 … C, or end the interval with 0.

        Gives a line for the user.
        """
        if self._raw is None:
            if self._wishes.record_raw is None:
                return "labels need --record-raw FILE.mp4"
            return "the recording has ended" if self.failures else "the recording has not begun yet"
        if not 0 <= number <= len(self.names):
            return f"labels are 1 to {len(self.names)}: {', '.join(self.names)}"
        at_s = t_s - (self._raw.start_s if self._raw.start_s is not None else t_s)
        if number == 0:
            self._keep_labels(self._labels.stop(at_s))
            return "label ended"
        if self.absent is not None:
            return "nothing is being recorded now: label when the picture is back"
        self._keep_labels(self._labels.begin(self.names[number - 1], at_s))
        return f"labelled from here: {self.names[number - 1]}"

    def toggle_recording(self) -> str:
        """Begin or end the recording with overlay; gives a line for the user."""
        if self._overlay is not None:
            return self._end(self._overlay)
        taken = self._raw.path if self._raw else None
        self._overlay = Recorder(free_name(self._wishes.record or Path("brainbuddy.mp4"), taken=taken))
        return f"recording to {self._overlay.path}"

    def picture(self, image: np.ndarray, pts_s: float) -> np.ndarray:
        """What a viewer sees, RGB uint8; recorded too while recording."""
        message = self.message or (f"labelling: {self.label}" if self.label else "")
        status = Status(self.fps, self.recording, self.personal, message, self.absent, self.shows_signals)
        picture = draw(image, self.last, self.timeline, status)
        if self._overlay is not None and self.absent is None:
            with self._or_without(self._overlay):
                self._overlay.write(picture, pts_s)
        return picture

    def scene(self, image: np.ndarray) -> np.ndarray:
        """The picture with the face boxes alone, RGB uint8, for a view that tells the rest itself."""
        return draw_boxes(image, self.last if self.absent is None else None)

    @property
    def timeline(self) -> list[TimelinePoint]:
        """The moments that a viewer sees, oldest first."""
        latest = self.points[-1].t_s if self.points else 0.0
        return [point for point in self.points if point.t_s > latest - TIMELINE_S]

    @property
    def fps(self) -> float:
        """Frames a second, lately."""
        if len(self._shown) < 2:
            return 0.0
        return (len(self._shown) - 1) / max(self._shown[-1] - self._shown[0], 1e-6)

    def close(self) -> None:
        """Finish every file, also where another cannot be finished."""
        with contextlib.ExitStack() as stack:
            for file in (self.log, self._novelty):
                if file is not None:
                    stack.callback(file.close)
            for recorder in (self._overlay, self._raw):
                if recorder is not None:
                    stack.callback(self._end, recorder)
            if self._pending_marks and self.log is not None:
                # Set after the last row: the source is let go of by now, and nothing is predicted any more.
                state: State = self.absent or "paused"
                self.log_stats.states[state] += 1
                self.log.write_state(self._pending_marks[0][0], state, self._take_mark())
        self.log = self._novelty = None

    def summary(self) -> dict[str, Any]:
        """What happened, ready for JSON."""
        return {
            "frames": self.num_frames,
            **self.log_stats.summary(),
            "marks": [{"t_s": round(t_s, 3), "mark": words} for t_s, words in self.marks],
            "files": [str(path) for path in self.files],
            "failed": [{"file": str(path), "reason": reason} for path, reason in self.failures],
        }

    def _take_mark(self) -> str:
        words = "; ".join(words for _, words in self._pending_marks)
        self._pending_marks.clear()
        return words

    def _keep_labels(self, is_new: bool) -> None:
        """Write the manifest each time an interval has ended: a power cut loses the running one alone."""
        if is_new and self._raw is not None:
            with self._or_without(self._raw):
                write_manifest(self._raw.path, self._labels.intervals, self._wishes.subject)

    @contextlib.contextmanager
    def _or_without(self, recorder: Recorder) -> Iterator[None]:
        """Write to a recording; where the disk does not take it, go on without that recording."""
        try:
            yield
        except OSError as error:
            log_warning(self._end(recorder, str(error)))

    def _end(self, recorder: Recorder, reason: str = "") -> str:
        """End a recording and keep what there is of it; gives a line for the user. A reason, or an error at
        its end, makes it a failure."""
        files = [recorder.path]
        try:
            if recorder is self._overlay:
                self._overlay = None
            else:
                self._raw = None
                files.append(manifest_file(recorder.path))
                if self._labels.stop(recorder.end_s):
                    write_manifest(recorder.path, self._labels.intervals, self._wishes.subject)
        except OSError as error:
            reason = reason or str(error)
        try:
            recorder.close()
        except OSError as error:
            reason = reason or str(error)
        self.files += [path for path in files if path.is_file()]
        if not reason:
            return f"recorded {recorder.path}"
        self.failures.append((recorder.path, reason))
        return f"the recording {recorder.path} has ended: {reason}"


class _Novelty:
    """Beside a log, how far each face lies from the training data: what a drift report needs."""

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
