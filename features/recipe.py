"""The recipe: how pixels become embeddings, for a store, a run and a live session.

extract writes the `Recipe` into the store. Training copies it into the run. Live and fine-tuning are built
from it alone. Two recipes are compatible if the parts in use are equal. Numerics (backend, device,
precision, codecs) are recorded elsewhere and never compared.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from features.cli import UserError

Part = Literal["pixels", "encoder", "geometry"]
PARTS: tuple[Part, ...] = ("pixels", "encoder", "geometry")

FACE_RULE = "iou>=0.3 with the previous face, else the largest"
CROP_RULE = "halved while over twice crop_px, then bilinear"
CROP_SQUARE = "the crop's detector"
OWN_SQUARE = "the landmarker's own detector where it finds the crop's face"
"""MediaPipe's own method; used when another detector made the crops."""


@dataclass(frozen=True)
class Pixels:
    """How face crops and windows are made."""

    detectors: tuple[str, ...]
    """SHA-256 of each face detector file, in the order in which they are tried."""
    face_rule: str = FACE_RULE
    """How one of several faces is selected."""
    margin: float = 0.25
    """Margin added on each edge of the box before cropping, as a fraction of the box's longer edge."""
    crop_px: int = 224
    """Width and height of the square crop, pixels."""
    fps: float = 3.0
    """Sampled frames per second."""
    window_s: float = 10.0
    """Length of a window, seconds."""
    crop_rule: str = CROP_RULE
    """How the square around a face is resized to crop_px."""

    def __post_init__(self) -> None:
        if not self.fps > 0 or not self.window_s > 0:
            raise UserError(f"fps and window_s must be above 0, got {self.fps} and {self.window_s}")
        if self.crop_px < 32 or not 0 <= self.margin <= 2:
            raise UserError(
                f"crop_px must be at least 32 and margin 0 to 2, got {self.crop_px}, {self.margin}"
            )

    @property
    def num_frames(self) -> int:
        """T, the number of sampled frames in a window."""
        return max(1, round(self.fps * self.window_s))


@dataclass(frozen=True)
class EncoderId:
    """The encoder that makes the embeddings."""

    name: str
    """`mobilenet_v3_large`, `efficientnet_lite0`, or `external:NAME:D` for imported features."""
    weights: str
    """Source of the weights: `IMAGENET1K_V2`, `random:0`, a file name, `finetuned:RUN`. Not compared."""
    weights_sha256: str
    """SHA-256 of the weights, which is compared; empty for imported features."""
    dim: int
    """D, the length of one embedding; 0 if only geometry was imported."""


@dataclass(frozen=True)
class GeometryId:
    """The face landmarker that makes the second stream, geometry."""

    model_sha256: str
    """SHA-256 of the face landmarker file; empty for imported features."""
    features: tuple[str, ...]
    """G feature names, in the order of the stored columns."""
    square: str = CROP_SQUARE
    """Which detector's box sets the square around a face that the landmarker gets as input."""


@dataclass(frozen=True)
class Recipe:
    """How pixels become embeddings. `pixels` is None for imported features: live cannot compute those."""

    pixels: Pixels | None
    encoder: EncoderId
    geometry: GeometryId | None = None


_Part = TypeVar("_Part", Pixels, EncoderId, GeometryId)


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-ready dictionaries; `from_json` returns an equal recipe."""
    return dataclasses.asdict(recipe)


def from_json(fields: dict[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote.

    Raises UserError when fields are missing or unknown, so a store of another schema is not misread.
    """

    def whole(kind: type[_Part], part: dict[str, Any]) -> _Part:
        # A missing field is an error: it must not get today's default.
        named: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in part.items()}
        return kind(**named | {field.name: named[field.name] for field in dataclasses.fields(kind)})

    try:
        pixels, geometry = fields["pixels"], fields["geometry"]
        return Recipe(
            whole(Pixels, pixels) if pixels is not None else None,
            whole(EncoderId, fields["encoder"]),
            whole(GeometryId, geometry) if geometry is not None else None,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"not a recipe of this version: {error}") from error


def fingerprint(part: Recipe | Pixels | EncoderId | GeometryId) -> str:
    """The first twelve hex digits of the SHA-256 of the part's canonical JSON."""
    text = json.dumps(dataclasses.asdict(part), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(first: Recipe, second: Recipe, parts: Sequence[Part] = PARTS) -> list[str]:
    """One line for each field that differs, as `pixels.margin: 0.25 vs 0.3` (first, then second recipe)."""
    lines = []
    for part in parts:
        one, other = getattr(first, part), getattr(second, part)
        if one is None or other is None:
            if one is not other:
                texts = ["none" if half is None else "set" for half in (one, other)]
                lines.append(f"{part}: {texts[0]} vs {texts[1]}")
            continue
        for field in dataclasses.fields(one):
            if part == "encoder" and field.name == "weights":
                continue  # a display name only; the sha256 is compared
            values = getattr(one, field.name), getattr(other, field.name)
            if values[0] != values[1]:
                lines.append(f"{part}.{field.name}: {_short(values[0])} vs {_short(values[1])}")
    return lines


def require_equal(first: Recipe, second: Recipe, parts: Sequence[Part] = PARTS, *, where: str = "") -> None:
    """Check that the named parts of two recipes are equal.

    Raises UserError naming every field that differs. `where` names what the first and the second recipe
    belong to, as `run runs/a and store b.zarr`.
    """
    lines = differences(first, second, parts)
    if lines:
        raise UserError(f"recipes differ{f' ({where})' if where else ''}: " + "; ".join(lines))


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_short(item) for item in value[:4]) + (", …]" if len(value) > 4 else "]")
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text or "''"
