"""DAiSEE, EngageNet and AIHub 71715, as they lie on disk once unpacked.

What does not pair up (a video without label, a label without video) and what is dropped is counted and listed
in the `Reading`; nothing is guessed silently. Official splits are kept as they are.
"""

import dataclasses
import json
import re
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.manifest import (
    VIDEO_SUFFIXES,
    Clip,
    Failure,
    Manifest,
    clip_id,
    csv_rows,
    readable,
    videos_below,
    walk,
)

DAISEE_LABELS = ("Boredom", "Engagement", "Confusion", "Frustration")
SPLIT_FOLDERS = {"train": "train", "training": "train", "validation": "val", "valid": "val", "test": "test"}
ENGAGENET_DROPPED = "SNP"
"""`SNP(Subject Not Present)`: nobody to look at."""
AIHUB_CLASSES = {1: "concentrating", 2: "not_concentrating", 3: "drowsy"}
"""Category ids: 집중, 집중하지않음, 졸음."""
AIHUB_FOLDER_CLASSES = {"01": 1, "02": 1, "03": 2, "04": 2, "05": 3}
AIHUB_SEGMENT_S = 10.0
LABEL_FOLDER, VIDEO_FOLDER = "라벨링데이터", "원천데이터"


@dataclass(frozen=True)
class Reading:
    """What was found at the place that a user named."""

    manifest: Manifest
    layout: str
    """Which layout that was."""
    unpaired_videos: tuple[str, ...] = ()
    """Videos without a label: not extracted."""
    unpaired_labels: tuple[str, ...] = ()
    """Labels without a video."""
    dropped: tuple[tuple[str, int], ...] = ()
    """(why, how many) labels that were left out on purpose."""
    notes: tuple[str, ...] = ()
    """What a user should know about this data set."""


def read_daisee(root: Path) -> Reading:
    """DAiSEE: `DataSet/<split>/<subject>/<clip>/<clip>.*`, `Labels/<Split>Labels.csv`, levels 0 to 3.

    ClipIDs are matched by their stem, for their extensions can be wrong. AllLabels.csv is not read: it splits
    otherwise.
    """
    clips: list[Clip] = []
    lone_videos: list[str] = []
    lone_labels: list[str] = []
    problems: list[Failure] = []
    for folder in ("Train", "Validation", "Test"):
        labels_file = root / "Labels" / f"{folder}Labels.csv"
        if not labels_file.is_file() and not (root / "DataSet" / folder).is_dir():
            continue
        labels = {_stem(row["ClipID"]): row for row in _table(labels_file, ("ClipID", *DAISEE_LABELS))}
        videos: dict[str, Path] = {}
        files, unnameable = videos_below(root / "DataSet" / folder, root)
        problems += unnameable
        for file in files:
            if videos.setdefault(_stem(file.name), file) != file:
                lone_videos.append(_relative(file, root))  # a second file of one clip
        for stem, file in videos.items():
            if stem not in labels:
                lone_videos.append(_relative(file, root))
                continue
            subject = file.relative_to(root / "DataSet" / folder).parts[0]
            levels = {name: labels[stem][name] for name in DAISEE_LABELS}
            split = SPLIT_FOLDERS[folder.lower()]
            clips.append(Clip(clip_id(file, root), file, subject=subject, split=split, labels=levels))
        lone_labels += [f"{folder}: {labels[stem]['ClipID']}" for stem in labels if stem not in videos]
    return _reading(root, "daisee", clips, problems, lone_videos, lone_labels)


def read_engagenet(root: Path) -> Reading:
    """EngageNet: `Train/*.mp4`, `Validation/*.mp4`, maybe `Test/*.mp4`; `<split>_engagement_labels.xlsx` or
    `final_labels.csv`. The subject is the second part of `subject_7_<id>_vid_0_0.mp4`."""
    tables = [row for file in engagenet_tables(root) for row in _table(file, ("chunk", "label"))]
    if (root / "final_labels.csv").is_file():
        tables += _table(root / "final_labels.csv", ("chunk", "label"))
    labels = {_stem(row["chunk"]): row["label"] for row in tables}
    if not labels:
        raise ValueError(f"no labels in {root}: wanted train_engagement_labels.xlsx or final_labels.csv")
    listed = {
        _stem(line): split
        for name, split in (("train.txt", "train"), ("valid.txt", "val"), ("test.txt", "test"))
        for line in _lines(root / name)
    }
    clips, problems, lone_videos, seen, dropped = [], [], [], set(), 0
    for folder in ("Train", "Validation", "Test"):
        files, unnameable = videos_below(root / folder, root)
        problems += unnameable
        for file in files:
            stem = _stem(file.name)
            seen.add(stem)
            label = labels.get(stem, "")
            if not label:
                lone_videos.append(_relative(file, root))
            elif label.upper().startswith(ENGAGENET_DROPPED):
                dropped += 1
            else:
                parts = stem.split("_")
                clips.append(
                    Clip(
                        clip_id(file, root),
                        file,
                        subject=parts[1] if len(parts) > 1 else "",
                        split=listed.get(stem, SPLIT_FOLDERS[folder.lower()]),
                        labels={"label": label},
                    )
                )
    lone_labels = [stem for stem in labels if stem not in seen]
    reading = _reading(root, "engagenet", clips, problems, lone_videos, lone_labels)
    return dataclasses.replace(reading, dropped=(("subject not present", dropped),) if dropped else ())


