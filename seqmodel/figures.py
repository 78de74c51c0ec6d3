"""A judgement as numbers for machines and a table for the terminal: metrics.json, --json, and what is
printed.

It knows nothing about stores, networks or pages.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from features.door import console, say, warn
from seqmodel.bootstrap import Figure
from seqmodel.judge import Judgement
from seqmodel.run import write_text
from seqmodel.wording import TITLES, short


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
    write_text(path, json.dumps(earlier | dict(metrics), indent=1, ensure_ascii=False) + "\n")


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


def say_figures(judgement: Judgement, report: Path) -> None:
    """The main figures beside the yardsticks, as a table on stderr."""
    from rich.table import Table

    table = Table(title=f"{judgement.split}: {len(judgement.predictions)} clips", title_justify="left")
    for name in ("figure", "model", "95 % interval", *(b.yardstick.title for b in judgement.beside)):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name, (title, _) in TITLES.items():
        if name in judgement.figures:
            f = judgement.figures[name]
            others = [short(b.figures[name].value) for b in judgement.beside]
            table.add_row(title, short(f.value), f"{short(f.low)} to {short(f.high)}", *others)
    console().print(table)
    for line in judgement.warnings:
        warn(line)
    say(f"report: {report}")


def readable(name: str, label_names: Sequence[str]) -> str:
    """`recall_0` as `recall:distracted`; other names as they are."""
    head, _, index = name.rpartition("_")
    return f"{head}:{label_names[int(index)]}" if index.isdigit() and head else name


def _plain(figures: Mapping[str, Figure], label_names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    return {
        readable(name, label_names): {k: v if math.isfinite(v) else None for k, v in asdict(figure).items()}
        for name, figure in figures.items()
    }
