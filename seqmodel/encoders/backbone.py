"""The encoder: a CNN from one face crop to one embedding.

An `Encoder` is a sequence of blocks with an index (fine-tuning freezes the first ones), then mean pooling. It
takes RGB uint8 crops only; mean and std are buffers inside, so pixels cannot be normalised twice. F frames,
H = W crop_px, D embedding.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for a file it refuses to run
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from features.cli import UserError
from features.files import cache_dir
from features.recipe import EncoderId
from seqmodel.encoders.model_files import encoder_weights, sha256_of, write_cached

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation of torchvision's weights, for pixels in 0..1."""


class Encoder(nn.Module):
    """RGB uint8 crops to embeddings.

    `blocks` 0 … n−1 run in order on float32 (F,3,H,W); block 0 is the stem, the last one outputs D channels.
    """

    def __init__(
        self,
        name: str,
        blocks: nn.Sequential,
        dim: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.name = name
        self.blocks = blocks
        self.dim = dim
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, crops: Tensor) -> Tensor:
        """Embeddings (F,D) float32 of crops (F,H,W,3) uint8 RGB. Raises TypeError for anything else."""
        return self.pool(self.blocks(self.pixels(crops)))

    def pixels(self, crops: Tensor) -> Tensor:
        """Normalised float32 (F,3,H,W), in channels-last memory, of crops (F,H,W,3) uint8 RGB."""
        if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[-1] != 3:
            raise TypeError(
                f"an encoder needs RGB uint8 crops (F,H,W,3), got {crops.dtype} of shape {tuple(crops.shape)}"
            )
        return ((crops.permute(0, 3, 1, 2).to(self.mean.dtype) / 255) - self.mean) / self.std

    def head_of(self, activations: Tensor, first: int) -> Tensor:
        """Embeddings (F,D) from the inputs of block `first`."""
        return self.pool(self.blocks[first:](activations))

    def pool(self, activations: Tensor) -> Tensor:
        """Mean over height and width, in the encoder's dtype: (F,D,h,w) to (F,D)."""
        return activations.to(self.mean.dtype).mean((2, 3))

    @torch.no_grad()
    def embed(self, crops: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float16]:
        """Embeddings float16 (F,D), as a store keeps them, of crops (F,H,W,3) uint8 RGB; in eval mode only.

        Raises TypeError for other crops, and UserError in training mode, in which an embedding would depend
        on the other frames of the batch.
        """
        if self.training:
            raise UserError("embed() was called in training mode; call eval() first")
        if crops.dtype != np.uint8:
            raise TypeError(f"an encoder needs RGB uint8 crops (F,H,W,3), got {crops.dtype}")
        device = self.mean.device
        parts = [
            self(torch.from_numpy(np.ascontiguousarray(crops[i : i + batch_size])).to(device))
            .half()
            .cpu()
            .numpy()
            for i in range(0, len(crops), batch_size)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float16)


def build_encoder(name: str, weights: str = "imagenet", seed: int = 0) -> tuple[Encoder, EncoderId]:
    """An encoder in eval mode, and its identity.

    `weights` is "imagenet", a file (.pth or .safetensors: a state dict of torchvision's or timm's model, or
    of this project, or a run's weights), or "random": initialised from `seed`, with BatchNorm statistics of
    one fixed batch (without those, a random MobileNetV3 outputs about 1e-10, which is 0 in float16). There is
    no fallback from one to another. Raises UserError for an unknown name, and for weights that are missing
    or do not fit.
    """
    if weights == "random":
        encoder = _random(name, seed)
        identity = EncoderId(name, f"random:{seed}", state_sha256(encoder.state_dict()), encoder.dim)
        return encoder, identity
    encoder = _architecture(name)
    path = encoder_weights(name, weights)
    state = _read_state(path)
    tuned = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    _load(encoder, tuned or state, where=str(path), is_ordered=path.suffix != ".safetensors")
    if tuned:
        # The weights of a run: the hash is of the tensors and does not depend on the file.
        identity = EncoderId(name, f"finetuned:{path.parent.name}", state_sha256(tuned), encoder.dim)
    else:
        named = {"mobilenet_v3_large": "IMAGENET1K_V2"} if weights == "imagenet" else {}
        identity = EncoderId(name, named.get(name, path.name), sha256_of(path), encoder.dim)
    if tuned or weights != "imagenet":
        _keep_weights(encoder.state_dict(), identity.weights_sha256)
    return encoder.eval(), identity


def encoder_from_state(name: str, state: Mapping[str, Tensor]) -> Encoder:
    """The encoder with a saved `state_dict()`, in eval mode. Raises UserError if it does not fit."""
    encoder = _architecture(name)
    _load(encoder, state, where=f"the saved {name}")
    return encoder.eval()


