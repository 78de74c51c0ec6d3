"""The short-range face detector, run directly on its network: subpixel face boxes and eyes.

MediaPipe's own detector returns whole pixels, and half a pixel changes a blendshape score by up to 0.1. This
module reproduces MediaPipe's arithmetic (tests compare the two), so that one detection gives both the crop
and the exact square that MediaPipe would use for the landmarks.

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
    """One detected face."""

    box: np.ndarray
    """(4,) float64: x0, y0, x1, y1."""
    eyes: np.ndarray
    """(2,2) float64, column and row: the subject's right eye, then the left eye."""
    score: float
    """0 to 1."""


def detect(rgb: np.ndarray, network: Network) -> list[Detection]:
    """The faces in an upright frame, uint8 (H,W,3) RGB, highest score first.

    `network` takes (1,128,128,3) float32 in -1 to 1 and returns (1,896,16) boxes and (1,896,1) logits.
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
    detections = []
    for merged, score in _merged(corners, scores[keep]):
        face = merged * side + np.tile(corner, 4)
        detections.append(Detection(face[:4], face[4:].reshape(2, 2), score))
    return detections


def cut(rgb: np.ndarray, to_frame: np.ndarray, side_px: int, border: int) -> np.ndarray:
    """Cut a square from the frame, bilinear: uint8 (S,S,3), S = `side_px`.

    `to_frame` (2,3) maps pixels of the square (column, row) to the frame. Interpolates in steps of 1/32
    pixel, as the OpenCV version in MediaPipe does; OpenCV 5 is finer, and scores would differ.
    """
    steps = np.arange(side_px, dtype=np.float64)
    column = (to_frame[0, 0] * steps)[None, :] + (to_frame[0, 1] * steps + to_frame[0, 2])[:, None]
    row = (to_frame[1, 0] * steps)[None, :] + (to_frame[1, 1] * steps + to_frame[1, 2])[:, None]
    whole, fraction = cv2.convertMaps(column.astype(np.float32), row.astype(np.float32), cv2.CV_16SC2)
    return np.asarray(cv2.remap(rgb, whole, fraction, cv2.INTER_LINEAR, borderMode=border))


def _merged(corners: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Weighted non-maximum suppression of boxes (N,8): (mean weighted by score, highest score) per face.

    The boxes that overlap the best one are averaged and removed; this repeats until no box is left.
    """
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
    """(896,2), 0 to 1: the centre of each cell of a 16 × 16 grid, twice, then of an 8 × 8 grid, six times."""
    grids = []
    for cells, repeats in ((16, 2), (8, 6)):
        middle = (np.arange(cells) + 0.5) / cells
        column, row = np.meshgrid(middle, middle)
        grids.append(np.repeat(np.stack([column, row], -1).reshape(-1, 2), repeats, axis=0))
    return np.concatenate(grids)


ANCHORS = _anchors()
