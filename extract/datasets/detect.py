"""Reading of a data set in any known format, and a balanced sample of its clips."""

import dataclasses
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from extract.config import Layout
from extract.datasets.aihub import LABEL_FOLDER, folders_ending, read_aihub
from extract.datasets.daisee import read_daisee
from extract.datasets.engagenet import engagenet_tables, read_engagenet
from extract.datasets.index import DatasetIndex
from features.cli import UserError
from features.manifest import SPLITS, SYNONYMS, Clip, Failure, Manifest, read_csv, read_folder
from features.tables import TABLE_SUFFIXES, table_rows

NO_TEST = (
    "no official test split: validation is used as test, and a new validation subset is taken from train"
)


MANIFEST_NAMES = ("labels", "metadata")
"""Names, without suffix, of a folder's table of clips."""


def read_dataset(
    data: Path, layout: Layout = "auto", subject_regex: str = "", columns: str = ""
) -> DatasetIndex:
    """The clips of a data set, in the same order on every system.

    `columns` has a table's names of our columns, as path=video,label=class. `subject_regex` finds the subject
    in a video's path relative to the root (the first group that matches, or the whole match) if the data have
    no subject. Raises UserError when `data` does not have that format.
    """
    if not data.exists():
        raise UserError(f"no such file or folder: {data}")
    chosen = detect_format(data) if layout == "auto" else layout
    if columns and chosen != "csv":
        raise UserError(f"--columns names the columns of a table, and {data} has none: --data TABLE")
    if chosen == "csv":
        index = _of_tables(data, _names_of(columns))
    elif chosen == "folder":
        index = DatasetIndex(read_folder(data), "folder")
    else:
        if not data.is_dir():
            raise UserError(f"--layout {chosen} needs the data set's folder, got the file {data}")
        index = {"daisee": read_daisee, "engagenet": read_engagenet, "aihub": read_aihub}[chosen](data)
    if subject_regex:
        index = _with_subjects(index, subject_regex)
    clips = index.manifest.clips
    notes = index.notes
    splits = {clip.split for clip in clips}
    if {"train", "val"} <= splits and "test" not in splits:
        notes += (NO_TEST,)
    if clips and not all(clip.subject for clip in clips):
        count = sum(not clip.subject for clip in clips)
        which = "no clip has" if count == len(clips) else f"{count} of {len(clips)} clips do not have"
        notes += (f"{which} a subject: the same person may be in train and test (see --subject-regex)",)
    return dataclasses.replace(index, notes=notes)


def detect_format(data: Path) -> Layout:
    """The data set format at a path."""
    if data.is_file():
        return "csv"
    if (data / "DataSet").is_dir() and (data / "Labels").is_dir():
        return "daisee"
    if (data / "Train").is_dir() and (engagenet_tables(data) or (data / "final_labels.csv").is_file()):
        return "engagenet"
    if folders_ending(data, LABEL_FOLDER):
        return "aihub"
    return "csv" if manifests_in(data) else "folder"


def manifests_in(folder: Path) -> list[Path]:
    """The tables of clips in a folder: labels.csv; else its table named labels or metadata; else its only one
    with a column of paths; else the tables in its folders of splits.

    Raises UserError if two tables could be meant.
    """
    tables = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in TABLE_SUFFIXES]
    for found in (
        [file for file in tables if file.name == "labels.csv"],
        [file for file in tables if file.stem.lower() in MANIFEST_NAMES],
        [file for file in tables if _has_paths(file)],
    ):
        if len(found) > 1:
            names = " or ".join(file.name for file in found)
            raise UserError(f"{folder} has several tables of clips: --data {folder}/TABLE, with {names}")
        if found:
            return found
    splits = [each for each in sorted(folder.iterdir()) if each.name.lower() in SPLITS and each.is_dir()]
    return [
        file for each in splits for file in sorted(each.glob("metadata.*")) if file.suffix in TABLE_SUFFIXES
    ]


def _has_paths(file: Path) -> bool:
    try:
        header = table_rows(file, warn=lambda text: None)[0][1]
    except (ValueError, OSError):
        return False
    return bool({"path", *SYNONYMS["path"]} & {name.lower() for name in header})


def _of_tables(data: Path, columns: dict[str, str]) -> DatasetIndex:
    """The clips of a table, or of all tables of a folder; a table in a folder of a split has its split."""
    if data.is_file():
        manifest = read_csv(data, columns=columns)
        return DatasetIndex(manifest, "csv", notes=manifest.notes)
    clips, problems, notes = list[Clip](), list[Failure](), list[str]()
    for table in manifests_in(data):
        manifest = read_csv(table, root=data, columns=columns)
        split = SPLITS.get(table.parent.name.lower(), "") if table.parent != data else ""
        clips += [dataclasses.replace(clip, split=clip.split or split) for clip in manifest.clips]
        problems += manifest.problems
        notes += manifest.notes
    return DatasetIndex(Manifest(tuple(clips), tuple(problems), data), "csv", notes=tuple(notes))


def _names_of(text: str) -> dict[str, str]:
    """The columns of `--columns`: our name -> the table's."""
    pairs = [part.partition("=") for part in text.split(",") if text]
    if any(not (name.strip() and given.strip()) for name, _, given in pairs):
        raise UserError(f"--columns must be OURS=YOURS,…, as path=video,label=class; got {text!r}")
    return {name.strip(): given.strip() for name, _, given in pairs}


def sample_clips(clips: Sequence[Clip], count: int) -> list[Clip]:
    """At most `count` clips, balanced over splits, then classes, then subjects, as far as possible.

    Raises UserError for duplicate clips.
    """
    clip_id, times = Counter(clip.clip_id for clip in clips).most_common(1)[0] if clips else ("", 1)
    if times > 1:
        raise UserError(f"duplicate clips (each clip id must be unique): {clip_id}, {times} times")
    draw = random.Random(0)
    column = _main_column(clips)
    groups: dict[tuple[str, str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[(clip.split, clip.labels.get(column, ""), clip.subject)].append(clip)
    for key in groups:
        draw.shuffle(groups[key])
    keys = sorted(groups)
    draw.shuffle(keys)
    taken: Counter[tuple[str, ...]] = Counter()
    chosen: set[str] = set()
    while len(chosen) < min(count, len(clips)):
        key = min((key for key in keys if groups[key]), key=lambda k: (taken[k[:1]], taken[k[:2]], taken[k]))
        chosen.add(groups[key].pop().clip_id)
        taken.update((key[:1], key[:2], key))
    return [clip for clip in clips if clip.clip_id in chosen]


def _main_column(clips: Sequence[Clip]) -> str:
    columns = list(clips[0].labels) if clips else []
    return next((name for name in ("label", "Engagement") if name in columns), (columns or [""])[0])


def _with_subjects(index: DatasetIndex, regex: str) -> DatasetIndex:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"--subject-regex {regex!r} is not a regular expression: {error}") from error
    clips = []
    for clip in index.manifest.clips:
        found = pattern.search(clip.clip_id.rpartition("#")[0])
        groups = () if found is None else found.groups() or (found.group(),)
        subject = next((group for group in groups if group is not None), "")
        clips.append(dataclasses.replace(clip, subject=clip.subject or subject))
    if clips and not any(clip.subject for clip in clips):
        raise UserError(f"--subject-regex {regex!r} matches no path (for example {clips[0].clip_id})")
    return dataclasses.replace(index, manifest=dataclasses.replace(index.manifest, clips=tuple(clips)))
