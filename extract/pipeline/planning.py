"""Planning of an extraction: windows, recipe, missing parts and jobs, from the options."""

import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from extract.config import ExtractConfig, shard_of
from extract.pipeline.extractor import JPEG_QUALITY
from extract.pipeline.types import ExtractorConfig, Job, Part, Window
from extract.pipeline.writer import file_state
from extract.video.reader import probe
from features.cli import StoreNotFoundError
from features.cpu import usable_cores
from features.manifest import Clip, dropped_s, windows
from features.recipe import CROP_SQUARE, OWN_SQUARE, GeometryId, Pixels, Recipe
from features.store.location import location_of
from features.store.store import FeatureStore
from seqmodel.encoders.engine import Precision, open_engine
from seqmodel.encoders.model_files import (
    SHORT_DETECTOR,
    detector_file,
    keep_detector,
    landmarker_file,
    sha256_of,
)

PROBE_THREADS = 4
"""Threads that open containers: this waits for the disk more than it computes."""
TIME_LIMIT_S, TIME_LIMIT_RATIO = 120.0, 10.0
"""Time limit of a video: 120 s plus ten times its length. 4K on one slow core takes less than half of it."""

GPU_BYTES = 2e9
"""GPU memory of one worker: its CUDA context, the network, and the crops of one window."""


@dataclass(frozen=True)
class WindowPlan:
    """The windows of a manifest's clips."""

    windows: tuple[Clip, ...]
    unreadable: dict[str, str]
    """Failure reason by clip id, for windows whose video cannot be opened; they become failed rows."""
    durations_s: dict[Path, float]
    """Length of each video that can be opened, seconds."""
    dropped_s: float
    """Total length of trailing segments shorter than half a window, seconds."""


def plan_windows(clips: Sequence[Clip], window_s: float, out: str) -> WindowPlan:
    """Read the length of every video and divide the clips into windows.

    For a video that cannot be opened now, the length from the store at `out` is used, so that its extracted
    rows stay.
    """
    paths = list(dict.fromkeys(clip.path for clip in clips))
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        lengths = dict(zip(paths, pool.map(_length, paths), strict=True))
    known = _known_lengths_s(out) if any(isinstance(length, str) for length in lengths.values()) else {}
    all_windows: list[Clip] = []
    unreadable: dict[str, str] = {}
    dropped = 0.0
    for clip in clips:
        length = lengths[clip.path]
        if isinstance(length, str):
            source, assumed_s = clip.clip_id.rpartition("#")[0], clip.end_s or clip.start_s + window_s
            clip_windows = windows(clip, known.get(source, assumed_s), window_s)
            unreadable |= {window.clip_id: length for window in clip_windows}
        else:
            clip_windows = windows(clip, length, window_s)
            dropped += dropped_s(clip, length, window_s)
        all_windows.extend(clip_windows)
    durations_s = {path: length for path, length in lengths.items() if isinstance(length, float)}
    return WindowPlan(tuple(all_windows), unreadable, durations_s, dropped)


def _known_lengths_s(out: str) -> dict[str, float]:
    """End time of the last window in the store, by video (source); empty without a store."""
    lengths: dict[str, float] = defaultdict(float)
    if (store := store_at(out)) is not None:
        table = store.table()
        for source, end_s in zip(table.source.tolist(), table.end_s.tolist(), strict=True):
            lengths[source] = max(lengths[source], end_s)
    return lengths


def store_at(out: str) -> FeatureStore | None:
    """The store at `out`; None if there is none yet."""
    try:
        return FeatureStore.open(out)
    except StoreNotFoundError:
        return None


