"""The encoder of a run, compiled; imports torch only where its network was not converted before."""

from pathlib import Path
from typing import TYPE_CHECKING

from seqmodel.encoders.engine import Backend, Engine, open_identity, precision_of
from seqmodel.runs.card import load_card, load_weights

if TYPE_CHECKING:
    from seqmodel.encoders.backbone import Encoder


def open_run_engine(
    run: Path,
    *,
    backend: Backend = "auto",
    device: str = "auto",
    threads: int = 0,
) -> Engine:
    """The engine of a run's own encoder: its fine-tuned one where there is one, else the one of its recipe.

    It computes as the store was made: in float32 where that was, else in what this processor is best at.
    Raises ValueError when the run is unfinished, reads no embeddings of pixels, or its weights cannot be
    found.
    """
    card = load_card(run)
    recipe = card.recipe
    if recipe.pixels is None:
        raise ValueError(
            f"{run} was trained on imported features ({recipe.encoder.name}); no camera makes those"
        )

    def build() -> "Encoder":
        from seqmodel.encoders.backbone import encoder_of

        return encoder_of(recipe.encoder, load_weights(run).get("encoder"))

    precision = precision_of(card.numerics)
    return open_identity(recipe.encoder, build, backend, device, precision, threads, recipe.pixels.crop_px)
