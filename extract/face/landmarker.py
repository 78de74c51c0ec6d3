"""MediaPipe's face landmarker, run directly on its networks: 478 points and 52 scores.

MediaPipe's own call detects the face a second time and sends every picture through its graph. Here the
networks of the same file run on the inference engine, on the square around the detected face. The steps
between them (cutting, point units) follow MediaPipe's documentation, and
tests/unit/extract/test_geometry.py compares them with MediaPipe.

Shapes: H × W pixels, 478 points (column, row, depth), 52 scores.
"""

import io
import zipfile
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from extract.face.detector import Detection, cut, detect
from extract.face.head_pose import read_canonical_model
from extract.face.tflite import Network, open_network
from features.cli import UserError

INPUT_PX = 256
"""Input size of the landmark network, pixels."""
SQUARE_SCALE = 1.5
"""Size of the square around a face, relative to the longer edge of the detector's box, as in MediaPipe."""
MIN_PRESENCE = 0.5
"""Minimum face probability; below it, the square counts as without a face. MediaPipe's default."""
EYES = [468, 473]
"""Indices of the points at the centres of the subject's right eye and left eye."""

# Indices of the points that the score network takes as input, from MediaPipe's graph.
SCORE_POINTS = np.array(
    "0 1 4 5 6 7 8 10 13 14 17 21 33 37 39 40 46 52 53 54 55 58 61 63 65 66 67 70 78 80 81 82 84 87 88 91 93 "
    "95 103 105 107 109 127 132 133 136 144 145 146 148 149 150 152 153 154 155 157 158 159 160 161 162 163 "
    "168 172 173 176 178 181 185 191 195 197 234 246 249 251 263 267 269 270 276 282 283 284 285 288 291 293 "
    "295 296 297 300 308 310 311 312 314 317 318 321 323 324 332 334 336 338 356 361 362 365 373 374 375 377 "
    "378 379 380 381 382 384 385 386 387 388 389 390 397 398 400 402 405 409 415 454 466 468 469 470 471 472 "
    "473 474 475 476 477".split(),
    np.intp,
)


@dataclass(frozen=True)
class Face:
    """The outputs of the networks for one face."""

    points: np.ndarray
    """(478,3) float32: column and row in pixels of the frame; depth in pixels too, away from the camera."""
    scores: np.ndarray
    """(52,) float32, 0 to 1."""
    presence: float
    """Probability that it is a face, 0 to 1."""


class FaceNetworks:
    """The networks of one `face_landmarker.task`, compiled for the CPU."""

    def __init__(self, task: bytes, threads: int = 1) -> None:
        """`task`: the bytes of the file. Raises UserError when the networks are not in it."""
        try:
            with zipfile.ZipFile(io.BytesIO(task)) as parts:
                points, scores, self._detector_model = (
                    parts.read(f"face_{name}.tflite")
                    for name in ("landmarks_detector", "blendshapes", "detector")
                )
                self.canonical = read_canonical_model(
                    parts.read("geometry_pipeline_metadata_landmarks.binarypb")
                )
        except (zipfile.BadZipFile, KeyError) as error:
            raise UserError(f"not a face_landmarker.task: {error}") from error
        self._points = open_network(points, threads, INPUT_PX)
        self._scores = open_network(scores, threads)
        self._threads = threads

    def look(self, rgb: np.ndarray) -> list[Detection]:
        """The faces that the file's own detector finds in an upright frame, uint8 (H,W,3) RGB."""
        return detect(rgb, self._detector)

    @cached_property
    def _detector(self) -> Network:
        return open_network(self._detector_model, self._threads)

    def read(self, rgb: np.ndarray, centre: tuple[float, float], side_px: float, roll_rad: float) -> Face:
        """Points and scores of the face in a square of an upright frame, uint8 (H,W,3) RGB.

        The square is `side_px` wide, has its centre at `centre` (column, row) and is rotated clockwise by
        `roll_rad`, so that the eyes are level in it. Outside the frame, the frame's edge is repeated.
        """
        to_frame = _square_to_frame(centre, side_px, roll_rad)
        square = cut(rgb, to_frame, INPUT_PX, cv2.BORDER_REPLICATE).astype(np.float32) / 255
        raw, presence = self._points(square[None])
        found = raw.reshape(478, 3)
        points = np.empty((478, 3), np.float32)
        points[:, :2] = found[:, :2] @ to_frame[:, :2].T + to_frame[:, 2]
        points[:, 2] = found[:, 2] * (side_px / INPUT_PX)
        (scores,) = self._scores(points[None, SCORE_POINTS, :2])
        return Face(
            points,
            scores.reshape(52).astype(np.float32),
            presence=float(1 / (1 + np.exp(-presence.reshape(())))),
        )


def eye_roll(eyes: np.ndarray) -> float:
    """Clockwise angle (radians) of the line from the right eye to the left eye. eyes: (2,2) in pixels."""
    line = eyes[1] - eyes[0]
    return float(np.arctan2(line[1], line[0]))


def _square_to_frame(centre: tuple[float, float], side_px: float, roll_rad: float) -> np.ndarray:
    """(2,3) float64 from pixels of the network's square to pixels of the frame."""
    scale = side_px / INPUT_PX
    cos, sin = scale * np.cos(roll_rad), scale * np.sin(roll_rad)
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([turn, np.array(centre) - turn @ (INPUT_PX / 2, INPUT_PX / 2)])
