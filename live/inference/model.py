"""The model of a live session, loaded from a run directory.

Recipe, detector files, weights and calibration all come from the run directory, so no option of a live
session changes the preprocessing. If the run has an up-to-date export, live uses it without importing torch.

Shapes: T frames, D embedding, G geometry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.cli import UserError, log_warning
from seqmodel.encoders.engine import Backend, Engine
from seqmodel.encoders.model_files import sha256_of
from seqmodel.export.bundle import Head, find_bundle, open_bundle
from seqmodel.runs.card import Card, load_card
from seqmodel.runs.files import WEIGHTS, load_weights
from seqmodel.runs.run_encoder import open_run_engine
from seqmodel.runs.training_stats import load_statistics, read_training_stats

THREADS = 2
"""Threads per network: two threads need 2/3 of the time of one for a frame, with the same result."""


@dataclass(frozen=True)
class LiveModel:
    """The parts of a run that predict one window."""

    card: Card
    engine: Engine | None
    """None when the head does not use embeddings."""
    head: Head
    detector_files: tuple[Path, ...]
    landmarker_file: Path | None
    """Set when the head uses geometry and the file exists."""
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Mean and standard deviation (D,) of the training features by stream."""
    min_filled: float | None
    """Smallest share of a filled window for a prediction, chosen on validation; None if unknown."""
    key: str
    """First 12 hex digits of the weights' sha256; key of a personal calibration."""

    @property
    def num_frames(self) -> int:
        """T, the number of frames in a window."""
        assert self.card.recipe.pixels is not None  # model_card refused others
        return self.card.recipe.pixels.num_frames


def model_card(run: Path) -> Card:
    """The card of a run that can be used live.

    Raises UserError when the run is unfinished or was trained on imported features.
    """
    card = load_card(run)
    if card.recipe.pixels is None:
        raise UserError(f"{run} was trained on imported features: live cannot compute them from a camera")
    return card


def open_model(run: Path, backend: Backend = "auto", threads: int = THREADS) -> LiveModel:
    """Load a run, or a bundle, for live use.

    With `backend` torch an export is not used. If the landmarker file is missing, a head on both streams uses
    only embeddings, with a warning; training covers frames without geometry. Raises UserError when the
    run is unfinished, was trained on imported features, or another model file is missing.
    """
    card = model_card(run)
    assert card.recipe.pixels is not None
    files = {sha256_of(path): path for path in sorted((run / "detector").glob("*")) if path.is_file()}
    detectors = tuple(_model_file(files, sha, run, "face detector") for sha in card.recipe.pixels.detectors)
    landmarker = None
    if "geometry" in card.dims:
        assert card.recipe.geometry is not None  # a head reads only streams of its recipe
        try:
            landmarker = _model_file(files, card.recipe.geometry.model_sha256, run, "face landmarker")
        except UserError as error:
            if "embeddings" not in card.dims:
                raise
            log_warning(f"{error}: using embeddings only")
    bundle = find_bundle(run) if backend != "torch" else None
    if bundle is not None:
        engine, head = open_bundle(bundle, card, threads)
        key = bundle.run_weights_sha256
    else:
        head = torch_head(run, card)
        reads_embeddings = "embeddings" in card.dims
        engine = open_run_engine(run, backend=backend, threads=threads) if reads_embeddings else None
        key = sha256_of(run / WEIGHTS)
    known = read_training_stats(run)
    return LiveModel(
        card,
        engine,
        head,
        detectors,
        landmarker,
        load_statistics(run, card),
        min_filled=known.min_filled if known else None,
        key=key[:12],
    )


def torch_head(run: Path, card: Card) -> Head:
    """The run's head, computed by torch, which is imported only here.

    Sets torch to one thread in this process: one window is too little work for two threads, and a second
    thread would take CPU time from the encoder.
    """
    import torch

    from seqmodel.runs.predict import load_ensemble

    torch.set_num_threads(1)
    head = load_ensemble(card, load_weights(run)["head"])

    def logits(x: Mapping[str, np.ndarray], valid: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            streams = {name: torch.from_numpy(np.asarray(x[name], np.float32))[None] for name in card.dims}
            masks = {name: torch.from_numpy(np.asarray(valid[name], bool))[None] for name in card.dims}
            return head(streams, masks)[0].numpy()

    return logits


def describe(model: LiveModel) -> dict[str, Any]:
    """Encoder, weights, classes and numerics of the model, for a summary."""
    card = model.card
    return {
        "encoder": card.recipe.encoder.name,
        "weights": card.recipe.encoder.weights,
        "classes": list(card.labelling.names),
        "numerics": dict(model.engine.numerics) if model.engine else {},
    }


def _model_file(files: Mapping[str, Path], sha256: str, run: Path, name: str) -> Path:
    if sha256 not in files:
        raise UserError(
            f"the {name} of this run (sha256 {sha256[:12]}…) is missing in {run / 'detector'}; "
            "copy the whole run again"
        )
    return files[sha256]
