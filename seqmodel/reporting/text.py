"""A judgement in words and rows: what the report and the model card say, without how it is laid out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seqmodel.evaluation.evaluator import LOWER_IS_BETTER, BaselineComparison, EvaluationResult
from seqmodel.metrics.bootstrap import ENOUGH_SUBJECTS, Estimate
from seqmodel.metrics.calibration import Calibration
from seqmodel.runs.card import Card, calibration_stage

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
SAME_PLACE = 0.5
"""Per cent of a track's width within which ticks would hide one another."""

INTENDED_USE = (
    "A local, private signal of engagement for people who chose to use it: self-observation, research with "
    "consent, the design of lessons. Look at many clips and at trends; a single clip says little."
)
EXCLUDED_USE = (
    "grading, discipline, proctoring, hiring, or any decision about a single person. In the European "
    "Union, inferring emotions in schools and workplaces is prohibited (AI Act, Art. 5(1)(f), in force since "
    "2 February 2025)."
)


def short(value: float | None, digits: int = 3) -> str:
    """A figure as this field writes it: .873 without the leading zero; – where it is not defined."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def with_interval(estimate: Estimate) -> str:
    """Value and interval: .873 (.801 to .920)."""
    return f"{short(estimate.value)} ({short(estimate.low)} to {short(estimate.high)})"


def verdict(result: EvaluationResult) -> str:
    """The headline in one or two sentences of HTML; names are escaped."""
    from markupsafe import escape

    estimates, names = result.estimates, result.label_names
    people, unknown = result.resamples.num_people, result.predictions.num_unknown
    who = f"{people} {'person' if people == 1 else 'people'}"
    crowd = f"{len(result.predictions)} clips"
    if people and unknown:
        crowd = f"{len(result.predictions) - unknown} clips of {who} and {unknown} of nobody known"
    elif people:
        crowd += f" of {who}" + (" never seen in training" if result.is_unseen else "")
    accuracy = estimates["balanced_accuracy"]
    if result.task == "binary":
        auroc = estimates["auroc"]
        sentence = (
            f"On {crowd}, it ranks a clip that is {escape(names[1])} above one that is {escape(names[0])} "
            f"<b>{percent(auroc.value)}</b> of the time{_between(auroc)}, and gets "
            f"<b>{percent(accuracy.value)}</b> of the two classes right on average{_between(accuracy)}."
        )
    else:
        f1 = estimates["macro_f1"]
        sentence = (
            f"On {crowd}, it gets <b>{percent(accuracy.value)}</b> of each class right on average"
            f"{_between(accuracy)}; macro-F1 is <b>{short(f1.value)}</b>{_between(f1, percent=False)}."
        )
    first = result.comparisons[0] if result.comparisons else None
    if first is not None:
        than = "better than always saying the commonest class"
        if _too_few_people(result):
            sentence += f" {who} {'is' if people == 1 else 'are'} too few to say that this is {than}."
        else:
            clearly = "clearly" if first.paired["balanced_accuracy"].is_higher else "not clearly"
            sentence += f" That is {clearly} {than}."
    return sentence


def _too_few_people(result: EvaluationResult) -> bool:
    return result.resamples.by_subject and result.resamples.num_people < ENOUGH_SUBJECTS


def percent(value: float | None) -> str:
    """A share as whole per cent, with a digit more near 0 and 1, and never all or nothing where it is not; –
    where it is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{_hundredths(value)} %"


def _hundredths(value: float) -> str:
    if 0 < min(value, 1 - value) < 0.01:
        return f"{min(max(100 * value, 0.1), 99.9):.1f}"
    return f"{100 * value:.0f}"


def _between(estimate: Estimate, *, percent: bool = True) -> str:
    if not math.isfinite(estimate.low):
        return ""
    written = _hundredths if percent else short
    return f" (95 % interval {written(estimate.low)} to {written(estimate.high)}{' %' if percent else ''})"