def encoder_of(identity: EncoderId, state: Mapping[str, Tensor] | None = None) -> Encoder:
    """The encoder of an identity: from its saved state if given, else from the weights on this machine.

    Raises UserError if weights with this hash are not on this machine.
    """
    if state is not None:
        return encoder_from_state(identity.name, state)
    if identity.weights.startswith("random:"):
        encoder, found = build_encoder(identity.name, "random", int(identity.weights.partition(":")[2]))
    elif (kept := _kept_weights(identity.weights_sha256)).is_file():
        return encoder_from_state(identity.name, _read_state(kept))
    elif identity.weights.startswith("finetuned:"):
        raise UserError(
            f"the weights of this recipe are not on this machine: {identity.name}, fine-tuned in run "
            f"{identity.weights.partition(':')[2]!r} (sha256 {identity.weights_sha256[:12]}…); copy that run "
            "here and give its weights.safetensors as --weights FILE"
        )
    else:
        encoder, found = build_encoder(identity.name, "imagenet")
    if found.weights_sha256 != identity.weights_sha256:
        raise UserError(
            f"the weights of this recipe are not on this machine: {identity.name} {identity.weights} with "
            f"sha256 {identity.weights_sha256[:12]}…; {found.weights} on this machine has "
            f"{found.weights_sha256[:12]}…"
        )
    return encoder


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of a state dict, independent of its order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _architecture(name: str) -> Encoder:
    """The encoder's architecture with untrained weights."""
    if name == "mobilenet_v3_large":
        from torchvision.models import mobilenet_v3_large

        blocks = nn.Sequential(*mobilenet_v3_large(weights=None).features)
        return Encoder(name, blocks, 960, IMAGENET_MEAN, IMAGENET_STD)
    if name == "efficientnet_lite0":
        from timm import create_model

        net: Any = create_model("efficientnet_lite0", pretrained=False)
        stem, head = nn.Sequential(net.conv_stem, net.bn1), nn.Sequential(net.conv_head, net.bn2)
        blocks = nn.Sequential(stem, *(block for stage in net.blocks for block in stage), head)
        return Encoder(name, blocks, 1280, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    raise UserError(f"unknown encoder {name!r}; encoders are mobilenet_v3_large, efficientnet_lite0")


def _random(name: str, seed: int) -> Encoder:
    """An encoder with random weights under `seed`, and BatchNorm statistics of one fixed batch.

    The pass runs in float64 and the statistics are rounded to bfloat16, so that the weights, and their hash,
    are equal on machines and with thread counts that differ in the last bits.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _architecture(name)
        coarse = [torch.randint(256, (1, 3, side, side)) for side in (4, 14, 56, 112)]
    crops = torch.cat(
        [c.repeat_interleave(112 // c.shape[2], 2).repeat_interleave(112 // c.shape[3], 3) for c in coarse]
    ).byte()
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches, here one
    encoder.double().train()
    with torch.no_grad():
        encoder(crops.permute(0, 2, 3, 1))
    encoder.float().eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # Some means are 0 except for rounding errors, which bfloat16 would keep: a fixed grid removes them.
        # Adding 0 makes +0 of −0, which has other bytes.
        norm.running_mean.copy_((norm.running_mean * 4096).round() / 4096 + 0.0)
        norm.running_var.copy_(norm.running_var.bfloat16())
    return encoder


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, loaded without running code. Raises UserError if the file is not one."""
    if path.suffix == ".safetensors":
        try:
            return load(path.read_bytes())
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file: {error}") from error
    try:
        with path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, UnpicklingError) as error:
        # The text of a KeyError is only a byte of the file.
        why = "" if isinstance(error, KeyError) else f": {str(error).splitlines()[0]}"
        raise UserError(f"{path} is not a weights file{why}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} has no state dict (names to tensors)")
    return state


def _load(encoder: Encoder, state: Mapping[str, Tensor], where: str, is_ordered: bool = True) -> None:
    """Load a state dict of this project, of torchvision or of the EfficientNet wheel into the encoder.

    is_ordered: whether the tensors are in the order of the layers. A .safetensors file sorts them.
    """
    own_state = encoder.state_dict()
    if "mean" not in state:
        fixed = {"mean": own_state["mean"], "std": own_state["std"]}
        wanted = [key for key in own_state if key not in fixed]
        # Weights of other packages end with a classifier, which is not used.
        found = {key: value for key, value in state.items() if not key.startswith(("classifier", "_fc"))}
        named = {f"blocks.{key.removeprefix('features.')}": value for key, value in found.items()}
        if named.keys() == set(wanted):  # torchvision's names
            state = fixed | named
        elif not is_ordered:
            raise UserError(
                f"{where}: its names are not torchvision's, and a .safetensors file does not keep the order "
                "of the layers: save the state dict as .pth"
            )
        elif len(found) == len(wanted):  # the same layers in order with other names
            state = fixed | dict(zip(wanted, found.values(), strict=True))
    try:
        encoder.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(
            f"{where} does not fit {encoder.name}: {' '.join(str(error).split())[:200]}"
        ) from None


def _kept_weights(sha256: str) -> Path:
    return cache_dir() / "weights" / f"{sha256}.safetensors"


def _keep_weights(state: Mapping[str, Tensor], sha256: str) -> None:
    """Copy a user's weights to the cache by hash, because the recipe has the hash and the file may move."""
    path = _kept_weights(sha256)
    if not path.is_file():
        write_cached(path, save({name: tensor.contiguous() for name, tensor in state.items()}))
