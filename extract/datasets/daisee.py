"""Reader of DAiSEE (unpacked)."""

from pathlib import Path

from extract.datasets.index import SPLIT_FOLDERS, DatasetIndex, index, relative, stem_of
from extract.datasets.tables import table
from features.manifest import Clip, Failure, clip_id, videos_below

DAISEE_LABELS = ("Boredom", "Engagement", "Confusion", "Frustration")


def read_daisee(root: Path) -> DatasetIndex:
    """DAiSEE: `DataSet/<split>/<subject>/<clip>/<clip>.*`, `Labels/<Split>Labels.csv`, levels 0 to 3.

    ClipIDs are matched without their extension, because it can be wrong. AllLabels.csv is not read: it has
    another split.
    """
    clips: list[Clip] = []
    unpaired_videos: list[str] = []
    unpaired_labels: list[str] = []
    problems: list[Failure] = []
    for folder in ("Train", "Validation", "Test"):
        labels_file = root / "Labels" / f"{folder}Labels.csv"
        if not labels_file.is_file() and not (root / "DataSet" / folder).is_dir():
            continue
        labels = {stem_of(row["ClipID"]): row for row in table(labels_file, ("ClipID", *DAISEE_LABELS))}
        videos: dict[str, Path] = {}
        files, bad_names = videos_below(root / "DataSet" / folder, root)
        problems += bad_names
        for file in files:
            if videos.setdefault(stem_of(file.name), file) != file:
                unpaired_videos.append(relative(file, root))  # a second file of one clip
        for stem, file in videos.items():
            if stem not in labels:
                unpaired_videos.append(relative(file, root))
                continue
            clips.append(
                Clip(
                    clip_id(file, root),
                    file,
                    subject=file.relative_to(root / "DataSet" / folder).parts[0],
                    split=SPLIT_FOLDERS[folder.lower()],
                    labels={name: labels[stem][name] for name in DAISEE_LABELS},
                )
            )
        unpaired_labels += [f"{folder}: {labels[stem]['ClipID']}" for stem in labels if stem not in videos]
    return index(root, "daisee", clips, problems, unpaired_videos, unpaired_labels)
