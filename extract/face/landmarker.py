"""MediaPipe's face landmarker, run directly on its networks: 478 points, 52 scores, and head pose.

MediaPipe's own call detects the face a second time and sends every picture through its graph. Here the
networks of the same file run on the inference engine, on the square around the detected face. The steps
between them (cutting, point units, Procrustes) follow MediaPipe's documentation, and
tests/unit/extract/test_geometry.py compares them with MediaPipe.

Shapes: H × W pixels, 478 points (column, row, depth), 468 of them on the canonical face, 52 scores.
"""

import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from extract.face.detector import Detection, cut, detect
from extract.face.tflite import Network, open_network

INPUT_PX = 256
"""Input size of the landmark network, pixels."""
SQUARE_SCALE = 1.5
"""Size of the square around a face, relative to the longer edge of the detector's box, as in MediaPipe."""
MIN_PRESENCE = 0.5
"""Minimum face probability; below it, the square counts as without a face. MediaPipe's default."""
FIELD_OF_VIEW_DEG = 63.0
"""Vertical field of view of the camera that MediaPipe assumes."""
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


@dataclass(frozen=True)
class CanonicalFaceModel:
    """MediaPipe's canonical face model, the reference of the head pose, from the model file."""

    points: np.ndarray
    """(468,3) float64, centimetres; x right, y up, z out of the face."""
    weights: np.ndarray
    """(468,) float64: weight of each point in the pose fit. Most are 0."""


class FaceNetworks:
    """The networks of one `face_landmarker.task`, compiled for the CPU."""

    def __init__(self, task: bytes, threads: int = 1) -> None:
        """`task`: the bytes of the file. Raises ValueError when the networks are not in it."""
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
            raise ValueError(f"not a face_landmarker.task: {error}") from error
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


def head_pose(points: np.ndarray, canonical: CanonicalFaceModel, frame_hw: tuple[int, int]) -> np.ndarray:
    """The (4,4) matrix from the canonical face to the camera (centimetres; x right, y up, z to the viewer).

    points: (478,3) in pixels of a frame of size `frame_hw`. As in MediaPipe: the depth of the points is
    relative, so the scale is estimated twice (before and after removing the perspective), then the pose.
    """
    height, width = frame_hw
    near = 1.0
    unit = 2 * near * np.tan(np.deg2rad(FIELD_OF_VIEW_DEG) / 2) / height  # of a pixel, on the near plane
    screen = points[:468].astype(np.float64) * unit
    screen[:, 0] -= width * unit / 2
    screen[:, 1] = height * unit / 2 - screen[:, 1]
    depth_offset = screen[:, 2].mean()

    def unprojected(scale: float) -> np.ndarray:
        metric = screen.copy()
        metric[:, 2] = (screen[:, 2] - depth_offset + near) / scale
        metric[:, :2] *= metric[:, 2:] / near
        metric[:, 2] *= -1
        return metric

    first = _scale_of(procrustes(canonical.points, screen * (1, 1, -1), canonical.weights))
    second = _scale_of(procrustes(canonical.points, unprojected(first), canonical.weights))
    return procrustes(canonical.points, unprojected(first * second), canonical.weights)


def procrustes(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The (4,4) similarity transform (rotation, scale, translation) that fits source (N,3) to target (N,3).

    Weighted least squares after Umeyama (1991), without reflections.
    """
    used = weights > 0
    source, target, weights = source[used], target[used], weights[used]
    share = weights / weights.sum()
    source_mean, target_mean = share @ source, share @ target
    from_mean, to_mean = source - source_mean, target - target_mean
    left, values, right = np.linalg.svd((to_mean * share[:, None]).T @ from_mean)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = (left * signs) @ right
    scale = (values * signs).sum() / (share @ (from_mean**2).sum(1))
    matrix = np.eye(4)
    matrix[:3, :3] = scale * rotation
    matrix[:3, 3] = target_mean - scale * rotation @ source_mean
    return matrix


def read_canonical_model(metadata: bytes) -> CanonicalFaceModel:
    """Read the canonical face model from the model file's geometry metadata, a protocol buffer.

    Field 1 is the mesh; its field 3 holds the vertices (x, y, z and two texture coordinates each). Each
    field 2 is a point's index and its weight. Raises ValueError for other metadata.
    """
    vertices: list[float] = []
    weights = np.zeros(468)
    for number, value in _fields(metadata):
        if number == 1 and isinstance(value, bytes):
            for inner, coordinate in _fields(value):
                if inner == 3 and isinstance(coordinate, bytes):
                    vertices += [v[0] for v in struct.iter_unpack("<f", coordinate)]
        elif number == 2 and isinstance(value, bytes):
            entry = dict(_fields(value))
            point, weight = entry.get(1, 0), entry.get(2, b"\0\0\0\0")
            if isinstance(point, int) and isinstance(weight, bytes) and point < 468:
                weights[point] = struct.unpack("<f", weight)[0]
    if len(vertices) != 468 * 5 or not weights.any():
        raise ValueError("the landmarker's geometry metadata has an unknown format: use MediaPipe's file")
    return CanonicalFaceModel(np.array(vertices).reshape(468, 5)[:, :3], weights)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protocol buffer; varints as int, everything else as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        length = {1: 8, 5: 4}.get(kind) or varint()
        yield number, message[at : at + length]
        at += length


def _square_to_frame(centre: tuple[float, float], side_px: float, roll_rad: float) -> np.ndarray:
    """(2,3) float64 from pixels of the network's square to pixels of the frame."""
    scale = side_px / INPUT_PX
    cos, sin = scale * np.cos(roll_rad), scale * np.sin(roll_rad)
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([turn, np.array(centre) - turn @ (INPUT_PX / 2, INPUT_PX / 2)])


def _scale_of(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix[:3, 0]))