def read_aihub(root: Path) -> Reading:
    """AIHub 71715: videos under `…원천데이터`; under `…라벨링데이터` one JSON `<video>-<k>.json` for every
    labelled 10-second segment k. Drowsy is a class of its own."""
    problems: list[Failure] = []
    segments: dict[tuple[str, str], dict[int, tuple[str, Path]]] = defaultdict(dict)
    contradictions = 0
    for folder in folders_ending(root, LABEL_FOLDER):
        for file in sorted(place / name for place, _, names in walk(folder) for name in names):
            if file.suffix.lower() != ".json":
                continue
            try:
                video, k, category = _aihub_label(file)
            except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
                problems.append(Failure(_relative(file, root), f"not a label that can be read: {error!r}"))
                continue
            segments[(_aihub_split(folder, root), video)][k] = (AIHUB_CLASSES[category], file)
            contradictions += _aihub_folder_class(file) not in (None, category)
    first = 0 if any(0 in wanted for wanted in segments.values()) else 1
    clips, lone_videos, paired = [], [], set()
    for folder in folders_ending(root, VIDEO_FOLDER):
        files, unnameable = videos_below(folder, root)
        problems += unnameable
        for source in files:
            key = (_aihub_split(folder, root), _stem(source.name))
            if key not in segments:
                lone_videos.append(_relative(source, root))
                continue
            paired.add(key)
            for k, (label, _) in sorted(segments[key].items()):
                start_s = (k - first) * AIHUB_SEGMENT_S
                name = clip_id(source, root, start_s)
                end_s = start_s + AIHUB_SEGMENT_S
                clips.append(Clip(name, source, start_s, end_s, split=key[0], labels={"label": label}))
    lone = [wanted for key, wanted in segments.items() if key not in paired]
    lone_labels = [_relative(file, root) for wanted in lone for _, file in wanted.values()]
    notes: tuple[str, ...] = (f"segments are counted from {first}, as in this copy's file names",)
    if contradictions:
        notes += (f"{contradictions} labels say something else than the folder they lie in; the label holds",)
    reading = _reading(root, "aihub", clips, problems, lone_videos, lone_labels)
    return dataclasses.replace(reading, notes=notes)


def _reading(
    root: Path,
    layout: str,
    clips: Iterable[Clip],
    problems: Iterable[Failure],
    videos: Sequence[str],
    labels: Sequence[str],
) -> Reading:
    manifest = Manifest(tuple(clips), tuple(problems), root)
    return Reading(manifest, layout, tuple(sorted(videos)), tuple(sorted(labels)))


def _aihub_label(file: Path) -> tuple[str, int, int]:
    """(stem of the video, k, category id) of a label file."""
    video, dash, index = _stem(file.name).rpartition("-")
    if not dash or not index.isdigit():
        raise ValueError("its name does not end in -<segment>.json")
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    category = int(_nfc_keys(content)["이미지"]["category"]["id"])
    if category not in AIHUB_CLASSES:
        raise ValueError(f"category id {category} is not 1, 2 or 3")
    return video, int(index), category


def _nfc_keys(value: object) -> "dict[str, dict[str, dict[str, int]]]":
    if not isinstance(value, dict):
        raise ValueError("no object in it")
    return {unicodedata.normalize("NFC", key): item for key, item in value.items()}


def _aihub_split(folder: Path, root: Path) -> str:
    parts = [part.lower() for part in folder.relative_to(root).parts]
    return "train" if "training" in parts else "val" if "validation" in parts else ""


def _aihub_folder_class(file: Path) -> int | None:
    """The category that `TL_GG_CC[_part]` says, None where no folder is named so."""
    for part in reversed(file.parts):
        if match := re.fullmatch(r"[TV]L_\d+_(\d\d)(_.*)?", part):
            return AIHUB_FOLDER_CLASSES.get(match.group(1))
    return None


def engagenet_tables(root: Path) -> list[Path]:
    """EngageNet's label tables, without what Excel (`~$x.xlsx`, while one is open) and macOS lay beside."""
    tables = (file for file in root.glob("*_engagement_labels.*") if file.suffix in (".xlsx", ".csv"))
    return sorted(file for file in tables if not file.name.startswith((".", "~$")))


def folders_ending(root: Path, name: str) -> list[Path]:
    """Folders under `root` whose name ends so, however their Hangul is composed; none inside another."""
    found = []
    for folder, subfolders, _ in walk(root):
        own = [sub for sub in subfolders if unicodedata.normalize("NFC", sub).endswith(name)]
        found += [folder / sub for sub in own]
        if own:  # neither into what was found nor into the data next to it, which may be half a million files
            subfolders.clear()
    return sorted(found)


def _table(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV or spreadsheet, names and values stripped.

    Raises ValueError for a file that is not there or cannot be read, and if a column is missing.
    """
    if not file.is_file():
        raise ValueError(f"no such file: {file}")
    lines = _sheet(file) if file.suffix == ".xlsx" else [cells for _, cells in csv_rows(file)]
    header = [cell.strip() for cell in lines[0]] if lines else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(f"{file} has no column {missing[0]!r}: its header is {','.join(header)}")
    rows = (dict(zip(header, (cell.strip() for cell in line), strict=False)) for line in lines[1:])
    return [row for row in rows if row.get(columns[0]) and all(name in row for name in columns)]


def _sheet(file: Path) -> list[list[str]]:
    """Cells of the first sheet of an .xlsx file as text, '' where one is empty."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{file} is not an .xlsx spreadsheet: {error}") from error
    rows = [["" if cell is None else str(cell) for cell in row] for row in book.worksheets[0].values]
    book.close()
    return rows


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8-sig").split() if file.is_file() else []


def _stem(name: str) -> str:
    """The name without a video's or a table's extension (a dot inside a name is no extension)."""
    name = unicodedata.normalize("NFC", name.strip())
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in (VIDEO_SUFFIXES | {".json"}) else name


def _relative(file: Path, root: Path) -> str:
    return readable(unicodedata.normalize("NFC", file.relative_to(root).as_posix()))
