"""The manifest: labelled clips of videos, read from a CSV or from a folder with one subfolder per class.

`windows` divides a clip into the windows that become rows of a store.
"""

import dataclasses
import math
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from features.cli import UserError
from features.tables import table_rows

RESERVED = ("path", "subject", "split", "fold", "start_s", "end_s")
"""Columns with a fixed meaning. All other columns are labels or slices."""
SYNONYMS = {
    "path": ("video", "video_path", "file", "filename", "file_name", "clip"),
    "label": ("class", "target", "y"),
    "subject": ("participant", "user", "person", "id"),
}
"""Names that a table may have for these columns."""
SUBSETS = ("train", "val", "test")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)
NOT_UTF8 = "its name is not UTF-8: rename it"
"""Failure reason of a file whose name cannot be stored."""
MAX_LABEL_NAMES = 20
"""An extra column with at most this many different values is a label column too, not only a slice."""


@dataclass(frozen=True)
class Clip:
    """A part of one video with its labels; '' = unknown."""

    clip_id: str
    """NFC posix path relative to the data root, then `#` and the start in milliseconds."""
    path: Path
    """The video file, as it is spelled on disk."""
    start_s: float = 0.0
    end_s: float | None = None
    """End in seconds of video time; None = the end of the video."""
    subject: str = ""
    split: str = ""
    """`train`, `val`, `test` or ''."""
    fold: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    """Label name by column; '' = not labelled."""
    slices: dict[str, str] = field(default_factory=dict)
    """Values of the other columns, by column: for subgroups in reports only."""


