"""Texts and table rows of the report and the model card, made from an evaluation result."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqmodel.config import METRIC_OF_TASK
from seqmodel.evaluation.evaluator import LOWER_IS_BETTER, BaselineComparison, EvaluationResult
from seqmodel.metrics.bootstrap import ENOUGH_SUBJECTS, FEW_SUBJECTS, Estimate, few_subjects_text
from seqmodel.metrics.calibration import Calibration
from seqmodel.metrics.classification import macro_auroc
from seqmodel.runs.card import Card, calibration_stage

TITLES: dict[str, tuple[str, str]] = {
    "auroc": ("AUROC", "chance .5"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes"),
    "macro_f1": ("Macro-F1", "mean F1 of the classes"),
    "accuracy": ("Accuracy", "share of correct clips"),
    "average_precision": ("Average precision", "of {minority}"),
    "mcc": ("MCC", "0 is chance, 1 is perfect"),
    "qwk": ("Quadratic kappa", "agreement of levels, weighted by distance"),
    "mae": ("Mean absolute error", "in levels, lower is better"),
    "weighted_f1": ("Weighted F1", "mean F1, weighted by class size"),
    "brier": ("Brier score", "lower is better"),
    "ece": ("Expected calibration error", "lower is better"),
}
"""Metric -> (title, note), in the order of the report."""
FOREST = ("auroc", "qwk", "balanced_accuracy", "macro_f1", "accuracy", "average_precision", "mcc")
MIN_TICK_GAP = 0.5
"""Ticks that are closer than this overlap, per cent of the track's width."""

INTENDED_USE = (
    "A local, private estimate of engagement for people who chose to use it: self-observation, and research "
    "with consent. Look at many clips and at trends; a single clip is not reliable."
)
EXCLUDED_USE = (
    "grading, discipline, proctoring, hiring, or any decision about a single person. In the European "
    "Union, inferring emotions at work and in education is prohibited (AI Act, Art. 5(1)(f), in force since "
    "2 February 2025). Elsewhere, emotion recognition is a high-risk use (AI Act, Annex III, 1(c)), with "
    "duties for providers and for users."
)
CONSENT = (
    "The person who leads the study asks each person before the first recording; for a child, a parent "
    "agrees too. Say what is recorded (video of the face, when, and for how long), what it is for, and who "
    "sees it. Say what is kept: numbers (embeddings and face geometry), and no pictures unless extract or "
    "live is told to keep them; who keeps the videos, and until when. Nobody has a disadvantage without "
    "consent. Each person can withdraw at any time: delete the videos, run features delete STORE --subject "
    "ID, and train again."
)


def short(value: float | None, digits: int = 3) -> str:
    """A metric value without the leading zero, as .873; – where it is None or not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def with_interval(estimate: Estimate) -> str:
    """Value and 95 % interval, as .873 (.801 to .920)."""
    interval = f" ({short(estimate.low)} to {short(estimate.high)})" if math.isfinite(estimate.low) else ""
    return short(estimate.value) + interval


def signed(estimate: Estimate) -> str:
    """A difference with its 95 % interval, as +.061 (−.010 to +.130)."""
    value, low, high = (
        ("+" if v > 0 else "") + short(v).replace("-", "−")
        for v in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})" if math.isfinite(estimate.low) else value


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 subject, 2 subjects, 1,200 clips."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def headline(result: EvaluationResult) -> str:
    """The main metrics of the model in one sentence of HTML."""
    subjects, unknown = result.resamples.num_subjects, result.predictions.num_unknown
    clips = len(result.predictions)
    if subjects and unknown:
        data = f"{count(clips - unknown, 'clip')} of {count(subjects, 'subject')}"
        data += f" and {unknown} of unknown subjects"
    elif subjects:
        data = f"{count(clips, 'clip')} of {count(subjects, 'subject')}"
        data += " not seen in training" if result.is_unseen else ""
    else:
        data = count(clips, "clip")
    name = "auroc" if result.task == "binary" else "macro_f1"
    metrics = (
        (TITLES[name][0], result.estimates[name]),
        ("balanced accuracy", result.estimates["balanced_accuracy"]),
    )
    texts = [f"{title} <b>{short(estimate.value)}</b>{_between(estimate)}" for title, estimate in metrics]
    limit = f"<b>{result.scope.capitalize()}.</b> " if result.scope else ""
    return f"{limit}On {data}: {' and '.join(texts)}."


def best_baseline(result: EvaluationResult, metric: str) -> dict[str, Any] | None:
    """The baseline with the best value of the run's metric, and the paired difference of the model from it.

    The leakage check is no candidate. The metric is balanced accuracy where the result does not hold
    `metric`. None where there is no baseline with a defined value.
    """
    name = metric if metric in result.estimates else "balanced_accuracy"
    best = strongest(result, name)
    if best is None:
        return None
    return {
        "metric": TITLES[name][0],
        "title": best.baseline.title,
        "model": with_interval(result.estimates[name]),
        "baseline": with_interval(best.estimates[name]),
        "difference": signed(best.paired[name].difference),
        "mark": _mark(name, best) or "even",
        "conclusion": _conclusion(result, name, best),
    }


def strongest(result: EvaluationResult, name: str) -> BaselineComparison | None:
    """The baseline with the best value of a metric, without the leakage check; None if none has one."""
    sign = -1 if name in LOWER_IS_BETTER else 1
    candidates = [
        b for b in result.comparisons if not b.baseline.is_leak and math.isfinite(b.estimates[name].value)
    ]
    return max(candidates, key=lambda b: sign * b.estimates[name].value, default=None)


def shown_baselines(result: EvaluationResult) -> list[BaselineComparison]:
    """The baselines with a column in tables: majority class, best in the task's metric, leakage check."""
    best = strongest(result, METRIC_OF_TASK[result.task])
    return [b for b in result.comparisons if b is best or b.baseline.name in ("majority", "identity")]


