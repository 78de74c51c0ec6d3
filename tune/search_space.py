"""What is searched: the space of heads and trainings.

The space is flat (the sampler models all parameters jointly) and its first point is always the seed project's
own settings.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import distribution_to_json

from features.datasets import Inputs
from features.labels import Task
from seqmodel.config import HeadConfig, TrainConfig
from seqmodel.runs.writer import complete_head
from tune.config import BASELINE_ROLE

MANY_CLIPS = 1000
"""Training clips of which one epoch says enough to prune by. From here on batches are not small either: 8
clips a step take two to three times as long as 32 and learn no more."""
LEAST_BATCH_OF_MANY = 32
TO_THE_END = 8
"""Of many clips one trial in so many, once the sampler knows a little, is never stopped: it then sees where
slow starters end. Of few clips Hyperband's milder brackets see to that."""
PATIENCE_OF_FEW = 5
"""Of searched trials, where epochs are short and scores coarse; else the seed project's 4."""


@dataclass(frozen=True)
class Space:
    """What a trial may choose from."""

    task: Task
    streams: tuple[str, ...]
    """Streams at hand."""
    fixed_inputs: bool
    """True when the user said which streams to use."""
    epochs: int
    many: bool = False
    """Whether there are so many clips (`MANY_CLIPS`) that the slowest choices are left out."""


@dataclass(frozen=True)
class TrialConfig:
    """What a trial chose."""

    head: HeadConfig
    train: TrainConfig
    inputs: Inputs


def suggest(trial: optuna.trial.BaseTrial, space: Space) -> TrialConfig:
    """Ask the sampler for one point of the space."""
    trial.suggest_categorical("kind", ["lstm", "gru"])
    # 256 costs two to four times as much as 128.
    trial.suggest_categorical("hidden", [32, 64, 128] if space.many else [32, 64, 128, 256])
    trial.suggest_int("layers", 1, 2)
    trial.suggest_categorical("bidirectional", [True, False])
    # Without a projection a head of 960-wide embeddings costs some five times as much, so it is not offered.
    trial.suggest_categorical("projection", [32, 64, 128, 256])
    trial.suggest_float("dropout", 0.0, 0.6)
    trial.suggest_categorical("pooling", ["mean", "max", "last", "attention"])
    trial.suggest_categorical("centred_copy", [False, True])
    trial.suggest_categorical("dynamics", [False, True])
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    trial.suggest_float("weight_decay", 1e-4, 0.3, log=True)
    if space.many:
        least = 8 if trial.user_attrs.get("role") == BASELINE_ROLE else LEAST_BATCH_OF_MANY
        trial.suggest_int("batch_size", least, 128, log=True)
    else:
        trial.suggest_categorical("batch_size", [8, 16, 32, 64, 128])
    trial.suggest_categorical("scheduler", ["cosine", "plateau", "none"])
    trial.suggest_float("label_smoothing", 0.0, 0.2)
    trial.suggest_categorical("class_weighting", [True, False])
    trial.suggest_float("noise", 0.0, 0.5)
    trial.suggest_float("frame_dropout", 0.0, 0.4)
    trial.suggest_float("subsample", 0.0, 1.0)
    if space.task != "ordinal":
        trial.suggest_categorical("loss", ["cross_entropy", "focal"])
    if len(space.streams) > 1:
        trial.suggest_float("stream_dropout", 0.0, 0.3)
        if not space.fixed_inputs:
            trial.suggest_categorical("inputs", ["both", "embeddings", "geometry"])
    return trial_config_of(trial.params, space)


def baseline_point(space: Space) -> dict[str, Any]:
    """The seed project's settings as a point of the space: the first trial of every study."""
    head, train = HeadConfig(), TrainConfig()
    point: dict[str, Any] = {
        "kind": "lstm",
        "hidden": head.hidden,
        "layers": head.layers,
        "bidirectional": head.bidirectional,
        "projection": head.projection,
        "dropout": head.dropout,
        "pooling": head.pooling,
        "centred_copy": False,
        "dynamics": False,
        "lr": train.lr,
        "weight_decay": train.weight_decay,
        "batch_size": train.batch_size,
        "scheduler": train.scheduler,
        "label_smoothing": 0.0,
        "class_weighting": True,
        "noise": 0.0,
        "frame_dropout": 0.0,
        "subsample": 0.0,
    }
    if space.task != "ordinal":
        point["loss"] = "cross_entropy"
    if len(space.streams) > 1:
        # It knew the embeddings alone.
        point |= {"stream_dropout": 0.0} | ({} if space.fixed_inputs else {"inputs": "embeddings"})
    return point


def starting_points(space: Space) -> tuple[dict[str, Any], ...]:
    """Where every study begins: the seed project's settings, then two heads that are held back.

    Much noise, dropout and decay hold the second back, a narrow projection the third as well. Such heads
    start slowly and end well, so that looks at early epochs stop them and a short search does not find them.
    Most values are what real faces chose in folds; cell and projection were chosen on made-up clips, and
    the rate is the seed's (docs/log.md).
    """
    held_back = baseline_point(space) | {
        "kind": "gru",
        "bidirectional": False,
        "dropout": 0.5,
        "pooling": "attention",
        "weight_decay": 0.3,
        "batch_size": 64 if space.many else 8,
        "noise": 0.5,
    }
    if len(space.streams) > 1:
        held_back |= {"stream_dropout": 0.1} | ({} if space.fixed_inputs else {"inputs": "both"})
    return baseline_point(space), held_back, held_back | {"projection": 32}


def space_hash(space: Space) -> str:
    """Changes whenever what a trial may choose from does."""
    trial = optuna.trial.FixedTrial(baseline_point(space) | {"batch_size": 64})
    suggest(trial, space)
    offered = {name: distribution_to_json(offer) for name, offer in trial.distributions.items()}
    return hashlib.sha256(json.dumps(offered, sort_keys=True).encode()).hexdigest()[:16]


def is_baseline(params: Mapping[str, Any], space: Space) -> bool:
    """Whether a trial is the seed project's settings, which are judged with the best at the end."""
    return dict(params) == baseline_point(space)


def may_prune(trial: optuna.trial.BaseTrial, space: Space, num_folds: int = 1) -> bool:
    """Whether a trial may be stopped early: not those that every study begins with, nor later one in
    `TO_THE_END`, unless it is judged by whole folds, of which no start is slow."""
    late = trial.number >= 2 * TO_THE_END and (trial.number + 1) % TO_THE_END == 0
    if late and space.many and num_folds == 1:
        return False
    return trial.params not in starting_points(space)


def trial_config_of(params: Mapping[str, Any], space: Space) -> TrialConfig:
    """The configs that a trial's parameters stand for."""
    names = {field.name for field in dataclasses.fields(HeadConfig)}
    head = HeadConfig(**{key: value for key, value in params.items() if key in names})
    rest = {key: value for key, value in params.items() if key not in names and key != "inputs"}
    seed, theirs = TrainConfig(), is_baseline(params, space)
    train = TrainConfig(
        **rest,
        epochs=min(seed.epochs, space.epochs) if theirs else space.epochs,
        patience=seed.patience if theirs or space.many else PATIENCE_OF_FEW,
    )
    every: Inputs = (
        "both" if len(space.streams) > 1 else "geometry" if "geometry" in space.streams else "embeddings"
    )
    return TrialConfig(complete_head(head, space.task), train, params.get("inputs", every))