@dataclass(frozen=True)
class Failure:
    """A failed clip (or file, or line) and the reason, for the user who has to fix it."""

    clip_id: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The clips of a data set, and the lines or files that cannot be used."""

    clips: tuple[Clip, ...]
    problems: tuple[Failure, ...]
    root: Path
    notes: tuple[str, ...] = ()
    """What was understood though it was not said, one line each."""


def read_csv(
    path: Path,
    *,
    root: Path | None = None,
    columns: Mapping[str, str] | None = None,
    require_files: bool = True,
    require_labels: bool = True,
) -> Manifest:
    """Read a manifest: a table with a header (`tables.table_rows`); `path` is relative to its folder.

    root: folder that clip ids are relative to, if not the table's. columns: the table's name of a column, by
    ours. A column with another name of the same meaning is found by SYNONYMS if it is the only one.

    Lines that cannot be used become problems with their line number. A column that is neither reserved nor
    `label` is a slice; with at most MAX_LABEL_NAMES different values it is a label column too. Without
    `require_files` the videos may be missing. Without `require_labels` a column subject, split or fold is
    enough.

    Raises UserError, with line numbers, for a file that is not a manifest and for duplicate clips.
    """
    (_, names), *lines = table_rows(path)
    names = column_names(names, (*RESERVED, "label"), path)
    renamed, notes = _renamed(names, [cells for _, cells in lines], columns or {}, path)
    header = column_names(renamed, (), path)
    if "path" not in header:
        raise UserError(
            f"{path} has no column 'path': its header is {','.join(header)} (extract --columns path=YOURS)"
        )
    extra = [name for name in header if name not in RESERVED]
    if not extra and (require_labels or not {"subject", "split", "fold"} & set(header)):
        raise UserError(f"{path} has no label column (such as 'label'): its header is {','.join(header)}")
    clips: list[tuple[int, Clip]] = []
    problems: list[Failure] = []
    for number, cells in lines:
        try:
            clips.append(
                (number, _clip_of_row(header, cells, path.parent, root or path.parent, require_files))
            )
        except ValueError as error:
            problems.append(Failure(f"line {number}", str(error)))
    _require_unique(path, clips)
    found = _with_slices([clip for _, clip in clips], extra)
    return Manifest(found, tuple(problems), root or path.parent, notes)


def _with_slices(clips: Sequence[Clip], extra: Sequence[str]) -> tuple[Clip, ...]:
    """The clips with their `extra` columns, all in `labels`, divided into labels and slices."""
    few = {name for name in extra if len({clip.labels[name] for clip in clips} - {""}) <= MAX_LABEL_NAMES}
    labels, slices = few | ({"label"} & set(extra)), set(extra) - {"label"}
    return tuple(
        dataclasses.replace(
            clip,
            labels={name: text for name, text in clip.labels.items() if name in labels},
            slices={name: text for name, text in clip.labels.items() if name in slices},
        )
        for clip in clips
    )


def _renamed(
    header: list[str], rows: Sequence[list[str]], columns: Mapping[str, str], path: Path
) -> tuple[list[str], tuple[str, ...]]:
    """(header with our names, a note for each name that was guessed). A column that differs in every row
    does not name subjects.

    Raises UserError for a name in `columns` that the header does not have.
    """
    known, notes = {given: name for name, given in columns.items()}, []
    for given in known:
        if given not in header:
            raise UserError(f"--columns: {path} has no column {given!r}: its header is {','.join(header)}")
    whole = [row for row in rows if len(row) == len(header)]
    for name, others in SYNONYMS.items():
        found = [given for given in header if given.lower() in others and given not in known]
        if name == "subject":
            values = {given: {row[header.index(given)] for row in whole} for given in found}
            found = [given for given in found if len(values[given]) < len(whole)]
        if name not in (*header, *columns) and len(found) == 1:
            known[found[0]] = name
            notes.append(
                f"{path.name}: column {found[0]!r} is read as {name!r} (otherwise: extract --columns)"
            )
    return [known.get(given, given) for given in header], tuple(notes)


def column_names(header: Sequence[str], known: Collection[str], path: Path) -> list[str]:
    """The column names of a header in NFC; names in `known` (lower case) are matched case-insensitively.

    Raises UserError, with the file, for an empty or duplicate name.
    """
    names = [_nfc(name) for name in header]
    names = [name.lower() if name.lower() in known else name for name in names]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{path}: column names must be unique and not empty, got {','.join(names)}")
    return names


def read_folder(root: Path) -> Manifest:
    """Read the clips of `ROOT/<label>/<video>`, or with a split of `ROOT/<train|val|test>/<label>/<video>`.

    Videos outside a label folder and videos whose name is not UTF-8 become problems. Other files are ignored.

    Raises UserError when the folder does not exist or has no video.
    """
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    videos, problems = videos_below(root, root)
    if not videos and not problems:
        raise UserError(f"no videos under {root}; expected {root.name}/<label>/<video>, or a manifest CSV")
    tops = {file.relative_to(root).parts[0].lower() for file in videos if file.parent != root}
    has_splits = bool(tops) and tops <= set(SPLITS)
    clips = []
    for file in videos:
        folders = [_nfc(part) for part in file.relative_to(root).parts[:-1]]
        split = SPLITS[folders.pop(0).lower()] if has_splits and folders else ""
        name = clip_id(file, root)
        if not folders:
            problems.append(Failure(name, "is not in a label folder"))
        else:
            clips.append(Clip(name, file, split=split, labels={"label": folders[0]}))
    return Manifest(tuple(clips), tuple(problems), root)


def videos_below(folder: Path, root: Path) -> tuple[list[Path], list[Failure]]:
    """(videos, problems) below `folder`: files with a video suffix, in the same order on every system. Empty
    if the folder does not exist.

    Problems, with names relative to `root`: folders that cannot be listed, videos that cannot be read or
    whose path is not UTF-8, and broken links without a suffix or with a video suffix.
    """
    videos: list[Path] = []
    problems: list[Failure] = []

    def note(location: Path, reason: str) -> None:
        problems.append(Failure(readable(clip_id(location, root)), reason))

    def note_unlisted(error: OSError) -> None:
        location = Path(error.filename or folder)
        if location != folder or not isinstance(error, FileNotFoundError):
            note(location, f"cannot be listed: {error.strerror}")

    for location, _, names in walk(folder, note_unlisted):
        for file in (location / name for name in names):
            is_video = file.suffix.lower() in VIDEO_SUFFIXES
            if not is_video and (file.suffix or not os.path.islink(file)):
                continue
            if reason := _reason_unusable(file, root):
                note(file, reason)
            elif is_video and file.is_file():
                videos.append(file)
    return _in_order(videos, folder), sorted(problems, key=lambda problem: problem.clip_id)


def video_files(folder: Path) -> list[Path]:
    """The files below `folder` with a video suffix, in the same order on every system; no broken links."""
    files = (location / name for location, _, names in walk(folder) for name in names)
    videos = (file for file in files if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())
    return _in_order(videos, folder)


def walk(
    root: Path, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, subfolder names, file names) from `root` down, like `os.walk`: remove a subfolder name to skip
    that folder. Hidden files and folders (`._x.mp4` of macOS, caches) are left out.

    Linked folders are visited last, each once, and never a parent of `root`: so loops end, and each video has
    one name. on_error: called for each folder that cannot be listed; such folders are skipped.
    """
    visited = {str(folder) for folder in Path(os.path.realpath(root)).parents}
    waiting = [str(root)]
    while waiting:
        for folder, subfolders, files in os.walk(waiting.pop(0), onerror=on_error):
            real = os.path.realpath(folder)
            if real in visited:
                subfolders.clear()
                continue
            visited.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            yield Path(folder), subfolders, sorted(name for name in files if not name.startswith("."))
            for name in subfolders:
                path = os.path.join(folder, name)
                if os.path.realpath(path) != os.path.join(real, name):  # a link, or a junction of Windows
                    waiting.append(path)


