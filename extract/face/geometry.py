"""Face geometry: expression scores and head pose, the second stream in addition to the embedding.

`FaceGeometry.measure` takes a frame and the face found in it and returns G numbers: 52 blendshape scores of
MediaPipe's face landmarker (extract/face/landmarker.py), head rotation, translation, and the position of the
face in the frame.

Angles (radians) are between the direction of the face and the line from the face to the camera: `yaw_rad` is
positive when the face turns to the right edge of the image (the subject's left), `pitch_rad` when it looks
up, `roll_rad` when the head leans to the left edge of the image (counter-clockwise in the image). As a matrix
on axes x right, y up, z towards the camera: R = Ry(yaw) · Rx(-pitch) · Rz(roll). MediaPipe's own matrix is
relative to the camera's axis: a face at the edge of the image that looks into the camera would seem turned.

Shapes: G features (`FEATURES`), H × W pixels.
"""

from pathlib import Path

import numpy as np

from extract.face.cropper import SAME_FACE_IOU, Box, Crop, box_of, iou
from extract.face.head_pose import head_pose
from extract.face.landmarker import EYES, MIN_PRESENCE, SQUARE_SCALE, Face, FaceNetworks, eye_roll
from features.cli import UserError
from features.recipe import OWN_SQUARE, GeometryId
from seqmodel.encoders.model_files import read_model

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
"""Names of the landmarker's scores (0 to 1), in MediaPipe's order."""

POSE = ("yaw_rad", "pitch_rad", "roll_rad", "x_cm", "y_cm", "z_cm", "face_size", "centre_x", "centre_y")
"""Rotation; translation in the camera's axes (z is minus the distance, for MediaPipe's assumed vertical field
of view of 63°); longer edge of the face box divided by the frame's height; its centre, 0 to 1 from left to
right and from top to bottom."""

FEATURES: tuple[str, ...] = (*BLENDSHAPES, *POSE)
"""The G = 61 feature names, in the order of the stored columns."""


class FaceGeometry:
    """Computes the geometry of one face in one frame, for files and cameras.

    geometry_id: the model and the features of the recipe. model_path: the landmarker's file. Raises
    UserError when the recipe's features are not those of this version, or the file has another hash.
    """

    def __init__(self, geometry_id: GeometryId, model_path: Path, threads: int = 1) -> None:
        if tuple(geometry_id.features) != FEATURES:
            raise UserError(
                f"the recipe's geometry has {len(geometry_id.features)} features, this version computes "
                f"{len(FEATURES)} others: extract the geometry again"
            )
        self.geometry_id = geometry_id
        self._networks = FaceNetworks(read_model(Path(model_path), geometry_id.model_sha256), threads)

    def measure(self, rgb_frame: np.ndarray, crop: Crop) -> np.ndarray:
        """The geometry of the face in `crop`, (G,) float32; all NaN without a face.

        rgb_frame: uint8 (H,W,3), the upright frame that `crop.box` (pixels) refers to.
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
        """Free the networks' memory."""
        del self._networks

    def _read(self, rgb_frame: np.ndarray, crop: Crop) -> Face:
        """Landmarks and scores of a crop's face, on the square that MediaPipe would use.

        If the eyes are unknown, the landmarks are first read without rotation to find them.
        """
        box, eyes = crop.box, crop.eyes
        if self.geometry_id.square == OWN_SQUARE:
            best = max(self._networks.look(rgb_frame), key=lambda face: iou(box_of(face), box), default=None)
            if best is not None and iou(box_of(best), box) >= SAME_FACE_IOU:
                box, eyes = box_of(best), best.eyes
        square = _square(box)
        if eyes is None:
            eyes = self._networks.read(rgb_frame, *square, 0.0).points[EYES, :2]
        return self._networks.read(rgb_frame, *square, eye_roll(eyes))


def angles(pose: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in radians of a head's (4,4) matrix, as defined in the module docstring."""
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
    """(longer edge of a box / frame height, centre column / width, centre row / height)."""
    height, width = frame_hw
    x0, y0, x1, y1 = box
    return max(x1 - x0, y1 - y0) / height, (x0 + x1) / 2 / width, (y0 + y1) / 2 / height


def _square(box: Box) -> tuple[tuple[float, float], float]:
    """(centre, size) in pixels of the square around a detector's box for the landmark network."""
    x0, y0, x1, y1 = box
    return ((x0 + x1) / 2, (y0 + y1) / 2), SQUARE_SCALE * max(x1 - x0, y1 - y0)
