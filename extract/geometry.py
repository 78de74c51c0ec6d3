"""What the face does: expression scores and head pose, the second stream beside the embedding.

`FaceGeometry.measure` looks at one frame and the face found in it and gives G numbers: 52 blendshape
scores of MediaPipe's face landmarker, head rotation, translation, and where the face is in the frame.

Angles (radians) are those of the line that looks straight out of the face, against the line of sight from
the camera to that face: `yaw_rad` is positive when the face turns to the right edge of the image (to its
own left), `pitch_rad` when it looks up, `roll_rad` when the head leans to the left edge of the image
(counter-clockwise as seen). As a matrix on axes x right, y up, z towards the camera:
R = Ry(yaw) · Rx(-pitch) · Rz(roll).

Knows nothing about videos, stores or embeddings, and keeps nothing from one frame to the next.

Shapes: G features (`FEATURES`), H × W pixels.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.recipe import GeometryId

if TYPE_CHECKING:
    from extract.face import Box, Crop

BLENDSHAPES = (
    "_neutral browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff "
    "cheekSquintLeft cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight "
    "eyeLookInLeft eyeLookInRight eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight "
    "eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose "
    "mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight mouthFunnel mouthLeft "
    "mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight mouthPucker mouthRight "
    "mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft mouthSmileRight "
    "mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight noseSneerLeft noseSneerRight"
).split()
"""The landmarker's scores, 0 to 1, in its own order and under its own names."""

POSE = ("yaw_rad", "pitch_rad", "roll_rad", "x_cm", "y_cm", "z_cm", "face_size", "centre_x", "centre_y")
"""Rotation; translation in the frame's camera axes (z is minus the distance, for a field of view of 63°
from top to bottom, which is the landmarker's guess); side of the face box over the frame's height; its
centre, 0 to 1 from left to right and from top to bottom."""

FEATURES: tuple[str, ...] = (*BLENDSHAPES, *POSE)
"""The G = 61 names, in the order of the stored columns."""

REGION_SCALE = 2.0
"""Side of the square handed to the landmarker, in sides of the face box: its detector wants air around it."""


class FaceGeometry:
    """Measures one face in one frame; the same object serves files and camera.

    `geometry_id` names the model and the features that the recipe asks for, `model_path` is the landmarker's
    file. Raises ValueError when the recipe's features are not the ones measured here.
    """

    def __init__(self, geometry_id: GeometryId, model_path: Path) -> None:
        if tuple(geometry_id.features) != FEATURES:
            raise ValueError(
                f"the recipe's geometry has {len(geometry_id.features)} features, this version measures "
                f"{len(FEATURES)} others: extract the geometry again"
            )
        self.geometry_id = geometry_id
        self._landmarker = _open_landmarker(Path(model_path).read_bytes())

    def measure(self, rgb_frame: np.ndarray, crop: "Crop") -> np.ndarray:
        """The features of the face that `crop` was cut around, (G,) float32; all NaN where there is none.

        `rgb_frame` is uint8 (H,W,3), the upright frame in which `crop.box` (pixels) lies.
        """
        values = np.full(len(FEATURES), np.nan, np.float32)
        if crop.image is None:
            return values
        import mediapipe as mp

        region, origin = face_region(rgb_frame, crop.box)
        found = self._landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=region))
        if not found.face_blendshapes or not found.facial_transformation_matrixes:
            return values
        values[: len(BLENDSHAPES)] = [shape.score for shape in found.face_blendshapes[0]]
        matrix = np.asarray(found.facial_transformation_matrixes[0], np.float64)
        values[len(BLENDSHAPES) :] = [
            *angles(matrix[:3, :3]),
            *_in_frame(matrix[:3, 3], origin, len(region), rgb_frame.shape[:2]),
            *placement(crop.box, rgb_frame.shape[:2]),
        ]
        return values

    def close(self) -> None:
        """Give the model's memory back."""
        self._landmarker.close()


def angles(rotation: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in radians of a rotation matrix (3,3), by the convention of this file's head."""
    yaw = np.arctan2(rotation[0, 2], rotation[2, 2])
    pitch = np.arcsin(np.clip(rotation[1, 2], -1.0, 1.0))
    roll = np.arctan2(rotation[1, 0], rotation[1, 1])
    return float(yaw), float(pitch), float(roll)


def placement(
    box: tuple[float, float, float, float], frame_hw: tuple[int, int]
) -> tuple[float, float, float]:
    """Longer side of a box over the frame's height, and its centre as shares of width and height."""
    height, width = frame_hw
    x0, y0, x1, y1 = box
    return max(x1 - x0, y1 - y0) / height, (x0 + x1) / 2 / width, (y0 + y1) / 2 / height


def face_region(rgb_frame: np.ndarray, box: "Box") -> tuple[np.ndarray, tuple[int, int]]:
    """The square around a face box, black outside the frame, uint8 (S,S,3), and its left top corner."""
    height, width = rgb_frame.shape[:2]
    x0, y0, x1, y1 = box
    side = max(8, round(max(x1 - x0, y1 - y0) * REGION_SCALE))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    region = np.zeros((side, side, 3), np.uint8)
    inside = rgb_frame[max(top, 0) : min(top + side, height), max(left, 0) : min(left + side, width)]
    down, right = max(-top, 0), max(-left, 0)
    region[down : down + inside.shape[0], right : right + inside.shape[1]] = inside
    return region, (left, top)


def _in_frame(
    position_cm: np.ndarray, origin: tuple[int, int], side_px: int, frame_hw: tuple[int, int]
) -> tuple[float, float, float]:
    """A position (3,) in the camera of a cut-out region, as the camera of the whole frame would see it.

    Both cameras have the same field of view, so the focal length in pixels grows with the picture's height.
    """
    height, width = frame_hw
    half_tan = np.tan(np.deg2rad(63.0) / 2)
    x, y, z = (float(value) for value in position_cm)
    focal_region, focal_frame = side_px / 2 / half_tan, height / 2 / half_tan
    column = origin[0] + side_px / 2 + focal_region * x / -z
    row = origin[1] + side_px / 2 - focal_region * y / -z
    z_frame = z * focal_frame / focal_region
    return (column - width / 2) * -z_frame / focal_frame, (height / 2 - row) * -z_frame / focal_frame, z_frame


def _open_landmarker(model: bytes) -> Any:
    """MediaPipe's landmarker for single pictures (no memory between them), from the file's bytes."""
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_buffer=model),
        running_mode=vision.RunningMode.IMAGE,
        num_faces=1,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    return vision.FaceLandmarker.create_from_options(options)
