"""A judgement as numbers for machines and a table for the terminal: metrics.json, --json, and what is
printed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqmodel.evaluation.evaluator import Judgement
from seqmodel.metrics.bootstrap import Figure
from seqmodel.runs.card import write_json


def figures_json(judgement: Judgement) -> dict[str, dict[str, Any]]:
    """{split: {metric: {value, low, high}}}; yardsticks and measured clips alone as `split/name`; None =
    undefined."""
    split = judgement.split
    out = {split: _plain(judgement.figures, judgement.label_names)}
    out[split]["num_clips"] = {"value": len(judgement.predictions), "low": None, "high": None}
    for beside in judgement.beside:
        name = beside.yardstick.name
        out[f"{split}/{name}"] = _plain(beside.figures, judgement.label_names)
        out[f"{split} minus {name}"] = _plain(
            {metric: pair.difference for metric, pair in beside.paired.items()}, judgement.label_names
        )
    if judgement.measured_figures is not None:
        out[f"{split}/measured"] = _plain(judgement.measured_figures, judgement.label_names)
    return out


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """metrics.json: entries of this split replace earlier ones, other splits stay."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, earlier | dict(metrics))


def summary(judgement: Judgement, report: Path) -> dict[str, Any]:
    """What --json prints."""
    return {
        "split": judgement.split,
        "clips": len(judgement.predictions),
        "people": judgement.draws.num_people if judgement.draws.by_subject else None,
        "figures": figures_json(judgement)[judgement.split],
        "warnings": list(judgement.warnings),
        "report": str(report),
    }


def readable(name: str, label_names: Sequence[str]) -> str:
    """`recall_0` as `recall:distracted`; other names as they are."""
    head, _, index = name.rpartition("_")
    return f"{head}:{label_names[int(index)]}" if index.isdigit() and head else name


def _plain(figures: Mapping[str, Figure], label_names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    return {readable(name, label_names): figure.as_json() for name, figure in figures.items()}
