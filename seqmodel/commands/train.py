"""python -m seqmodel train: train a model on cached features, without a search: one member for each stream,
with a head for each fold of people."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from features.cli import console, echo, log_warning, progress
from features.datasets import streams_of
from seqmodel.config import MemberConfig, TrainArgs
from seqmodel.evaluation.simple_methods import baseline_scores
from seqmodel.runs.files import require_free
from seqmodel.runs.writer import (
    TrainedModel,
    complete_head,
    count_parameters,
    only_writer,
    resolve_device,
    rounded,
    write_run,
)
from seqmodel.training.cross_fit import FoldInputs, Objective
from seqmodel.training.select import fit_ensemble
from seqmodel.training.task import LearningClips, LearningTask, build_task, learning_clips, load_learning


def train(args: TrainArgs) -> tuple[dict[str, Any], int]:
    """Handler of the command: trains, writes the run, returns (summary, exit code)."""
    require_free(args.run)
    learning_task = build_task(
        args.store, args.label, args.inputs, seed=args.seed, splits_from=args.splits_from, design=args.design
    )
    print_task(learning_task)
    device = resolve_device(args.device)
    clips = learning_clips(learning_task, args.seed)
    inputs = FoldInputs(load_learning(learning_task), clips.folds)
    clips = replace(clips, folds=inputs.folds)
    model = fit_members(args, learning_task, inputs, clips, device)
    baselines = baseline_scores(inputs, clips.groups, learning_task.labelling, model.objective)
    with only_writer(args.run):
        card = write_run(
            args.run,
            learning_task,
            model,
            seed=args.seed,
            stage={"stage": "head", "baselines": rounded(baselines), "command": args.command},
        )
    parameters = count_parameters(model.ensemble)
    value, of_members = model.scores(inputs.samples.labels)
    summary = {
        "run": str(args.run),
        "metric": card.metric,
        "val_score": value,
        "epochs": args.train.epochs,
        "folds": card.num_folds,
        "parameters": parameters,
        "baselines": baselines,
        "clips": {
            "train": len(learning_task.split.train),
            "val": len(learning_task.split.val),
            "unlabelled": learning_task.num_unlabelled,
        },
        "warnings": list(card.warnings),
    }
    members = [f"{member.stream} ({member.head.kind})" for member in card.members]
    found = {"this model": value} | (dict(zip(members, of_members, strict=True)) if len(members) > 1 else {})
    print_scores(card.metric, found | baselines)
    echo(f"run written to {args.run}")
    return summary, 0


def fit_members(
    args: TrainArgs, learning_task: LearningTask, inputs: FoldInputs, clips: LearningClips, device: str
) -> TrainedModel:
    """A member for each stream, as the options define it; a stream that is far behind is left out."""
    task = learning_task.labelling.task
    objective = Objective(task, learning_task.num_classes, args.metric)
    head = complete_head(args.head, task)
    configs = [MemberConfig(stream, head, args.train) for stream in streams_of(learning_task.inputs)]
    with progress("epochs") as bar:
        row = bar.add_task("training", total=args.train.epochs * len(inputs.numbers) * len(configs))
        members = fit_ensemble(
            inputs, configs, objective, seed=args.seed, device=device, on_epoch=lambda _: bar.advance(row)
        )
    return TrainedModel(members, clips, objective)


def print_task(learning_task: LearningTask) -> None:
    """Print the classes, the number of clips per subset, and the warnings of the split."""
    counts = ", ".join(f"{len(rows)} {subset}" for subset, rows in learning_task.split.subsets().items())
    left_out = (
        f"; {learning_task.num_unlabelled} clips without a label are left out"
        if learning_task.num_unlabelled
        else ""
    )
    echo(
        f"{learning_task.labelling.task}: {' < '.join(learning_task.labelling.names)} (last = positive), "
        f"{counts} clips{left_out}; split: {learning_task.split.description}"
    )
    echo(f"design: {learning_task.design.text}")
    for text in learning_task.split.warnings:
        log_warning(text)


def print_scores(metric: str, scores: Mapping[str, float]) -> None:
    """Print a table of scores on clips that choices were made on, best first."""
    from rich.table import Table

    table = Table("", f"selection score (optimistic), out-of-fold {metric}")
    for name, value in sorted(scores.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:.4f}")
    console().print(table)
