"""Finalists: the best trial of each family, and the members of the run among them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from features.cli import UserError, echo, progress
from features.cpu import usable_cores
from seqmodel.runs.writer import TrainedModel
from seqmodel.training.cross_fit import CrossFit, cross_fit
from seqmodel.training.select import OutOfFoldScore, earliest_as_good, select_members
from tune.config import TuneArgs
from tune.search_space import member_config_of
from tune.study.kept_fits import load_fit
from tune.study.worker import SearchContext


@dataclass(frozen=True)
class Finalist:
    """The best trial of a family, and whether it is a member of the run."""

    trial: FrozenTrial
    is_member: bool


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """One complete trial of each family (`earliest_as_good`), best first.

    Raises UserError if no trial is complete.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        raise UserError(f"study {study.study_name!r} has no complete trial; increase --trials")
    families: dict[str, list[FrozenTrial]] = {}
    for trial in sorted(complete, key=lambda trial: trial.number):
        families.setdefault(str(trial.user_attrs.get("family", "")), []).append(trial)
    chosen = [trials[earliest_as_good(list(map(_score, trials)))] for trials in families.values()]
    return sorted(chosen, key=lambda trial: -_score(trial).score)


def _score(trial: FrozenTrial) -> OutOfFoldScore:
    value, found = trial.value, trial.user_attrs
    curve = found.get("val_curve", ()) if found.get("curve_of") == "folds" else ()
    score = value if value is not None and np.isfinite(value) else -np.inf
    return OutOfFoldScore(score, found.get("val_loss", 0.0), tuple(curve))


def fit_finalists(
    args: TuneArgs, study: optuna.Study, context: SearchContext
) -> tuple[list[Finalist], TrainedModel]:
    """The best trial of each family, fitted again if its heads were not kept, and the members among them;
    members first.

    With --finetune, a recurrent member that reads embeddings is among them.
    """
    trials = best_trials(study)
    torch.set_num_threads(max(1, usable_cores() // args.workers))
    fits: list[CrossFit] = []
    with progress("families") as bar:
        for trial in bar.track(trials, description="the best of each family"):
            given = member_config_of(trial.params, context.space), context.inputs, context.objective
            kept = load_fit(args.out, study, trial, *given)
            config, inputs, objective = given
            fits.append(kept or cross_fit(inputs, config, objective, seed=args.seed, device=context.device))
    labels, clips = context.inputs.samples.labels, context.clips
    chosen = select_members(fits, labels, context.inputs.folds, context.objective)
    tunable = [i for i, each in enumerate(fits) if each.config.family == "embeddings recurrent"]
    if args.finetune and tunable and not set(tunable) & set(chosen):
        echo(f"trial {trials[tunable[0]].number} is a member too: --finetune tunes the encoder under it")
        chosen = [tunable[0], *chosen] if args.single else [*chosen, tunable[0]]
    chosen = chosen[:1] if args.single else chosen
    model = TrainedModel(tuple(fits[index] for index in chosen), clips, context.objective)
    rest = [index for index in range(len(trials)) if index not in chosen]
    finalists = [Finalist(trials[index], index in chosen) for index in [*chosen, *rest]]
    return finalists, model


def warnings_about_model(value: float, baselines: Mapping[str, float], metric: str) -> list[str]:
    """Warnings about baselines that the model does not beat. value: its out-of-fold score."""
    return [
        f"out of fold, the model is not better than the baseline {name}: {metric} {value:.4f}, baseline "
        f"{score:.4f}"
        for name, score in baselines.items()
        if score >= value
    ]
