"""python -m tests.bench.geometry: the second stream, against MediaPipe's own call on the whole frame.

The same frames of a real clip in turn through both, one after the other, so that what else the machine does
hits both; one thread for ours (and two, as live has it), MediaPipe as it comes. Medians of wall and of
processor time, frames a second. Then both on all processors, a process each: as `extract` does it, and as a
script around MediaPipe would if its writer took the trouble.
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
from extract.face.landmarker import FaceNetworks, head_pose
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
    # Before this process has threads of its own.
    together = {name: _together(name, frames) for name in ("MediaPipe, whole frame", "ours")}
    path = landmarker_file()
    networks = FaceNetworks(path.read_bytes())
    with ExitStack() as stack:
        cropper, crops = _crops(stack, frames)
        geometry, on_both = (
            FaceGeometry(GeometryId(sha256_of(path), FEATURES), path, threads=threads) for threads in (1, 2)
        )
        theirs = _their_call(stack, frames)
        ways: dict[str, Callable[[int], Any]] = {
            "MediaPipe, whole frame": theirs,
            "ours": lambda i: geometry.measure(frames[i], crops[i]),
            "ours, two threads": lambda i: on_both.measure(frames[i], crops[i]),
            "ours, detector included": lambda i: geometry.measure(frames[i], cropper.crop(frames[i])),
            "  of it the points' network": lambda i: networks._points(SQUARE),
            "  of it the pose": lambda i: head_pose(POINTS, networks.canonical, (360, 640)),
        }
        times = {name: _times(way, len(frames)) for name, way in ways.items()}
        for _ in range(ROUNDS - 1):
            for name, way in ways.items():
                times[name] = np.concatenate([times[name], _times(way, len(frames))])
    wall, cpu = (np.median(times["MediaPipe, whole frame"], axis=0)).tolist()
    print(f"{'':28}{'ms wall':>9}{'ms cpu':>9}{'fps':>8}{'× wall':>8}{'× cpu':>8}")
    for name, measured in times.items():
        w, c = np.median(measured, axis=0).tolist()
        print(f"{name:28}{w * 1e3:9.2f}{c * 1e3:9.2f}{1 / w:8.0f}{wall / w:8.2f}{cpu / c:8.2f}")
    print(f"\n{f'{os.cpu_count()} processes at once':28}{'fps':>8}  × one MediaPipe  × as many of its")
    for name, rate in together.items():
        many = rate / together["MediaPipe, whole frame"]
        print(f"{name:28}{rate:8.0f}{rate * wall:17.2f}{many:23.2f}")
    print("target: ours ≥ 2.5 × the frames a second of MediaPipe's own call")
    return 0


def _crops(stack: ExitStack, frames: list[np.ndarray]) -> tuple[FaceCropper, list[Any]]:
    """The cropper, closed with the stack, and its answer to every frame."""
    cropper = FaceCropper(Pixels((sha256_of(detector_file("short")),)), (detector_file("short"),))
    stack.callback(cropper.close)
    return cropper, [cropper.crop(frame) for frame in frames]


def _their_call(stack: ExitStack, frames: list[np.ndarray]) -> Callable[[int], Any]:
    """MediaPipe's face landmarker on a frame, as its manual has it."""
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


def _together(name: str, frames: list[np.ndarray]) -> float:
    """Frames a second of a process on each processor, all of them through the same frames."""
    context, processes = multiprocessing.get_context("fork"), os.cpu_count() or 1
    ready, done = context.Barrier(processes + 1), context.Queue()

    def body() -> None:
        with ExitStack() as stack:
            if name == "ours":
                path = landmarker_file()
                geometry = FaceGeometry(GeometryId(sha256_of(path), FEATURES), path)
                _, crops = _crops(stack, frames)
                way: Callable[[int], Any] = lambda i: geometry.measure(frames[i], crops[i])  # noqa: E731
            else:
                way = _their_call(stack, frames)
            way(0)
            ready.wait(60)
            for _ in range(ROUNDS):
                for i in range(len(frames)):
                    way(i)
            done.put(True)

    workers = [context.Process(target=body) for _ in range(processes)]
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
