"""Face signals that a person can check by eye (eye openness, gaze, yaw), for reports and live.

T frames, G geometry features.
"""

from collections.abc import Sequence

import numpy as np


def strongest_signals(geometry: np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
    """(T,) float64 arrays by name, from a clip's (T,G) geometry: eye openness (0 to 1), gaze and yaw (-1 to
    1, positive to the image's right edge). NaN without a detected face. Empty if `features` lacks them."""
    column = {name: geometry[:, index].astype(np.float64) for index, name in enumerate(features)}
    try:
        closed = (column["eyeBlinkLeft"] + column["eyeBlinkRight"]) / 2
        # The subject's left is the image's right: the left eye looks outward to it, the right eye inward.
        right = column["eyeLookOutLeft"] + column["eyeLookInRight"]
        left = column["eyeLookInLeft"] + column["eyeLookOutRight"]
        yaw = column["yaw_rad"] / (np.pi / 4)
    except KeyError:
        return {}
    return {"eyes open": 1 - closed, "gaze": (right - left) / 2, "yaw": np.clip(yaw, -1, 1)}
