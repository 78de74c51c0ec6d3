"""Writes a small feature store of seeded numbers, without videos."""

import sys
from pathlib import Path

import numpy as np

from features.manifest import Clip
from features.recipe import EncoderId, GeometryId, Pixels, Recipe
from features.store.store import FeatureStore, plan

T, D, G = 6, 8, 3
PIXELS = Pixels(("ab" * 32,), crop_px=32, fps=3, window_s=2)
RECIPE = Recipe(PIXELS, EncoderId("mobilenet_v3_large", "random:0", "cd" * 32, D))
WITH_GEOMETRY = Recipe(PIXELS, RECIPE.encoder, GeometryId("ef" * 32, ("smile", "blink", "yaw")))


def clips_of(num_clips: int, folder: Path = Path("nowhere"), num_subjects: int = 4) -> list[Clip]:
    """Clips of several subjects with two label columns and a slice column."""
    return [
        Clip(
            f"영상/{index}.mp4#0",
            folder / f"{index}.mp4",
            end_s=2.0,
            subject=f"p{index % num_subjects}",
            labels={"label": ("distracted", "engaged")[index // num_subjects % 2], "level": str(index % 3)},
            slices={"camera": ("앞", "옆")[index % 2]},
        )
        for index in range(num_clips)
    ]


def row_values(row: int, num_frames: int = T) -> dict[str, np.ndarray]:
    """Embeddings, frames and geometry of a row; every fourth frame has no face."""
    generator = np.random.default_rng(row)
    without_face = np.arange(num_frames) % 4 == 3
    embeddings = generator.normal(size=(num_frames, D)).astype(np.float16)
    embeddings[without_face] = 0
    frames = generator.uniform(1, 99, (num_frames, 6)).astype(np.float32)
    frames[:, 0] = np.arange(num_frames) / 3
    frames[without_face, 1:5] = np.nan
    frames[:, 5] = np.where(without_face, 0, 0.9)
    geometry = generator.normal(size=(num_frames, G)).astype(np.float32)
    geometry[without_face] = np.nan
    return {"embeddings": embeddings, "frames": frames, "geometry": geometry}


def crops_of(row: int, num_frames: int = T) -> list[bytes]:
    """JPEG crops of a row; b"" for a frame without a face."""
    import cv2

    generator = np.random.default_rng(row)
    files = []
    for index in range(num_frames):
        image = generator.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        done, file = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        assert done
        files.append(b"" if index % 4 == 3 else file.tobytes())
    return files


def write_store(
    path: Path | str, num_clips: int = 12, *, geometry: bool = True, crops: bool = False
) -> FeatureStore:
    """Write a finished store at `path`."""
    recipe = WITH_GEOMETRY if geometry else RECIPE
    store = plan(path, clips_of(num_clips), recipe, numerics={"backend": "test"}, crops=crops)
    for row in range(num_clips):
        fill_row(store, row, geometry=geometry, crops=crops)
    store.finalize()
    return store


def fill_row(store: FeatureStore, row: int, *, geometry: bool = True, crops: bool = False) -> None:
    """Write every part of one row."""
    values = row_values(row)
    store.write_row(
        row,
        embeddings=values["embeddings"],
        frames=values["frames"],
        geometry=values["geometry"] if geometry else None,
        crops=crops_of(row) if crops else None,
    )


def main(argv: list[str]) -> None:
    """Plan a store of `count` clips, write every second row from `shard` on. argv: [path, shard, count]."""
    shard, count = int(argv[1]), int(argv[2])
    store = plan(argv[0], clips_of(count), WITH_GEOMETRY, numerics={"backend": "test"}, crops=True)
    missing = {int(row) for part in ("embeddings", "geometry", "crops") for row in store.missing(part)}
    for row in sorted(missing):
        if row % 2 == shard:
            fill_row(store, row, crops=True)
    store.finalize()


if __name__ == "__main__":
    main(sys.argv[1:])
