"""Personal calibration: fits temperature and bias to one subject who attends and then looks away.

Weights, threshold and preprocessing do not change. The result is a small local file named after the subject;
it is valid only for the run it was made with.

Logits come from a binary or ordinal head.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from features.files import atomic_write
from live.inference.predictor import Prediction
from seqmodel.metrics.calibration import Calibration

SETTLE_SHARE = 0.5
"""Share of each phase that is skipped (at least one window), because the window still has older frames."""
COUNTED_S = 5.0
"""Shortest part of a phase that is used, seconds: 15 frames at 3 frames/s for a median."""
APART_LOGITS = 0.3
"""Smallest difference of the phases' median logits; below it the calibration is refused."""
ATTENDING_P = 0.9
"""Probability that the median of the attending phase gets."""
TEMPERATURE_FACTOR = 4.0
"""Largest factor by which a personal calibration changes the run's temperature."""


@dataclass
class CalibrationSession:
    """A running calibration: start, length of the phases, and the logits of each phase."""

    seconds: float
    """Length of each phase."""
    start_s: float
    settle_s: float
    """Skipped time at the start of each phase, seconds."""
    attending: list[float]
    away: list[float]

    @classmethod
    def begin(cls, now_s: float, seconds: float, window_s: float) -> "CalibrationSession":
        """A session whose first phase starts now; `window_s` is the length of the model's window.

        Raises ValueError when the phases are too short for the window.
        """
        if seconds < shortest_phase_s(window_s):
            raise ValueError(
                f"--calibrate {seconds:g} is too short: the window of this run is {window_s:g} s, so each "
                f"phase needs at least {shortest_phase_s(window_s):g} s"
            )
        return cls(seconds, now_s, max(window_s, seconds * SETTLE_SHARE), [], [])

    def phase(self, now_s: float) -> str:
        """`attend`, then `away`, then `done`."""
        passed = now_s - self.start_s
        return "attend" if passed < self.seconds else "away" if passed < 2 * self.seconds else "done"

    def message(self, now_s: float) -> str:
        """The instruction for the user."""
        left = self.seconds - (now_s - self.start_s) % self.seconds
        if self.phase(now_s) == "attend":
            return f"attend as usual: {left:.0f} s"
        return f"now look away, as if distracted: {left:.0f} s"

    def add(self, prediction: Prediction) -> None:
        """Add a prediction, if its window lies in one phase and its state is `ok` or `unsure`."""
        into = (prediction.t_s - self.start_s) % self.seconds
        if into < self.settle_s or prediction.state not in ("ok", "unsure"):
            return
        if (phase := self.phase(prediction.t_s)) != "done":
            (self.attending if phase == "attend" else self.away).append(float(np.mean(prediction.logits)))


def shortest_phase_s(window_s: float) -> float:
    """Shortest allowed phase, seconds."""
    return window_s + COUNTED_S


def can_calibrate(task: str) -> bool:
    """Whether the task has one scale from looking away to attending: binary and ordinal tasks."""
    return task in ("binary", "ordinal")


def personal_calibration(attending: list[float], away: list[float], base: Calibration) -> Calibration:
    """The run's calibration, fitted to one subject.

    The middle of the two phases' median logits gets the threshold's probability, and the attending median
    gets about ATTENDING_P. Medians, because a blink or a glance must not change the result.
    Raises ValueError when a phase has too few frames or the two medians are too close.
    """
    if min(len(attending), len(away)) < 3:
        raise ValueError("too few frames with a face for a calibration: nothing was changed")
    high, low = float(np.median(attending)), float(np.median(away))
    if high - low < APART_LOGITS:
        raise ValueError(
            f"the model's logits for attending ({high:.2f}) and looking away ({low:.2f}) are too close: "
            "nothing was changed"
        )
    middle, half = (high + low) / 2, (high - low) / 2
    threshold = _logit(min(max(base.threshold, 0.05), 0.95))
    # Between the middle and the attending median, log odds rise from the threshold's to ATTENDING_P's.
    rise = max(_logit(ATTENDING_P) - threshold, 1.0)
    temperature = float(
        np.clip(half / rise, base.temperature / TEMPERATURE_FACTOR, base.temperature * TEMPERATURE_FACTOR)
    )
    return replace(base, temperature=temperature, bias=threshold - middle / temperature)


def load_personal(name: str, run_key: str) -> Calibration | None:
    """A subject's calibration for a run, or None.

    Raises ValueError, with the file name, when the file cannot be read.
    """
    return _read(personal_file(name)).get(run_key)


def is_outdated(personal: Calibration, base: Calibration) -> bool:
    """Whether the run's calibration has changed since the personal calibration was made.

    A personal calibration copies threshold, abstain band and threshold metric and replaces temperature and
    bias. So only a change of the copied values makes it outdated.
    """
    return (personal.threshold, personal.abstain, personal.threshold_metric) != (
        base.threshold,
        base.abstain,
        base.threshold_metric,
    )


def save_personal(name: str, run_key: str, calibration: Calibration) -> Path:
    """Save a subject's calibration for a run; returns the file.

    Raises ValueError when an existing file cannot be read, OSError when the file cannot be written.
    """
    path = personal_file(name)
    _write(path, _read(path) | {run_key: calibration})
    return path


def forget_personal(name: str, run_key: str | None = None) -> bool:
    """Remove a subject's calibration for one run, or for all runs; False when there was none.

    Raises ValueError when one run is given and the file cannot be read.
    """
    path = personal_file(name)
    if not path.is_file():
        return False
    known = _read(path) if run_key else {}
    if run_key and known.pop(run_key, None) is None:
        return False
    if known:
        _write(path, known)
    else:
        path.unlink()
    return True


def personal_dir() -> Path:
    """Folder of the files, in BRAINBUDDY_HOME or in `.brainbuddy` in the user's home."""
    home = os.environ.get("BRAINBUDDY_HOME")
    return (Path(home) if home else Path.home() / ".brainbuddy") / "personal"


def personal_file(name: str) -> Path:
    """The calibration file of a subject. Raises ValueError for a name that cannot be a file name."""
    # Letters of any script; no path separators.
    if not re.fullmatch(r"[\w][\w .-]{0,63}", name):
        raise ValueError(
            f"--subject may contain letters, digits, spaces, '.', '-' and '_' (at most 64), got {name!r}"
        )
    return personal_dir() / f"{name}.json"


def _read(path: Path) -> dict[str, Calibration]:
    """A subject's calibrations by run key; empty where there is no file."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {key: _calibration(**fields) for key, fields in plain.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it with --forget") from error


def _calibration(
    *, temperature: float, bias: float, threshold: float, abstain: list[float] | None, threshold_metric: str
) -> Calibration:
    """A calibration from the fields in the file; a missing or further field raises TypeError."""
    return Calibration(
        temperature,
        bias,
        threshold,
        (float(abstain[0]), float(abstain[1])) if abstain else None,
        threshold_metric,
    )


def _write(path: Path, known: Mapping[str, Calibration]) -> None:
    """Write the file atomically; the data is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: asdict(calibration) for key, calibration in known.items()}, indent=1)
    with atomic_write(path, durable=True) as partial:
        partial.write_text(text, encoding="utf-8")


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
