"""The options of `python -m features`: one frozen dataclass a command, whose docstrings are the help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

EVERYBODY = "\0"
"""No word of a command line can be this, whatever people are called."""


@dataclass(frozen=True)
class InfoArgs:
    """Show what a store holds: clips, people, labels by split, face rate, failures."""

    store: Annotated[str, tyro.conf.Positional]
    """The store: a folder such as features.zarr, or s3://bucket/prefix."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


@dataclass(frozen=True)
class VerifyArgs:
    """Read everything in a store again, and list what is broken."""

    store: Annotated[str, tyro.conf.Positional]
    """The store."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


@dataclass(frozen=True)
class PackArgs:
    """Make the disposable copy of a store that is fast to read. tune does it by itself."""

    store: Annotated[str, tyro.conf.Positional]
    """The store."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


@dataclass(frozen=True)
class LabelArgs:
    """Bring labels, subjects and splits up to date from a corrected manifest, without touching features."""

    store: Annotated[str, tyro.conf.Positional]
    """The store."""
    data: Annotated[Path, tyro.conf.Positional]
    """The corrected manifest CSV, or a folder with a labels.csv or of classes. The CSV's videos need not be
    there; what it has no column for stays as it was."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


@dataclass(frozen=True)
class DeleteArgs:
    """Delete a store for good, or all that it holds of one person."""

    store: Annotated[str, tyro.conf.Positional]
    """The store."""
    subject: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: everybody)")] = EVERYBODY
    """Only this person's clips."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""


@dataclass(frozen=True)
class ImportArgs:
    """Make a store of features that something else computed, to be tuned and evaluated the same way."""

    file: Annotated[Path, tyro.conf.Positional]
    """.npz with x (N,T,D), or ragged with length, and y; or .csv with one line a frame; or .csv with one line
    a clip, whose path column names a .csv or .npy of features."""
    out: str
    """The store to create."""
    name: str
    """What made the features, openface say. Stores of one name and length D mix."""
    stream: Literal["auto", "embeddings", "geometry"] = "auto"
    """Which stream they become: geometry where an .npz names MediaPipe's blendshapes in feature_names, which
    then can be explained by part of the face and taken relative to a person's own rest."""
    json: bool = False
    """Print the summary as one JSON object on stdout."""
