"""From a judgement to files that people read: report.html and MODEL_CARD.md, by template.

The report is one file without any reference to the network: styles and drawings are inside. What it says
comes from the caller as plain values; this module words and orders it.

It knows nothing about stores and networks, and computes no figure.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from seqmodel.bootstrap import Figure
from seqmodel.judge import LOWER_IS_BETTER, Beside, Judgement
from seqmodel.literature import LiteratureTable
from seqmodel.run import Card, write_text
from seqmodel.slices import Slices

TITLES: dict[str, tuple[str, str]] = {
    "auroc": ("AUROC", "chance .5"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes"),
    "macro_f1": ("Macro-F1", "mean F1 of the classes"),
    "accuracy": ("Accuracy", "share of clips that are right"),
    "average_precision": ("Average precision", "of {minority}"),
    "mcc": ("MCC", "0 is chance, 1 is perfect"),
    "qwk": ("Quadratic kappa", "levels, weighted by distance"),
    "mae": ("Mean absolute error", "in levels, lower is better"),
    "weighted_f1": ("Weighted F1", "by class size, as papers give it"),
    "brier": ("Brier score", "lower is better"),
    "ece": ("Expected calibration error", "lower is better"),
}
"""Metric -> (title, note), in the order of the report."""
FOREST = ("auroc", "qwk", "balanced_accuracy", "macro_f1", "accuracy", "average_precision", "mcc")

INTENDED_USE = (
    "A local, private signal of engagement for people who chose to use it: self-observation, research with "
    "consent, the design of lessons. Look at many clips and at trends; a single clip says little."
)
EXCLUDED_USE = (
    "grading, discipline, proctoring, hiring, or any decision about a single person. In the European "
    "Union, inferring emotions in schools and workplaces is prohibited (AI Act, Art. 5(1)(f), in force since "
    "2 February 2025)."
)


@dataclass(frozen=True)
class Story:
    """What the report tells beside the judgement; every part may be empty."""

    title: str
    plots: Mapping[str, str] = field(default_factory=dict)
    """Name -> SVG text."""
    slices: Sequence[Slices] = ()
    hardest: Sequence[Mapping[str, Any]] = ()
    importance: Mapping[str, Any] | None = None
    data_rows: Sequence[Mapping[str, Any]] = ()
    literature: LiteratureTable = field(default_factory=lambda: LiteratureTable((), (), "", ""))
    commands: Sequence[str] = ()
    umap_caption: str = ""
    ledger: str = ""
    """How often the test split was opened, in words."""
    warnings: Sequence[str] = ()


def write_report(path: Path, judgement: Judgement, card: Card, story: Story) -> None:
    """Write report.html, atomically."""
    page = _environment().get_template("report.html.j2").render(_context(judgement, card, story))
    write_text(path, page)


def write_model_card(path: Path, judgement: Judgement, card: Card, story: Story) -> None:
    """Write MODEL_CARD.md from the same figures, atomically."""
    text = _environment().get_template("model_card.md.j2").render(_context(judgement, card, story))
    write_text(path, text)


def short(value: float | None, digits: int = 3) -> str:
    """A figure as this field writes it: .873 without the leading zero; – where it is not defined."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def verdict(judgement: Judgement) -> str:
    """The headline in one or two sentences of HTML; names are escaped."""
    from markupsafe import escape

    figures, names = judgement.figures, judgement.label_names
    people = judgement.draws.num_subjects if judgement.draws.by_subject else 0
    crowd = f"{len(judgement.predictions)} clips" + (f" of {people} people" if people else "")
    if judgement.split == "test" and people:
        crowd += " never seen in training"
    accuracy = figures["balanced_accuracy"]
    if judgement.task == "binary":
        auroc = figures["auroc"]
        sentence = (
            f"On {crowd}, it ranks a clip that is {escape(names[1])} above one that is {escape(names[0])} "
            f"<b>{_percent(auroc.value)}</b> of the time{_between(auroc)}, and gets "
            f"<b>{_percent(accuracy.value)}</b> of the two classes right on average{_between(accuracy)}."
        )
    else:
        f1 = figures["macro_f1"]
        sentence = (
            f"On {crowd}, it gets <b>{_percent(accuracy.value)}</b> of each class right on average"
            f"{_between(accuracy)}; macro-F1 is <b>{short(f1.value)}</b>{_between(f1, percent=False)}."
        )
    first = judgement.beside[0] if judgement.beside else None
    if first is not None:
        pair = first.paired["balanced_accuracy"]
        better = "clearly better than" if pair.is_better else "not clearly better than"
        sentence += f" That is {better} always saying the commonest class."
    return sentence


