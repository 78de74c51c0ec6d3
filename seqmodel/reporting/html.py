"""Rendering of report.html and MODEL_CARD.md from an evaluation result.

The report is one file without any reference to the network: styles and plots are inside. Texts come from
`text.py`, plots and tables from `content.py`.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from features.store.data_statement import DataStatement, statement_rows
from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.evaluation.subgroups import Slices
from seqmodel.reporting.literature import LiteratureTable
from seqmodel.reporting.text import (
    CONSENT,
    EXCLUDED_USE,
    INTENDED_USE,
    best_baseline,
    calibration_errors,
    chips,
    class_rows,
    count,
    differences,
    errors_intro,
    forest,
    headline,
    kind,
    metric_rows,
    metrics_intro,
    percent,
    recipe_rows,
    run_rows,
    short,
    shown_baselines,
    stages,
    too_few_subjects,
)
from seqmodel.runs.card import Card
from seqmodel.runs.files import write_text


@dataclass(frozen=True)
class ReportContent:
    """Parts of the report that are not in the evaluation result; each may be empty."""

    title: str
    plots: Mapping[str, str] = field(default_factory=dict)
    """Name -> SVG text."""
    slices: Sequence[Slices] = ()
    hardest: Sequence[Mapping[str, Any]] = ()
    calibration: str = ""
    """How the probabilities are calibrated, as a sentence."""
    importance: Mapping[str, Any] | None = None
    data_rows: Sequence[Mapping[str, Any]] = ()
    literature: LiteratureTable | None = None
    commands: Sequence[str] = ()
    umap_caption: str = ""
    test_evaluations: str = ""
    """How often the test set was evaluated, as a sentence."""
    warnings: Sequence[str] = ()
    synthetic_notice: str = ""
    """Notice at the top if the data are synthetic."""
    data_statement: DataStatement = DataStatement()
    """Where the evaluated clips come from."""
    methods: str = ""
    """The methods paragraph."""


def write_report(path: Path, result: EvaluationResult, card: Card, content: ReportContent) -> None:
    """Write report.html, atomically."""
    write_text(path, _environment().get_template("report.html.j2").render(_context(result, card, content)))


def write_model_card(path: Path, result: EvaluationResult, card: Card, content: ReportContent) -> None:
    """Write MODEL_CARD.md with the same metrics, atomically."""
    write_text(path, _environment().get_template("model_card.md.j2").render(_context(result, card, content)))


def _context(result: EvaluationResult, card: Card, content: ReportContent) -> dict[str, Any]:
    """Variables of the templates."""
    from markupsafe import Markup

    names, p = result.label_names, result.predictions
    counts = np.bincount(p.labels, minlength=len(names))
    css = resources.files("seqmodel.reporting").joinpath("templates/report.css").read_text("utf-8")
    return vars(content) | {
        "statement_rows": statement_rows(content.data_statement),
        "split": result.split,
        "css": Markup(css),
        "headline": Markup(headline(result)),
        "chips": chips(result, card),
        "contents": _contents(content),
        "warnings": [*content.warnings, *result.warnings],
        "metrics_intro": metrics_intro(result),
        "best_baseline": best_baseline(result, card.metric),
        "differences": differences(result, card.metric),
        "forest": forest(result),
        "has_intervals": not too_few_subjects(result),
        "comparisons": [
            {"title": b.baseline.title, "description": b.baseline.description, "kind": kind(b)}
            for b in result.comparisons
        ],
        "columns": [b.baseline.title for b in shown_baselines(result)],
        "has_measured": result.measured_estimates is not None,
        "metric_rows": metric_rows(result),
        "class_rows": class_rows(result),
        "errors_intro": errors_intro(result),
        "minority": names[result.minority],
        "has_rarest": (counts == counts[result.minority]).sum() == 1,
        "roc_caption": "The dotted diagonal is a random classifier."
        if result.task == "binary"
        else "One class against all others; the dotted diagonal is a random classifier.",
        "calibration_intro": content.calibration + calibration_errors(result),
        "plots": {name: Markup(svg) for name, svg in content.plots.items()},
        "positive": names[-1],
        "stages": stages(card),
        "label_names": names,
        "split_description": f"Split: {card.split_description}. {content.test_evaluations}".strip(),
        "not_measured": [pair for pair in zip(p.clip_ids, p.reasons, strict=True) if pair[1]],
        "recipe_rows": recipe_rows(card),
        "run_rows": run_rows(card),
        "intended_use": INTENDED_USE,
        "excluded_use": EXCLUDED_USE,
        "consent": CONSENT,
        "card": card,
        "footer": f"Written {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC by brainbuddy. "
        "All processing is local to the machine that made this file.",
    }


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("seqmodel.reporting", "templates"),
        autoescape=select_autoescape(["html", "html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "percent": percent, "count": count}
    return environment


def _contents(content: ReportContent) -> list[tuple[str, str]]:
    parts = [
        ("metrics", "Metrics", True),
        ("errors", "Errors", True),
        ("calibration", "Calibration", True),
        ("slices", "Subgroups", bool(content.slices) or "subjects" in content.plots),
        ("importance", "Importance", content.importance is not None),
        ("hardest", "Worst errors", bool(content.hardest)),
        ("training", "Training", "learning" in content.plots),
        ("embeddings", "Embeddings", "umap_label" in content.plots),
        ("data", "Data", True),
        ("literature", "Literature", content.literature is not None),
        ("methods", "Methods", True),
        ("reproduce", "Reproduce", True),
        ("use", "Intended use", True),
    ]
    return [(key, name) for key, name, is_shown in parts if is_shown]
