"""python -m tests.bench.geometry: the second stream, against MediaPipe's own call on the whole frame.

The same frames of a real clip in turn through both, one after the other, so that what else the machine does
hits both; one thread for ours (and two, as live has it), MediaPipe as it comes. Medians of wall and of
processor time, frames a second.
"""

import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from extract.face import FaceCropper, silenced_stderr
from extract.geometry import FEATURES, FaceGeometry
from extract.landmarks import FaceNetworks, head_pose
from extract.video import read_video, sample_at
from features.recipe import GeometryId, Pixels
from seqmodel.assets import detector_file, landmarker_file, sha256_of
from tests.media import fetch_real_clips

ROUNDS = 3


def main() -> int:
    """Print one table."""
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    cv2.setNumThreads(1)
    path = landmarker_file()
    cropper = FaceCropper(Pixels((sha256_of(detector_file("short")),)), (detector_file("short"),))
    geometry = FaceGeometry(GeometryId(sha256_of(path), FEATURES), path)
    networks = FaceNetworks(path.read_bytes())
    on_both = FaceGeometry(GeometryId(sha256_of(path), FEATURES), path, threads=2)
    frames = [frame.rgb() for frame in sample_at(read_video(fetch_real_clips()["pexels"]), 3.0)]
    crops = [cropper.crop(frame) for frame in frames]
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_buffer=path.read_bytes()),
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    with silenced_stderr(), vision.FaceLandmarker.create_from_options(options) as landmarker:
        ways: dict[str, Callable[[int], Any]] = {
            "MediaPipe, whole frame": lambda i: landmarker.detect(
                mp.Image(image_format=mp.ImageFormat.SRGB, data=frames[i])
            ),
            "ours": lambda i: geometry.measure(frames[i], crops[i]),
            "ours, two threads": lambda i: on_both.measure(frames[i], crops[i]),
            "ours, detector included": lambda i: geometry.measure(frames[i], cropper.crop(frames[i])),
            "  of it the points' network": lambda i: networks._points(SQUARE),
            "  of it the pose": lambda i: head_pose(POINTS, networks.canon, (360, 640)),
        }
        times = {name: _times(way, len(frames)) for name, way in ways.items()}
        for _ in range(ROUNDS - 1):
            for name, way in ways.items():
                times[name] = np.concatenate([times[name], _times(way, len(frames))])
    wall, cpu = (np.median(times["MediaPipe, whole frame"], axis=0)).tolist()
    print(f"{'':24}{'ms wall':>9}{'ms cpu':>9}{'fps':>8}{'× wall':>8}{'× cpu':>8}")
    for name, measured in times.items():
        w, c = np.median(measured, axis=0).tolist()
        print(f"{name:24}{w * 1e3:9.2f}{c * 1e3:9.2f}{1 / w:8.0f}{wall / w:8.2f}{cpu / c:8.2f}")
    print("target: ours ≥ 2.5 × the frames a second of MediaPipe's own call")
    cropper.close()
    return 0


SQUARE = np.zeros((1, 256, 256, 3), np.float32)
POINTS = np.random.default_rng(0).normal(200, 50, (478, 3)).astype(np.float32)


def _times(way: Callable[[int], Any], count: int) -> np.ndarray:
    """(count, 2) seconds of wall and processor time."""
    way(0)
    out = np.empty((count, 2))
    for i in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        way(i)
        out[i] = time.perf_counter() - wall, time.process_time() - cpu
    return out


if __name__ == "__main__":
    raise SystemExit(main())
