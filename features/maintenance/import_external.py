"""Import of external features: a store from arrays that another program computed.

They become embeddings, or geometry if their names are those of the face landmarker. The recipe is
`external:NAME:D`. Heads are trained, tuned and evaluated as usual, at any T and D; live refuses such a run
with an error. Lengths may differ: shorter sequences are masked. A frame with a missing feature (NaN) is
invalid.

N clips, T frames (of the longest), D features.
"""

import dataclasses
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from features.cli import UserError
from features.labels import by_value
from features.manifest import MAX_LABEL_NAMES, SPLITS, Clip, Failure, column_names, read_csv
from features.recipe import EncoderId, GeometryId, Recipe
from features.store import planner
from features.store.description import FRAME_COLUMNS, create
from features.store.location import (
    StoreLocation,
    existing_group,
    location_of,
    open_group,
    sweep_temporary_folders,
    temporary_folder,
)
from features.store.store import FeatureStore
from features.tables import table_rows

CHUNK_BYTES = 4 << 20
"""Bytes per chunk. There is one writer, so many clips can share a chunk: few files, fast to read."""
DEAD_IMPORT_S = 3600.0
"""An import that writes nothing for this long counts as killed."""
BOOKKEEPING = ("frame", "face_id", "timestamp", "confidence", "success")
"""Columns of OpenFace's files that are not features; `success` 0 makes a frame invalid."""
BLENDSHAPE = "eyeBlinkLeft"
"""One of MediaPipe's 52 blendshape names; if it is present, the features are the face landmarker's."""
MAX_VALUE = 1e9
"""Largest absolute value of a feature. Sums of squares of larger ones overflow in float32."""
NOT_A_NUMBER = re.compile(r"[-+]?nan(\([^)]*\))?|[-+]?1\.#(IND|QNAN)0*", re.IGNORECASE)
"""Texts for NaN, as printed by programs in C on all systems: nan, -nan(ind), 1.#IND."""
_CLIP_COLUMNS = ("clip_id", "label", "subject", "split", "fold")


@dataclass(frozen=True)
class FeatureSequences:
    """Feature sequences of some clips; lengths may differ."""

    clips: tuple[Clip, ...]
    values: tuple[np.ndarray, ...]
    """One (t, D) float32 a clip; NaN where a feature is missing."""
    problems: tuple[Failure, ...] = ()
    label_names: tuple[str, ...] = ()
    """Label names in order, if the file has them."""
    feature_names: tuple[str, ...] = ()
    """D feature names, if the file has them."""
    notes: tuple[str, ...] = ()
    """What a reader should know about the clips, one line each."""

    @property
    def is_geometry(self) -> bool:
        """Whether the features have the names of MediaPipe's face landmarker."""
        return BLENDSHAPE in self.feature_names


def read_sequences(file: Path) -> FeatureSequences:
    """Read the sequences of an .npz or .csv file; `python -m features import --help` lists the formats.

    Raises UserError naming what is missing or has a wrong shape.
    """
    if not file.is_file():
        raise UserError(f"no such file: {file}")
    readers = {".npz": _of_npz, ".csv": _of_csv}
    if file.suffix.lower() not in readers:
        raise UserError(f"{file} has an unknown format: expected .npz or .csv")
    sequences = readers[file.suffix.lower()](file)
    widths = {values.shape[1] for values in sequences.values}
    if not sequences.clips and sequences.problems:
        first = sequences.problems[0]
        raise UserError(f"{file} has no usable clip: {first.clip_id}: {first.reason}")
    if not sequences.clips or len(widths) != 1 or widths == {0}:
        raise UserError(
            f"{file} has {len(sequences.clips)} clips with {sorted(widths)} features: expected at least one "
            "clip, and the same number of features in all clips"
        )
    _require_plausible(sequences)
    return sequences


