"""Head pose: the rotation, translation and scale that fit MediaPipe's canonical face to the points of a face.

The steps follow MediaPipe's documentation; tests/unit/extract/test_geometry.py compares them with MediaPipe.

Shapes: 478 points (column, row, depth), 468 of them on the canonical face.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from features.cli import UserError

FIELD_OF_VIEW_DEG = 63.0
"""Vertical field of view of the camera that MediaPipe assumes."""


@dataclass(frozen=True)
class CanonicalFaceModel:
    """MediaPipe's canonical face model, the reference of the head pose, from the model file."""

    points: np.ndarray
    """(468,3) float64, centimetres; x right, y up, z out of the face."""
    weights: np.ndarray
    """(468,) float64: weight of each point in the pose fit. Most are 0."""


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
    field 2 is a point's index and its weight. Raises UserError for other metadata.
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
        raise UserError("the landmarker's geometry metadata has an unknown format: use MediaPipe's file")
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


def _scale_of(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix[:3, 0]))
