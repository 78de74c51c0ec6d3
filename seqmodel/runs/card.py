"""The card of a run: how the model was trained, its calibration and its metrics.

Reading a card imports neither torch nor zarr.
"""

import dataclasses
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from features.cli import UserError
from features.labels import Labelling
from features.recipe import Recipe, from_json
from features.store.data_statement import DataStatement
from seqmodel.config import HeadConfig, MemberConfig, TrainConfig
from seqmodel.metrics.calibration import Calibration
from seqmodel.runs.files import CALIBRATION_CLIPS, CARD, read_csv, read_json, write_json
from seqmodel.training.design import StudyDesign

SCHEMA = 4
"""Version of the card's fields."""


@dataclass(frozen=True)
class Card:
    """card.json: how a run was trained, its calibration and its metrics."""

    recipe: Recipe
    labelling: Labelling
    members: tuple[MemberConfig, ...]
    """Members of the ensemble, with equal weights."""
    num_folds: int
    """Heads of each member."""
    dims: dict[str, int]
    """Streams that the members read -> dimension of one frame's vector."""
    store: str
    """Path of the store that it was trained on, as given on the command line."""
    store_fingerprint: str
    split_description: str
    """How subjects were split, for reports."""
    split_hash: str
    seed: int
    metric: str
    """Metric that was maximised out of fold."""
    training_class_frequencies: tuple[float, ...]
    """Relative frequency of each class in the training clips."""
    member_scores: tuple[float, ...] = ()
    """Out-of-fold score of each member, for which it was selected."""
    calibration: Calibration = Calibration()
    numerics: dict[str, Any] = field(default_factory=dict)
    """The store's numerics: recorded, never compared."""
    data_statement: DataStatement = DataStatement()
    """Where the training data come from, as the store said."""
    design: StudyDesign = StudyDesign()
    """What is held out, and whether there is a test subset."""
    stages: tuple[dict[str, Any], ...] = ()
    """One entry per stage (training, fine-tuning, calibration), with its validation score and whether it was
    kept."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics per split, as in metrics.json."""
    test_evaluations: tuple[str, ...] = ()
    """UTC times of the evaluations on test."""
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""

    @property
    def num_outputs(self) -> int:
        """Logits of the head: binary 1, multi-class C, ordinal C − 1."""
        classes = len(self.labelling.names)
        return {"binary": 1, "multiclass": classes, "ordinal": classes - 1}[self.labelling.task]


def card_to_json(card: Card) -> dict[str, Any]:
    """The card as JSON-ready dictionaries."""
    return {"schema": SCHEMA} | dataclasses.asdict(card)


def card_from_json(fields: Mapping[str, Any]) -> Card:
    """The card that `card_to_json` wrote. Raises UserError on another schema."""
    if fields.get("schema") != SCHEMA:
        raise UserError(
            f"the card has schema {fields.get('schema')!r}, but this version reads schema {SCHEMA} only: "
            "train the run again"
        )
    labelling, calibration = fields["labelling"], fields["calibration"]
    names, sources = tuple(labelling["names"]), tuple(map(tuple, labelling["sources"]))
    abstain = tuple(calibration["abstain"]) if calibration["abstain"] else None
    lists = ("stages", "test_evaluations", "warnings", "training_class_frequencies", "member_scores")
    return Card(
        **{name: value for name, value in fields.items() if name != "schema"}
        | {name: tuple(fields[name]) for name in lists}
        | {
            "recipe": from_json(fields["recipe"]),
            "design": StudyDesign(**fields.get("design", {})),
            "data_statement": DataStatement(**fields.get("data_statement", {})),
            "labelling": Labelling(**labelling | {"names": names, "sources": sources}),
            "members": tuple(map(member_from_json, fields["members"])),
            "calibration": Calibration(**calibration | {"abstain": abstain}),
        }
    )


def member_from_json(fields: Mapping[str, Any]) -> MemberConfig:
    """A member's configuration from `dataclasses.asdict`."""
    return MemberConfig(fields["stream"], HeadConfig(**fields["head"]), TrainConfig(**fields["train"]))


def save_card(run: Path, card: Card) -> None:
    """Write card.json, atomically."""
    write_json(run / CARD, card_to_json(card))


def load_card(run: Path) -> Card:
    """Read card.json.

    Raises UserError if the directory has no finished run or its card cannot be read.
    """
    path = run / CARD
    if not path.is_file():
        raise UserError(
            f"{run} is not a finished run: it has no {CARD}; make one with python -m tune --out {run}"
        )
    try:
        return card_from_json(read_json(path))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}") from error


def calibration_stage(card: Card) -> dict[str, Any] | None:
    """The card's entry of `python -m seqmodel calibrate`, if the run still uses that calibration; None after
    new weights were kept."""
    for stage in reversed(card.stages):
        if stage.get("stage") == "calibrate":
            return stage
        if stage.get("kept", True):
            return None
    return None


def calibration_clips(run: Path, card: Card) -> dict[str, str]:
    """Clips of another data set that the run's calibration was fitted on, clip_id -> subject ('' = unknown);
    empty if it was fitted on validation."""
    path = run / CALIBRATION_CLIPS
    if calibration_stage(card) is None or not path.is_file():
        return {}
    return {row["clip_id"]: row["subject"] for row in read_csv(path)}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in (
        "brainbuddy",
        "torch",
        "mediapipe",
        "opencv-contrib-python",
        "openvino",
        "numpy",
        "zarr",
        "optuna",
        "scikit-learn",
    ):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_commit() -> str:
    """Commit of the project's checkout, with `+` if it has uncommitted changes; empty outside a checkout."""
    here = Path(__file__).resolve().parent

    def run_git(*argv: str) -> str | None:
        done = subprocess.run(
            ["git", *argv], cwd=here, capture_output=True, text=True, encoding="utf-8", timeout=5
        )
        return None if done.returncode else done.stdout.strip()

    try:
        commit, changes = run_git("rev-parse", "--short=12", "HEAD"), run_git("status", "--porcelain", "-uno")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (commit or "") + ("+" if commit and changes else "")
