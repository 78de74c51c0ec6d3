"""From a judgement to files that people read: report.html and MODEL_CARD.md, by template.

The report is one file without any reference to the network: styles and drawings are inside. What it says
comes from the caller as plain values; this module words and orders it.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.evaluation.subgroups import Slices
from seqmodel.reporting.literature import LiteratureTable
from seqmodel.reporting.text import (
    EXCLUDED_USE,
    INTENDED_USE,
    against,
    chips,
    class_rows,
    forest,
    kind,
    metric_rows,
    metrics_lede,
    mistakes_lede,
    percent,
    recipe_rows,
    run_rows,
    short,
    stages,
    verdict,
)
from seqmodel.runs.card import Card, write_text


@dataclass(frozen=True)
class ReportContent:
    """What the report tells beside the judgement; every part may be empty."""

    title: str
    plots: Mapping[str, str] = field(default_factory=dict)
    """Name -> SVG text."""
    slices: Sequence[Slices] = ()
    hardest: Sequence[Mapping[str, Any]] = ()
    calibration: str = ""
    """What was done to the probabilities, in words."""
    importance: Mapping[str, Any] | None = None
    data_rows: Sequence[Mapping[str, Any]] = ()
    literature: LiteratureTable = field(default_factory=lambda: LiteratureTable((), (), ""))
    commands: Sequence[str] = ()
    umap_caption: str = ""
    ledger: str = ""
    """How often the test split was opened, in words."""
    warnings: Sequence[str] = ()


def write_report(path: Path, result: EvaluationResult, card: Card, content: ReportContent) -> None:
    """Write report.html, atomically."""
    write_text(path, _environment().get_template("report.html.j2").render(_context(result, card, content)))


def write_model_card(path: Path, result: EvaluationResult, card: Card, content: ReportContent) -> None:
    """Write MODEL_CARD.md from the same figures, atomically."""
    write_text(path, _environment().get_template("model_card.md.j2").render(_context(result, card, content)))


def _context(result: EvaluationResult, card: Card, content: ReportContent) -> dict[str, Any]:
    """What the templates may name: the parts of the story as they are, the judgement in words and rows."""
    from markupsafe import Markup

    names, p = result.label_names, result.predictions
    css = resources.files("seqmodel.reporting").joinpath("templates/report.css").read_text("utf-8")
    return vars(content) | {
        "split": result.split,
        "css": Markup(css),
        "verdict": Markup(verdict(result)),
        "chips": chips(result, card),
        "contents": _contents(content),
        "warnings": [*content.warnings, *result.warnings],
        "metrics_lede": metrics_lede(result),
        "against": against(result, card),
        "forest": forest(result),
        "comparisons": [
            {"title": b.baseline.title, "description": b.baseline.description, "kind": kind(b)}
            for b in result.comparisons
        ],
        "has_measured": result.measured_estimates is not None,
        "metric_rows": metric_rows(result),
        "class_rows": class_rows(result),
        "mistakes_lede": mistakes_lede(result),
        "minority": names[result.minority],
        "roc_caption": "The dotted diagonal is chance."
        if result.task == "binary"
        else "Each class against the rest; the dotted diagonal is chance.",
        "calibration_lede": content.calibration,
        "plots": {name: Markup(svg) for name, svg in content.plots.items()},
        "positive": names[-1],
        "stages": stages(card),
        "label_names": names,
        "split_description": f"How people were split: {card.split_description}. {content.ledger}".strip(),
        "not_measured": [pair for pair in zip(p.clip_ids, p.reasons, strict=True) if pair[1]],
        "recipe_rows": recipe_rows(card),
        "run_rows": run_rows(card),
        "intended_use": INTENDED_USE,
        "excluded_use": EXCLUDED_USE,
        "card": card,
        "judgement": result,
        "footer": f"Written {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC by brainbuddy. "
        "Faces stay on the machine that made this file.",
    }


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("seqmodel.reporting", "templates"),
        autoescape=select_autoescape(["html", "html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "percent": percent}
    return environment


def _contents(content: ReportContent) -> list[tuple[str, str]]:
    parts = [
        ("figures", "Figures", True),
        ("mistakes", "Mistakes", True),
        ("calibration", "Calibration", True),
        ("slices", "For whom", bool(content.slices) or "subjects" in content.plots),
        ("importance", "What it looks at", content.importance is not None),
        ("hardest", "Hardest clips", bool(content.hardest)),
        ("training", "Training", "learning" in content.plots),
        ("embeddings", "Embeddings", "umap_label" in content.plots),
        ("data", "Data", True),
        ("literature", "Literature row", True),
        ("reproduce", "Reproduce", True),
        ("use", "Use", True),
    ]
    return [(key, name) for key, name, there in parts if there]
