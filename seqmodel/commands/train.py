"""python -m seqmodel train: train one head on cached features, without a search."""

from collections.abc import Mapping
from typing import Any

from features.cli import console, echo, log_warning, progress
from features.datasets import Samples
from seqmodel.config import TrainArgs
from seqmodel.evaluation.simple_methods import baseline_scores
from seqmodel.heads.recurrent import LstmHead, build_head, num_outputs
from seqmodel.runs.files import require_free
from seqmodel.runs.writer import (
    complete_head,
    count_parameters,
    only_writer,
    resolve_device,
    rounded,
    write_run,
)
from seqmodel.training.loop import Fitted, fit, fit_best, resolve_metric
from seqmodel.training.task import LearningTask, build_task, load_train_val


def train(args: TrainArgs) -> tuple[dict[str, Any], int]:
    """Handler of the command: trains, writes the run, returns (summary, exit code)."""
    require_free(args.run)
    learning_task = build_task(
        args.store, args.label, args.inputs, seed=args.seed, splits_from=args.splits_from, design=args.design
    )
    print_task(learning_task)
    device = resolve_device(args.device)
    train_samples, val_samples = load_train_val(learning_task)
    metric = resolve_metric(args.metric, learning_task.labelling.task)
    head, fitted = fit_head(args, learning_task, train_samples, val_samples, device)
    task, names = learning_task.labelling.task, learning_task.labelling.names
    baselines = baseline_scores(train_samples, val_samples, task, names, metric)
    with only_writer(args.run):
        card = write_run(
            args.run,
            learning_task,
            head,
            fitted,
            args.train,
            seed=args.seed,
            metric=metric,
            stage={"stage": "head", "baselines": rounded(baselines), "command": args.command},
        )
    summary = {
        "run": str(args.run),
        "metric": metric,
        "val_score": fitted.best.val_score,
        "epochs": len(fitted.history),
        "parameters": count_parameters(head),
        "baselines": baselines,
        "clips": {
            "train": len(train_samples),
            "val": len(val_samples),
            "unlabelled": learning_task.num_unlabelled,
        },
        "warnings": list(card.warnings),
    }
    print_scores(metric, {"this head": fitted.best.val_score} | baselines)
    echo(f"run written to {args.run}")
    return summary, 0


def fit_head(
    args: TrainArgs, learning_task: LearningTask, train: Samples, val: Samples, device: str
) -> tuple[LstmHead, Fitted]:
    """A head as the options define it, with the weights of its best epoch."""
    task, num_classes = learning_task.labelling.task, learning_task.num_classes
    config = complete_head(args.head, task)
    head = build_head(config, learning_task.dims, num_outputs(task, num_classes), seed=args.seed)
    head.set_statistics(train)
    with progress("epochs") as bar:
        row = bar.add_task("training", total=args.train.epochs)
        epochs = fit(
            head,
            train,
            val,
            args.train,
            task=task,
            num_classes=num_classes,
            seed=args.seed,
            device=device,
            metric=args.metric,
        )
        return head, fit_best(head, epochs, args.train.patience, on_epoch=lambda _: bar.advance(row))


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

    table = Table("", f"selection score (optimistic), validation {metric}")
    for name, value in sorted(scores.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:.4f}")
    console().print(table)