def _conclusion(result: EvaluationResult, name: str, comparison: BaselineComparison) -> str:
    """What the paired difference shows: better, worse, no clear difference, inconclusive or not defined."""
    mark, subjects = _mark(name, comparison), result.resamples.num_subjects
    if mark in ("even", "") and too_few_subjects(result):
        return f"inconclusive ({count(subjects, 'subject')})"
    return {"beats": "better", "loses": "worse", "even": "no clear difference"}.get(mark, "not defined")


def too_few_subjects(result: EvaluationResult) -> bool:
    """Whether there are too few subjects for intervals; then the values of each subject are shown."""
    return result.resamples.by_subject and result.resamples.num_subjects < ENOUGH_SUBJECTS


def subject_values(result: EvaluationResult, name: str) -> list[tuple[str, float]]:
    """(subject, value) of accuracy or AUROC for each subject, where defined; empty for other metrics, and
    where there are enough subjects for an interval."""
    p, found = result.predictions, []
    if name in ("accuracy", "auroc") and too_few_subjects(result):
        for subject in np.unique(p.subjects[p.subjects != ""]).tolist():
            inside = p.subjects == subject
            value = (p.predicted == p.labels)[inside].mean()
            if name == "auroc":
                value = macro_auroc(p.labels[inside], p.probabilities[inside])
            found.append((subject, float(value)))
    return [pair for pair in found if math.isfinite(pair[1])]


def percent(value: float | None) -> str:
    """A share (0..1) in per cent; 0 % and 100 % only where it is exact, – where it is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{_hundredths(value)} %"


def _hundredths(value: float) -> str:
    if 0 < min(value, 1 - value) < 0.01:
        return f"{min(max(100 * value, 0.1), 99.9):.1f}"
    return f"{100 * value:.0f}"


def _between(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return ""
    return f" (95 % interval {short(estimate.low)} to {short(estimate.high)})"


def chips(result: EvaluationResult, card: Card) -> list[tuple[str, str]]:
    """(name, value) of the short facts under the headline."""
    subjects, evaluations = result.resamples.num_subjects, len(card.test_evaluations)
    return [
        ("clips", str(len(result.predictions))),
        *([("subjects", str(subjects))] if result.resamples.by_subject else []),
        ("classes", " / ".join(result.label_names)),
        ("inputs", " + ".join(card.dims)),
        ("encoder", card.recipe.encoder.name),
        *([("test set evaluated", _times(evaluations))] if evaluations else []),
    ]


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def metrics_intro(result: EvaluationResult) -> str:
    """How the intervals are made, which clips are evaluated and, for two classes, what AUROC is."""
    unit = "subject" if result.resamples.by_subject else "clip"
    if result.resamples.by_subject and result.predictions.num_unknown:
        unit += ", and by clip where the subject is unknown"
    missing, clips = int((~result.predictions.measured).sum()), len(result.predictions)
    text = f"95 % intervals from {len(result.resamples.weights):,} bootstrap rounds by {unit}. "
    if result.resamples.by_subject and result.resamples.num_subjects < FEW_SUBJECTS:
        text = text * (not too_few_subjects(result))
        text += few_subjects_text(result.resamples.num_subjects).capitalize() + ". "
    text += f"All {clips:,} labelled clips of the subset are evaluated"
    if missing:
        text += f"; {missing:,} of them failed or have no face and count as the majority class"
    text += "."
    if result.task == "binary":
        first, last = result.label_names
        text += (
            f" AUROC is the probability that a random {last} clip scores higher than a random {first} clip."
        )
    return text


def differences(result: EvaluationResult, metric: str) -> list[dict[str, str]]:
    """One row per baseline: the paired difference of the model from it, in the run's metric."""
    name = metric if metric in result.estimates else "balanced_accuracy"
    return [
        {
            "title": b.baseline.title,
            "mark": _mark(name, b) or "even",
            "text": f"{TITLES[name][0]} {signed(b.paired[name].difference)}: {_conclusion(result, name, b)}",
        }
        for b in result.comparisons
    ]


