"""Face cropping: detect the face in a frame and cut a square crop around it.

The short-range detector runs on the inference engine (extract/face/detector.py), others in MediaPipe.
A `FaceCropper` processes one video (or camera) at a time. It follows one face: in each frame the face whose
box overlaps most with the last box (IoU of `SAME_FACE_IOU` at least), else the largest face; `reset` clears
the last box. If the followed face jumps or changes its size (`is_new_face`), it is probably another person's.
A frame without a detected face gives a crop without an image; the old box or the whole frame is never used
instead.

Shapes: frames uint8 (H, W, 3) RGB; crops uint8 (crop_px, crop_px, 3) RGB; boxes (x0, y0, x1, y1) in pixels
of the frame.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from extract.face.detector import Detection, detect
from extract.face.mediapipe_tasks import close_detector, detect_faces, open_detector
from extract.face.tflite import open_network
from features.cli import UserError
from features.recipe import Pixels
from seqmodel.encoders.model_files import SHORT_DETECTOR, read_model

Box = tuple[float, float, float, float]

SAME_FACE_IOU = 0.3
"""Minimum overlap (IoU) with the previous box for a face to count as the same face."""

NEW_FACE_STEP, NEW_FACE_RATIO = 1.0, 2.0
"""A face is another person's if its centre has moved by more than NEW_FACE_STEP of the box's longer edge, or
this edge has changed by more than the factor NEW_FACE_RATIO. Measured in five real clips, on frames 1/3 s
apart: at most .30 and 1.25; while a face comes into the picture, .94 and 1.92. In a photo, two people side by
side are 1.08 apart."""

NO_BOX: Box = (float("nan"),) * 4  # type: ignore[assignment]


@dataclass(frozen=True)
class Crop:
    """The crop of the followed face in one frame."""

    image: np.ndarray | None
    """uint8 (crop_px, crop_px, 3), RGB; None = no face."""
    box: Box
    """The detector's box, pixels of the upright frame; NaN = no face."""
    score: float
    """The detector's score, 0 to 1; 0 = no face."""
    others: tuple[Box, ...] = ()
    """Boxes of the other faces."""
    eyes: np.ndarray | None = None
    """(2,2) float64, column and row in pixels of the frame: the subject's right eye, then the left eye; None
    for detectors whose eye points MediaPipe's landmarker does not use to level a face."""
    is_new: bool = False
    """Whether this is probably another person's face than in the last frame with one."""


@dataclass(frozen=True)
class _Detector:
    """An open face detector: `detect` takes an upright frame, uint8 (H, W, 3) RGB, and returns its faces."""

    detect: Callable[[np.ndarray], list[Detection]]
    levels: bool
    """Whether its eyes are `Crop.eyes`."""
    close: Callable[[], None] = lambda: None
    """Frees its memory."""


class FaceCropper:
    """Tries each detector in turn until one finds a face, follows one face, and cuts its crop.

    `detector_files`: the files whose hashes are in `pixels.detectors`, in the same order. Raises UserError
    for a wrong number of files, a file with another hash, or one that cannot be opened.
    """

    def __init__(self, pixels: Pixels, detector_files: Sequence[Path], threads: int = 1) -> None:
        if len(detector_files) != len(pixels.detectors):
            raise UserError(
                f"the recipe has {len(pixels.detectors)} detectors, got {len(detector_files)} files"
            )
        self.pixels = pixels
        self._previous: Box | None = None
        self._detectors: list[_Detector] = []
        try:
            for file, sha256 in zip(detector_files, pixels.detectors, strict=True):
                self._detectors.append(_open_detector(Path(file), sha256, threads))
        except ValueError:
            self.close()
            raise

    def crop(self, rgb: np.ndarray) -> Crop:
        """The crop of the followed face in an upright frame, uint8 (H, W, 3), RGB."""
        for detector in self._detectors:
            faces = detector.detect(rgb)
            if faces:
                break
        else:
            return Crop(None, NO_BOX, 0.0)
        boxes = [box_of(face) for face in faces]
        best = _choose(boxes, self._previous)
        is_new = self._previous is not None and is_new_face(boxes[best], self._previous)
        self._previous = boxes[best]
        return Crop(
            cut_square(rgb, boxes[best], self.pixels.margin, self.pixels.crop_px),
            boxes[best],
            faces[best].score,
            others=tuple(box for index, box in enumerate(boxes) if index != best),
            eyes=faces[best].eyes if detector.levels else None,
            is_new=is_new,
        )

    def reset(self) -> None:
        """Stop following the current face: the next frame belongs to another scene."""
        self._previous = None

    def close(self) -> None:
        """Free the detectors' memory. The caller must close the cropper; it is not closed automatically."""
        for detector in self._detectors:
            detector.close()