def make_extractor_config(config: ExtractConfig) -> tuple[ExtractorConfig, dict[str, Any]]:
    """(configuration of the workers with the recipe, numerics to record in the store).

    Opens the engine once, so that the weights are downloaded and converted before the workers start, and all
    workers use the precision chosen here. Raises UserError when a model file is missing.
    """
    detectors = tuple(
        detector_file(name)
        for name in (("short", "full") if config.detector == "full" else (config.detector,))
    )
    if config.detector not in ("short", "full"):
        keep_detector(detectors[0])
    landmarker = landmarker_file() if config.geometry == "on" else None
    pixels = Pixels(tuple(sha256_of(file) for file in detectors), fps=config.fps, window_s=config.window)
    engine = open_engine(
        config.encoder,
        config.weights,
        backend=config.backend,
        device=config.device,
        precision=_precision(config),
        threads=1,
        crop_px=pixels.crop_px,
    )
    geometry = None
    if landmarker is not None:
        from extract.face.geometry import FEATURES

        square = CROP_SQUARE if pixels.detectors[0] == SHORT_DETECTOR.sha256 else OWN_SQUARE
        geometry = GeometryId(sha256_of(landmarker), FEATURES, square)
    extractor_config = ExtractorConfig(
        Recipe(pixels, engine.encoder_id, geometry),
        detectors,
        landmarker,
        config.weights,
        config.backend,
        engine.numerics["device"],
        engine.numerics["precision"],
    )
    numerics = dict(engine.numerics)
    if config.crops == "jpeg":
        numerics["crops"] = f"jpeg q{JPEG_QUALITY}"
    return extractor_config, numerics


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the features, to record in the store."""
    packages = ("brainbuddy", "av", "mediapipe", "opencv-contrib-python", "numpy", "zarr")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def jobs_of(
    store: FeatureStore, window_plan: WindowPlan, config: ExtractConfig, missing: dict[str, set[Part]]
) -> list[Job]:
    """One job for each video with missing parts; videos with most windows first.

    missing: result of `missing_parts`. Videos that cannot be opened are left out.
    """
    row_of = store.row_of_clip()
    by_video: dict[Path, list[Window]] = defaultdict(list)
    for clip in window_plan.windows:
        if clip.clip_id in missing and clip.clip_id not in window_plan.unreadable:
            parts = frozenset(missing[clip.clip_id])
            by_video[clip.path].append(Window(row_of[clip.clip_id], clip.start_s, clip.end_s, parts))
    jobs = []
    for path, wanted in by_video.items():
        limit_s = config.time_limit or TIME_LIMIT_S + TIME_LIMIT_RATIO * window_plan.durations_s[path]
        jobs.append(Job(path, tuple(wanted), limit_s, file_state(path)))
    return sorted(jobs, key=lambda job: -len(job.windows))  # stable: equal lengths keep the manifest's order


def resolved(config: ExtractConfig) -> ExtractConfig:
    """The options with absolute paths, for processes with another working folder."""
    folder = location_of(config.out).folder
    return replace(
        config,
        data=config.data.absolute(),
        out=config.out if folder is None else str(folder.absolute()),
        weights=_absolute_file(config.weights),
        detector=_absolute_file(config.detector),
    )


def _absolute_file(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).is_file() else name


def missing_parts(
    config: ExtractConfig, clips: Iterable[Clip], planned: FeatureStore | None = None
) -> dict[str, set[Part]]:
    """Missing parts of this shard's windows, by clip id; complete windows are left out.

    planned: the store, planned for these clips. Without it, the store at `config.out` is read, if there is
    one; all parts of a clip are missing if the store does not have it or its file has changed. Failed clips
    are left out unless `retry_failed`.
    """
    parts: list[Part] = ["embeddings"]
    parts += ["geometry"] if config.geometry == "on" else []
    parts += ["crops"] if config.crops == "jpeg" else []
    shard = select_shard(clips, config.shard)
    store = planned or store_at(config.out)
    if store is None:
        return {clip.clip_id: set(parts) for clip in shard}
    changed = set() if planned else store.changed(shard)
    row_of, failures = store.row_of_clip(), store.rows.texts("failure")
    present = {part: store.present(part) for part in parts}
    missing: dict[str, set[Part]] = {}
    for clip in shard:
        row = row_of.get(clip.clip_id)
        if row is None or clip.clip_id in changed:
            missing[clip.clip_id] = set(parts)
        elif config.retry_failed or not failures[row]:
            missing[clip.clip_id] = {part for part in parts if not present[part][row]}
    return {clip_id: clip_parts for clip_id, clip_parts in missing.items() if clip_parts}


def num_workers(config: ExtractConfig, device: str) -> int:
    """Number of worker processes: `--workers`, else one per usable core, as far as GPU memory allows.

    Decoding and face detection run on the CPU even with a GPU.
    """
    if config.workers is not None:
        return config.workers
    if not device.startswith("cuda"):
        return usable_cores()
    import torch

    gpus = range(torch.cuda.device_count()) if device == "cuda" else [int(device.partition(":")[2])]
    return max(1, min(usable_cores(), sum(int(torch.cuda.mem_get_info(gpu)[0] / GPU_BYTES) for gpu in gpus)))


def select_shard(clips: Iterable[Clip], shard: str) -> list[Clip]:
    """The clips of shard i/n: of every n-th video in manifest order, starting with the i-th."""
    index, count = shard_of(shard)
    videos: dict[Path, int] = {}
    return [clip for clip in clips if videos.setdefault(clip.path, len(videos)) % count == index]


def _length(path: Path) -> float | str:
    """Length of a video in seconds, or the reason why it cannot be opened."""
    try:
        return probe(path).duration_s
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")


def _precision(config: ExtractConfig) -> Precision:
    """`--precision`; for `auto`, the precision of the existing store."""
    if config.precision != "auto":
        return config.precision
    store = store_at(config.out)
    stored = store.numerics.get("precision") if store else None
    return "f32" if stored == "f32" else "bf16" if stored == "bf16" else "auto"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