def chips(result: EvaluationResult, card: Card) -> list[tuple[str, str]]:
    """(name, value) of the small facts under the headline."""
    people, openings = result.resamples.num_people, len(card.test_openings)
    return [
        ("clips", str(len(result.predictions))),
        *([("people", str(people))] if result.resamples.by_subject else []),
        ("question", " / ".join(result.label_names)),
        ("reads", " + ".join(card.dims)),
        ("encoder", card.recipe.encoder.name),
        *([("test split opened", f"{openings}×")] if openings else []),
    ]


def metrics_lede(result: EvaluationResult) -> str:
    """What the intervals mean and who counts."""
    unit = "by person" if result.resamples.by_subject else "by clip"
    if result.resamples.by_subject and result.predictions.num_unknown:
        unit += ", and by clip where nobody is known"
    missing = int((~result.predictions.measured).sum())
    lede = (
        f"Intervals are 95 %, from {len(result.resamples.weights):,} bootstrap rounds {unit}. "
        f"All {len(result.predictions)} labelled clips of the split count"
    )
    return lede + (
        f"; the {missing} that could not be measured are taken as the training majority." if missing else "."
    )


def against(result: EvaluationResult, card: Card) -> list[dict[str, str]]:
    """One line a yardstick: by how much the model beats it, in the metric that the run was chosen for."""
    name = card.metric if card.metric in result.estimates else "balanced_accuracy"
    even = "too few people to tell" if _too_few_people(result) else "no clear difference"
    lines = []
    for comparison in result.comparisons:
        difference = comparison.paired[name].difference
        mark, sign = _mark(name, comparison), "+" if difference.value >= 0 else "−"
        word = {"beats": "better", "loses": "worse", "even": even}.get(mark, "not to be told")
        moved = with_interval(replace(difference, value=abs(difference.value)))
        text = f"{TITLES[name][0]} {sign}{moved}: {word}"
        lines.append({"title": comparison.baseline.title, "mark": mark or "even", "text": text})
    return lines


def forest(result: EvaluationResult) -> list[dict[str, Any]]:
    """One row a metric of the drawing with intervals and yardsticks; places are per cent of its width."""
    rows = []
    for name in FOREST:
        estimate = result.estimates.get(name)
        if estimate is None or not math.isfinite(estimate.value):
            continue
        title, note = TITLES[name]
        at, low, high = (_position(v) for v in (estimate.value, estimate.low, estimate.high))
        ticks: list[dict[str, Any]] = [
            {
                "kind": kind(b),
                "title": b.baseline.title,
                "value": b.estimates[name].value,
                "at": _position(b.estimates[name].value),
            }
            for b in result.comparisons
            if _position(b.estimates[name].value) is not None
        ]
        rows.append(
            {
                "title": title,
                "note": note.format(minority=result.label_names[result.minority]),
                "value": estimate.value,
                "low": estimate.low if low is not None else None,
                "high": estimate.high,
                "at": at,
                "left": low,
                "width": None if low is None or high is None else round(high - low, 2),
                "ticks": [tick | _share(tick, ticks) for tick in ticks],
            }
        )
    return rows


def _share(tick: dict[str, Any], ticks: list[dict[str, Any]]) -> dict[str, float]:
    """Where a tick begins and how high it is, as parts of the track: ticks in one place lie one over the
    other."""
    there = [other for other in ticks if abs(other["at"] - tick["at"]) < SAME_PLACE]
    return {"top": round(there.index(tick) / len(there), 3), "height": round(1 / len(there), 3)}


def _position(value: float) -> float | None:
    """Per cent along a track from 0 to 1."""
    return round(100 * min(max(value, 0.0), 1.0), 2) if math.isfinite(value) else None


def metric_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """One row a metric of the table of all figures."""
    rows = []
    for name, (title, note) in TITLES.items():
        if name not in result.estimates:
            continue
        if name == "average_precision":
            title = f"{title} {note.format(minority=result.label_names[result.minority])}"
        cells = [
            {
                "estimate": b.estimates[name].as_json(),
                "mark": _mark(name, b),
                "says": f"difference {with_interval(pair.difference)}, p = {short(pair.p_value)}",
            }
            for b, pair in ((b, b.paired[name]) for b in result.comparisons)
        ]
        measured = result.measured_estimates
        rows.append(
            {
                "title": title + (" ↓" if name in LOWER_IS_BETTER else ""),
                "model": result.estimates[name].as_json(),
                "comparisons": cells,
                "measured": measured[name].as_json() if measured else None,
            }
        )
    return rows