def forest(result: EvaluationResult) -> list[dict[str, Any]]:
    """One row per metric of the forest plot: the model's interval and a tick per baseline.

    Positions are per cent of the track's width.
    """
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
                "people": [
                    {"name": subject, "value": each, "at": _position(each)}
                    for subject, each in subject_values(result, name)
                ],
                "ticks": [tick | _stacked(tick, ticks) for tick in ticks],
            }
        )
    return rows


def _stacked(tick: dict[str, Any], ticks: list[dict[str, Any]]) -> dict[str, float]:
    """Top and height of a tick as fractions of the track: ticks at one position are stacked."""
    same = [other for other in ticks if abs(other["at"] - tick["at"]) < MIN_TICK_GAP]
    return {"top": round(same.index(tick) / len(same), 3), "height": round(1 / len(same), 3)}


def _position(value: float) -> float | None:
    """Position of a value from 0 to 1 on the track, per cent; None where it is not finite."""
    return round(100 * min(max(value, 0.0), 1.0), 2) if math.isfinite(value) else None


def metric_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """One row per metric of the table of all metrics; columns of `shown_baselines`."""
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
                "tooltip": f"difference {signed(pair.difference)}, p = {short(pair.p_value)}",
            }
            for b, pair in ((b, b.paired[name]) for b in shown_baselines(result))
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
    """One row per class: precision, recall, F1 and number of clips."""
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


def errors_intro(result: EvaluationResult) -> str:
    """Number of wrong predictions, and the classes with the highest and the lowest recall."""
    p, names = result.predictions, result.label_names
    wrong = int((p.predicted != p.labels).sum())
    text = f"{wrong:,} of {len(p):,} predictions are wrong."
    recalls = [(result.estimates[f"recall_{k}"].value, name) for k, name in enumerate(names)]
    known = [pair for pair in recalls if math.isfinite(pair[0])]
    if not known:
        return text
    worst, best = min(known), max(known)
    text += f" Recall is {percent(best[0])} for {best[1]}"
    return f"{text} and {percent(worst[0])} for {worst[1]}." if worst[1] != best[1] else f"{text}."


def calibration_errors(result: EvaluationResult) -> str:
    """How well the probabilities are calibrated on the evaluated clips."""
    names = ("brier", "ece", "calibration_slope", "calibration_intercept")
    brier, error, *line = (short(result.estimates[name].value) for name in names if name in result.estimates)
    text = f" On these clips: Brier score {brier}, expected calibration error {error}"
    if not line:
        return text + ". Slope and intercept are computed for two classes only."
    text += f", calibration slope {line[0]} (1 is calibrated, below 1 is too extreme)"
    return f"{text}, calibration intercept {line[1]} (0 is calibrated)."


def calibration_intro(card: Card) -> str:
    """What calibration does to the logits, the decision threshold and the abstain band."""
    c, stage = card.calibration, calibration_stage(card)
    source = (
        f"{count(stage['subjects'], 'subject')} of {Path(stage['store']).name}"
        if stage
        else "the validation subset"
    )
    if c.temperature == 1.0 and c.bias == 0.0:
        text = f"Logits are unchanged: calibration on {source} did not improve them."
    else:
        text = f"Logits are divided by {c.temperature:.2f} and shifted by {c.bias:+.2f}, fitted on {source}."
    if card.labelling.task == "binary":
        text += (
            f" The model predicts {card.labelling.names[1]} if p ≥ {c.threshold:.2f} "
            f"(threshold chosen for {c.threshold_metric.replace('_', ' ')} on {source}; it is 0.50 unless "
            "another one is better for new subjects)."
        )
    if c.abstain is not None:
        low, high = c.abstain
        band = f"{low:.2f} < p < {high:.2f}" if card.labelling.task == "binary" else f"p < {high:.2f}"
        text += f" If {band}, the prediction is “unsure”."
    return text