def _context(judgement: Judgement, card: Card, story: Story) -> dict[str, Any]:
    from markupsafe import Markup

    names = judgement.label_names
    return {
        "title": story.title,
        "split": judgement.split,
        "css": Markup(resources.files("seqmodel").joinpath("templates/report.css").read_text("utf-8")),
        "verdict": Markup(verdict(judgement)),
        "chips": _chips(judgement, card),
        "contents": _contents(story),
        "warnings": [*story.warnings, *judgement.warnings],
        "figures_lede": _figures_lede(judgement),
        "against": _against(judgement, card),
        "forest": _forest(judgement),
        "beside": [
            {"title": b.yardstick.title, "how": b.yardstick.how, "kind": _kind(b)} for b in judgement.beside
        ],
        "has_measured": judgement.measured_figures is not None,
        "figure_rows": _figure_rows(judgement),
        "class_rows": [
            {
                "name": name,
                "precision": judgement.figures[f"precision_{k}"],
                "recall": judgement.figures[f"recall_{k}"],
                "f1": judgement.figures[f"f1_{k}"],
                "support": int(judgement.figures[f"support_{k}"].value),
            }
            for k, name in enumerate(names)
        ],
        "mistakes_lede": _mistakes_lede(judgement),
        "minority": names[judgement.minority],
        "roc_caption": "The dotted diagonal is chance."
        if judgement.task == "binary"
        else "Each class against the rest; the dotted diagonal is chance.",
        "calibration_lede": _calibration_lede(card),
        "calibration": card.calibration,
        "plots": {name: Markup(svg) for name, svg in story.plots.items()},
        "slices": story.slices,
        "positive": names[-1],
        "hardest": story.hardest,
        "importance": story.importance,
        "stages": _stages(card),
        "umap_caption": story.umap_caption,
        "label_names": names,
        "data_rows": story.data_rows,
        "split_how": f"How people were split: {card.split_how}. {story.ledger}".strip(),
        "not_measured": [
            (clip_id, reason)
            for clip_id, reason in zip(
                judgement.predictions.clip_ids, judgement.predictions.reasons, strict=True
            )
            if reason
        ],
        "literature": story.literature,
        "commands": story.commands,
        "recipe_rows": _recipe_rows(card),
        "run_rows": _run_rows(card),
        "intended_use": INTENDED_USE,
        "excluded_use": EXCLUDED_USE,
        "card": card,
        "judgement": judgement,
        "footer": f"Written {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC by brainbuddy. "
        "Faces stay on the machine that made this file.",
    }


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("seqmodel", "templates"),
        autoescape=select_autoescape(["html", "html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    environment.filters["percent"] = _percent
    return environment


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"


def _between(figure: Figure, *, percent: bool = True) -> str:
    if not math.isfinite(figure.low):
        return ""
    if percent:
        return f" (95 % interval {100 * figure.low:.0f} to {100 * figure.high:.0f} %)"
    return f" (95 % interval {short(figure.low)} to {short(figure.high)})"


def _kind(beside: Beside) -> str:
    return "leak" if beside.yardstick.is_leak else beside.yardstick.name.partition("_")[0]


def _chips(judgement: Judgement, card: Card) -> list[tuple[str, str]]:
    chips = [("clips", str(len(judgement.predictions)))]
    if judgement.draws.by_subject:
        chips.append(("people", str(judgement.draws.num_subjects)))
    chips += [("question", " / ".join(judgement.label_names)), ("reads", " + ".join(card.dims))]
    chips.append(("encoder", card.recipe.encoder.name))
    if card.test_openings:
        chips.append(("test split opened", f"{len(card.test_openings)}×"))
    return chips


def _contents(story: Story) -> list[tuple[str, str]]:
    parts = [
        ("figures", "Figures", True),
        ("mistakes", "Mistakes", True),
        ("calibration", "Calibration", True),
        ("slices", "For whom", bool(story.slices) or "subjects" in story.plots),
        ("importance", "What it looks at", story.importance is not None),
        ("hardest", "Hardest clips", bool(story.hardest)),
        ("training", "Training", "learning" in story.plots),
        ("embeddings", "Embeddings", "umap_label" in story.plots),
        ("data", "Data", True),
        ("literature", "Literature row", True),
        ("reproduce", "Reproduce", True),
        ("use", "Use", True),
    ]
    return [(key, name) for key, name, there in parts if there]


def _figures_lede(judgement: Judgement) -> str:
    unit = "by person" if judgement.draws.by_subject else "by clip"
    missing = int((~judgement.predictions.measured).sum())
    lede = (
        f"Intervals are 95 %, from {judgement.draws.rounds:,} bootstrap rounds {unit}. "
        f"All {len(judgement.predictions)} labelled clips of the split count"
    )
    return lede + (
        f"; the {missing} that could not be measured are taken as the training majority." if missing else "."
    )


def _against(judgement: Judgement, card: Card) -> list[dict[str, str]]:
    """One line a yardstick: by how much the model beats it, in the metric that the run was chosen for."""
    name = card.metric if card.metric in judgement.figures else "balanced_accuracy"
    lines = []
    for beside in judgement.beside:
        difference = beside.paired[name].difference
        mark = _mark(name, beside)
        word = {"beats": "better", "loses": "worse", "even": "no clear difference"}.get(
            mark, "not to be told"
        )
        moved = f"{'+' if difference.value >= 0 else '−'}{short(abs(difference.value))}"
        between = f"({short(difference.low)} to {short(difference.high)})"
        text = f"{TITLES[name][0]} {moved} {between}: {word}"
        lines.append({"title": beside.yardstick.title, "mark": mark or "even", "text": text})
    return lines


def _forest(judgement: Judgement) -> list[dict[str, Any]]:
    rows = []
    for name in FOREST:
        figure = judgement.figures.get(name)
        if figure is None or not math.isfinite(figure.value):
            continue
        title, note = TITLES[name]
        at, low, high = (_position(v) for v in (figure.value, figure.low, figure.high))
        ticks = [
            {
                "kind": _kind(b),
                "title": b.yardstick.title,
                "value": b.figures[name].value,
                "at": _position(b.figures[name].value),
            }
            for b in judgement.beside
            if _position(b.figures[name].value) is not None
        ]
        rows.append(
            {
                "title": title,
                "note": note.format(minority=judgement.label_names[judgement.minority]),
                "value": figure.value,
                "low": figure.low if low is not None else None,
                "high": figure.high,
                "at": at,
                "left": low,
                "width": None if low is None or high is None else round(high - low, 2),
                "ticks": ticks,
            }
        )
    return rows


def _position(value: float) -> float | None:
    """Per cent along a track from 0 to 1."""
    return round(100 * min(max(value, 0.0), 1.0), 2) if math.isfinite(value) else None


def _figure_rows(judgement: Judgement) -> list[dict[str, Any]]:
    rows = []
    for name, (title, note) in TITLES.items():
        if name not in judgement.figures:
            continue
        if name == "average_precision":
            title = f"{title} {note.format(minority=judgement.label_names[judgement.minority])}"
        cells = [
            {"figure": _finite(b.figures[name]), "mark": _mark(name, b), "says": _says(name, b)}
            for b in judgement.beside
        ]
        measured = judgement.measured_figures
        rows.append(
            {
                "title": title + (" ↓" if name in LOWER_IS_BETTER else ""),
                "model": _finite(judgement.figures[name]),
                "beside": cells,
                "measured": _finite(measured[name]) if measured else None,
            }
        )
    return rows


def _finite(figure: Figure) -> dict[str, float | None]:
    """The figure with None for what is not defined, as templates and JSON want it."""
    return {
        key: value if math.isfinite(value) else None
        for key, value in (("value", figure.value), ("low", figure.low), ("high", figure.high))
    }


def _mark(name: str, beside: Beside) -> str:
    difference = beside.paired[name].difference
    if not math.isfinite(difference.low):
        return ""
    up, down = difference.low > 0, difference.high < 0
    if name in LOWER_IS_BETTER:
        up, down = down, up
    return "beats" if up else "loses" if down else "even"


def _says(name: str, beside: Beside) -> str:
    pair = beside.paired[name]
    value, low, high = (short(v) for v in (pair.difference.value, pair.difference.low, pair.difference.high))
    return f"difference {value} ({low} to {high}), p = {short(pair.p_value)}"


def _mistakes_lede(judgement: Judgement) -> str:
    p, names = judgement.predictions, judgement.label_names
    wrong = int((p.said != p.labels).sum())
    recalls = [(judgement.figures[f"recall_{k}"].value, name) for k, name in enumerate(names)]
    known = [pair for pair in recalls if math.isfinite(pair[0])]
    if not known:
        return f"{wrong} of {len(p)} clips are wrong."
    worst, best = min(known), max(known)
    text = f"{wrong} of {len(p)} clips are wrong. It finds {_percent(best[0])} of {best[1]}"
    return f"{text} and {_percent(worst[0])} of {worst[1]}." if worst[1] != best[1] else f"{text}."


def _calibration_lede(card: Card) -> str:
    c = card.calibration
    scaled = (
        "Validation gave no reason to change the model's own probabilities"
        if c.temperature == 1.0 and c.bias == 0.0
        else f"Logits are divided by {c.temperature:.2f} and shifted by {c.bias:+.2f}, as validation asked"
    )
    text = f"{scaled}."
    if card.labelling.task == "binary":
        name = card.labelling.names[1]
        text += f" {name} is said from {c.threshold:.2f} on, chosen on validation for {c.goal}."
    if c.abstain is not None:
        low, high = c.abstain
        text += f" Between {low:.2f} and {high:.2f} the live view says that it is unsure."
    return text


def _stages(card: Card) -> list[dict[str, str]]:
    rows = []
    for stage in card.stages:
        said = [
            f"{key.replace('_', ' ')} {_in_words(value)}" for key, value in stage.items() if key != "stage"
        ]
        rows.append({"name": str(stage.get("stage", "stage")), "text": "; ".join(said)})
    return rows


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short(value) if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        return f"{len(value)} entries"  # the card has them; a page of numbers helps nobody
    if isinstance(value, list | tuple):
        return ", ".join(_in_words(part) for part in value)
    return f"{value:,}" if isinstance(value, int) and abs(value) > 9999 else str(value)


def _recipe_rows(card: Card) -> list[tuple[str, str]]:
    recipe = card.recipe
    rows = [
        ("encoder", f"{recipe.encoder.name}, {recipe.encoder.weights}"),
        ("weights sha256", recipe.encoder.weights_sha256[:16] or "–"),
    ]
    if recipe.pixels is not None:
        p = recipe.pixels
        rows += [
            ("window", f"{p.window_s:g} s at {p.fps:g} frames/s"),
            ("crop", f"{p.crop_px} px, margin {p.margin:g}, {p.face_rule}"),
            ("detectors", ", ".join(sha[:12] for sha in p.detectors)),
        ]
    if recipe.geometry is not None:
        rows.append(
            (
                "geometry",
                f"{len(recipe.geometry.features)} features, model {recipe.geometry.model_sha256[:12]}",
            )
        )
    return rows


def _run_rows(card: Card) -> list[tuple[str, str]]:
    rows = [
        ("head", ", ".join(f"{k.replace('_', ' ')} {_in_words(v)}" for k, v in vars(card.head).items())),
        ("chosen for", card.metric),
        ("seed", str(card.seed)),
        ("split hash", card.split_hash),
        ("store", f"{card.store} ({card.store_fingerprint})"),
        ("numerics", ", ".join(f"{k} {v}" for k, v in card.numerics.items()) or "–"),
        ("versions", ", ".join(f"{k} {v}" for k, v in card.versions.items())),
        ("commit", card.git_commit or "–"),
    ]
    if card.test_openings:
        rows.append(("test opened", ", ".join(card.test_openings)))
    return rows
