"""A small store with crops from which the labels can be learned: seeded images and a real encoder."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np

from features.manifest import Clip
from features.recipe import EncoderId, Pixels, Recipe
from features.store.store import FeatureStore, plan
from seqmodel.encoders.backbone import Encoder, build_encoder

T = 6
PIXELS = Pixels(("ab" * 32,), crop_px=32, fps=3, window_s=2)
NAMES = ("distracted", "engaged")


@cache
def encoder(name: str = "mobilenet_v3_large") -> tuple[Encoder, EncoderId]:
    """The encoder with seeded random weights, built once per process."""
    return build_encoder(name, "random")


def write_crop_store(
    path: Path,
    num_clips: int = 32,
    num_subjects: int = 8,
    *,
    crops: bool = True,
    cropless: tuple[int, ...] = (),
) -> FeatureStore:
    """Write a finished store at `path`. In an engaged clip, a bright bar is vertical in most frames.

    The rows of `cropless` hold no crops. The split of every clip is set: half of the subjects are train, a
    quarter val and a quarter test.
    """
    clips = [_clip(index, num_subjects) for index in range(num_clips)]
    identity = encoder()[1]
    store = plan(
        path, clips, Recipe(PIXELS, identity), numerics={"backend": "torch", "precision": "f32"}, crops=crops
    )
    for row in range(num_clips):
        frames = np.full((T, 6), 5.0, np.float32)
        frames[:, 5] = np.arange(T) != 4  # one frame without a face
        embeddings, jpegs = _features(row)
        store.write_row(
            row, embeddings=embeddings, frames=frames, crops=jpegs if crops and row not in cropless else None
        )
    store.finalize()
    return store


@cache
def _features(row: int) -> tuple[np.ndarray, list[bytes]]:
    """Embeddings and JPEG crops of a row, whose frame 4 has no face; computed once per process."""
    images = clip_images(row)
    files = [cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1] for image in images]
    embeddings = encoder()[0].embed(images)
    embeddings[4] = 0
    return embeddings, [b"" if t == 4 else file.tobytes() for t, file in enumerate(files)]


def clip_images(row: int) -> np.ndarray:
    """(T,32,32,3) uint8: noise that is seeded by the row, and a bar that is vertical when engaged."""
    rng = np.random.default_rng(row)
    images = rng.integers(0, 120, (T, 8, 8, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    for t in range(T):
        is_vertical = (row % 2 == 1) != (t == row % T)
        at = int(rng.integers(8, 20))
        if is_vertical:
            images[t, :, at : at + 5] = 230
        else:
            images[t, at : at + 5] = 230
    return images


def _clip(index: int, num_subjects: int) -> Clip:
    subject = index // 2 % num_subjects
    split = "train" if subject % 4 < 2 else "val" if subject % 4 == 2 else "test"
    return Clip(
        f"{index}.mp4#0",
        Path(f"{index}.mp4"),
        end_s=2.0,
        subject=f"p{subject}",
        split=split,
        labels={"label": NAMES[index % 2]},
    )
