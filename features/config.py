"""The options of `python -m features`: one frozen dataclass per command; docstrings are the help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from features.cli import UserError

ALL_SUBJECTS = "\0"
"""Default of `--subject`; no command-line argument can have this value."""


@dataclass(frozen=True)
class InfoArgs:
    """Show the contents of a store: clips, subjects, labels by split, face rate, failures."""

    store: Annotated[str, tyro.conf.Positional]
    """The store: a folder such as features.zarr, or s3://bucket/prefix."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


@dataclass(frozen=True)
class VerifyArgs:
    """Read the whole store, check it, and list what is broken."""

    store: Annotated[str, tyro.conf.Positional]
    """The store."""
    repair: bool = False
    """Delete the broken parts of clips, so that the next extract does them again, and broken packed copies.
    Imported features cannot be repaired: the clips to import again are listed."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


@dataclass(frozen=True)
class PackArgs:
    """Make a copy of a store that is faster to read. It can be deleted at any time. tune makes it itself."""

    store: Annotated[str, tyro.conf.Positional]
    """The store."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


@dataclass(frozen=True)
class LabelArgs:
    """Update labels, subjects and splits from a corrected manifest. Features do not change."""

    store: Annotated[str, tyro.conf.Positional]
    """The store."""
    data: Annotated[Path, tyro.conf.Positional]
    """The corrected manifest CSV, a folder with a labels.csv, or a folder with one subfolder per class. The
    videos of the CSV may be missing. Columns that the CSV does not have keep their stored values."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


@dataclass(frozen=True)
class DeleteArgs:
    """Delete a store, or all data of one subject in it. This cannot be undone."""

    store: Annotated[str, tyro.conf.Positional]
    """The store."""
    subject: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: the whole store)")] = ALL_SUBJECTS
    """Delete only this subject's clips."""
    all: bool = False
    """Delete the whole store without a question."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""

    def __post_init__(self) -> None:
        if self.all and self.subject != ALL_SUBJECTS:
            raise UserError("--all deletes the whole store, --subject one subject's clips: give one of them")


@dataclass(frozen=True)
class ImportArgs:
    """Make a store from features that another program computed; tune and evaluate then work as usual."""

    file: Annotated[Path, tyro.conf.Positional]
    """An .npz with x (N,T,D) and y, and if lengths differ with length, the frames per clip (x is padded, or
    has all frames concatenated); or a .csv with one line per frame; or a .csv with one line per clip and a
    path column that names a .csv or .npy of features."""
    out: str
    """The store to create."""
    name: str
    """Name of the program that made the features, for example openface. Stores with the same name and the
    same D are compatible."""
    stream: Literal["auto", "embeddings", "geometry"] = "auto"
    """Stream of the features. auto: geometry if the feature_names of an .npz are MediaPipe's blendshapes,
    else embeddings. For geometry, the report shows the importance of each part of the face."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""