def readable(name: str) -> str:
    """A file name that can be printed and stored: `\\udce9` replaces a byte e9 that is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def clip_id(path: Path, root: Path, start_s: float = 0.0) -> str:
    """NFC posix path relative to `root`, then `#` and the start in whole milliseconds."""
    try:
        relative = os.path.relpath(path, root)
    except ValueError:  # another drive
        relative = str(path)
    return f"{_nfc(Path(relative).as_posix())}#{round(start_s * 1000)}"


def windows(clip: Clip, duration_s: float, window_s: float) -> list[Clip]:
    """The consecutive windows of a clip, as clips; at least one.

    duration_s: of the whole video. A last window shorter than half of `window_s` is dropped, unless it is
    the only one. A clip that starts after the end of the video gives one window, whose extraction fails with
    that reason.
    """
    end_s = duration_s if clip.end_s is None else min(clip.end_s, max(duration_s, clip.start_s))
    if end_s <= clip.start_s:  # the duration is wrong or too short: decoding decides
        end_s = clip.end_s if clip.end_s is not None else clip.start_s + window_s
    # A tolerance of 1 ms: 9.9999 s is a whole window, and no empty window follows it.
    length_s = end_s - clip.start_s + 1e-3
    num_whole = math.floor(length_s / window_s)
    num_windows = num_whole + (length_s - num_whole * window_s >= window_s / 2 or num_whole == 0)
    path_part = clip.clip_id.rpartition("#")[0] or clip.clip_id
    return [
        dataclasses.replace(
            clip,
            clip_id=f"{path_part}#{round(start_s * 1000)}",
            start_s=start_s,
            end_s=min(start_s + window_s, end_s),
        )
        for start_s in (clip.start_s + index * window_s for index in range(num_windows))
    ]


def dropped_s(clip: Clip, duration_s: float, window_s: float) -> float:
    """Seconds at the end of the clip that `windows` drops."""
    end_s = duration_s if clip.end_s is None else min(clip.end_s, max(duration_s, clip.start_s))
    last_s = windows(clip, duration_s, window_s)[-1].end_s or end_s
    return max(0.0, end_s - last_s)


def _reason_unusable(file: Path, root: Path) -> str:
    """Why a file cannot be used; '' = no reason found."""
    try:
        file.stat()
    except FileNotFoundError:
        return "is a broken link"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    name = clip_id(file, root)
    return "" if name == readable(name) else NOT_UTF8


def _in_order(files: Iterable[Path], folder: Path) -> list[Path]:
    return sorted(files, key=lambda file: _nfc(file.relative_to(folder).as_posix()))


def _clip_of_row(header: list[str], cells: list[str], folder: Path, root: Path, require_file: bool) -> Clip:
    if len(cells) != len(header):
        raise UserError(f"{len(cells)} fields, but the header has {len(header)}")
    row = {name: cell if name == "path" else _nfc(cell) for name, cell in zip(header, cells, strict=True)}
    if not row["path"]:
        raise UserError("path is empty")
    file = _find_file(folder, row["path"], require_file)
    start_s = _seconds(row.get("start_s", ""), "start_s") or 0.0
    end_s = _seconds(row.get("end_s", ""), "end_s")
    if end_s is not None and end_s <= start_s:
        raise UserError(f"end_s {end_s:g} is not after start_s {start_s:g}")
    split = row.get("split", "").lower()
    if split and split not in SPLITS:
        raise UserError(f"split {split!r} is not one of train, val, test")
    return Clip(
        clip_id(file, root, start_s),
        file,
        start_s,
        end_s,
        row.get("subject", ""),
        SPLITS.get(split, ""),
        row.get("fold", ""),
        labels={name: value for name, value in row.items() if name not in RESERVED},
    )


def _seconds(text: str, name: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{name} {text!r} is not a number of seconds") from None
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name} {text!r} is not a number of seconds")
    return value


def _find_file(root: Path, text: str, require_file: bool) -> Path:
    """The file as it is spelled on disk. Each folder name may be NFC or NFD (Hangul), separators may be
    Windows', and `~` is the user's home folder."""
    spellings = (text, text.replace("\\", "/"))
    for path in dict.fromkeys((*spellings, *map(os.path.expanduser, spellings))):
        found = _spelled_on_disk(root, path)
        if found is not None:
            return found
    if require_file:
        raise UserError(f"no such file: {text}")
    return root / text.replace("\\", "/")


def _spelled_on_disk(root: Path, path: str) -> Path | None:
    """The file of this path, each part in the Unicode form used on disk; None if there is no such file."""
    if os.path.isfile(root / path):
        return root / path
    paths = [root]
    for part in Path(path).parts:
        forms = dict.fromkeys((part, _nfc(part), unicodedata.normalize("NFD", part)))
        paths = [parent / form for parent in paths for form in forms if os.path.exists(parent / form)]
    return next((candidate for candidate in paths if os.path.isfile(candidate)), None)


def _require_unique(path: Path, clips: Sequence[tuple[int, Clip]]) -> None:
    first_lines = {clip.clip_id: number for number, clip in reversed(clips)}
    duplicates = [
        f"lines {first_lines[clip.clip_id]} and {number} ({clip.clip_id})"
        for number, clip in clips
        if first_lines[clip.clip_id] != number
    ]
    if duplicates:
        more = f" and {len(duplicates) - 5} more" if len(duplicates) > 5 else ""
        raise UserError(f"{path} has duplicate clips: {'; '.join(duplicates[:5])}{more}")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
