"""Activations at the cut: what the frozen blocks of an encoder make of every crop, computed once.

The project's own idea, cached features, applied inside the network: while the blocks before `cut` do not
learn, they say the same in every epoch. A cache is a folder with one float16 file, one mark for each finished
row, and a note of what it was made from; a cache that was interrupted goes on, one of other weights or of
another seed is made anew. It holds pictures of people, blurred: whoever trains deletes it at the end. N
clips, V versions (the crops as they are, then augmented ones), T frames, (c,h,w) one frame's activations.
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

from features.datasets import Batch, CropClips
from seqmodel.encoders.backbone import Encoder
from seqmodel.encoders.engine import compiled
from seqmodel.finetuning.augmentation import Augmentation, augment_clip

ACTIVATIONS, DONE, NOTE = "activations.f16", "done.u8", "cut.json"
ROOM_LEFT = 1.1
"""A disk is full enough when this times the cache would not fit."""


@dataclass(frozen=True)
class ActivationDataset:
    """Clips as activations at the cut; the same face as `CropClips`."""

    clips: CropClips
    path: Path
    shape: tuple[int, ...]
    """(N,V,T,c,h,w) of the float16 file. It is read, not mapped: memory stays flat however large it is."""
    valid: dict[str, np.ndarray]
    geometry: np.ndarray | None = None

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
        """x["activations"] float16 (B,T,c,h,w) of one version, x["geometry"] where it is read; valid;
        labels.
        """
        x = {"activations": np.stack([self._clip(int(index), version) for index in indices])}
        if self.geometry is not None:
            x["geometry"] = self.geometry[indices]
        return x, {name: mask[indices] for name, mask in self.valid.items()}, self.labels[indices]

    def _clip(self, index: int, version: int) -> np.ndarray:
        """(T,c,h,w) float16."""
        count, place = int(np.prod(self.shape[2:])), index * self.num_versions + version
        return np.fromfile(self.path, np.float16, count, offset=2 * count * place).reshape(self.shape[2:])


def frame_shape(encoder: Encoder, cut: int, crop_px: int) -> tuple[int, int, int]:
    """(c,h,w) of what enters block `cut`."""
    with torch.inference_mode():
        c, h, w = Prefix(encoder, cut)(torch.zeros(1, crop_px, crop_px, 3, dtype=torch.uint8)).shape[1:]
    return c, h, w


class Prefix(nn.Module):
    """The blocks before the cut, from crops (F,H,W,3) uint8 to activations (F,c,h,w)."""

    def __init__(self, encoder: Encoder, cut: int) -> None:
        super().__init__()
        self.encoder, self.cut = encoder, cut

    def forward(self, crops: Tensor) -> Tensor:
        """What enters block `cut`, float32."""
        return self.encoder.blocks[: self.cut](self.encoder.pixels(crops))


def prefix_runner(
    encoder: Encoder, cut: int, crop_px: int, device: str
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from crops (F,H,W,3) uint8 to float16 (F,c,h,w), what enters block `cut`.

    On a CPU it is compiled, which is two to three times as fast as torch.
    """
    prefix = Prefix(encoder, cut)
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
    """The cache in `folder`, with the rows that an interrupted run left if it was `made_from` the same."""
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
    """Pass only when the disk has room for what all of these caches still lack.

    Together, because their files take no room before they are filled. Raises ValueError.
    """
    lacking = (cache.num_bytes * (cache.done == 0).mean() for cache in caches)
    size, free = sum(lacking), shutil.disk_usage(folder).free
    if size * ROOM_LEFT > free:
        raise ValueError(
            f"activations at the cut take {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "free some, cut later (--unfreeze-from), or compute them anew each epoch (--activation-cache off)"
        )


@dataclass(frozen=True)
class ActivationCache:
    """A cache being filled. Written by plain writes: a full disk is then an error, not the end of the
    process.
    """

    folder: Path
    shape: tuple[int, ...]
    """(N,V,T,c,h,w)."""
    clips: CropClips

    @property
    def done(self) -> np.ndarray:
        """(N,) uint8: 1 where a row is there."""
        return np.fromfile(self.folder / DONE, np.uint8)

    @property
    def num_bytes(self) -> int:
        """Size on disk, once filled."""
        return 2 * int(np.prod(self.shape))

    def fill(
        self,
        run: Callable[[np.ndarray], np.ndarray],
        rows: np.ndarray,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> Iterable[int]:
        """Compute what is missing of these rows; yields each row when it is there. Every version after the
        first is a draw of `augmentation`, the same each time under one seed. OSError when the disk is full.
        """
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

    def source(self, geometry: np.ndarray | None) -> ActivationDataset:
        """The filled cache as something to learn from."""
        valid = {"activations" if k == "crops" else k: mask for k, mask in self.clips.valid.items()}
        return ActivationDataset(self.clips, self.folder / ACTIVATIONS, self.shape, valid, geometry)
