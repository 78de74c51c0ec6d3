"""Which drawings a report has: from a judgement and a run to plots/*.png and SVG texts by name.

It knows nothing about HTML, and how a drawing looks is in plots.py.
"""

from pathlib import Path

from seqmodel import plots
from seqmodel.calibration import probabilities
from seqmodel.drawing import save
from seqmodel.judge import Judgement
from seqmodel.metrics import confusion
from seqmodel.run import Card, read_log


def draw_all(folder: Path, judgement: Judgement, card: Card, run: Path) -> dict[str, str]:
    """Write every plot as PNG into `folder` and return name -> SVG."""
    p, names = judgement.predictions, judgement.label_names
    threshold = card.calibration.threshold if judgement.task == "binary" else None
    others = [
        (b.yardstick.title, b.yardstick.probabilities)
        for b in judgement.beside
        if b.yardstick.name != "majority"
    ]
    figures = {
        "confusion": plots.confusion_plot(confusion(p.labels, p.said, len(names)), names),
        "roc": plots.roc_plot(p.labels, p.probabilities, names, threshold, others),
        "precision_recall": plots.precision_recall_plot(
            p.labels, p.probabilities, names, judgement.minority, threshold
        ),
    }
    measured = p.measured
    if measured.any():
        raw = probabilities(p.logits[measured], judgement.task)
        figures["reliability"] = plots.reliability_plot(p.labels[measured], raw, p.probabilities[measured])
    stages = log_stages(run)
    if stages:
        figures["learning"] = plots.learning_plot(stages, card.metric)
    return {name: save(figure, folder / f"{name}.png") for name, figure in figures.items()}


def log_stages(run: Path) -> list[tuple[str, list[dict[str, object]]]]:
    """Entries of log.jsonl by stage, in the order in which the stages came."""
    stages: dict[str, list[dict[str, object]]] = {}
    for entry in read_log(run):
        if "train_loss" in entry or "val_loss" in entry:
            stages.setdefault(str(entry.get("stage", "head")), []).append(entry)
    return list(stages.items())
