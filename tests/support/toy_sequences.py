"""Writes a small store of imported sequences whose features depend on the label."""

from pathlib import Path

import numpy as np

from features.maintenance.import_external import read_sequences, write_external

NAMES = ("distracted", "engaged", "very engaged", "absorbed")


def write_toy_store(
    folder: Path, num_classes: int = 2, num_clips: int = 90, num_steps: int = 6, unlabelled: int = 0
) -> Path:
    """Write a store of fifteen subjects and eight features; the first feature grows with the class index."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, num_classes, num_clips)
    x = rng.normal(size=(num_clips, num_steps, 8)).astype(np.float32)
    x[:, :, 0] += 0.5 * y[:, None]
    y[num_clips - unlabelled :] = -1
    np.savez(
        folder / "features.npz",
        x=x,
        y=y,
        subject=np.array([f"사람{i % 15}" for i in range(num_clips)]),
        label_names=np.array(NAMES[:num_classes]),
    )
    write_external(folder / "clips.zarr", read_sequences(folder / "features.npz"), "toy")
    return folder / "clips.zarr"
