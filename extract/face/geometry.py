"""What the face does: expression scores and head pose, the second stream beside the embedding.

`FaceGeometry.measure` looks at one frame and the face found in it and gives G numbers: 52 blendshape
scores of MediaPipe's face landmarker (extract/face/landmarker.py), head rotation, translation, and where
the face is in the frame.

Angles (radians) are those of the line that looks straight out of the face, against the line of sight from
the camera to that face: `yaw_rad` is positive when the face turns to the right edge of the image (to its
own left), `pitch_rad` when it looks up, `roll_rad` when the head leans to the left edge of the image
(counter-clockwise as seen). As a matrix on axes x right, y up, z towards the camera:
R = Ry(yaw) · Rx(-pitch) · Rz(roll). MediaPipe's own matrix is against the camera's axis instead, so that
somebody who faces the camera from the edge of the picture would seem turned away.

Shapes: G features (`FEATURES`), H × W pixels.
"""

from pathlib import Path

import numpy as np

from extract.face.cropper import SAME_FACE_IOU, Box, Crop, box_of, iou
from extract.face.landmarker import EYES, MIN_PRESENCE, SQUARE_SCALE, Face, FaceNetworks, eye_roll, head_pose
from features.recipe import OWN_SQUARE, GeometryId

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
"""Rotation; translation in the camera's axes (z is minus the distance, for a field of view of 63° from top
to bottom, which is MediaPipe's guess); side of the face box over the frame's height; its centre, 0 to 1
from left to right and from top to bottom."""

FEATURES: tuple[str, ...] = (*BLENDSHAPES, *POSE)
"""The G = 61 names, in the order of the stored columns."""


class FaceGeometry:
    """Measures one face in one frame; the same object serves files and camera.

    `geometry_id` names the model and the features that the recipe asks for, `model_path` is the landmarker's
    file. Raises ValueError when the recipe's features are not the ones measured here.
    """

    def __init__(self, geometry_id: GeometryId, model_path: Path, threads: int = 1) -> None:
        if tuple(geometry_id.features) != FEATURES:
            raise ValueError(
                f"the recipe's geometry has {len(geometry_id.features)} features, this version measures "
                f"{len(FEATURES)} others: extract the geometry again"
            )
        self.geometry_id = geometry_id
        self._networks = FaceNetworks(Path(model_path).read_bytes(), threads)

    def measure(self, rgb_frame: np.ndarray, crop: Crop) -> np.ndarray:
        """The features of the face that `crop` was cut around, (G,) float32; all NaN where there is none.

        `rgb_frame` is uint8 (H,W,3), the upright frame in which `crop.box` (pixels) lies.
        """
        values = np.full(len(FEATURES), np.nan, np.float32)
        if crop.image is None:
            return values
        face = self._read(rgb_frame, crop)
        if face.presence < MIN_PRESENCE:
            return values
        frame_hw = rgb_frame.shape[:2]
        matrix = head_pose(face.points, self._networks.canonical, frame_hw)
        values[: len(BLENDSHAPES)] = face.scores
        values[len(BLENDSHAPES) :] = [*angles(matrix), *matrix[:3, 3], *placement(crop.box, frame_hw)]
        return values

    def close(self) -> None:
        """Give the networks' memory back."""
        del self._networks

    def _read(self, rgb_frame: np.ndarray, crop: Crop) -> Face:
        """The face of a crop, cut as MediaPipe would; with unknown eyes levelled by a first look."""
        box, eyes = crop.box, crop.eyes
        if self.geometry_id.square == OWN_SQUARE:
            seen = max(self._networks.look(rgb_frame), key=lambda face: iou(box_of(face), box), default=None)
            if seen is not None and iou(box_of(seen), box) >= SAME_FACE_IOU:
                box, eyes = box_of(seen), seen.eyes
        square = _square(box)
        if eyes is None:
            eyes = self._networks.read(rgb_frame, *square, 0.0).points[EYES, :2]
        return self._networks.read(rgb_frame, *square, eye_roll(eyes))


def angles(pose: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in radians of a head's (4,4) matrix, by the convention of this file's head."""
    towards_camera = -pose[:3, 3] / np.linalg.norm(pose[:3, 3])
    across = np.cross((0.0, 1.0, 0.0), towards_camera)
    across /= np.linalg.norm(across)
    sight = np.stack([across, np.cross(towards_camera, across), towards_camera])
    rotation = sight @ (pose[:3, :3] / np.linalg.norm(pose[:3, 0]))
    return (
        float(np.arctan2(rotation[0, 2], rotation[2, 2])),
        float(np.arcsin(np.clip(rotation[1, 2], -1.0, 1.0))),
        float(np.arctan2(rotation[1, 0], rotation[1, 1])),
    )


def placement(box: Box, frame_hw: tuple[int, int]) -> tuple[float, float, float]:
    """Longer side of a box over the frame's height, and its centre as shares of width and height."""
    height, width = frame_hw
    x0, y0, x1, y1 = box
    return max(x1 - x0, y1 - y0) / height, (x0 + x1) / 2 / width, (y0 + y1) / 2 / height


def _square(box: Box) -> tuple[tuple[float, float], float]:
    """Centre and side of the square that the landmark network is to see around a detector's box."""
    x0, y0, x1, y1 = box
    return ((x0 + x1) / 2, (y0 + y1) / 2), SQUARE_SCALE * max(x1 - x0, y1 - y0)
