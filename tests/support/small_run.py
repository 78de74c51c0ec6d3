"""Writes a small run directory: real encoder and head classes with seeded random weights."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from extract.face.geometry import FEATURES
from features.labels import Labelling
from features.recipe import EncoderId, GeometryId, Pixels, Recipe
from seqmodel.config import HeadConfig, MemberConfig
from seqmodel.encoders.backbone import Encoder, build_encoder
from seqmodel.encoders.model_files import sha256_of
from seqmodel.heads.ensemble import Ensemble
from seqmodel.heads.inputs import InputStatistics
from seqmodel.heads.recurrent import build_head
from seqmodel.metrics.calibration import Calibration
from seqmodel.runs.card import Card, save_card
from seqmodel.runs.files import keep_model_file, save_weights

HEAD = HeadConfig(hidden=16, components=0)


@cache
def random_encoder() -> tuple[Encoder, EncoderId]:
    """The seeded encoder, built once per process because that takes a second or two."""
    return build_encoder("mobilenet_v3_large", "random", 0)


def write_run(
    run: Path,
    detector: Path,
    *,
    landmarker: Path | None = None,
    inputs: tuple[str, ...] = ("embeddings",),
    task: Literal["binary", "multiclass", "ordinal"] = "binary",
    names: tuple[str, ...] = ("distracted", "engaged"),
    calibration: Calibration | None = None,
    keeps_encoder: bool = False,
    pixels: Pixels | None = None,
) -> Path:
    """Write a finished run at `run`. Its head gives a different logit for every window."""
    run.mkdir(parents=True, exist_ok=True)
    encoder, encoder_id = random_encoder()
    geometry = GeometryId(sha256_of(landmarker), FEATURES) if landmarker else None
    pixels = replace(pixels or Pixels(()), detectors=(sha256_of(detector),))
    dims = {"embeddings": encoder_id.dim, "geometry": len(FEATURES)}
    card = Card(
        recipe=Recipe(pixels, encoder_id, geometry),
        labelling=Labelling("label", names, tuple((name,) for name in names), task),
        members=tuple(MemberConfig(name, HEAD) for name in inputs),
        num_folds=1,
        dims={name: dims[name] for name in inputs},
        store="none",
        store_fingerprint="",
        split_description="none",
        split_hash="",
        seed=0,
        metric="auroc",
        training_class_frequencies=(0.5, 0.5),
        calibration=calibration or Calibration(),
    )
    heads = [build_head(HEAD, name, dims[name], card.num_outputs, seed=0) for name in inputs]
    for head in heads:
        if head.stream == "embeddings":
            # Random embeddings are far from zero and vary little: without their statistics logits are
            # constant.
            with torch.no_grad():
                probe = encoder(torch.randint(0, 256, (16, 224, 224, 3), dtype=torch.uint8))
            basis = np.zeros((0, encoder_id.dim), np.float32)
            std = (probe.std(0) + 1e-3).numpy()
            head.input.put(InputStatistics(probe.mean(0).numpy(), std, basis))
    ensemble = Ensemble([[head] for head in heads], task)
    save_weights(run, ensemble.state_dict(), encoder.state_dict() if keeps_encoder else None)
    keep_model_file(run, detector, "detector.tflite")
    if landmarker:
        keep_model_file(run, landmarker, "face_landmarker.task")
    save_card(run, card)
    return run
