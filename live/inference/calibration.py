"""Fitting the decision to one person: some seconds of attending, as many of looking away.

Only temperature and bias of the decision change, never what is seen. The result is a small local file by
the person's name; it holds for the one run it was made with.

Logits are numbers of a binary or ordinal head.
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
"""Half of each phase is left out, and at least a window: until then it still holds what was before."""
COUNTED_S = 5.0
"""Shortest stretch of a phase that must be left to count, seconds: fifteen frames for a median."""
APART_LOGITS = 0.3
"""Phases whose medians lie closer than this cannot be told apart, and nothing is changed."""
ATTENDING_P = 0.9
"""What the middle of the attending phase should read."""
TEMPERATURE_FACTOR = 4.0
"""A minute of one person may make the run's temperature this much larger or smaller, not more."""


@dataclass
class CalibrationSession:
    """A calibration that is going on: which phase, since when, and what was seen."""

    seconds: float
    """Length of each phase."""
    start_s: float
    settle_s: float
    """From the beginning of each phase, what does not count."""
    attending: list[float]
    away: list[float]

    @classmethod
    def begin(cls, now_s: float, seconds: float, window_s: float) -> "CalibrationSession":
        """A trial whose first phase begins now; the model looks back over `window_s`.

        Raises ValueError when the phases are too short for that.
        """
        if seconds < shortest_phase_s(window_s):
            raise ValueError(
                f"--calibrate {seconds:g} is too short: this run looks back over {window_s:g} s, so each "
                f"phase takes at least {shortest_phase_s(window_s):g} s"
            )
        return cls(seconds, now_s, max(window_s, seconds * SETTLE_SHARE), [], [])

    def phase(self, now_s: float) -> str:
        """`attend`, then `away`, then `done`."""
        passed = now_s - self.start_s
        return "attend" if passed < self.seconds else "away" if passed < 2 * self.seconds else "done"

    def message(self, now_s: float) -> str:
        """What the user is asked to do."""
        left = self.seconds - (now_s - self.start_s) % self.seconds
        if self.phase(now_s) == "attend":
            return f"attend as you usually do: {left:.0f} s"
        return f"now look away, as when you are distracted: {left:.0f} s"

    def add(self, prediction: Prediction) -> None:
        """Count a prediction, if its whole window lies in one phase and something may be said about it."""
        into = (prediction.t_s - self.start_s) % self.seconds
        if into < self.settle_s or prediction.state not in ("ok", "unsure"):
            return
        if (phase := self.phase(prediction.t_s)) != "done":
            (self.attending if phase == "attend" else self.away).append(float(np.mean(prediction.logits)))


def shortest_phase_s(window_s: float) -> float:
    """Seconds that a phase takes at least."""
    return window_s + COUNTED_S


def can_calibrate(task: str) -> bool:
    """Whether there is one direction from looking away to attending."""
    return task in ("binary", "ordinal")


def personal_calibration(attending: list[float], away: list[float], base: Calibration) -> Calibration:
    """The run's calibration moved to one person.

    The middle between the two phases' medians becomes the threshold, and the attending median reads about
    ATTENDING_P. Medians, because a blink or a glance must not count.
    Raises ValueError, which changes nothing, when a phase is missing or the two cannot be told apart.
    """
    if min(len(attending), len(away)) < 3:
        raise ValueError("too few frames with a face to calibrate on: nothing was changed")
    high, low = float(np.median(attending)), float(np.median(away))
    if high - low < APART_LOGITS:
        raise ValueError(
            f"attending and looking away look alike to this model (logits {high:.2f} and {low:.2f}): "
            "nothing was changed"
        )
    middle, half = (high + low) / 2, (high - low) / 2
    threshold = _logit(min(max(base.threshold, 0.05), 0.95))
    # From the middle to the attending median the log odds climb from the threshold's to ATTENDING_P's.
    climb = max(_logit(ATTENDING_P) - threshold, 1.0)
    temperature = float(
        np.clip(half / climb, base.temperature / TEMPERATURE_FACTOR, base.temperature * TEMPERATURE_FACTOR)
    )
    return replace(base, temperature=temperature, bias=threshold - middle / temperature)


def load_personal(name: str, run_key: str) -> Calibration | None:
    """A person's calibration for a run, or None.

    Raises ValueError, which names the file, when that cannot be read.
    """
    return _read(personal_file(name)).get(run_key)


def is_outdated(own: Calibration, base: Calibration) -> bool:
    """Whether a person's calibration was made for another calibration of the run than the one it has now.

    Fitting to a person takes threshold, abstain band and goal over as they are, and replaces temperature and
    bias: a run whose temperature and bias alone have changed is met by the same calibration again.
    """
    return (own.threshold, own.abstain, own.threshold_metric) != (
        base.threshold,
        base.abstain,
        base.threshold_metric,
    )


def save_personal(name: str, run_key: str, calibration: Calibration) -> Path:
    """Keep a person's calibration for a run; gives the file.

    Raises ValueError where there is a file that cannot be read, OSError where none can be written.
    """
    path = personal_file(name)
    _write(path, _read(path) | {run_key: calibration})
    return path


def forget_personal(name: str, run_key: str | None = None) -> bool:
    """Remove a person's calibration for one run, or the file with all of them; False when there was none.

    Raises ValueError for one run of a file that cannot be read.
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
    """Where the files lie: BRAINBUDDY_HOME, or `.brainbuddy` in the user's home."""
    home = os.environ.get("BRAINBUDDY_HOME")
    return (Path(home) if home else Path.home() / ".brainbuddy") / "personal"


def personal_file(name: str) -> Path:
    """A person's file. Raises ValueError for a name that could not be a file's."""
    # Letters of any script; nothing that could leave the folder.
    if not re.fullmatch(r"[\w][\w .-]{0,63}", name):
        raise ValueError(f"--subject takes letters, digits, spaces, '.', '-' and '_', got {name!r}")
    return personal_dir() / f"{name}.json"


def _read(path: Path) -> dict[str, Calibration]:
    """A person's calibrations by the key of their run; none where there is no file."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {key: _calibration(**fields) for key, fields in plain.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); --forget removes it") from error


def _calibration(
    *, temperature: float, bias: float, threshold: float, abstain: list[float] | None, threshold_metric: str
) -> Calibration:
    """As the file has it: each field, and no other."""
    return Calibration(
        temperature,
        bias,
        threshold,
        (float(abstain[0]), float(abstain[1])) if abstain else None,
        threshold_metric,
    )


def _write(path: Path, known: Mapping[str, Calibration]) -> None:
    """Atomic, and on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: asdict(calibration) for key, calibration in known.items()}, indent=1)
    with atomic_write(path, durable=True) as partial:
        partial.write_text(text, encoding="utf-8")


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
