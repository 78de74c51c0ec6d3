"""The JSON forms of an evaluation: metrics.json and the summary of --json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.metrics.bootstrap import Estimate
from seqmodel.runs.files import read_json, write_json


def estimates_json(result: EvaluationResult) -> dict[str, dict[str, Any]]:
    """{split: {metric: {value, low, high}}}; None = undefined.

    Baselines are `split/name`, differences from them `split minus name`, and clips with a face alone
    `split/measured`. Binary folds also have `auroc_within_folds`: the mean AUROC over folds, weighted by
    pairs of clips, without an interval. `auroc` also compares probabilities of different folds' heads.
    """
    split = result.split
    out = {split: _plain(result.estimates, result.label_names)}
    out[split]["num_clips"] = {"value": len(result.predictions), "low": None, "high": None}
    for comparison in result.comparisons:
        name = comparison.baseline.name
        out[f"{split}/{name}"] = _plain(comparison.estimates, result.label_names)
        out[f"{split} minus {name}"] = _plain(
            {metric: pair.difference for metric, pair in comparison.paired.items()}, result.label_names
        )
    if result.measured_estimates is not None:
        out[f"{split}/measured"] = _plain(result.measured_estimates, result.label_names)
    return out


def write_metrics(path: Path, split: str, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json: entries of this split replace earlier ones, those of other splits stay."""
    earlier = read_json(path) if path.is_file() else {}
    write_json(path, replaced_metrics(earlier, split, metrics))


def replaced_metrics(earlier: Mapping[str, Any], split: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`earlier` with all entries of this split, its baselines included, replaced by `metrics`."""
    others = {name: value for name, value in earlier.items() if not _is_of(name, split)}
    return others | dict(metrics)


def _is_of(name: str, split: str) -> bool:
    return name == split or name.startswith((f"{split}/", f"{split} minus "))


def summary(result: EvaluationResult, report: Path) -> dict[str, Any]:
    """The summary that --json prints."""
    return {
        "split": result.split,
        "clips": len(result.predictions),
        "subjects": result.resamples.num_subjects if result.resamples.by_subject else None,
        "metrics": estimates_json(result)[result.split],
        "warnings": list(result.warnings),
        "report": str(report),
    }


def readable(name: str, label_names: Sequence[str]) -> str:
    """`recall_0` as `recall:distracted`; other names unchanged."""
    head, _, index = name.rpartition("_")
    return f"{head}:{label_names[int(index)]}" if index.isdigit() and head else name


def _plain(
    estimates: Mapping[str, Estimate], label_names: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    return {readable(name, label_names): estimate.as_json() for name, estimate in estimates.items()}
