"""MediaPipe's face detector: opened and closed explicitly, never by the garbage collector.

A MediaPipe detector owns a thread. When the garbage collector finds a detector in a reference cycle, it first
clears the weak reference from that thread to its executor; the thread ends, and `FaceDetector.__del__` then
waits for it forever. So every open detector stays referenced here until `close_detector`.

Shapes: frames uint8 (H, W, 3) RGB; boxes (x0, y0, x1, y1) and eyes (column, row) in pixels of the frame.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from extract.face.detector import Detection

_open_detectors: list[Any] = []
"""References that keep open detectors from the garbage collector."""


def open_detector(model: bytes) -> Any:
    """Open MediaPipe's detector in image mode (pictures are independent), from the model file's bytes.

    Takes bytes, because MediaPipe cannot open a path with Korean letters on Windows. The caller closes it
    with `close_detector`. Raises UserError or RuntimeError for bytes that are not a detector.
    """
    from mediapipe.tasks.python import BaseOptions, vision

    with silenced_stderr():  # MediaPipe logs from C at creation and at the first picture
        detector = vision.FaceDetector.create_from_options(
            vision.FaceDetectorOptions(
                base_options=BaseOptions(model_asset_buffer=model), running_mode=vision.RunningMode.IMAGE
            )
        )
        if not _open_detectors:
            atexit.register(_close_all)
        _open_detectors.append(detector)
        try:
            detect_faces(detector, np.zeros((128, 128, 3), np.uint8))
        except (ValueError, RuntimeError):
            close_detector(detector)
            raise
    return detector


def close_detector(detector: Any) -> None:
    """Free the detector's memory and its thread; a second call does nothing."""
    if not any(detector is other for other in _open_detectors):
        return
    with silenced_stderr():
        try:
            detector.close()
        except RuntimeError:  # at exit no threads can be started; the memory is freed with the process
            detector._handle = None
    _open_detectors[:] = [other for other in _open_detectors if other is not detector]


def detect_faces(detector: Any, rgb: np.ndarray) -> list[Detection]:
    """The faces that MediaPipe finds in an upright frame, uint8 (H, W, 3) RGB; boxes in whole pixels."""
    import mediapipe as mp

    height, width = rgb.shape[:2]
    picture = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(rgb))
    faces = []
    for detection in detector.detect(picture).detections:
        box, score = detection.bounding_box, float(detection.categories[0].score)
        if box.width > 0 and box.height > 0 and score > 0:
            corners = [box.origin_x, box.origin_y, box.origin_x + box.width, box.origin_y + box.height]
            eyes = [(point.x * width, point.y * height) for point in detection.keypoints[:2]]
            faces.append(Detection(np.array(corners, np.float64), np.array(eyes, np.float64), score))
    return faces


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Discard everything written to file descriptor 2; this includes the output of C libraries."""
    sys.stderr.flush()
    kept = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(devnull)
        os.close(kept)


def _close_all() -> None:
    for detector in list(_open_detectors):
        close_detector(detector)
