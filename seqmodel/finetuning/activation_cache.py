"""The activation cache: outputs of the frozen blocks of an encoder for every crop, computed once.

The blocks before `first_block` are frozen, so their outputs are the same in every epoch. A cache is a folder
with one float16 file, one byte for each finished row, and a JSON note of its sources. An interrupted cache is
continued; a cache of other weights or another seed is replaced. It contains blurred pictures of people, so
fine-tuning deletes it at the end. N clips, V versions (original crops, then augmented ones), T frames,
(c,h,w) one frame's activations.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from features.cli import UserError
from features.datasets import Batch, CropClips
from seqmodel.encoders.backbone import Encoder
from seqmodel.encoders.engine import compiled
from seqmodel.finetuning.augmentation import Augmentation, augment_clip

ACTIVATIONS, DONE, NOTE = "activations.f16", "done.u8", "source.json"
ROOM_LEFT = 1.1
"""Factor on the size of the cache for the required free disk space."""


@dataclass(frozen=True)
class ActivationDataset:
    """Clips as cached activations; the same methods as `CropClips`."""

    clips: CropClips
    path: Path
    shape: tuple[int, ...]
    """(N,V,T,c,h,w) of the float16 file. It is read, not memory-mapped, so memory does not grow with its
    size."""
    valid: dict[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class indices."""
        return self.clips.labels

    @property
    def clip_ids(self) -> np.ndarray:
        """(N,) str."""
        return self.clips.clip_ids

    @property
    def num_versions(self) -> int:
        """V."""
        return self.shape[1]

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: np.ndarray, version: int = 0) -> Batch:
        """(x, valid, labels) of these clips: x["activations"] float16 (B,T,c,h,w) of one version."""
        x = {"activations": np.stack([self._clip(int(index), version) for index in indices])}
        return x, {name: mask[indices] for name, mask in self.valid.items()}, self.labels[indices]

    def _clip(self, index: int, version: int) -> np.ndarray:
        """(T,c,h,w) float16."""
        count, position = int(np.prod(self.shape[2:])), index * self.num_versions + version
        return np.fromfile(self.path, np.float16, count, offset=2 * count * position).reshape(self.shape[2:])


def frame_shape(encoder: Encoder, first_block: int, crop_px: int) -> tuple[int, int, int]:
    """(c,h,w) of the input of block `first_block`."""
    with torch.inference_mode():
        c, h, w = Prefix(encoder, first_block)(torch.zeros(1, crop_px, crop_px, 3, dtype=torch.uint8)).shape[
            1:
        ]
    return c, h, w


class Prefix(nn.Module):
    """The encoder blocks before block `first_block`, from crops (F,H,W,3) uint8 to activations (F,c,h,w)."""

    def __init__(self, encoder: Encoder, first_block: int) -> None:
        super().__init__()
        self.encoder, self.first_block = encoder, first_block

    def forward(self, crops: Tensor) -> Tensor:
        """Input of block `first_block`, float32."""
        return self.encoder.blocks[: self.first_block](self.encoder.pixels(crops))


def prefix_runner(
    encoder: Encoder, first_block: int, crop_px: int, device: str
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from crops (F,H,W,3) uint8 to the input of block `first_block`, float16 (F,c,h,w).

    On a CPU it is compiled, which is two to three times as fast as torch.
    """
    prefix = Prefix(encoder, first_block)
    if device == "cpu":
        return compiled(prefix, crop_px)
    prefix.to(device)

    def run(crops: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return prefix(torch.from_numpy(crops).to(device)).half().cpu().contiguous().numpy()

    return run


def open_activation_cache(
    folder: Path, clips: CropClips, shape: tuple[int, int, int], made_from: dict[str, Any], versions: int = 1
) -> "ActivationCache":
    """The cache in `folder`; it keeps the finished rows of an interrupted job with the same `made_from`."""
    full = (len(clips), versions, clips.valid["crops"].shape[1], *shape)
    note = json.dumps({"shape": full, **made_from}, sort_keys=True, ensure_ascii=False)
    path = folder / NOTE
    if not (path.is_file() and path.read_text(encoding="utf-8") == note):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, size in ((ACTIVATIONS, 2 * int(np.prod(full))), (DONE, full[0])):
            with open(folder / name, "wb") as file:
                file.truncate(size)
        path.write_text(note, encoding="utf-8")
    return ActivationCache(folder, full, clips)


def require_room(folder: Path, caches: "Sequence[ActivationCache]") -> None:
    """Check that the disk has space for the missing rows of all these caches together.

    Together, because their files are sparse and take no space before they are filled. Raises UserError.
    """
    missing = (cache.num_bytes * (cache.done == 0).mean() for cache in caches)
    size, free = sum(missing), shutil.disk_usage(folder).free
    if size * ROOM_LEFT > free:
        raise UserError(
            f"the activation cache needs {size / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free; "
            "free disk space, freeze more blocks (larger --unfreeze-from), or use --activation-cache off "
            "(slower)"
        )


@dataclass(frozen=True)
class ActivationCache:
    """A cache that is being written. It uses file writes and no memory map, so that a full disk raises an
    error and does not kill the process."""

    folder: Path
    shape: tuple[int, ...]
    """(N,V,T,c,h,w)."""
    clips: CropClips

    @property
    def done(self) -> np.ndarray:
        """(N,) uint8: 1 = the row is finished."""
        return np.fromfile(self.folder / DONE, np.uint8)

    @property
    def num_bytes(self) -> int:
        """Size on disk of the complete cache."""
        return 2 * int(np.prod(self.shape))

    def fill(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        rows: np.ndarray,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> Iterable[int]:
        """Compute the missing ones of these rows; yields each row when it is written. Versions after the
        first are augmented; the same seed gives the same versions. Raises OSError if the disk is full."""
        with open(self.folder / ACTIVATIONS, "r+b") as file, open(self.folder / DONE, "r+b") as marks:
            for row in rows[self.done[rows] == 0].tolist():
                x, valid, _ = self.clips.batch(np.array([row]))
                seen = valid["crops"][0]
                crops = x["crops"][0][seen]
                values = np.zeros(self.shape[1:], np.float16)
                for version in range(len(values) if len(crops) else 0):
                    drawn = crops
                    if version > 0 and augmentation is not None:
                        rng = np.random.default_rng([seed, row, version])
                        drawn = augment_clip(torch.from_numpy(crops), augmentation, rng).contiguous().numpy()
                    values[version, seen] = run(drawn)
                file.seek(row * values.nbytes)
                file.write(values.tobytes())
                file.flush()
                marks.seek(row)
                marks.write(b"\1")
                marks.flush()
                yield row

    def source(self) -> ActivationDataset:
        """The complete cache as a dataset."""
        valid = {"activations" if k == "crops" else k: mask for k, mask in self.clips.valid.items()}
        return ActivationDataset(self.clips, self.folder / ACTIVATIONS, self.shape, valid)
