"""How pixels became embeddings: the identities of a store, a run and a live session.

A `Recipe` is written into the store by extract, copied into the run by training, and is all that live
and fine-tuning are built from. Two of them mix only where the parts in use are equal. Numerics (backend,
device, precision, codecs) are recorded elsewhere and never compared.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Part = Literal["pixels", "encoder", "geometry"]
PARTS: tuple[Part, ...] = ("pixels", "encoder", "geometry")

FACE_RULE = "iou>=0.3 with the previous face, else the largest"
CROP_RULE = "halved while over twice crop_px, then bilinear"
CROP_SQUARE = "the crop's detector"
OWN_SQUARE = "the landmarker's own detector where it finds the crop's face"
"""MediaPipe's way, for crops of a detector that is not MediaPipe's."""


@dataclass(frozen=True)
class Pixels:
    """What a crop is."""

    detectors: tuple[str, ...]
    """sha256 of each face detector file, in the order in which they are asked."""
    face_rule: str = FACE_RULE
    """Which of several faces is followed."""
    margin: float = 0.25
    """Share of the box's longer side added on each side before cropping."""
    crop_px: int = 224
    """Side of the square crop, pixels."""
    fps: float = 3.0
    """Sampled frames a second."""
    window_s: float = 10.0
    """Length of a window, seconds."""
    crop_rule: str = CROP_RULE
    """How the square around a face becomes crop_px wide."""

    def __post_init__(self) -> None:
        if not self.fps > 0 or not self.window_s > 0:
            raise ValueError(f"fps and window_s must be above 0, got {self.fps} and {self.window_s}")
        if self.crop_px < 32 or not 0 <= self.margin <= 2:
            raise ValueError(
                f"crop_px must be at least 32 and margin 0 to 2, got {self.crop_px}, {self.margin}"
            )

    @property
    def num_frames(self) -> int:
        """T, the number of sampled frames in a window."""
        return max(1, round(self.fps * self.window_s))


@dataclass(frozen=True)
class EncoderId:
    """What an embedding is."""

    name: str
    """`mobilenet_v3_large`, `efficientnet_lite0`, or `external:NAME:D` for imported features."""
    weights: str
    """Where the weights come from, for people: `IMAGENET1K_V2`, `random:0`, a file name, `finetuned:RUN`."""
    weights_sha256: str
    """Which weights they are, for machines; empty for imported features."""
    dim: int
    """D, the length of one embedding; 0 where only geometry was imported."""


@dataclass(frozen=True)
class GeometryId:
    """What the second stream is."""

    model_sha256: str
    """sha256 of the face landmarker file; empty for imported features."""
    features: tuple[str, ...]
    """G names, in the order of the stored columns."""
    square: str = CROP_SQUARE
    """Whose box places the square around a face that the landmarker sees."""


@dataclass(frozen=True)
class Recipe:
    """How pixels became embeddings. `pixels` is None for imported features, which no camera can make."""

    pixels: Pixels | None
    encoder: EncoderId
    geometry: GeometryId | None = None


_Part = TypeVar("_Part", Pixels, EncoderId, GeometryId)


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-ready dictionaries; `from_json` gives it back equal."""
    return dataclasses.asdict(recipe)


def from_json(fields: dict[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote.

    Raises ValueError when fields are missing or unknown, so a store of another schema is not misread.
    """

    def whole(kind: type[_Part], part: dict[str, Any]) -> _Part:
        # A field that is missing must not become today's rule.
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
        raise ValueError(f"not a recipe of this version: {error}") from error


def fingerprint(part: Recipe | Pixels | EncoderId | GeometryId) -> str:
    """Twelve hex digits of the SHA-256 of the part's canonical JSON."""
    text = json.dumps(dataclasses.asdict(part), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(ours: Recipe, theirs: Recipe, parts: Sequence[Part] = PARTS) -> list[str]:
    """One line for each field that differs, as `pixels.margin: 0.25 here, 0.3 there`."""
    lines = []
    for part in parts:
        here, there = getattr(ours, part), getattr(theirs, part)
        if here is None or there is None:
            if here is not there:
                mine, other = ("none" if side is None else "set" for side in (here, there))
                lines.append(f"{part}: {mine} here, {other} there")
            continue
        for field in dataclasses.fields(here):
            if part == "encoder" and field.name == "weights":
                continue  # a name for people; the sha256 is what an embedding depends on
            mine, other = getattr(here, field.name), getattr(there, field.name)
            if mine != other:
                lines.append(f"{part}.{field.name}: {_short(mine)} here, {_short(other)} there")
    return lines


def require_equal(ours: Recipe, theirs: Recipe, parts: Sequence[Part] = PARTS, *, where: str = "") -> None:
    """Pass only when the named parts are equal.

    Raises ValueError naming every field that differs. `where` says what was being mixed, as
    `run runs/a with store b.zarr`.
    """
    lines = differences(ours, theirs, parts)
    if lines:
        raise ValueError(f"recipes differ{f' ({where})' if where else ''}: " + "; ".join(lines))


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_short(item) for item in value[:4]) + (", …]" if len(value) > 4 else "]")
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text or "''"
