"""The compiled encoder of a run; imports torch only if its network is not converted yet."""

from pathlib import Path
from typing import TYPE_CHECKING

from features.cli import UserError
from seqmodel.encoders.engine import Backend, Engine, open_identity, precision_of
from seqmodel.runs.card import load_card
from seqmodel.runs.files import load_weights

if TYPE_CHECKING:
    from seqmodel.encoders.backbone import Encoder


def open_run_engine(
    run: Path,
    *,
    backend: Backend = "auto",
    device: str = "auto",
    threads: int = 0,
) -> Engine:
    """The engine of a run's encoder: the fine-tuned one if there is one, else that of its recipe.

    It uses float32 if the store was made in float32, else the fastest precision of this processor. Raises
    UserError if the run is unfinished, was trained on imported features, or its weights are missing.
    """
    card = load_card(run)
    recipe = card.recipe
    if recipe.pixels is None:
        raise UserError(
            f"{run} was trained on imported features ({recipe.encoder.name}): it has no encoder for video"
        )

    def build() -> "Encoder":
        from seqmodel.encoders.backbone import encoder_of

        return encoder_of(recipe.encoder, load_weights(run).get("encoder"))

    precision = precision_of(card.numerics)
    return open_identity(recipe.encoder, build, backend, device, precision, threads, recipe.pixels.crop_px)
