"""The short-range detector's network, run directly: a face's box to fractions of a pixel, and its eyes.

MediaPipe's detector gives whole pixels, and the score network notices half a pixel: that alone moves a
score by up to .1. This rebuilds its arithmetic (its tests check it against that) so that one look
serves the crop and the landmarks, which are read from the very square that MediaPipe would take.

Shapes: H × W pixels; 896 anchors; boxes (x0, y0, x1, y1) and eyes (column, row) in pixels of the frame.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from extract.face.tflite import Network

INPUT_PX = 128
MIN_SCORE = 0.5
"""MediaPipe's default."""
SAME_FACE_IOU = 0.3
"""Boxes that overlap the best one by this much are averaged with it."""


@dataclass(frozen=True)
class Detection:
    """One face that the detector sees."""

    box: np.ndarray
    """(4,) float64."""
    eyes: np.ndarray
    """(2,2) float64: the person's right eye, then the left one."""
    score: float
    """0 to 1."""


def detect(rgb: np.ndarray, network: Network) -> list[Detection]:
    """The faces in an upright frame, uint8 (H,W,3) RGB, best first.

    `network` takes (1,128,128,3) float32 in -1 to 1 and gives (1,896,16) boxes and (1,896,1) scores.
    """
    height, width = rgb.shape[:2]
    side = max(height, width)
    corner = np.array([(width - side) / 2, (height - side) / 2])
    to_frame = np.column_stack([np.eye(2) * (side / INPUT_PX), corner])
    square = cut(rgb, to_frame, INPUT_PX, cv2.BORDER_CONSTANT)
    raw, logits = network(square[None].astype(np.float32) / 127.5 - 1)
    scores = 1 / (1 + np.exp(-np.clip(logits.reshape(-1).astype(np.float64), -100, 100)))
    keep = scores > MIN_SCORE
    points = raw.reshape(len(scores), 8, 2)[keep].astype(np.float64) / INPUT_PX
    points[:, [0, 2, 3, 4, 5, 6, 7]] += ANCHORS[keep][:, None]
    half = points[:, 1] / 2
    corners = np.concatenate([points[:, 0] - half, points[:, 0] + half, points[:, 2:4].reshape(-1, 4)], 1)
    seen = []
    for merged, score in _merged(corners, scores[keep]):
        face = merged * side + np.tile(corner, 4)
        seen.append(Detection(face[:4], face[4:].reshape(2, 2), score))
    return seen


def cut(rgb: np.ndarray, to_frame: np.ndarray, side_px: int, border: int) -> np.ndarray:
    """The square whose pixels (column, row) lie at `to_frame` (2,3) of the frame, bilinear: uint8 (S,S,3).

    In steps of 1/32 pixel, as the OpenCV inside MediaPipe does it; OpenCV 5 is finer, and then scores differ.
    """
    steps = np.arange(side_px, dtype=np.float64)
    column = (to_frame[0, 0] * steps)[None, :] + (to_frame[0, 1] * steps + to_frame[0, 2])[:, None]
    row = (to_frame[1, 0] * steps)[None, :] + (to_frame[1, 1] * steps + to_frame[1, 2])[:, None]
    whole, fraction = cv2.convertMaps(column.astype(np.float32), row.astype(np.float32), cv2.CV_16SC2)
    return np.asarray(cv2.remap(rgb, whole, fraction, cv2.INTER_LINEAR, borderMode=border))


def _merged(corners: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Boxes (N,8) that overlap the best one averaged by their scores, with the best one's score; then the
    same with what is left."""
    faces = []
    while len(scores):
        best = corners[scores.argmax(), :4]
        overlap = np.minimum(corners[:, 2:4], best[2:]) - np.maximum(corners[:, :2], best[:2])
        both = np.clip(overlap, 0, None).prod(1)
        union = (corners[:, 2:4] - corners[:, :2]).prod(1) + (best[2:] - best[:2]).prod() - both
        same = both > SAME_FACE_IOU * union
        same[scores.argmax()] = True
        mean = (corners[same] * scores[same][:, None]).sum(0) / scores[same].sum()
        faces.append((mean, float(scores.max())))
        corners, scores = corners[~same], scores[~same]
    return faces


def _anchors() -> np.ndarray:
    """(896,2): the middle of each cell of a 16 × 16 grid twice, then of an 8 × 8 grid six times, 0 to 1."""
    grids = []
    for cells, repeats in ((16, 2), (8, 6)):
        middle = (np.arange(cells) + 0.5) / cells
        column, row = np.meshgrid(middle, middle)
        grids.append(np.repeat(np.stack([column, row], -1).reshape(-1, 2), repeats, axis=0))
    return np.concatenate(grids)


ANCHORS = _anchors()