def fold_calibrations_intro(calibrations: Sequence[Calibration], card: Card) -> str:
    """What calibration does in the folds: ranges of temperature, bias and threshold."""

    def span(values: Sequence[float], form: str = ".2f") -> str:
        low, high = format(min(values), form), format(max(values), form)
        return low if low == high else f"{low} to {high}"

    text = "Each fold is calibrated on its own training subjects: logits are divided by "
    text += span([c.temperature for c in calibrations])
    if card.labelling.task != "multiclass":
        text += f" and shifted by {span([c.bias for c in calibrations], '+.2f')}"
    text += "."
    if card.labelling.task == "binary":
        thresholds = span([c.threshold for c in calibrations])
        text += f" The model predicts {card.labelling.names[1]} if p ≥ {thresholds}."
    return text


def kind(comparison: BaselineComparison) -> str:
    """CSS class of a baseline: leak, majority, or method and input, as logistic_geometry."""
    return "leak" if comparison.baseline.is_leak else comparison.baseline.name


STAGE_COLUMNS = ("stage", "val_score", "kept", "command")
"""Fields of a stage that are not listed in the column of details."""
STAGE_FIELDS = {
    "settings": "hash of data and settings",
    "stage_1": "selection score (optimistic) of the head before fine-tuning",
    "unfreeze_from": "first trained encoder block",
    "before": "previous calibration",
    "time_utc": "time (UTC)",
}
"""Field of a stage -> its name in the report, where the field name is not clear."""


def stages(card: Card) -> list[dict[str, Any]]:
    """One row per training or calibration stage of the run: name, validation score, kept, details."""
    return [
        {
            "name": str(stage.get("stage", "stage")),
            "score": short(stage.get("val_score")),
            "kept": as_text(stage["kept"]) if "kept" in stage else "–",
            "details": [
                (STAGE_FIELDS.get(key, key.replace("_", " ")), _details(key, value))
                for key, value in stage.items()
                if key not in STAGE_COLUMNS
            ],
        }
        for stage in card.stages
    ]


def _details(key: str, value: Any) -> str:
    """A field of a stage as text; epochs of a fine-tune become their number and their time in seconds."""
    if key == "kept_epoch" and value == -1:
        return "none (the head before fine-tuning)"
    if key == "epochs" and isinstance(value, list | tuple):
        seconds = sum(float(epoch.get("seconds", 0.0)) for epoch in value if isinstance(epoch, Mapping))
        return str(len(value)) + (f" ({seconds:,.1f} s)" if seconds else "")
    return as_text(value)


def as_text(value: Any) -> str:
    """A value of the card as text; nested mappings become `key value` pairs."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {as_text(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        return "1 entry" if len(value) == 1 else f"{len(value)} entries"  # the card lists them
    if isinstance(value, list | tuple):
        return ", ".join(as_text(part) for part in value) or "none"
    return f"{value:,}" if isinstance(value, int) and abs(value) > 9999 else str(value)


def number(value: float) -> str:
    """A setting with four significant digits: 0.0044, 0.1604, 150."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def recipe_rows(card: Card) -> list[tuple[str, str]]:
    """(name, value) of the recipe: encoder, window, crop, detectors, geometry."""
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
    """(name, value) of the settings and versions that made the run."""
    rows = [
        *[
            (
                f"member {number}: {member.stream}",
                ", ".join(f"{k.replace('_', ' ')} {as_text(v)}" for k, v in vars(member.head).items()),
            )
            for number, member in enumerate(card.members, start=1)
        ],
        ("heads of each member", f"{card.num_folds}, each trained without one fold of people"),
        ("selection metric", card.metric),
        ("seed", str(card.seed)),
        ("split hash", card.split_hash),
        ("store", f"{card.store} ({card.store_fingerprint})"),
        ("computed with", ", ".join(f"{k} {v}" for k, v in card.numerics.items()) or "–"),
        ("versions", ", ".join(f"{k} {v}" for k, v in card.versions.items())),
        ("commit", card.git_commit or "–"),
    ]
    if card.test_evaluations:
        rows.append(("test evaluated (UTC)", ", ".join(card.test_evaluations)))
    return rows
