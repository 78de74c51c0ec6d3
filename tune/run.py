"""The search of `python -m tune`: from a store, through an Optuna study, to a run."""

import hashlib
import json
import shlex
import statistics
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
from seqmodel.config import FinetuneArgs, TrialConfig
from seqmodel.evaluation.simple_methods import baseline_scores
from seqmodel.finetuning.setup import require_crops
from seqmodel.runs.card import load_card
from seqmodel.runs.files import ARTIFACTS, CARD, STUDY, WEIGHTS, require_free
from seqmodel.runs.writer import count_parameters, only_writer, rounded, write_run
from seqmodel.training.loop import resolve_metric
from seqmodel.training.task import LearningTask, build_task, data_fingerprint, encoder_leak_warning
from tune.config import TuneArgs
from tune.finalists import Finalist, choose_finalists, warnings_about_winner
from tune.search_space import space_hash, starting_points, trial_config_of
from tune.study.checkpoints import drop_checkpoints
from tune.study.plots import save_study_plots
from tune.study.storage import without_password
from tune.study.study import (
    DONE,
    RANDOM_TRIALS,
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
    kept_or_refitted,
    set_up,
    trial_value,
    worker,
)
from tune.study.worker_pool import run_workers


def tune(args: TuneArgs) -> tuple[dict[str, Any], int]:
    """Handler of the command: search, choose the best trial, write the run; returns (summary, exit code)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started = time.perf_counter()
    require_free(args.out)
    learning_task = open_task(args)
    print_task(learning_task)
    if args.folds > 1:
        echo("with --folds each head is trained on one fold only: no checkpoints of trials are kept")
    context = set_up(args, learning_task)
    metric = resolve_metric(args.metric, context.space.task)
    fold_warnings = warnings_about_folds(context)
    for text in fold_warnings:
        log_warning(text)
    spec = spec_of(args, context, metric)
    study = create_study(spec, starting_points(context.space), settings_of(args, context, metric))
    search(args, spec, study, context)
    with only_writer(args.out):
        drop_checkpoints(study, args.out)
        finalists = choose_finalists(args, study, context)
        winner = finalists[0]
        baselines = mean_baselines(context, metric)
        notes = [*fold_warnings, *warnings_about_winner(finalists, baselines, metric)]
        for text in notes[len(fold_warnings) :]:
            log_warning(text)
        origin = origin_of(study, winner.trial)
        if _is_kept(args, origin):
            echo(f"nothing to do: {args.out} already has trial {winner.trial.number}")
        else:
            keep(args, context, study, winner, origin, baselines, metric, notes)
        parameter_importances = save_study_plots(study, args.out / "plots", metric)
        summary = summarise(args, context, study, finalists, baselines, metric, notes)
    close_study(study)
    summary |= {"importances": rounded(parameter_importances)}
    code = 0
    if args.finetune and "embeddings" not in load_card(args.out).dims:
        log_warning(
            "the best head reads geometry only: there is no encoder to fine-tune, so --finetune is skipped"
        )
    elif args.finetune:
        from seqmodel.commands.finetune import finetune

        summary["finetune"], code = finetune(
            FinetuneArgs(run=args.out, store=args.store, seed=args.seed, device=args.device)
        )
    summary["seconds"] = round(time.perf_counter() - started, 1)
    print_result(args, spec, finalists, baselines, metric)
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
    if args.center != "none" and "geometry" not in learning_task.dims:
        raise UserError(
            f"--center {args.center} needs the geometry stream: {args.store} has none, or --inputs leaves it "
            "out"
        )
    if args.center != "none" and args.finetune:
        raise UserError("--finetune and --center cannot be combined: leave out one of them")
    return learning_task


def spec_of(args: TuneArgs, context: SearchContext, metric: str) -> StudySpec:
    """Storage, name and settings of the study.

    In a journal file, the study is named after labels and metric and not after the run's folder: Hyperband
    assigns brackets by the name, and one seed should give the same study in every folder. In a shared storage
    it is named after the folder.
    """
    labels = "-".join(context.learning_task.labelling.names)
    name = args.study or (args.out.name if args.storage else f"{args.label.label}: {labels} by {metric}")
    storage = args.storage or str(args.out / STUDY)
    args.out.mkdir(parents=True, exist_ok=True)
    pruning, many = args.pruning == "on", context.space.many
    return StudySpec(storage, name, args.trials, args.seed, args.epochs, pruning, len(context.folds), many)


def warnings_about_folds(context: SearchContext) -> list[str]:
    """Warnings about folds: subjects that the encoder was trained on, and folds without a score."""
    learning_task, requested, scored = context.learning_task, context.args.folds, len(context.folds)
    if requested < 2:
        return []
    found = []
    if "embeddings" in learning_task.dims:
        rows = np.concatenate([learning_task.split.train, learning_task.split.val])
        found += (
            [leak]
            if (leak := encoder_leak_warning(learning_task.store, groups_of(learning_task.table, rows)))
            else []
        )
    if scored < requested:
        found.append(
            f"{requested - scored} of {requested} folds have clips of one class only, in training or in "
            f"validation, and are left out: scores are means over the other {scored}"
        )
    return found


def settings_of(args: TuneArgs, context: SearchContext, metric: str) -> dict[str, Any]:
    """The settings that must be equal to resume a study."""
    learning_task = context.learning_task
    is_grouped = args.folds > 1 and len(learning_task.near_duplicates) > 0
    return {
        "store": data_fingerprint(learning_task),
        "labels": [learning_task.labelling.column, *learning_task.labelling.names],
        "task": learning_task.labelling.task,
        "split": split_hash(learning_task.split, learning_task.table.clip_id),
        "metric": metric,
        "inputs": args.inputs or "any",
        "folds": f"{args.folds} with copies together" if is_grouped else args.folds,
        "epochs": args.epochs,
        "center": args.center,
        "seed": args.seed,
        "space": space_hash(context.space),
    }


def mean_baselines(context: SearchContext, metric: str) -> dict[str, float]:
    """Mean score of each baseline over the folds of the trials."""
    task, names = context.space.task, context.learning_task.labelling.names
    found = [baseline_scores(fold.train, fold.val, task, names, metric) for fold in context.folds]
    return {name: statistics.fmean(scores[name] for scores in found) for name in found[0]}


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
    winner: Finalist,
    origin: Mapping[str, Any],
    baselines: dict[str, float],
    metric: str,
    notes: list[str],
) -> None:
    """Write the winner, trained with the seed of the search, as a run."""
    stages = load_card(args.out).stages if (args.out / CARD).is_file() else ()
    if not args.finetune and any(s.get("stage") == "finetune" and s.get("kept") for s in stages):
        log_warning(
            f"trial {winner.trial.number} replaces a fine-tuned head; use --finetune to fine-tune it too"
        )
    torch.set_num_threads(usable_cores())
    trial_config = trial_config_of(winner.trial.params, context.space)
    head, fitted = kept_or_refitted(context, winner.trial)
    stage = {
        "stage": "head",
        **origin,
        "mean_over_seeds": round(winner.mean, 4),
        "spread_over_seeds": round(winner.spread, 4),
        "parameters": count_parameters(head),
        "baselines": rounded(baselines),
        "command": shlex.join(map(without_password, shlex.split(args.command))),
    }
    write_run(
        args.out,
        context.learning_task,
        head,
        fitted,
        trial_config.train,
        seed=args.seed,
        metric=metric,
        stage=stage,
        warnings=notes,
        center=args.center,
        settings=first_settings(study, context),
    )


def first_settings(study: optuna.Study, context: SearchContext) -> list[TrialConfig]:
    """The starting points and the sampler's random points: they do not depend on anybody's labels."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state in DONE]
    first = sorted(trials, key=lambda trial: trial.number)[:RANDOM_TRIALS]
    return list(dict.fromkeys(trial_config_of(trial.params, context.space) for trial in first))


