"""From what a user asked to what the workers do: clips, windows, the recipe, the store's rows, jobs.

Knows nothing about processes or pixels.
"""

import platform
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from extract.config import ExtractConfig, shard_of
from extract.pipeline import JPEG_QUALITY, Job, Part, Setup, Window
from extract.video import probe
from features.manifest import Clip, dropped_s, windows
from features.recipe import GeometryId, Pixels, Recipe
from features.store import DONE, FeatureStore
from seqmodel.assets import detector_file, keep_detector, landmarker_file, sha256_of
from seqmodel.engine import open_engine

PROBE_THREADS = 4
"""Opening a container waits for the disk more than it computes."""
TIME_LIMIT_S, TIME_LIMIT_RATIO = 120.0, 10.0
"""A video may take two minutes and ten times its length: 4K on one slow core stays below half of that."""


@dataclass(frozen=True)
class Cut:
    """A manifest's clips, cut into windows."""

    windows: tuple[Clip, ...]
    unreadable: dict[str, str]
    """Reason by clip_id of the windows whose video cannot be opened; they become failed rows."""
    durations_s: dict[Path, float]
    dropped_s: float
    """Seconds in remainders shorter than half a window."""


def cut_windows(clips: Sequence[Clip], window_s: float) -> Cut:
    """Ask every video for its length and cut the clips into windows."""
    paths = list(dict.fromkeys(clip.path for clip in clips))
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        lengths = dict(zip(paths, pool.map(_length, paths), strict=True))
    cut: list[Clip] = []
    unreadable: dict[str, str] = {}
    dropped = 0.0
    for clip in clips:
        length = lengths[clip.path]
        if isinstance(length, str):
            own = windows(clip, clip.end_s or clip.start_s + window_s, window_s)
            unreadable |= {window.clip_id: length for window in own}
        else:
            own = windows(clip, length, window_s)
            dropped += dropped_s(clip, length, window_s)
        cut.extend(own)
    durations = {path: length for path, length in lengths.items() if isinstance(length, float)}
    return Cut(tuple(cut), unreadable, durations, dropped)


def make_setup(config: ExtractConfig) -> tuple[Setup, dict[str, Any]]:
    """What the workers need, the recipe among it, and the numerics to record.

    Opens the engine once, so that weights are fetched and converted before the workers all want them. Raises
    ValueError when a model file is missing.
    """
    names = ("short", "full") if config.detector == "full" else (config.detector,)
    detectors = tuple(detector_file(name) for name in names)
    if config.detector not in ("short", "full"):
        keep_detector(detectors[0])
    landmarker = landmarker_file() if config.geometry == "on" else None
    pixels = Pixels(tuple(sha256_of(file) for file in detectors), fps=config.fps, window_s=config.window)
    engine = open_engine(
        config.encoder,
        config.weights,
        backend=config.backend,
        device=config.device,
        precision=config.precision,
        threads=1,
        crop_px=pixels.crop_px,
    )
    geometry = None
    if landmarker is not None:
        from extract.geometry import FEATURES

        geometry = GeometryId(sha256_of(landmarker), FEATURES)
    setup = Setup(
        Recipe(pixels, engine.encoder_id, geometry),
        detectors,
        landmarker,
        config.weights,
        config.backend,
        config.device,
        config.precision,
        config.decode,
    )
    numerics = dict(engine.numerics) | {"decode": config.decode}
    if config.crops == "jpeg":
        numerics["crops"] = f"jpeg q{JPEG_QUALITY}"
    return setup, numerics


def versions() -> dict[str, str]:
    """What a store was made with."""
    names = ("brainbuddy", "av", "mediapipe", "opencv-contrib-python", "numpy", "zarr")
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def jobs_of(store: FeatureStore, cut: Cut, config: ExtractConfig, *, with_geometry: bool) -> list[Job]:
    """One job for each video of this shard that lacks something, those with most windows first.

    Failed rows stay as they are unless `retry_failed`. Videos that cannot be opened are left out.
    """
    table = store.table()
    row_of = {str(name): row for row, name in enumerate(table.clip_id)}
    lacking: dict[int, set[Part]] = {}
    parts: list[Part] = ["embeddings"]
    parts += ["geometry"] if with_geometry else []
    parts += ["crops"] if config.crops == "jpeg" else []
    for part in parts:
        for row in store.missing(part):
            lacking.setdefault(int(row), set()).add(part)
    if config.retry_failed:
        for row in store.failed():
            is_embedded = table.state[row] == DONE
            lacking[int(row)] = {part for part in parts if part != "embeddings" or not is_embedded}
    by_video: dict[Path, list[Window]] = {}
    for clip in own_share(cut.windows, config.shard):
        row = row_of[clip.clip_id]
        if row in lacking and clip.clip_id not in cut.unreadable:
            window = Window(row, clip.start_s, clip.end_s, frozenset(lacking[row]))
            by_video.setdefault(clip.path, []).append(window)
    jobs = [
        Job(path, tuple(wanted), _time_limit_s(config, cut.durations_s[path]))
        for path, wanted in by_video.items()
    ]
    jobs.sort(key=lambda job: -len(job.windows))  # stable: equal lengths keep the manifest's order
    return jobs


def own_share(clips: Iterable[Clip], shard: str) -> list[Clip]:
    """The clips of every n-th video, counted in manifest order."""
    index, count = shard_of(shard)
    videos: dict[Path, int] = {}
    return [clip for clip in clips if videos.setdefault(clip.path, len(videos)) % count == index]


def _length(path: Path) -> float | str:
    """Seconds, or why the file cannot be opened."""
    try:
        return probe(path).duration_s
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")


def _time_limit_s(config: ExtractConfig, duration_s: float) -> float:
    return config.time_limit or TIME_LIMIT_S + TIME_LIMIT_RATIO * duration_s


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
