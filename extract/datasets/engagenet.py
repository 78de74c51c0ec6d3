"""Reader of EngageNet (unpacked)."""

from pathlib import Path

from extract.datasets.index import SPLIT_FOLDERS, DatasetIndex, index, relative, stem_of
from extract.datasets.tables import read_names, table
from features.cli import UserError
from features.manifest import Clip, clip_id, videos_below

ENGAGENET_DROPPED = "SNP"
"""Label prefix of clips that are left out: `SNP(Subject Not Present)`."""


def read_engagenet(root: Path) -> DatasetIndex:
    """EngageNet: `Train/*.mp4`, `Validation/*.mp4`, maybe `Test/*.mp4`; `<split>_engagement_labels.xlsx` or
    `final_labels.csv`. The subject is the second part of `subject_7_<id>_vid_0_0.mp4`."""
    tables = [row for file in engagenet_tables(root) for row in table(file, ("chunk", "label"))]
    if (root / "final_labels.csv").is_file():
        tables += table(root / "final_labels.csv", ("chunk", "label"))
    labels = {stem_of(row["chunk"]): row["label"] for row in tables}
    if not labels:
        raise UserError(f"no labels in {root}: expected train_engagement_labels.xlsx or final_labels.csv")
    listed = {
        stem_of(line): split
        for name, split in (("train.txt", "train"), ("valid.txt", "val"), ("test.txt", "test"))
        for line in read_names(root / name)
    }
    clips, problems, unpaired_videos, seen, dropped = [], [], [], set(), 0
    for folder in ("Train", "Validation", "Test"):
        files, bad_names = videos_below(root / folder, root)
        problems += bad_names
        for file in files:
            stem = stem_of(file.name)
            seen.add(stem)
            label = labels.get(stem, "")
            if not label:
                unpaired_videos.append(relative(file, root))
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
    return index(
        root,
        "engagenet",
        clips,
        problems,
        unpaired_videos,
        [stem for stem in labels if stem not in seen],
        dropped=(("subject not present", dropped),) if dropped else (),
    )


def engagenet_tables(root: Path) -> list[Path]:
    """EngageNet's label tables, without temporary files of Excel (`~$x.xlsx`) and macOS (`._x.xlsx`)."""
    tables = (file for file in root.glob("*_engagement_labels.*") if file.suffix in (".xlsx", ".csv"))
    return sorted(file for file in tables if not file.name.startswith((".", "~$")))
