"""Speed of the geometry stream against MediaPipe's face landmarker on the whole frame.

Both process the same frames of a real clip, in turn, so that other load on the machine affects both. The
geometry uses one thread (and two, as in live); MediaPipe uses its defaults. The first table prints medians of
wall and processor time, and frames per second. The second table runs both with one process per processor,
as `extract` does.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import cv2
import numpy as np

from extract.face.cropper import FaceCropper
from extract.face.geometry import FEATURES, FaceGeometry
from extract.face.head_pose import head_pose
from extract.face.landmarker import FaceNetworks
from extract.face.mediapipe_tasks import silenced_stderr
from extract.video.reader import read_video, sample_at
from features.recipe import GeometryId, Pixels
from seqmodel.encoders.model_files import detector_file, landmarker_file, sha256_of
from tests.support.media import fetch_real_clips

ROUNDS = 3


def main() -> int:
    """Print two tables."""
    cv2.setNumThreads(1)
    frames = [frame.rgb() for frame in sample_at(read_video(fetch_real_clips()["pexels"]), 3.0)]
    # Before this process starts threads.
    parallel = {name: _frames_per_s_parallel(name, frames) for name in ("MediaPipe, whole frame", "geometry")}
    path = landmarker_file()
    networks = FaceNetworks(path.read_bytes())
    with ExitStack() as stack:
        cropper, crops = _crops(stack, frames)
        geometry, on_both = (
            FaceGeometry(GeometryId(sha256_of(path), FEATURES), path, threads=threads) for threads in (1, 2)
        )
        reference = _mediapipe_call(stack, frames)
        calls: dict[str, Callable[[int], Any]] = {
            "MediaPipe, whole frame": reference,
            "geometry": lambda i: geometry.measure(frames[i], crops[i]),
            "geometry, two threads": lambda i: on_both.measure(frames[i], crops[i]),
            "geometry, with the detector": lambda i: geometry.measure(frames[i], cropper.crop(frames[i])),
            "  landmark network alone": lambda i: networks._points(SQUARE),
            "  head pose alone": lambda i: head_pose(POINTS, networks.canonical, (360, 640)),
        }
        times = {name: _times(call, len(frames)) for name, call in calls.items()}
        for _ in range(ROUNDS - 1):
            for name, call in calls.items():
                times[name] = np.concatenate([times[name], _times(call, len(frames))])
    wall, cpu = (np.median(times["MediaPipe, whole frame"], axis=0)).tolist()
    print(f"{'':28}{'ms wall':>9}{'ms cpu':>9}{'fps':>8}{'× wall':>8}{'× cpu':>8}")
    for name, measured in times.items():
        w, c = np.median(measured, axis=0).tolist()
        print(f"{name:28}{w * 1e3:9.2f}{c * 1e3:9.2f}{1 / w:8.0f}{wall / w:8.2f}{cpu / c:8.2f}")
    print(f"\n{f'{os.cpu_count()} processes':28}{'fps':>8}  × one MediaPipe  × parallel MediaPipe")
    for name, rate in parallel.items():
        many = rate / parallel["MediaPipe, whole frame"]
        print(f"{name:28}{rate:8.0f}{rate * wall:17.2f}{many:22.2f}")
    print("target: geometry ≥ 2.5 × the frames per second of MediaPipe")
    return 0


def _crops(stack: ExitStack, frames: list[np.ndarray]) -> tuple[FaceCropper, list[Any]]:
    """The cropper, closed with the stack, and its crops of all frames."""
    cropper = FaceCropper(Pixels((sha256_of(detector_file("short")),)), (detector_file("short"),))
    stack.callback(cropper.close)
    return cropper, [cropper.crop(frame) for frame in frames]


def _mediapipe_call(stack: ExitStack, frames: list[np.ndarray]) -> Callable[[int], Any]:
    """A function that runs MediaPipe's face landmarker on frame i, as in its documentation."""
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_buffer=landmarker_file().read_bytes()),
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    stack.enter_context(silenced_stderr())
    landmarker = stack.enter_context(vision.FaceLandmarker.create_from_options(options))
    return lambda i: landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=frames[i]))


def _frames_per_s_parallel(name: str, frames: list[np.ndarray]) -> float:
    """Frames per second in total of one process per processor, all with the same frames."""
    context, processes = multiprocessing.get_context("fork"), os.cpu_count() or 1
    ready, done = context.Barrier(processes + 1), context.Queue()

    def run() -> None:
        with ExitStack() as stack:
            if name == "geometry":
                path = landmarker_file()
                geometry = FaceGeometry(GeometryId(sha256_of(path), FEATURES), path)
                _, crops = _crops(stack, frames)
                call: Callable[[int], Any] = lambda i: geometry.measure(frames[i], crops[i])  # noqa: E731
            else:
                call = _mediapipe_call(stack, frames)
            call(0)
            ready.wait(60)
            for _ in range(ROUNDS):
                for i in range(len(frames)):
                    call(i)
            done.put(True)

    workers = [context.Process(target=run) for _ in range(processes)]
    for worker in workers:
        worker.start()
    ready.wait(60)
    started = time.perf_counter()
    for _ in workers:
        done.get(timeout=300)
    seconds = time.perf_counter() - started
    for worker in workers:
        worker.join()
    return processes * ROUNDS * len(frames) / seconds


SQUARE = np.zeros((1, 256, 256, 3), np.float32)
POINTS = np.random.default_rng(0).normal(200, 50, (478, 3)).astype(np.float32)


def _times(call: Callable[[int], Any], count: int) -> np.ndarray:
    """(count, 2) seconds of wall and processor time."""
    call(0)
    out = np.empty((count, 2))
    for i in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        call(i)
        out[i] = time.perf_counter() - wall, time.process_time() - cpu
    return out


if __name__ == "__main__":
    raise SystemExit(main())