def class_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """One row a class of the table of mistakes."""
    estimates = result.estimates
    return [
        {
            "name": name,
            "precision": estimates[f"precision_{k}"],
            "recall": estimates[f"recall_{k}"],
            "f1": estimates[f"f1_{k}"],
            "support": int(estimates[f"support_{k}"].value),
        }
        for k, name in enumerate(result.label_names)
    ]


def _mark(name: str, comparison: BaselineComparison) -> str:
    pair = comparison.paired[name]
    if not math.isfinite(pair.difference.low):
        return ""
    better, worse = ("loses", "beats") if name in LOWER_IS_BETTER else ("beats", "loses")
    return better if pair.is_higher else worse if pair.is_lower else "even"


def mistakes_lede(result: EvaluationResult) -> str:
    """How many are wrong, and which class is found best and worst."""
    p, names = result.predictions, result.label_names
    text = f"{int((p.predicted != p.labels).sum())} of {len(p)} clips are wrong."
    recalls = [(result.estimates[f"recall_{k}"].value, name) for k, name in enumerate(names)]
    known = [pair for pair in recalls if math.isfinite(pair[0])]
    if not known:
        return text
    worst, best = min(known), max(known)
    text += f" It finds {percent(best[0])} of {best[1]}"
    return f"{text} and {percent(worst[0])} of {worst[1]}." if worst[1] != best[1] else f"{text}."


def calibration_lede(card: Card) -> str:
    """What calibration did, in words."""
    c, moved = card.calibration, calibration_stage(card)
    who = f"{moved['people']} people of {Path(moved['store']).name}" if moved else "validation"
    scaled = (
        f"{who[0].upper()}{who[1:]} gave no reason to change the model's own probabilities"
        if c.temperature == 1.0 and c.bias == 0.0
        else f"Logits are divided by {c.temperature:.2f} and shifted by {c.bias:+.2f}, as {who} asked"
    )
    text = f"{scaled}."
    if card.labelling.task == "binary":
        text += (
            f" {card.labelling.names[1]} is said from {c.threshold:.2f} on, "
            f"chosen on {who} for {c.threshold_metric}."
        )
    if c.abstain is not None:
        text += " Between {:.2f} and {:.2f} the live view says that it is unsure.".format(*c.abstain)
    return text


def fold_calibrations_lede(calibrations: Sequence[Calibration], card: Card) -> str:
    """What calibration did in each fold, in words."""

    def span(values: Sequence[float], form: str = ".2f") -> str:
        low, high = format(min(values), form), format(max(values), form)
        return low if low == high else f"{low} to {high}"

    text = "Each fold fits its own on people that it learned from: logits are divided by "
    text += span([c.temperature for c in calibrations])
    if card.labelling.task != "multiclass":
        text += f" and shifted by {span([c.bias for c in calibrations], '+.2f')}"
    text += "."
    if card.labelling.task == "binary":
        text += f" {card.labelling.names[1]} is said from {span([c.threshold for c in calibrations])} on."
    return text


def kind(comparison: BaselineComparison) -> str:
    """The style class of a yardstick in the page: leak, majority, logistic_embeddings, logistic_geometry."""
    return "leak" if comparison.baseline.is_leak else comparison.baseline.name


def stages(card: Card) -> list[dict[str, str]]:
    """Name and text of each stage of the run."""
    rows = []
    for stage in card.stages:
        told = {key: value for key, value in stage.items() if key not in ("stage", "command")}
        text = "; ".join(f"{key.replace('_', ' ')} {_in_words(value)}" for key, value in told.items())
        rows.append({"name": str(stage.get("stage", "stage")), "text": text})
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


def recipe_rows(card: Card) -> list[tuple[str, str]]:
    """(name, value) of what an embedding is."""
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


def run_rows(card: Card) -> list[tuple[str, str]]:
    """(name, value) of how the run came about."""
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
