"""python -m seqmodel train: one head on cached features, without a search."""

from collections.abc import Mapping
from typing import Any

from features.cli import console, echo, log_warning, progress
from features.datasets import Samples
from seqmodel.config import TrainArgs
from seqmodel.evaluation.logistic import baseline_scores
from seqmodel.heads.recurrent import LstmHead, build_head, num_outputs
from seqmodel.runs.card import require_place
from seqmodel.runs.writer import complete_head, count_parameters, resolve_device, rounded, write_run
from seqmodel.training.loop import Fitted, fit, fit_best, resolve_metric
from seqmodel.training.task import Question, load_sides, put_question


def train(args: TrainArgs) -> tuple[dict[str, Any], int]:
    """The command's body: trains, writes the run, returns (summary, exit code)."""
    require_place(args.run)
    question = put_question(args.store, args.label, args.inputs, seed=args.seed, splits_from=args.splits_from)
    say_question(question)
    device = resolve_device(args.device)
    train_samples, val_samples = load_sides(question)
    metric = resolve_metric(args.metric, question.labelling.task)
    head, fitted = fit_head(args, question, train_samples, val_samples, device)
    baselines = baseline_scores(train_samples, val_samples, question.num_classes, metric)
    card = write_run(
        args.run,
        question,
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
            "unlabelled": question.num_unlabelled,
        },
        "warnings": list(card.warnings),
    }
    say_scores(metric, {"this head": fitted.best.val_score} | baselines)
    echo(f"run written to {args.run}")
    return summary, 0


def fit_head(
    args: TrainArgs, question: Question, train: Samples, val: Samples, device: str
) -> tuple[LstmHead, Fitted]:
    """The head that the options describe, with the weights of its best epoch."""
    task, num_classes = question.labelling.task, question.num_classes
    config = complete_head(args.head, task)
    head = build_head(config, question.dims, num_outputs(task, num_classes), seed=args.seed)
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


def say_question(question: Question) -> None:
    """Tell the user what is learned from whom."""
    counts = ", ".join(f"{len(rows)} {side}" for side, rows in question.split.sides().items())
    left_out = f"; {question.num_unlabelled} without a label left out" if question.num_unlabelled else ""
    echo(
        f"{question.labelling.task}: {' < '.join(question.labelling.names)} (last = positive), "
        f"{counts} clips{left_out}; split: {question.split.description}"
    )
    for text in question.split.warnings:
        log_warning(text)


def say_scores(metric: str, scores: Mapping[str, float]) -> None:
    """A table of validation scores, best first."""
    from rich.table import Table

    table = Table("", f"validation {metric}")
    for name, value in sorted(scores.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:.4f}")
    console().print(table)