def box_of(face: Detection) -> Box:
    """The box of a face as a tuple."""
    x0, y0, x1, y1 = face.box.tolist()
    return (x0, y0, x1, y1)


def cut_square(rgb: np.ndarray, box: Box, margin: float, crop_px: int) -> np.ndarray:
    """The square around a box, resized to crop_px: uint8 (crop_px, crop_px, 3).

    Its size is the longer edge of the box plus `margin` of it on both sides, in whole pixels; pixels outside
    the frame are black. A large square is first halved repeatedly (means of 2 × 2 pixels): interpolation
    alone would skip pixels, and averaging down to crop_px at once takes five to ten times as long.
    """
    x0, y0, x1, y1 = box
    side = max(2, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
    halvings = max(0, math.ceil(math.log2(side / (2 * crop_px))))
    side -= side % 2**halvings
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    height, width = rgb.shape[:2]
    inside = rgb[
        max(top, 0) : max(min(top + side, height), 0), max(left, 0) : max(min(left + side, width), 0)
    ]
    if inside.shape[:2] != (side, side):
        square = np.zeros((side, side, 3), np.uint8)
        down, right = max(-top, 0), max(-left, 0)
        square[down : down + inside.shape[0], right : right + inside.shape[1]] = inside
        inside = square
    for _ in range(halvings):
        half = len(inside) // 2
        inside = cv2.resize(inside, (half, half), interpolation=cv2.INTER_AREA)
    return cv2.resize(inside, (crop_px, crop_px), interpolation=cv2.INTER_LINEAR)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (_area(a) + _area(b) - both)


def is_new_face(box: Box, previous: Box) -> bool:
    """Whether two boxes of successive sampled frames are probably of two people: a jump or another size.

    A person who takes exactly the place of another one is not noticed.
    """
    edges = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in (box, previous)]
    centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in (box, previous)]
    step = math.dist(*centres)
    return step > NEW_FACE_STEP * max(edges) or max(edges) > NEW_FACE_RATIO * min(edges)


def _choose(boxes: Sequence[Box], previous: Box | None) -> int:
    """Index of the box with the highest IoU with the previous one (>= `SAME_FACE_IOU`), or the largest."""
    if previous is not None:
        best = max(range(len(boxes)), key=lambda index: iou(boxes[index], previous))
        if iou(boxes[best], previous) >= SAME_FACE_IOU:
            return best
    return max(range(len(boxes)), key=lambda index: _area(boxes[index]))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _open_detector(file: Path, sha256: str, threads: int) -> _Detector:
    """Open the detector in a file. Raises UserError if the file has another hash or is not a detector."""
    content = read_model(file, sha256)
    if sha256 == SHORT_DETECTOR.sha256:
        network = open_network(content, threads)
        return _Detector(lambda rgb: detect(rgb, network), levels=True)
    try:
        detector = open_detector(content)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{file} is not a MediaPipe face detector: {error}") from error
    return _Detector(partial(detect_faces, detector), levels=False, close=partial(close_detector, detector))