def summarise(
    args: TuneArgs,
    context: SearchContext,
    study: optuna.Study,
    finalists: list[Finalist],
    baselines: dict[str, float],
    metric: str,
    notes: list[str],
) -> dict[str, Any]:
    """The summary that `--json` prints."""
    trials = study.get_trials(deepcopy=False)
    counts = {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState}
    winner = finalists[0]
    return {
        "run": str(args.out),
        "study": study.study_name,
        "metric": metric,
        "clips": {
            "train": len(context.whole.train),
            "val": len(context.whole.val),
            "unlabelled": context.learning_task.num_unlabelled,
        },
        "trials": {name: count for name, count in counts.items() if count},
        "best": {
            "trial": winner.trial.number,
            "value": winner.trial.value,
            "params": winner.trial.params,
        },
        "finalists": [
            {"trial": f.trial.number, "mean": f.mean, "spread": f.spread, "scores": list(f.scores)}
            for f in finalists
        ],
        "baselines": baselines,
        "val_score": load_card(args.out).stages[0]["val_score"],
        "warnings": list(dict.fromkeys([*context.learning_task.split.warnings, *notes])),
    }


def print_result(
    args: TuneArgs, spec: StudySpec, finalists: list[Finalist], baselines: dict[str, float], metric: str
) -> None:
    """Print the table of scores and the next commands."""
    scores = {}
    for f in finalists:
        description = f"{f.trial.value:.4f} in the search"
        if f.scores:
            description += f"; mean of {len(f.scores)} new seeds ± {f.spread:.3f}"
        scores[f"trial {f.trial.number} ({description})"] = f.mean
    print_scores(metric, scores | baselines)
    echo(f"run written to {args.out}")
    console().print(f"to view the study: {dashboard_command(args, spec)}", markup=False)


def dashboard_command(args: TuneArgs, spec: StudySpec) -> str:
    """The command that shows the study in a browser, without a password."""
    if spec.storage.startswith("grpc://"):
        return "optuna-dashboard DATABASE, with the URL of the database behind the proxy"
    argv = ["optuna-dashboard", without_password(spec.storage)]
    if (args.out / ARTIFACTS).is_dir():
        argv += ["--artifact-dir", str(args.out / ARTIFACTS)]
    return shlex.join(argv)


def origin_of(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    """The origin of a head, for its card (study, hash of the settings, trial). Heads with the same origin are
    equal."""
    settings = json.dumps(study.user_attrs["settings"], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return {"study": study.study_name, "settings": digest, "trial": trial.number, "params": trial.params}


def _is_kept(args: TuneArgs, origin: Mapping[str, Any]) -> bool:
    """Whether the run on disk already has the head of this origin, fine-tuned or not."""
    if not ((args.out / CARD).is_file() and (args.out / WEIGHTS).is_file()):
        return False
    first = next(iter(load_card(args.out).stages), {})
    return all(first.get(key) == value for key, value in origin.items())
