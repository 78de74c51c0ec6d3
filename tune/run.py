"""The search of `python -m tune`: from a store, through an Optuna study, to a run."""

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from features.cli import UserError, console, echo, log_warning, progress
from features.cpu import usable_cores
from features.files import in_same_namespace
from features.splits import split_hash
from features.store.table import groups_of
from seqmodel.commands.train import print_scores, print_task
from seqmodel.config import FinetuneArgs
from seqmodel.evaluation.simple_methods import baseline_scores
from seqmodel.finetuning.setup import require_crops
from seqmodel.runs.card import Card, load_card
from seqmodel.runs.files import CARD, OUT_OF_FOLD, STUDY, WEIGHTS, require_free
from seqmodel.runs.writer import count_parameters, only_writer, rounded, write_run
from seqmodel.training.loop import resolve_metric
from seqmodel.training.task import LearningTask, build_task, data_fingerprint, encoder_leak_warning
from tune.config import TuneArgs
from tune.finalists import best_trials, fit_finalists, warnings_about_model
from tune.search_space import member_config_of, space_hash, starting_points, turn_of
from tune.study.storage import without_password
from tune.study.study import (
    DONE,
    SILENT_S,
    StudySpec,
    close_study,
    create_study,
    has_retry,
    num_done,
    reclaim,
    work,
)
from tune.study.worker import (
    SearchContext,
    set_up,
    trial_value,
    worker,
)
from tune.study.worker_pool import run_workers

PROCEDURE = 2
"""Version of what a trial does: studies of another version are not resumed."""


