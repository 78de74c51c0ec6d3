"""The search space: hyperparameters of members and of their training, and the starting points of a study.

The space is flat, because the sampler models all parameters jointly; trees use the number of components
alone. Streams take turns. Recurrent heads are LSTMs: with 32 units torch's GRU takes six times as long on a
processor, and was not better (docs/log.md). One starting point has the seed project's settings.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import distribution_to_json

from features.labels import Task
from seqmodel.config import HeadConfig, MemberConfig, TrainConfig
from seqmodel.runs.writer import complete_head

MANY_CLIPS = 1000
"""Number of clips from which small batches are left out of the space: 16 clips per step take up to twice as
long as 32, with no better score."""
FEW_PEOPLE = 4
EPOCHS = {False: 30, True: 10}
"""Epochs with few and with many clips: about as many steps do."""


@dataclass(frozen=True)
class Space:
    """The search space of a study."""

    task: Task
    streams: tuple[str, ...]
    """Streams that members may read."""
    epochs: int
    many: bool = False
    """Whether there are `MANY_CLIPS` clips or more; small batches are then left out."""
    few: bool = False
    """Whether there are fewer than `FEW_PEOPLE` people: nothing is searched, because a choice by the scores
    of three people is luck. An LSTM and trees for each stream are fixed."""


def suggest(trial: optuna.trial.BaseTrial, space: Space) -> MemberConfig:
    """Sample one point of the space."""
    trial.suggest_categorical("stream", list(space.streams))
    trial.suggest_categorical("kind", ["lstm", "trees"])
    trial.suggest_categorical("components", [8, 16, 32, 64])
    trial.suggest_categorical("hidden", [16, 32, 64])
    trial.suggest_int("layers", 1, 2)
    trial.suggest_categorical("bidirectional", [True, False])
    trial.suggest_float("dropout", 0.0, 0.6)
    trial.suggest_categorical("pooling", ["mean", "stats", "attention"])
    trial.suggest_categorical("statistics", [True, False])
    trial.suggest_float("lr", 5e-4, 1e-2, log=True)
    trial.suggest_float("weight_decay", 1e-4, 0.3, log=True)
    trial.suggest_categorical("batch_size", [32, 64, 128] if space.many else [16, 32, 64])
    trial.suggest_categorical("class_weighting", [True, False])
    trial.suggest_float("noise", 0.0, 1.0)
    trial.suggest_float("frame_dropout", 0.0, 0.4)
    return member_config_of(trial.params, space)


def point_of(space: Space, stream: str, **changes: Any) -> dict[str, Any]:
    """The default settings of `train` on a stream as a point of the space, with changes."""
    head, train = HeadConfig(), TrainConfig()
    of_head = ("kind", "components", "hidden", "layers", "bidirectional", "dropout", "pooling", "statistics")
    of_train = ("lr", "weight_decay", "batch_size", "class_weighting", "noise", "frame_dropout")
    point = {"stream": stream} | {name: getattr(head, name) for name in of_head}
    point |= {name: getattr(train, name) for name in of_train}
    point["batch_size"] = 32 if space.many else point["batch_size"]
    return point | changes


def starting_points(space: Space) -> tuple[dict[str, Any], ...]:
    """The starting points of every study.

    For each stream heads with little and with much noise, which do well on many and on few components
    (docs/log.md), and trees. Of trials that are about as good the earliest is chosen, so these come in the
    order in which they are preferred; the last one has the seed project's settings (it read embeddings;
    without its early stopping, with 64 components in place of its projection, and 16 clips a step instead
    of 8).
    """
    # Ordinal tasks gain by class weights (docs/log.md), and few people, for whom no threshold is fitted.
    weighted = {"class_weighting": space.task == "ordinal" or space.few}
    first = "embeddings" if "embeddings" in space.streams else space.streams[0]
    seed = point_of(space, first, components=64, hidden=64, pooling="mean", statistics=False, lr=1e-3)
    points = []
    for stream in space.streams:
        many, few = (64, 32) if stream == "geometry" else (32, 16)
        points += [
            point_of(space, stream, components=many, noise=0.3, **weighted),
            point_of(space, stream, kind="trees", components=64 if stream == "geometry" else 16),
        ]
        points += [] if space.few else [point_of(space, stream, components=few, noise=1.0, **weighted)]
    return tuple(points) if space.few else (*points, seed)


def turn_of(number: int, space: Space) -> dict[str, Any]:
    """Stream and kind of the trial with this number, unless it is a starting point."""
    return {"stream": space.streams[number % len(space.streams)], "kind": "lstm"}


def space_hash(space: Space) -> str:
    """Hash of the search space and its starting points, sixteen hex digits."""
    points = starting_points(space)
    trial = optuna.trial.FixedTrial(points[0] | {"batch_size": 64})
    suggest(trial, space)
    distributions = {name: distribution_to_json(d) for name, d in trial.distributions.items()}
    return hashlib.sha256(json.dumps([distributions, points], sort_keys=True).encode()).hexdigest()[:16]


def member_config_of(params: Mapping[str, Any], space: Space) -> MemberConfig:
    """The configuration of a trial's parameters."""
    names = {field.name for field in dataclasses.fields(HeadConfig)}
    head = HeadConfig(**{key: value for key, value in params.items() if key in names})
    training = {key: value for key, value in params.items() if key not in names and key != "stream"}
    train = TrainConfig(**training, epochs=space.epochs)
    return MemberConfig(params["stream"], complete_head(head, space.task), train)
