"""A run, made ready to look at faces: everything that live needs, built from the run directory alone.

The recipe, the detector files, the weights and the calibration all come from the run's own copy, so no
option of a live session can make it see differently from how it was trained. Where the run has an export
that fits it, that is used, and torch is not imported at all.

Shapes: T frames, D embedding, G geometry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.cli import log_warning
from seqmodel.encoders.engine import Backend, Engine
from seqmodel.encoders.model_files import sha256_of
from seqmodel.export.bundle import Head, find_bundle, open_bundle
from seqmodel.runs.card import WEIGHTS, Card, load_card, load_weights
from seqmodel.runs.run_encoder import open_run_engine
from seqmodel.runs.training_stats import load_statistics, read_training_stats

THREADS = 2
"""Of each network: one frame at a time is answered in two thirds of the time, and the result is the same."""


@dataclass(frozen=True)
class LiveModel:
    """The parts of a run that answer for one window."""

    card: Card
    engine: Engine | None
    """None when the head reads no embeddings."""
    head: Head
    detector_files: tuple[Path, ...]
    landmarker_file: Path | None
    """Set when the head reads the geometry stream and the file is there."""
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Mean and standard deviation (D,) of the training features by stream."""
    min_filled: float | None
    """Share of a window from which validation shows that predictions are worth showing; None if unknown."""
    key: str
    """Twelve hex digits of the weights' sha256: what a personal calibration holds for."""

    @property
    def num_frames(self) -> int:
        """T, the number of frames in a window."""
        assert self.card.recipe.pixels is not None  # model_card refused others
        return self.card.recipe.pixels.num_frames


def model_card(run: Path) -> Card:
    """The card of a run that can be shown a camera.

    Raises ValueError when the run is unfinished or was trained on imported features.
    """
    card = load_card(run)
    if card.recipe.pixels is None:
        raise ValueError(f"{run} was trained on imported features, which no camera can make")
    return card


def open_model(run: Path, backend: Backend = "auto", threads: int = THREADS) -> LiveModel:
    """Load a run, or a bundle, for live use.

    `backend` torch passes an export by. A head that reads both streams goes on without the landmarker's file,
    with a warning: what it was trained to do with frames whose geometry is unknown. Raises ValueError when
    the run is unfinished, was trained on imported features, or lost another model file.
    """
    card = model_card(run)
    assert card.recipe.pixels is not None
    files = {sha256_of(path): path for path in sorted((run / "detector").glob("*")) if path.is_file()}
    detectors = tuple(_model_file(files, sha, run, "face detector") for sha in card.recipe.pixels.detectors)
    landmarker = None
    if "geometry" in card.dims:
        assert card.recipe.geometry is not None  # a head cannot read a stream that its recipe lacks
        try:
            landmarker = _model_file(files, card.recipe.geometry.model_sha256, run, "face landmarker")
        except ValueError as error:
            if "embeddings" not in card.dims:
                raise
            log_warning(f"{error}: going on without the geometry stream")
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
        load_statistics(run),
        min_filled=known.min_filled if known else None,
        key=key[:12],
    )


def torch_head(run: Path, card: Card) -> Head:
    """The run's head, computed by torch, which is imported here and not before.

    From here on torch has one thread in this process: one window is too little work for two, which would spin
    on the cores that the encoder needs.
    """
    import torch

    from seqmodel.heads.recurrent import LstmHead

    torch.set_num_threads(1)
    head = LstmHead(card.head, card.dims, card.num_outputs)
    head.load_state_dict(load_weights(run)["head"])
    head.eval()

    def logits(x: Mapping[str, np.ndarray], valid: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            streams = {name: torch.from_numpy(np.asarray(x[name], np.float32))[None] for name in card.dims}
            masks = {name: torch.from_numpy(np.asarray(valid[name], bool))[None] for name in card.dims}
            return head(streams, masks)[0].numpy()

    return logits


def describe(model: LiveModel) -> dict[str, Any]:
    """What the model is, for a summary: encoder, weights, backend, classes."""
    card = model.card
    return {
        "encoder": card.recipe.encoder.name,
        "weights": card.recipe.encoder.weights,
        "classes": list(card.labelling.names),
        "numerics": dict(model.engine.numerics) if model.engine else {},
    }


def _model_file(files: Mapping[str, Path], sha256: str, run: Path, what: str) -> Path:
    if sha256 not in files:
        raise ValueError(f"{run / 'detector'} lacks the {what} of this run (sha256 {sha256[:12]}…)")
    return files[sha256]
