"""Personal calibration: fits temperature and bias to one subject who attends and then looks away.

Weights, threshold and preprocessing do not change. live/inference/profiles.py saves the result.

Logits come from a binary or ordinal head.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from features.cli import UserError
from live.inference.predictor import Prediction
from seqmodel.metrics.calibration import Calibration

SETTLE_SHARE = 0.5
"""Share of each phase that is skipped (at least one window), because the window still has older frames."""
MIN_USED_S = 5.0
"""Shortest part of a phase that is used, seconds: 15 frames at 3 frames/s for a median."""
MIN_LOGIT_DIFFERENCE = 0.3
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

        Raises UserError when the phases are too short for the window.
        """
        if seconds < shortest_phase_s(window_s):
            raise UserError(
                f"--calibrate {seconds:g} is too short: the window of this run is {window_s:g} s, so each "
                f"phase needs at least {shortest_phase_s(window_s):g} s"
            )
        return cls(seconds, now_s, max(window_s, seconds * SETTLE_SHARE), [], [])

    def phase(self, now_s: float) -> str:
        """`attend`, then `away`, then `done`."""
        elapsed_s = self._elapsed_s(now_s)
        return "attend" if elapsed_s < self.seconds else "away" if elapsed_s < 2 * self.seconds else "done"

    def message(self, now_s: float) -> str:
        """The instruction for the user."""
        left = self.seconds - self._elapsed_s(now_s) % self.seconds
        if self.phase(now_s) == "attend":
            return f"attend as usual: {left:.0f} s"
        return f"now look away, as if distracted: {left:.0f} s"

    def add(self, prediction: Prediction) -> None:
        """Add a prediction, if its window lies in one phase and its state is `ok` or `unsure`."""
        phase_s = self._elapsed_s(prediction.t_s) % self.seconds
        if phase_s < self.settle_s or prediction.state not in ("ok", "unsure"):
            return
        if (phase := self.phase(prediction.t_s)) != "done":
            (self.attending if phase == "attend" else self.away).append(float(np.mean(prediction.logits)))

    def _elapsed_s(self, now_s: float) -> float:
        """Seconds since the start; 0 before it: a frame may have waited since before the start."""
        return max(0.0, now_s - self.start_s)


def shortest_phase_s(window_s: float) -> float:
    """Shortest allowed phase, seconds."""
    return window_s + MIN_USED_S


def can_calibrate(task: str) -> bool:
    """Whether the task has one scale from looking away to attending: binary and ordinal tasks."""
    return task in ("binary", "ordinal")


def personal_calibration(attending: list[float], away: list[float], base: Calibration) -> Calibration:
    """The run's calibration, fitted to one subject.

    The middle of the two phases' median logits gets the threshold's probability, and the attending median
    gets about ATTENDING_P. Medians, because a blink or a glance must not change the result.
    Raises UserError when a phase has too few frames or the two medians are too close.
    """
    if min(len(attending), len(away)) < 3:
        raise UserError("too few frames with a face for a calibration: nothing was changed")
    high, low = float(np.median(attending)), float(np.median(away))
    if high - low < MIN_LOGIT_DIFFERENCE:
        raise UserError(
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


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