def tune(args: TuneArgs) -> tuple[dict[str, Any], int]:
    """Handler of the command: search, select the members, write the run; returns (summary, exit code)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started = time.perf_counter()
    require_free(args.out)
    learning_task = open_task(args)
    print_task(learning_task)
    context = set_up(args, learning_task)
    metric = resolve_metric(args.metric, context.space.task)
    if context.space.few:
        people = len(np.unique(context.clips.groups))
        echo(f"{people} people to learn from: no search, an LSTM and trees of fixed settings for each stream")
    fold_warnings = warnings_about_folds(context)
    for text in fold_warnings:
        log_warning(text)
    spec = spec_of(args, context, metric)
    study = create_study(spec, starting_points(context.space), settings_of(args, context, metric))
    search(args, spec, study, context)
    with only_writer(args.out):
        origin = origin_of(args, study, [trial.number for trial in best_trials(study)])
        if not _is_kept(args, origin):
            keep(args, context, study, origin, fold_warnings)
        else:
            echo(f"nothing to do: {args.out} already has the best trials of this search")
        shutil.rmtree(args.out / OUT_OF_FOLD, ignore_errors=True)
        card = load_card(args.out)
        summary = summarise(args, context, study, card)
    close_study(study)
    code = 0
    if args.finetune and "embeddings" not in card.dims:
        log_warning("no member reads embeddings: there is no encoder to fine-tune, so --finetune is skipped")
    elif args.finetune:
        from seqmodel.commands.finetune import finetune

        summary["finetune"], code = finetune(
            FinetuneArgs(run=args.out, store=args.store, seed=args.seed, device=args.device)
        )
    summary["seconds"] = round(time.perf_counter() - started, 1)
    print_result(args, spec, card)
    return summary, code


def open_task(args: TuneArgs) -> LearningTask:
    """The learning task of the search.

    Raises UserError for options that do not fit the store, or contradict each other.
    """
    learning_task = build_task(
        args.store, args.label, args.inputs, seed=args.seed, splits_from=args.splits_from, design=args.design
    )
    if args.finetune:
        require_crops(
            learning_task.store, np.concatenate([learning_task.split.train, learning_task.split.val])
        )
    if args.finetune and "embeddings" not in learning_task.dims:
        raise UserError(
            "--finetune trains the encoder, but --inputs geometry does not read it: leave out one of them"
        )
    return learning_task


def spec_of(args: TuneArgs, context: SearchContext, metric: str) -> StudySpec:
    """Storage, name and settings of the study.

    In a journal file, the study is named after labels and metric, in a shared storage after the run's folder.
    """
    labels = "-".join(context.learning_task.labelling.names)
    name = args.study or (args.out.name if args.storage else f"{args.label.label}: {labels} by {metric}")
    storage = args.storage or str(args.out / STUDY)
    args.out.mkdir(parents=True, exist_ok=True)
    turns = tuple(turn_of(number, context.space) for number in range(len(context.space.streams)))
    trials = len(starting_points(context.space)) if context.space.few else args.trials
    return StudySpec(storage, name, trials, args.seed, turns)


def warnings_about_folds(context: SearchContext) -> list[str]:
    """A warning about subjects that the encoder was trained on."""
    learning_task = context.learning_task
    if "embeddings" not in learning_task.dims or len(context.inputs.numbers) == 1:
        return []
    groups = groups_of(learning_task.table, context.clips.rows)
    leak = encoder_leak_warning(learning_task.store, groups)
    return [leak] if leak else []


def settings_of(args: TuneArgs, context: SearchContext, metric: str) -> dict[str, Any]:
    """The settings that must be equal to resume a study."""
    learning_task = context.learning_task
    return {
        "store": data_fingerprint(learning_task),
        "labels": [learning_task.labelling.column, *learning_task.labelling.names],
        "task": learning_task.labelling.task,
        "split": split_hash(learning_task.split, learning_task.table.clip_id),
        "metric": metric,
        "inputs": args.inputs or "any",
        "folds": hashlib.sha256(context.inputs.folds.tobytes()).hexdigest()[:16],
        "procedure": PROCEDURE,
        "epochs": args.epochs,
        "seed": args.seed,
        "space": space_hash(context.space),
    }


def search(args: TuneArgs, spec: StudySpec, study: optuna.Study, context: SearchContext) -> None:
    """Run trials until the study has enough, in this process or in several."""
    if reclaimed := reclaim(study, {}):
        echo(f"the worker of trials {reclaimed} ended early: these trials are run again")
    if num_done(study) >= spec.trials and not has_retry(study):
        return
    cores = usable_cores()
    with progress("trials") as bar:
        row = bar.add_task("searching", total=spec.trials, completed=num_done(study))

        def show(trials: list[FrozenTrial]) -> None:
            done = [trial for trial in trials if trial.state in DONE]
            values = [t.value for t in done if t.state == TrialState.COMPLETE and t.value is not None]
            best = f"searching, best {max(values):.4f}" if values else "searching"
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
            workers = [trial.user_attrs["worker"] for trial in running if "worker" in trial.user_attrs]
            others = {worker["host"] for worker in workers if not in_same_namespace(worker)}
            if len(done) + len(running) >= spec.trials and others:
                best = f"waiting for {', '.join(sorted(others))} ({SILENT_S // 60} minutes if it has ended)"
            bar.update(row, completed=len(done), description=best)

        if args.workers <= 1:
            torch.set_num_threads(cores)

            def value(trial: optuna.Trial) -> float:
                show(study.get_trials(deepcopy=False))
                return trial_value(context, trial)

            work(spec, value, while_waiting=show)
            show(study.get_trials(deepcopy=False))
            return
        for trials in run_workers(
            study,
            spec,
            worker,
            (args, context.learning_task.near_duplicates, spec, max(1, cores // args.workers)),
            args.workers,
        ):
            show(trials)


def keep(
    args: TuneArgs,
    context: SearchContext,
    study: optuna.Study,
    origin: Mapping[str, Any],
    fold_warnings: list[str],
) -> None:
    """Select the members among the best of each family, and write them as a run."""
    stages = load_card(args.out).stages if (args.out / CARD).is_file() else ()
    if not args.finetune and any(s.get("stage") == "finetune" and s.get("kept") for s in stages):
        log_warning(f"{args.out} was fine-tuned and is replaced; use --finetune to fine-tune it too")
    finalists, model = fit_finalists(args, study, context)
    labelling = context.learning_task.labelling
    baselines = baseline_scores(context.inputs, context.clips.groups, labelling, context.objective)
    value, _ = model.scores(context.inputs.samples.labels)
    notes = warnings_about_model(value, baselines, resolve_metric(args.metric, context.space.task))
    for text in notes:
        log_warning(text)
    found = [
        {
            "trial": f.trial.number,
            "family": f.trial.user_attrs.get("family"),
            "value": f.trial.value,
            "member": f.is_member,
            "params": f.trial.params,
        }
        for f in finalists
    ]
    stage = {
        "stage": "head",
        **origin,
        "finalists": found,
        "parameters": count_parameters(model.ensemble),
        "baselines": rounded(baselines),
        "command": shlex.join(map(without_password, shlex.split(args.command))),
    }
    write_run(
        args.out,
        context.learning_task,
        model,
        seed=args.seed,
        stage=stage,
        warnings=[*fold_warnings, *notes],
        settings=[member_config_of(point, context.space) for point in starting_points(context.space)],
    )


def summarise(args: TuneArgs, context: SearchContext, study: optuna.Study, card: Card) -> dict[str, Any]:
    """The summary that `--json` prints."""
    trials = study.get_trials(deepcopy=False)
    counts = {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState}
    stage, split = card.stages[0], context.learning_task.split
    return {
        "run": str(args.out),
        "study": study.study_name,
        "metric": card.metric,
        "clips": {
            "train": len(split.train),
            "val": len(split.val),
            "unlabelled": context.learning_task.num_unlabelled,
        },
        "folds": card.num_folds,
        "trials": {name: count for name, count in counts.items() if count},
        "finalists": stage["finalists"],
        "baselines": stage["baselines"],
        "val_score": stage["val_score"],
        "warnings": list(card.warnings),
    }


def print_result(args: TuneArgs, spec: StudySpec, card: Card) -> None:
    """Print the table of scores and the next commands."""
    stage = card.stages[0]
    scores = {f"mean of {len(card.members)} members": stage["val_score"]} if len(card.members) > 1 else {}
    for each in stage["finalists"]:
        what = "member" if each["member"] else "not a member"
        scores[f"{each['family']}, trial {each['trial']} ({what})"] = each["value"]
    print_scores(card.metric, scores | stage["baselines"])
    echo(f"run written to {args.out}")
    console().print(f"to view the study: {dashboard_command(args, spec)}", markup=False)


def dashboard_command(args: TuneArgs, spec: StudySpec) -> str:
    """The command that shows the study in a browser, without a password."""
    if spec.storage.startswith("grpc://"):
        return "optuna-dashboard DATABASE, with the URL of the database behind the proxy"
    return shlex.join(["optuna-dashboard", without_password(spec.storage)])


def origin_of(args: TuneArgs, study: optuna.Study, trials: list[int]) -> dict[str, Any]:
    """The origin of a model, for its card (study, hash of the settings, best trials). Models with the same
    origin are equal."""
    settings = json.dumps(study.user_attrs["settings"], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    options = {"single": args.single, "for_finetune": args.finetune}
    return {"study": study.study_name, "settings": digest, "trials": trials} | options


def _is_kept(args: TuneArgs, origin: Mapping[str, Any]) -> bool:
    """Whether the run on disk already has the head of this origin, fine-tuned or not."""
    if not ((args.out / CARD).is_file() and (args.out / WEIGHTS).is_file()):
        return False
    first = next(iter(load_card(args.out).stages), {})
    return all(first.get(key) == value for key, value in origin.items())
