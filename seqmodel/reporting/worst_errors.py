"""Worst errors of an evaluation: confident wrong predictions with timelines and optional faces.

Shapes: N clips, T frames.
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np

from features.face_signals import strongest_signals
from features.store.store import FeatureStore
from seqmodel.evaluation.evaluator import EvaluationResult
from seqmodel.metrics.calibration import probabilities
from seqmodel.reporting.plots_analysis import timeline_plot
from seqmodel.reporting.style import save
from seqmodel.runs.card import Card
from seqmodel.runs.predict import prefix_logits

MOST_CLIPS = 6
FACES = 6
FACE_PX = 72


def hardest(result: EvaluationResult) -> np.ndarray:
    """Indices of wrong clips with a detected face, lowest p(true class) first; at most MOST_CLIPS."""
    p = result.predictions
    p_true = p.probabilities[np.arange(len(p)), p.labels]
    wrong = np.flatnonzero(p.measured & (p.predicted != p.labels))
    return wrong[np.argsort(p_true[wrong], kind="stable")][:MOST_CLIPS]


def hardest_clips(
    result: EvaluationResult,
    run: Path,
    card: Card,
    store: FeatureStore,
    rows: np.ndarray,
    plots: Path,
    *,
    thumbnails: bool,
) -> list[dict[str, Any]]:
    """One entry per worst error for the report; `rows` are the evaluated clips' store rows, in order."""
    indices = hardest(result)
    if len(indices) == 0:
        return []
    p, names = result.predictions, result.label_names
    logits, seen = prefix_logits(run, card, store, card.labelling, rows[indices])
    fps = card.recipe.pixels.fps if card.recipe.pixels else 1.0
    binary = result.task == "binary"
    threshold = card.calibration.threshold if binary else None
    found = []
    features = store.recipe.geometry.features if store.recipe.geometry else ()
    geometry, measured = store.read_stream("geometry", rows[indices]) if features else (None, None)
    for k, index in enumerate(indices):
        truth, predicted, signals = int(p.labels[index]), int(p.predicted[index]), None
        shown_class = 1 if binary else truth
        line = probabilities(logits[k], result.task, card.calibration)[:, shown_class]
        if geometry is not None and measured is not None and measured[k].any():
            signals = strongest_signals(np.where(measured[k][:, None], geometry[k], np.nan), features)
        figure = timeline_plot(line, seen[k], fps, threshold, truth == shown_class, signals)
        found.append(
            {
                "truth": names[truth],
                "predicted": names[predicted],
                "probability": float(p.probabilities[index, predicted]),
                "clip_id": str(p.clip_ids[index]),
                "subject": str(p.subjects[index]),
                "timeline": save(figure, plots / f"hardest-{k + 1}.png"),
                "faces": _faces(store, int(rows[index])) if thumbnails and store.has_crops else [],
            }
        )
    return found


def _faces(store: FeatureStore, row: int) -> list[str]:
    """Up to FACES stored crops, evenly spaced over the window, as small JPEG data URIs."""
    import cv2

    crops = [crop for crop in store.read_crops(row) if crop]
    if not crops:
        return []
    indices = np.linspace(0, len(crops) - 1, min(FACES, len(crops))).round().astype(np.int64)
    uris = []
    for index in indices:
        image = cv2.imdecode(np.frombuffer(crops[index], np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            continue
        small = cv2.resize(image, (FACE_PX, FACE_PX), interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
        uris.append("data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode("ascii"))
    return uris
