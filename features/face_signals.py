"""The few numbers of the geometry that people can read off a face themselves, for reports and live.

T frames, G geometry features.
"""

from collections.abc import Sequence

import numpy as np


def strongest_signals(geometry: np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
    """(T,) each of eye openness (0 to 1), gaze and yaw (-1 to 1, to the right edge) of a clip's (T,G)
    geometry; NaN where it was not measured. Empty where the features are others."""
    column = {name: geometry[:, index].astype(np.float64) for index, name in enumerate(features)}
    try:
        closed = (column["eyeBlinkLeft"] + column["eyeBlinkRight"]) / 2
        # A person's left is the image's right: the left eye looks out to it, the right eye in.
        right = column["eyeLookOutLeft"] + column["eyeLookInRight"]
        left = column["eyeLookInLeft"] + column["eyeLookOutRight"]
        yaw = column["yaw_rad"] / (np.pi / 4)
    except KeyError:
        return {}
    return {"eyes open": 1 - closed, "gaze": (right - left) / 2, "yaw": np.clip(yaw, -1, 1)}
