"""Augmentation changes all frames of a clip in the same way, and never its labels or dtype."""

import dataclasses

import numpy as np
import pytest
import torch

from seqmodel.finetuning.augmentation import Augmentation, augment_clip

STILL = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def clip(num_frames: int = 4, subset: int = 48) -> torch.Tensor:
    """One picture, `num_frames` times."""
    coarse = np.random.default_rng(0).integers(0, 256, (1, 6, 6, 3), np.uint8)
    picture = coarse.repeat(subset // 6, 1).repeat(subset // 6, 2)
    return torch.from_numpy(picture.repeat(num_frames, 0))


@pytest.mark.parametrize("seed", range(8))
def test_every_frame_of_a_clip_changes_in_the_same_way(seed: int) -> None:
    out = augment_clip(clip(), Augmentation(blur=0.5, erase=0.5), np.random.default_rng(seed))
    assert out.shape == clip().shape
    assert out.dtype == torch.uint8
    assert all(torch.equal(frame, out[0]) for frame in out)
    assert not torch.equal(out, clip())


def test_differences_between_frames_remain() -> None:
    moving = clip()
    moving[2, 10:30, 10:30] = 255
    out = augment_clip(moving, Augmentation(erase=0), np.random.default_rng(1)).float()
    assert torch.equal(out[0], out[1])
    assert (out[2] - out[0]).abs().max() > 50


def test_augmentation_is_repeatable_and_differs_between_seeds() -> None:
    one, again, other = (augment_clip(clip(), Augmentation(), np.random.default_rng(s)) for s in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_augmentation_without_parts_changes_nothing_and_flip_mirrors() -> None:
    assert torch.equal(augment_clip(clip(), STILL, np.random.default_rng(0)), clip())
    mirrored = augment_clip(clip(), dataclasses.replace(STILL, flip=1.0), np.random.default_rng(0))
    assert torch.equal(mirrored, clip().flip(2))


@pytest.mark.parametrize("part", [f.name for f in dataclasses.fields(Augmentation)])
def test_each_part_of_the_augmentation_works_alone(part: str) -> None:
    strong = {"rotation_deg": 20.0, "blur": 1.0, "erase": 1.0, "flip": 1.0}.get(part, 0.3)
    out = augment_clip(clip(), dataclasses.replace(STILL, **{part: strong}), np.random.default_rng(3))
    assert not torch.equal(out, clip())


def test_brightness_changes_the_embedding_continuously() -> None:
    """Means stay within the range of the transform: no picture is saturated as a whole."""
    for seed in range(20):
        out = augment_clip(clip(1), Augmentation(erase=0), np.random.default_rng(seed)).float().mean()
        assert 0.6 < out / clip(1).float().mean() < 1.45
