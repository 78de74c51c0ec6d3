"""Reader of AIHub 71715 (unpacked)."""

import json
import re
import unicodedata
from collections import defaultdict
from pathlib import Path

from extract.datasets.index import DatasetIndex, index, relative, stem_of
from features.cli import UserError
from features.manifest import Clip, Failure, clip_id, videos_below, walk

AIHUB_CLASSES = {1: "concentrating", 2: "not_concentrating", 3: "drowsy"}
"""Category ids: 집중, 집중하지않음, 졸음."""
AIHUB_FOLDER_CLASSES = {"01": 1, "02": 1, "03": 2, "04": 2, "05": 3}
AIHUB_SEGMENT_S = 10.0
LABEL_FOLDER, VIDEO_FOLDER = "라벨링데이터", "원천데이터"


def read_aihub(root: Path) -> DatasetIndex:
    """AIHub 71715: videos under `…원천데이터`; under `…라벨링데이터` one JSON `<video>-<k>.json` for every
    labelled 10-second segment k. Drowsy is a class of its own."""
    problems: list[Failure] = []
    segments: dict[tuple[str, str], dict[int, tuple[str, Path]]] = defaultdict(dict)
    contradictions = 0
    for folder in folders_ending(root, LABEL_FOLDER):
        for file in sorted(directory / name for directory, _, names in walk(folder) for name in names):
            if file.suffix.lower() != ".json":
                continue
            try:
                video, k, category = _aihub_label(file)
            except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
                problems.append(Failure(relative(file, root), f"the label file cannot be read: {error!r}"))
                continue
            segments[(_aihub_split(folder, root), video)][k] = (AIHUB_CLASSES[category], file)
            contradictions += _aihub_folder_class(file) not in (None, category)
    first = 0 if any(0 in wanted for wanted in segments.values()) else 1
    clips, unpaired_videos, paired = [], [], set()
    for folder in folders_ending(root, VIDEO_FOLDER):
        files, bad_names = videos_below(folder, root)
        problems += bad_names
        for source in files:
            key = (_aihub_split(folder, root), stem_of(source.name))
            if key not in segments:
                unpaired_videos.append(relative(source, root))
                continue
            paired.add(key)
            for k, (label, _) in sorted(segments[key].items()):
                start_s = (k - first) * AIHUB_SEGMENT_S
                name, end_s = clip_id(source, root, start_s), start_s + AIHUB_SEGMENT_S
                clips.append(Clip(name, source, start_s, end_s, split=key[0], labels={"label": label}))
    unpaired_labels = [
        relative(file, root)
        for key, wanted in segments.items()
        if key not in paired
        for _, file in wanted.values()
    ]
    notes: tuple[str, ...] = (f"segment numbers start at {first} in the file names of this copy",)
    if contradictions:
        notes += (f"{contradictions} labels differ from the class of their folder: the label file is used",)
    return index(root, "aihub", clips, problems, unpaired_videos, unpaired_labels, notes=notes)


def _aihub_label(file: Path) -> tuple[str, int, int]:
    """(stem of the video, k, category id) of a label file."""
    video, dash, index = stem_of(file.name).rpartition("-")
    if not dash or not index.isdigit():
        raise UserError("its name must end in -<segment>.json")
    category = int(_nfc_keys(json.loads(file.read_text(encoding="utf-8-sig")))["이미지"]["category"]["id"])
    if category not in AIHUB_CLASSES:
        raise UserError(f"category id {category} is not 1, 2 or 3")
    return video, int(index), category


def _nfc_keys(value: object) -> "dict[str, dict[str, dict[str, int]]]":
    if not isinstance(value, dict):
        raise UserError("it is not a JSON object")
    return {unicodedata.normalize("NFC", key): item for key, item in value.items()}


def _aihub_split(folder: Path, root: Path) -> str:
    parts = [part.lower() for part in folder.relative_to(root).parts]
    return "train" if "training" in parts else "val" if "validation" in parts else ""


def _aihub_folder_class(file: Path) -> int | None:
    """The category id from a folder name `TL_GG_CC[_part]`; None if no folder has such a name."""
    for part in reversed(file.parts):
        if match := re.fullmatch(r"[TV]L_\d+_(\d\d)(_.*)?", part):
            return AIHUB_FOLDER_CLASSES.get(match.group(1))
    return None


def folders_ending(root: Path, name: str) -> list[Path]:
    """Folders below `root` whose NFC name ends with `name`; folders inside them are not searched."""
    found = []
    for folder, subfolders, _ in walk(root):
        matching = [sub for sub in subfolders if unicodedata.normalize("NFC", sub).endswith(name)]
        found += [folder / sub for sub in matching]
        if matching:  # do not search the found folders or the data next to them: it may be 500,000 files
            subfolders.clear()
    return sorted(found)
