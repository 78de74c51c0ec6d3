"""Labels of a recording: the intervals set while recording, and the manifest of them next to the video."""

from dataclasses import dataclass
from pathlib import Path

from live.config import SUBJECT, manifest_file
from seqmodel.runs.files import write_csv


@dataclass(frozen=True)
class Interval:
    """A labelled interval of a recording, seconds from its start."""

    label: str
    start_s: float
    end_s: float


class Labels:
    """Labelled intervals of a running recording; a label lasts until the next one or `stop`."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self.running: str = ""
        self._since_s = 0.0

    def begin(self, label: str, at_s: float) -> bool:
        """Start an interval with `label` at `at_s`; returns whether an interval ended."""
        ended = self.stop(at_s)
        self.running, self._since_s = label, at_s
        return ended

    def stop(self, at_s: float) -> bool:
        """End the running interval, if any; returns whether an interval was added."""
        running, self.running = self.running, ""
        if not running or at_s <= self._since_s:
            return False
        self.intervals.append(Interval(running, self._since_s, at_s))
        return True


def write_manifest(video: Path, intervals: list[Interval], subject: str = SUBJECT) -> Path:
    """Write a manifest for `python -m extract --data` next to the video; returns its path.

    The write is atomic, and the file is on the disk when this returns.
    """
    path = manifest_file(video)
    rows = [
        (video.name, interval.label, subject, f"{interval.start_s:.3f}", f"{interval.end_s:.3f}")
        for interval in intervals
    ]
    write_csv(path, [("path", "label", "subject", "start_s", "end_s"), *rows], durable=True)
    return path
