"""Feature extraction from one video: read, sample, crop, geometry, encode.

`extract_video` yields one `WindowFeatures` per window, or a `FailedWindow` with the reason. A row depends
only on the file, its window and the recipe: not on other windows, earlier extractions or the worker.

Shapes: T frames of a window, D embedding, G geometry features.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import cv2
import numpy as np

from extract.face.cropper import FaceCropper
from extract.face.geometry import FaceGeometry
from extract.pipeline.notes import NEW_FACE, notes_of
from extract.pipeline.types import ExtractorConfig, FailedWindow, Job, Window, WindowFeatures
from extract.video.reader import Frame, Spans, Targets, read_video, sample_at, truncation
from features.cli import UserError
from seqmodel.encoders.engine import Engine, open_engine

JPEG_QUALITY = 95
"""With it, the lowest cosine between the embeddings of a crop and of its JPEG is 0.995 (real faces)."""


@dataclass(frozen=True)
class FeatureExtractor:
    """The open models of a worker: face cropper, encoder engine, and face geometry (None = off)."""

    cropper: FaceCropper
    engine: Engine
    geometry: FaceGeometry | None

    def close(self) -> None:
        """Free the models' memory."""
        self.cropper.close()
        if self.geometry is not None:
            self.geometry.close()


@dataclass
class StageTimer:
    """Measures seconds by stage."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the `with` block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def open_extractor(extractor_config: ExtractorConfig) -> FeatureExtractor:
    """Open the models of a configuration.

    Raises UserError when a model file is missing, or its hash is not that of the recipe: it may have been
    replaced since the extraction was planned.
    """
    pixels = extractor_config.recipe.pixels
    if pixels is None:
        raise UserError("this recipe is for imported features: they cannot be extracted from a video")
    cv2.setNumThreads(extractor_config.threads)
    engine = open_engine(
        extractor_config.recipe.encoder.name,
        extractor_config.weights,
        backend=extractor_config.backend,
        device=extractor_config.device,
        precision=extractor_config.precision,
        threads=extractor_config.threads,
        crop_px=pixels.crop_px,
    )
    planned, found = extractor_config.recipe.encoder.weights_sha256, engine.encoder_id.weights_sha256
    if found != planned:
        raise UserError(
            f"the weights {extractor_config.weights} of {engine.encoder_id.name} changed after planning: "
            f"their sha256 is {found[:12]}…, planned was {planned[:12]}…; run the command again"
        )
    geometry = (
        FaceGeometry(extractor_config.recipe.geometry, extractor_config.landmarker_file)
        if extractor_config.recipe.geometry is not None and extractor_config.landmarker_file is not None
        else None
    )
    return FeatureExtractor(FaceCropper(pixels, extractor_config.detector_files), engine, geometry)


def extract_video(
    job: Job, extractor: FeatureExtractor, *, threads: int = 1, timer: StageTimer | None = None
) -> Iterator[WindowFeatures | FailedWindow]:
    """Yield features or a failure for every window of the job; the file is decoded once unless windows
    overlap."""
    timer = timer or StageTimer()
    deadline = time.monotonic() + job.time_limit_s
    for windows in _passes(job.windows):
        num_done = 0
        try:
            for outcome in _one_pass(job, windows, extractor, threads, timer, deadline):
                yield outcome
                num_done += 1
        except ValueError as error:
            for window in windows[num_done:]:
                yield FailedWindow(window, str(error).removeprefix(f"{job.path}: "))


def _one_pass(
    job: Job,
    windows: Sequence[Window],
    extractor: FeatureExtractor,
    threads: int,
    timer: StageTimer,
    deadline: float,
) -> Iterator[WindowFeatures | FailedWindow]:
    """Extract windows that do not overlap, in time order, while decoding the file once."""
    pixels = extractor.cropper.pixels
    targets = Targets([window.start_s for window in windows], pixels.fps, pixels.num_frames)
    start_s = windows[0].start_s
    frames = read_video(job.path, threads=threads, is_wanted=targets.between, start_s=start_s)
    spans = Spans(_until_deadline(frames, job.time_limit_s, deadline))
    for window in windows:
        end_s = window.start_s + pixels.window_s
        if window.end_s is not None:
            end_s = min(end_s, window.end_s)
        extractor.cropper.reset()
        sampled = sample_at(spans.until(end_s), pixels.fps, window.start_s)
        row, num_sampled = _row(sampled, window, extractor, timer)
        reason = ""
        if num_sampled == 0:
            reason = f"no frame between {window.start_s:.1f} and {end_s:.1f} s"
            reason += f": the video ends at {spans.end_s:.1f} s" if spans.is_over else ""
        elif window.end_s is not None and spans.is_over and (cut := truncation(spans.end_s, end_s)):
            reason = cut
        elif num_sampled == 1 and len(row.frames) > 1 and spans.is_over:
            reason = f"only one frame between {window.start_s:.1f} and {end_s:.1f} s"
        yield FailedWindow(window, reason) if reason else row


def _row(
    sampled: Iterator[Frame], window: Window, extractor: FeatureExtractor, timer: StageTimer
) -> tuple[WindowFeatures, int]:
    """(features of the sampled frames, number of sampled frames)."""
    num_frames, parts = extractor.cropper.pixels.num_frames, window.parts
    table = np.full((num_frames, 6), np.nan, np.float32)
    table[:, 5] = 0
    geometry = None
    if "geometry" in parts and extractor.geometry is not None:
        geometry = np.full((num_frames, len(extractor.geometry.geometry_id.features)), np.nan, np.float32)
    images: dict[int, np.ndarray] = {}
    num_sampled, doubts = 0, Counter[str]()
    for t, (frame, rgb) in enumerate(_decoded(islice(sampled, num_frames), timer)):
        num_sampled += 1
        doubts.update(frame.doubts)
        table[t, 0] = frame.pts_s
        with timer.stage("face"):
            crop = extractor.cropper.crop(rgb)
        if crop.image is None:
            continue
        if crop.is_new:
            doubts[NEW_FACE] += 1
        images[t] = crop.image
        table[t, 1:5], table[t, 5] = crop.box, crop.score
        if geometry is not None and extractor.geometry is not None:
            with timer.stage("geometry"):
                geometry[t] = extractor.geometry.measure(rgb, crop)
    embeddings = None
    if "embeddings" in parts:
        with timer.stage("encode"):
            embeddings = np.zeros((num_frames, extractor.engine.encoder_id.dim), np.float16)
            if images:
                embeddings[list(images)] = extractor.engine.embed(np.stack(list(images.values())))
    crops = None
    if "crops" in parts:
        with timer.stage("crops"):
            crops = [jpeg(images[t]) if t in images else b"" for t in range(num_frames)]
    notes = notes_of(doubts, num_sampled, table, geometry)
    return WindowFeatures(window, table, embeddings, geometry, crops, notes), num_sampled


def jpeg(crop: np.ndarray) -> bytes:
    """An RGB uint8 crop (H, W, 3) as JPEG bytes."""
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    assert done
    return encoded.tobytes()


def _decoded(frames: Iterator[Frame], timer: StageTimer) -> Iterator[tuple[Frame, np.ndarray]]:
    """Yield frames with their pixels; the time is counted as stage `decode`."""
    while True:
        with timer.stage("decode"):
            frame = next(frames, None)
            rgb = frame.rgb() if frame is not None else None
        if frame is None or rgb is None:
            return
        yield frame, rgb


def _until_deadline(frames: Iterable[Frame], limit_s: float, deadline: float) -> Iterator[Frame]:
    for frame in frames:
        if time.monotonic() > deadline:
            raise UserError(
                f"stopped after {limit_s:.0f} s, at {frame.pts_s:.1f} s of the video: raise --time-limit"
            )
        yield frame


def _passes(windows: Sequence[Window]) -> list[list[Window]]:
    """Windows in time order, in as few groups without overlap as possible (usually one)."""
    groups: list[list[Window]] = []
    for window in sorted(windows, key=lambda window: window.start_s):
        for group in groups:
            if (end_s := group[-1].end_s) is not None and end_s <= window.start_s + 1e-6:
                group.append(window)
                break
        else:
            groups.append([window])
    return groups
