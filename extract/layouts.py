"""How data sets lie on disk, and which clips they hold.

Knows nothing about what is in a video.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from extract.config import Layout
from features.manifest import Clip, Manifest, read_csv, read_folder


def read_layout(data: Path, layout: Layout = "auto") -> Manifest:
    """The clips of a data set, in one order everywhere.

    Raises ValueError when there is nothing at `data`, or nothing of that layout.
    """
    if not data.exists():
        raise ValueError(f"no such file or folder: {data}")
    chosen = layout if layout != "auto" else ("csv" if data.is_file() else "folder")
    if chosen == "csv":
        return read_csv(data)
    if chosen == "folder":
        return read_folder(data)
    raise ValueError(f"layout {chosen} is not known")


def sample_clips(clips: Sequence[Clip], count: int, seed: int = 0) -> list[Clip]:
    """At most `count` clips, drawn in turn from every (split, class, subject), in manifest order."""
    groups: dict[tuple[str, ...], list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[(clip.split, *clip.labels.values(), clip.subject)].append(clip)
    draw = random.Random(seed)
    queues = [draw.sample(groups[key], len(groups[key])) for key in sorted(groups)]
    draw.shuffle(queues)
    chosen: set[str] = set()
    while len(chosen) < min(count, len(clips)):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.add(queue.pop().clip_id)
    return [clip for clip in clips if clip.clip_id in chosen]
