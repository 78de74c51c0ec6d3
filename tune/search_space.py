"""The search space: hyperparameters of heads and of their training, and the starting points of a study.

The space is flat, because the sampler models all parameters jointly. The first point is always the seed
project's settings.
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
from seqmodel.config import HeadConfig, TrainConfig, TrialConfig
from seqmodel.runs.writer import complete_head
from tune.config import BASELINE_ROLE

MANY_CLIPS = 1000
"""Number of training clips from which the score after one epoch is good enough for pruning. From here on
small batches are also left out: 8 clips per step take two to three times as long as 32, with no better score.
"""
MIN_BATCH_MANY_CLIPS = 32
NEVER_PRUNED_ONE_IN = 8
"""With many clips, one trial in this number is never pruned (after the first ones), so that the sampler also
sees the final scores of heads that start slowly. With few clips, Hyperband's other brackets do that."""
PATIENCE_FEW_CLIPS = 5
"""Patience of trials with few clips, where epochs are short and scores imprecise; else the seed project's
4."""


@dataclass(frozen=True)
class Space:
    """The search space of a study."""

    task: Task
    streams: tuple[str, ...]
    """Available streams."""
    fixed_inputs: bool
    """True if --inputs sets the streams."""
    epochs: int
    many: bool = False
    """Whether there are `MANY_CLIPS` training clips or more; the slowest choices are then left out."""


def suggest(trial: optuna.trial.BaseTrial, space: Space) -> TrialConfig:
    """Sample one point of the space."""
    trial.suggest_categorical("kind", ["lstm", "gru"])
    # 256 takes two to four times as long as 128.
    trial.suggest_categorical("hidden", [32, 64, 128] if space.many else [32, 64, 128, 256])
    trial.suggest_int("layers", 1, 2)
    trial.suggest_categorical("bidirectional", [True, False])
    # Without a projection, a head on 960-wide embeddings takes about five times as long: not in the space.
    trial.suggest_categorical("projection", [32, 64, 128, 256])
    trial.suggest_float("dropout", 0.0, 0.6)
    trial.suggest_categorical("pooling", ["mean", "max", "last", "attention"])
    trial.suggest_categorical("centred_copy", [False, True])
    trial.suggest_categorical("dynamics", [False, True])
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    trial.suggest_float("weight_decay", 1e-4, 0.3, log=True)
    if space.many:
        minimum = 8 if trial.user_attrs.get("role") == BASELINE_ROLE else MIN_BATCH_MANY_CLIPS
        trial.suggest_int("batch_size", minimum, 128, log=True)
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
        # The seed project used embeddings only.
        point |= {"stream_dropout": 0.0} | ({} if space.fixed_inputs else {"inputs": "embeddings"})
    return point


def starting_points(space: Space) -> tuple[dict[str, Any], ...]:
    """The starting points of every study: the seed project's settings, then two strongly regularised heads.

    The second has strong noise, dropout and weight decay; the third also has a narrow projection. Such heads
    start slowly and end well, so pruning would stop them and a short search would not find them. Most values
    come from cross-validation on real faces; cell and projection come from synthetic clips, and the learning
    rate is that of the seed project (docs/log.md).
    """
    regularised = baseline_point(space) | {
        "kind": "gru",
        "bidirectional": False,
        "dropout": 0.5,
        "pooling": "attention",
        "weight_decay": 0.3,
        "batch_size": 64 if space.many else 8,
        "noise": 0.5,
    }
    if len(space.streams) > 1:
        regularised |= {"stream_dropout": 0.1} | ({} if space.fixed_inputs else {"inputs": "both"})
    return baseline_point(space), regularised, regularised | {"projection": 32}


def space_hash(space: Space) -> str:
    """Hash of the search space, sixteen hex digits."""
    trial = optuna.trial.FixedTrial(baseline_point(space) | {"batch_size": 64})
    suggest(trial, space)
    distributions = {name: distribution_to_json(d) for name, d in trial.distributions.items()}
    return hashlib.sha256(json.dumps(distributions, sort_keys=True).encode()).hexdigest()[:16]


def is_baseline(params: Mapping[str, Any], space: Space) -> bool:
    """Whether these parameters are the seed project's settings."""
    return dict(params) == baseline_point(space)


def may_prune(trial: optuna.trial.BaseTrial, space: Space, num_folds: int = 1) -> bool:
    """Whether a trial may be pruned: not the starting points, and with many clips and one fold not one later
    trial in `NEVER_PRUNED_ONE_IN`."""
    late = trial.number >= 2 * NEVER_PRUNED_ONE_IN and (trial.number + 1) % NEVER_PRUNED_ONE_IN == 0
    if late and space.many and num_folds == 1:
        return False
    return trial.params not in starting_points(space)


def trial_config_of(params: Mapping[str, Any], space: Space) -> TrialConfig:
    """The configs of a trial's parameters."""
    names = {field.name for field in dataclasses.fields(HeadConfig)}
    head = HeadConfig(**{key: value for key, value in params.items() if key in names})
    training = {key: value for key, value in params.items() if key not in names and key != "inputs"}
    defaults, is_seed = TrainConfig(), is_baseline(params, space)
    train = TrainConfig(
        **training,
        epochs=min(defaults.epochs, space.epochs) if is_seed else space.epochs,
        patience=defaults.patience if is_seed or space.many else PATIENCE_FEW_CLIPS,
    )
    all_streams: Inputs = (
        "both" if len(space.streams) > 1 else "geometry" if "geometry" in space.streams else "embeddings"
    )
    return TrialConfig(complete_head(head, space.task), train, params.get("inputs", all_streams))
