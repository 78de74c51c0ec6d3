"""The network of fine-tuning: encoder and head, from face crops to logits.

It has the same `forward(x, valid)` as a head, so training, prediction and calibration work with both. Only
valid frames go through the encoder. B clips, T frames, H = W crop_px, D embedding, O outputs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from seqmodel.encoders.backbone import Encoder
from seqmodel.encoders.bn_folding import fold_norms
from seqmodel.heads.ensemble import Ensemble


class CnnLstm(nn.Module):
    """Encoder and head as one module.

    With `first_block` > 0, batches may have x["activations"] float16 (B,T,c,h,w), the inputs of that encoder
    block, instead of x["crops"]: the blocks before it are frozen, and their outputs are cached.
    """

    def __init__(self, encoder: Encoder, head: Ensemble, first_block: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        fold_norms(encoder)
        self.head = head
        self.first_block = first_block
        self.noise = 0.0
        """Standard deviation of the noise that training adds to the embeddings; the unit is each channel's
        standard deviation over the training split."""

    def forward(self, x: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> Tensor:
        """Logits (B,O) of x["crops"] uint8 (B,T,H,W,3), or x["activations"], and other streams of the head.

        `valid` has the same streams, (B,T) bool; frames that are not valid are ignored. In eval mode the
        embeddings are rounded to float16, as in a store; in training they are not, to keep the gradient.
        """
        name = "activations" if "activations" in x else "crops"
        frames, mask = x[name], valid[name]
        embeddings = torch.zeros(*mask.shape, self.encoder.dim, device=frames.device)
        faces = frames[mask]
        if len(faces):
            embeddings[mask] = self.embed(faces, name).float()
        elif self.training:
            # With several processes, each must have a gradient for every weight: here zeros.
            embeddings = embeddings + 0 * self.embed(frames[:1, 0], name).sum()
        if self.training and self.noise > 0:
            spread = self.head.spread("embeddings")
            embeddings = embeddings + self.noise * spread * torch.randn_like(embeddings)
        others = {stream: values for stream, values in x.items() if stream != name}
        seen = {stream: m for stream, m in valid.items() if stream != name}
        return self.head({"embeddings": embeddings, **others}, {"embeddings": mask, **seen})

    def embed(self, frames: Tensor, name: str = "crops") -> Tensor:
        """Embeddings (F,D) of frames (F,…): crops, or inputs of block `first_block`."""
        if name == "activations":
            activations = frames.to(self.encoder.mean.dtype).contiguous(memory_format=torch.channels_last)
            found = self.encoder.head_of(activations, self.first_block)
        else:
            found = self.encoder(frames)
        return found if self.training else found.half()

    def train(self, mode: bool = True) -> "CnnLstm":
        """Set training mode, except for the encoder: its BatchNorm keeps its pretrained statistics.

        A batch is one clip, with about 30 crops of one face: its statistics would be those of one subject.
        """
        super().train(mode)
        self.encoder.eval()
        return self