def _require_plausible(sequences: FeatureSequences) -> None:
    """Raises UserError if a value is larger than MAX_VALUE, with its clip and feature."""
    for clip, values in zip(sequences.clips, sequences.values, strict=True):
        is_large = np.abs(values) > MAX_VALUE  # False for NaN
        if is_large.any():
            frame, feature = np.argwhere(is_large)[0].tolist()
            name = sequences.feature_names[feature] if sequences.feature_names else f"number {feature}"
            raise UserError(
                f"{clip.path.name}, clip {clip.clip_id}, frame {frame}: feature {name} is "
                f"{values[frame, feature]:g}; values must lie between -{MAX_VALUE:g} and {MAX_VALUE:g}, or "
                "be NaN where a feature is missing"
            )


def write_external(
    out: Path | str,
    sequences: FeatureSequences,
    name: str,
    stream: Literal["auto", "embeddings", "geometry"] = "auto",
) -> FeatureStore:
    """Write sequences as a float32 store with the recipe `external:NAME:D`. Atomic in a local folder.

    Raises UserError when `out` exists, for a name with a colon, or for a geometry without feature names.
    """
    if not name or ":" in name:
        raise UserError(f"--name must be a short name without a colon, got {name!r}")
    location = location_of(out)
    if open_group(location, read_only=True) is not None or (
        location.folder is not None and location.folder.exists()
    ):
        raise UserError(f"{location.text} already exists: delete it first, or choose another --out")
    width = sequences.values[0].shape[1]
    num_frames = max(1, *(len(values) for values in sequences.values))
    encoder = EncoderId(f"external:{name}:{width}", name, "", width)
    recipe = Recipe(None, encoder)
    if stream == "geometry" or (stream == "auto" and sequences.is_geometry):
        if not sequences.feature_names:
            raise UserError("--stream geometry needs feature names: use an .npz with feature_names")
        recipe = Recipe(None, dataclasses.replace(encoder, dim=0), GeometryId("", sequences.feature_names))
    if location.folder is None:
        _write(location, sequences, recipe, num_frames)
        return FeatureStore.open(out)
    location.folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporary_folders(location, DEAD_IMPORT_S)
    temporary = temporary_folder(location.folder)
    try:
        _write(location_of(temporary), sequences, recipe, num_frames)
        temporary.rename(location.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return FeatureStore.open(out)


def _write(location: StoreLocation, sequences: FeatureSequences, recipe: Recipe, num_frames: int) -> None:
    clips, width = sequences.clips, sequences.values[0].shape[1]
    stream = "geometry" if recipe.geometry is not None else "embeddings"
    step = max(1, CHUNK_BYTES // (num_frames * width * 4))
    group = create(
        location,
        recipe,
        numerics={"backend": "imported"},
        num_frames=num_frames,
        versions=None,
        dtype="float32",
        rows_per_chunk=step,
        label_names={"label": list(sequences.label_names)} if sequences.label_names else None,
    )
    planner.write_rows(group, location, clips, recipe, has_crops=False, listing="whole")
    store = FeatureStore(location, existing_group(location, read_only=False), writable=True)
    for first in range(0, len(clips), step):
        block = sequences.values[first : first + step]
        x = np.full((len(block), num_frames, width), np.nan, np.float32)
        frames = np.full((len(block), num_frames, len(FRAME_COLUMNS)), np.nan, np.float32)
        frames[..., 5] = 0
        for index, values in enumerate(block):
            x[index, : len(values)] = values
            frames[index, : len(values), 0] = np.arange(len(values))
            frames[index, : len(values), 5] = np.isfinite(values).all(axis=1)
        store.array(stream)[first : first + len(block)] = x
        store.array("frames")[first : first + len(block)] = frames
    store.finalize()


def _of_npz(file: Path) -> FeatureSequences:
    arrays = _named_arrays(file)
    labels = np.atleast_1d(arrays["y"])
    if labels.ndim != 1 or labels.dtype.kind not in "biufU":
        raise UserError(
            f"{file}: y has shape {labels.shape} and dtype {labels.dtype}, expected (N,) numbers or names"
        )
    values = _split_clips(arrays["x"], arrays.get("length"), len(labels), file)
    clips = _clips_of_arrays(arrays, labels, values, file)
    order = tuple(str(name) for name in arrays.get("label_names", np.zeros(0)).tolist())
    features = tuple(str(name) for name in arrays.get("feature_names", np.zeros(0)).tolist())
    if features and len(features) != arrays["x"].shape[-1]:
        raise UserError(f"{file}: {len(features)} feature_names for {arrays['x'].shape[-1]} features")
    return FeatureSequences(clips, values, label_names=order, feature_names=features)


def _named_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name; names saved as bytes are decoded.

    Raises UserError when x or y is missing.
    """
    arrays = _load(file)
    if not isinstance(arrays, dict):
        raise UserError(
            f"{file} has one array without a name, expected x and y: write numpy.savez(FILE, x=x, y=y)"
        )
    missing = {"x", "y"} - set(arrays)
    if missing:
        raise UserError(f"{file} has no array {sorted(missing)[0]!r}; it has {', '.join(sorted(arrays))}")
    arrays |= {key: _text(array, key, file) for key, array in arrays.items() if array.dtype.kind == "S"}
    for key in ("label_names", "feature_names"):
        if key in arrays and arrays[key].ndim != 1:
            raise UserError(f"{file}: {key} has shape {arrays[key].shape}, expected one dimension")
    return arrays


def _clips_of_arrays(
    arrays: dict[str, np.ndarray], labels: np.ndarray, values: tuple[np.ndarray, ...], file: Path
) -> tuple[Clip, ...]:
    """One clip per label; other arrays of the same length, with few different values, become slices."""
    count = len(labels)

    def column(key: str) -> list[str]:
        if key not in arrays:
            return [""] * count
        if arrays[key].shape != (count,):
            raise UserError(f"{file}: {key} has shape {arrays[key].shape}, expected ({count},) like y")
        return [str(item) for item in arrays[key].tolist()]

    texts = [_label_name(item, arrays.get("label_names"), file) for item in labels.tolist()]
    # Clips of two files must not share an id: without clip_id, it is the index and a hash of the content.
    ids = (
        column("clip_id")
        if "clip_id" in arrays
        else [f"{index:06d}-{sha256(part.tobytes()).hexdigest()[:8]}" for index, part in enumerate(values)]
    )
    taken = {"x", "y", "length", "clip_id", "subject", "split", "fold", "label_names", "feature_names"}
    others = {
        key: column(key)
        for key, array in arrays.items()
        if key not in taken and array.shape == (count,) and len(np.unique(array)) <= MAX_LABEL_NAMES
    }
    splits = [_split_name(text, file) for text in column("split")]
    subjects, folds = column("subject"), column("fold")
    return tuple(
        Clip(
            f"{ids[index]}#0",
            file,
            subject=subjects[index],
            split=splits[index],
            fold=folds[index],
            labels={"label": texts[index]},
            slices={key: items[index] for key, items in others.items()},
        )
        for index in range(count)
    )


def _load(file: Path) -> np.ndarray | dict[str, np.ndarray]:
    """Load a NumPy file: one array (.npy), or arrays by name (.npz).

    Raises UserError for anything else.
    """
    try:
        with open(file, "rb") as stream:  # given a path, NumPy leaves the file open if the content is damaged
            saved = np.load(stream, allow_pickle=False)
            return saved if isinstance(saved, np.ndarray) else {key: np.asarray(saved[key]) for key in saved}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {error} (save plain arrays, not pickled objects)") from error


def _text(array: np.ndarray, key: str, file: Path) -> np.ndarray:
    """Names that were saved as bytes, decoded from UTF-8."""
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: {key} is not UTF-8: {error.object!r}") from error


def _split_clips(x: np.ndarray, length: np.ndarray | None, count: int, file: Path) -> tuple[np.ndarray, ...]:
    """One (t, D) float32 array per clip, from x of shape (N,T,D), (N,D) (one frame per clip), or all frames
    concatenated.

    Raises UserError when the shapes or the lengths do not fit.
    """
    if x.dtype.kind not in "biuf":
        raise UserError(f"{file}: x has dtype {x.dtype}, expected numbers")
    x = x.astype(np.float32)
    if length is not None and length.shape != (count,):
        raise UserError(f"{file}: length has shape {length.shape}, expected ({count},) like y")
    if length is not None:
        if length.dtype.kind not in "iuf" or (length != np.floor(length)).any():
            raise UserError(f"{file}: length must be whole numbers")
        length = length.astype(np.int64)
    if x.ndim == 3 and len(x) == count:
        ends = np.full(count, x.shape[1]) if length is None else length
        if (ends < 0).any() or (ends > x.shape[1]).any():
            raise UserError(
                f"{file}: length must be 0 to {x.shape[1]} (frames in x), got {ends.min()} to {ends.max()}"
            )
        return tuple(x[index, : int(end)] for index, end in enumerate(ends))
    if x.ndim == 2 and length is not None and int(length.sum()) == len(x):
        return tuple(np.split(x, np.cumsum(length)[:-1]))
    if x.ndim == 2 and length is None and len(x) == count:
        return tuple(x[:, None])
    total = "" if length is None else f" and a total length of {int(length.sum())} frames"
    raise UserError(f"{file}: x of shape {x.shape} does not match {count} labels{total}")


def _label_name(item: Any, names: np.ndarray | None, file: Path) -> str:
    """The label name of one value of y; '' for a negative, NaN or empty label."""
    if isinstance(item, str):
        return item
    if item != item or item < 0:
        return ""
    if names is None:
        return str(int(item)) if float(item).is_integer() else str(item)
    if not float(item).is_integer() or item >= len(names):
        raise UserError(f"{file}: y has the value {item}, but label_names has {len(names)} names")
    return str(names[int(item)])


def _split_name(text: str, file: Path) -> str:
    if text and text.lower() not in SPLITS:
        raise UserError(f"{file}: split {text!r} is not one of train, val, test")
    return SPLITS.get(text.lower(), "")


def _of_csv(file: Path) -> FeatureSequences:
    lines = table_rows(file)
    header = lines[0][1]
    names = [name.lower() for name in header]
    if "path" in names:
        return _of_manifest(file)
    if "clip_id" not in names:
        raise UserError(
            f"{file}: expected a column clip_id (one line per frame) or path (one line per clip); "
            f"its header is {','.join(header)}"
        )
    texts, features, _ = _table_of(lines, file)
    order: dict[str, list[int]] = {}
    for row, clip in enumerate(texts["clip_id"]):
        order.setdefault(clip, []).append(row)
    clips, values, notes = list[Clip](), list[np.ndarray](), list[str]()
    for clip, rows in order.items():
        faces = _faces_of(texts, rows, features)
        notes += [_faces_note(clip, len(faces))] * (len(faces) > 1)
        values_of = {
            name: _only_text(cells, rows, name, clip, file)
            for name, cells in texts.items()
            if name in _CLIP_COLUMNS
        }
        clips += [
            Clip(
                f"{clip}#0{suffix}",
                file,
                subject=values_of.get("subject", ""),
                split=_split_name(values_of.get("split", ""), file),
                fold=values_of.get("fold", ""),
                labels={"label": values_of.get("label", "")},
            )
            for suffix in faces
        ]
        values += faces.values()
    return FeatureSequences(tuple(clips), tuple(values), notes=tuple(notes))


def _faces_of(texts: dict[str, list[str]], rows: list[int], features: np.ndarray) -> dict[str, np.ndarray]:
    """The features (t, D) of each face in some rows, by the suffix of its clip id; '' if there is one face.

    Each face has a row for every frame of the clip, NaN in frames without it.
    """
    ids = texts.get("face_id", [""] * len(features))
    names = sorted({ids[row] for row in rows}, key=by_value)
    if len(names) < 2:
        return {"": features[rows]}
    frames = texts.get("frame") or [str(row) for row in range(len(features))]
    position = {frame: index for index, frame in enumerate(dict.fromkeys(frames[row] for row in rows))}
    faces = {name: np.full((len(position), features.shape[1]), np.nan, np.float32) for name in names}
    for row in rows:
        faces[ids[row]][position[frames[row]]] = features[row]
    return {f"@face{name}": values for name, values in faces.items()}


def _faces_note(name: str, count: int) -> str:
    return (
        f"{name} has {count} faces: each is a clip of its own (…@face0, …@face1), and all have the label and "
        "subject of the file"
    )


def _of_manifest(file: Path) -> FeatureSequences:
    manifest = read_csv(file)
    clips: list[Clip] = []
    values: list[np.ndarray] = []
    problems, notes = list(manifest.problems), list(manifest.notes)
    columns: tuple[str, ...] | None = None
    for clip in manifest.clips:
        try:
            if clip.start_s or clip.end_s is not None:
                raise UserError("start_s and end_s are not supported here: use one feature file per clip")
            faces, names = _features_of(clip.path)
            if columns is not None and names != columns:
                raise UserError(f"{clip.path.name} has other columns than {clips[0].path.name}")
        except (ValueError, OSError) as error:
            problems.append(Failure(clip.clip_id, str(error)))
            continue
        columns = names
        notes += [_faces_note(clip.clip_id, len(faces))] * (len(faces) > 1)
        clips += [dataclasses.replace(clip, clip_id=clip.clip_id + suffix) for suffix in faces]
        values += faces.values()
    return FeatureSequences(tuple(clips), tuple(values), tuple(problems), notes=tuple(notes))


def _features_of(file: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """(features of each face as in `_faces_of`, column names) of one clip's feature file."""
    if file.suffix.lower() == ".npy":
        values = _load(file)
        if isinstance(values, dict):
            raise UserError(f"{file.name} has several arrays ({', '.join(values)}), expected one")
        if values.ndim != 2:
            raise UserError(f"{file.name} has shape {values.shape}, expected (frames, features)")
        return {"": values.astype(np.float32)}, tuple(map(str, range(values.shape[1])))
    texts, values, names = _table_of(table_rows(file), file)
    return _faces_of(texts, list(range(len(values))), values), names


def _table_of(
    lines: list[tuple[int, list[str]]], file: Path
) -> tuple[dict[str, list[str]], np.ndarray, tuple[str, ...]]:
    """(texts by clip column, with face_id and frame; features (t, D) float32; feature names) of rows with one
    line per frame."""
    header = column_names(lines[0][1], _CLIP_COLUMNS, file)
    rows = [cells for _, cells in lines[1:]]
    if not rows:
        raise UserError(f"{file.name} has no frames")
    uneven = [number for number, cells in lines if len(cells) != len(header)]
    if uneven:
        raise UserError(f"{file.name} line {uneven[0]} has a different number of fields than the header")
    kept = (*_CLIP_COLUMNS, "face_id", "frame")
    texts = {name: [line[header.index(name)] for line in rows] for name in kept if name in header}
    features = tuple(name for name in header if name not in (*_CLIP_COLUMNS, *BOOKKEEPING))
    values = np.array(
        [[_number(line[header.index(name)], file) for name in features] for line in rows], np.float32
    )
    if "success" in header:
        values[[_number(line[header.index("success")], file) == 0 for line in rows]] = np.nan
    return texts, values, features


def _number(text: str, file: Path) -> float:
    """The number in a cell; NaN if it is empty."""
    try:
        return float("nan" if NOT_A_NUMBER.fullmatch(text) else text or "nan")
    except ValueError:
        raise UserError(f"{file.name}: {text!r} is not a number") from None


def _only_text(texts: list[str], rows: Iterable[int], name: str, clip: str, file: Path) -> str:
    """The value that all these rows share.

    Raises UserError when they have several values.
    """
    values = {texts[row] for row in rows}
    if len(values) > 1:
        raise UserError(f"{file}: clip {clip!r} has several values of {name}: {sorted(values)[:3]}")
    return values.pop()
