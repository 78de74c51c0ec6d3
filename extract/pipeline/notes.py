"""Notes about a window: why its features may be wrong although it was extracted.

T frames, G geometry features.
"""

from collections.abc import Mapping

import numpy as np

from extract.face.geometry import BLENDSHAPES

NEW_FACE = "the followed face jumps or changes its size: perhaps another person's"
MIN_FRAMES = 8
"""Fewer frames with a face are too few to tell whether it moves."""
STILL_SCORES, STILL_RAD = 0.05, 0.01
"""A face whose scores and angles all have smaller standard deviations does not move. Of a photo, also with
camera noise, they are .044 and .008 at most; of real and drawn faces that move, .11 and .02 at least."""
MAX_WITHOUT_LANDMARKS = 0.5
"""Fraction of the faces above which missing landmarks are noted: the landmarker says that it is no face."""


def notes_of(
    doubts: Mapping[str, int], num_sampled: int, frames: np.ndarray, geometry: np.ndarray | None
) -> str:
    """The notes of a window, joined by "; "; '' if there are none.

    doubts: number of sampled frames by doubt (`Frame.doubts` and NEW_FACE). frames: (T, 6) as in
    `WindowFeatures`. geometry: (T, G), NaN where it failed; None = not computed.
    """
    notes = [
        text if count == num_sampled else f"{count} of {num_sampled} frames: {text}"
        for text, count in doubts.items()
    ]
    if geometry is not None:
        has_face, has_landmarks = frames[:, 5] > 0, np.isfinite(geometry).all(axis=1)
        num_faces, num_missing = int(has_face.sum()), int((has_face & ~has_landmarks).sum())
        if num_missing > MAX_WITHOUT_LANDMARKS * num_faces:
            notes.append(f"{num_missing} of {num_faces} faces have no landmarks: perhaps they are no faces")
        elif has_landmarks.sum() >= MIN_FRAMES and _is_still(geometry[has_landmarks]):
            notes.append("the face never moves: perhaps it is a picture")
    return "; ".join(notes)


def _is_still(geometry: np.ndarray) -> bool:
    """Whether the scores and the three angles of a face (n, G) are nearly constant."""
    deviations = geometry.std(axis=0)
    scores, angles = np.split(deviations, [len(BLENDSHAPES)])
    return bool(scores.max() < STILL_SCORES and angles[:3].max() < STILL_RAD)
