"""From what a user asked to what the workers do: clips, windows, the recipe, the store's rows, jobs."""

import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from extract.config import ExtractConfig, shard_of
from extract.pipeline.extractor import JPEG_QUALITY, ExtractorConfig, Job, Part, Window
from extract.pipeline.writer import file_state
from extract.video.reader import probe
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
"""Opening a container waits for the disk more than it computes."""
TIME_LIMIT_S, TIME_LIMIT_RATIO = 120.0, 10.0
"""A video may take two minutes and ten times its length: 4K on one slow core stays below half of that."""

GPU_BYTES = 2e9
"""Of a GPU's memory, for one worker: its CUDA context, the network, and a window of crops on its way."""


@dataclass(frozen=True)
class WindowPlan:
    """A manifest's clips, cut into windows."""

    windows: tuple[Clip, ...]
    unreadable: dict[str, str]
    """Reason by clip_id of the windows whose video cannot be opened; they become failed rows."""
    durations_s: dict[Path, float]
    dropped_s: float
    """Seconds in remainders shorter than half a window."""


def plan_windows(clips: Sequence[Clip], window_s: float, out: str) -> WindowPlan:
    """Ask every video for its length and cut the clips into windows.

    A video that cannot be opened now has the length it had when it was extracted into the store at `out`, so
    that what is done of it stays.
    """
    paths = list(dict.fromkeys(clip.path for clip in clips))
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        lengths = dict(zip(paths, pool.map(_length, paths), strict=True))
    known = _known_lengths_s(out) if any(isinstance(length, str) for length in lengths.values()) else {}
    cut: list[Clip] = []
    unreadable: dict[str, str] = {}
    dropped = 0.0
    for clip in clips:
        length = lengths[clip.path]
        if isinstance(length, str):
            source, assumed_s = clip.clip_id.rpartition("#")[0], clip.end_s or clip.start_s + window_s
            own = windows(clip, known.get(source, assumed_s), window_s)
            unreadable |= {window.clip_id: length for window in own}
        else:
            own = windows(clip, length, window_s)
            dropped += dropped_s(clip, length, window_s)
        cut.extend(own)
    durations_s = {path: length for path, length in lengths.items() if isinstance(length, float)}
    return WindowPlan(tuple(cut), unreadable, durations_s, dropped)


def _known_lengths_s(out: str) -> dict[str, float]:
    """By source, where its last window in the store ends; nothing where there is no store."""
    lengths: dict[str, float] = defaultdict(float)
    if (store := store_at(out)) is not None:
        table = store.table()
        for source, end_s in zip(table.source.tolist(), table.end_s.tolist(), strict=True):
            lengths[source] = max(lengths[source], end_s)
    return lengths


def store_at(out: str) -> FeatureStore | None:
    """The store that is there; None where there is none yet."""
    try:
        return FeatureStore.open(out)
    except ValueError:
        return None


def make_extractor_config(config: ExtractConfig) -> tuple[ExtractorConfig, dict[str, Any]]:
    """What the workers need, the recipe among it, and the numerics to record.

    Opens the engine once, so that weights are fetched and converted before the workers all want them, and
    that all of them compute in the precision chosen here. Raises ValueError when a model file is missing.
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
    """What a store was made with."""
    packages = ("brainbuddy", "av", "mediapipe", "opencv-contrib-python", "numpy", "zarr")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def jobs_of(
    store: FeatureStore, cut: WindowPlan, config: ExtractConfig, lacking: dict[str, set[Part]]
) -> list[Job]:
    """One job for each video that lacks something, those with most windows first.

    lacking: what `missing_parts` says. Videos that cannot be opened are left out.
    """
    row_of = store.row_of_clip()
    by_video: dict[Path, list[Window]] = defaultdict(list)
    for clip in cut.windows:
        if clip.clip_id in lacking and clip.clip_id not in cut.unreadable:
            parts = frozenset(lacking[clip.clip_id])
            by_video[clip.path].append(Window(row_of[clip.clip_id], clip.start_s, clip.end_s, parts))
    jobs = []
    for path, wanted in by_video.items():
        limit_s = config.time_limit or TIME_LIMIT_S + TIME_LIMIT_RATIO * cut.durations_s[path]
        jobs.append(Job(path, tuple(wanted), limit_s, file_state(path)))
    return sorted(jobs, key=lambda job: -len(job.windows))  # stable: equal lengths keep the manifest's order


def resolved(config: ExtractConfig) -> ExtractConfig:
    """The same with absolute paths, for processes in another folder."""
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
    """What is still to be extracted of this shard's windows, by clip id; those that lack nothing are absent.

    planned: the store, planned for these clips; without it, looks at what is there, if anything is: a clip
    that it does not have, or whose file changed, lacks all. Failed clips are left as they are unless
    `retry_failed`.
    """
    parts: list[Part] = ["embeddings"]
    parts += ["geometry"] if config.geometry == "on" else []
    parts += ["crops"] if config.crops == "jpeg" else []
    own = select_shard(clips, config.shard)
    store = planned or store_at(config.out)
    if store is None:
        return {clip.clip_id: set(parts) for clip in own}
    changed = set() if planned else store.changed(own)
    row_of, failures = store.row_of_clip(), store.rows.failures()
    there = {part: store.present(part) for part in parts}
    lacking: dict[str, set[Part]] = {}
    for clip in own:
        row = row_of.get(clip.clip_id)
        if row is None or clip.clip_id in changed:
            lacking[clip.clip_id] = set(parts)
        elif config.retry_failed or not failures[row]:
            lacking[clip.clip_id] = {part for part in parts if not there[part][row]}
    return {clip_id: wanted for clip_id, wanted in lacking.items() if wanted}


def num_workers(config: ExtractConfig, device: str) -> int:
    """Processes: what was asked for, else one for each usable core that the GPUs have memory for.

    Decoding and finding faces is the CPU's work also where there is a GPU.
    """
    if config.workers is not None:
        return config.workers
    if not device.startswith("cuda"):
        return usable_cores()
    import torch

    gpus = range(torch.cuda.device_count()) if device == "cuda" else [int(device.partition(":")[2])]
    return max(1, min(usable_cores(), sum(int(torch.cuda.mem_get_info(gpu)[0] / GPU_BYTES) for gpu in gpus)))


def select_shard(clips: Iterable[Clip], shard: str) -> list[Clip]:
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


def _precision(config: ExtractConfig) -> Precision:
    """What was asked for; `auto` goes on as the store that is there was begun."""
    if config.precision != "auto":
        return config.precision
    store = store_at(config.out)
    begun = store.numerics.get("precision") if store else None
    return "f32" if begun == "f32" else "bf16" if begun == "bf16" else "auto"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
