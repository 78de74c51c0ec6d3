"""Encoder and head as one network, from face crops to logits: what the fine-tune trains.

The same `forward(x, valid)` as a head, so training, prediction and calibration do not know which they hold.
Only valid frames go through the encoder. B clips, T frames, H = W crop_px, D embedding, O outputs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from seqmodel.encoders.backbone import Encoder, fold_norms
from seqmodel.heads.recurrent import LstmHead


class CnnLstm(nn.Module):
    """The whole network.

    `cut` > 0 means that the batches bring the activations that enter encoder block `cut`, as float16
    x["activations"] (B,T,c,h,w), in place of x["crops"]: the blocks before it are frozen and were run once.
    """

    def __init__(self, encoder: Encoder, head: LstmHead, cut: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        fold_norms(encoder)
        self.head = head
        self.cut = cut
        self.noise = 0.0
        """In training, noise on the embeddings, in units of each channel's spread over the training split."""

    def forward(self, x: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> Tensor:
        """Logits (B,O) of x["crops"] uint8 (B,T,H,W,3), or x["activations"], and any other streams of the
        head.

        `valid` names the same streams, (B,T) bool; frames that are not valid are not looked at. In eval
        mode the embeddings are rounded to float16, as a store keeps them; in training they keep their
        gradient instead.
        """
        name = "activations" if "activations" in x else "crops"
        frames, mask = x[name], valid[name]
        embeddings = torch.zeros(*mask.shape, self.encoder.dim, device=frames.device)
        faces = frames[mask]
        if len(faces):
            embeddings[mask] = self.embed(faces, name).float()
        elif self.training:
            # Every process of a team must have a gradient for every weight: here one of zeros.
            embeddings = embeddings + 0 * self.embed(frames[:1, 0], name).sum()
        if self.training and self.noise > 0:
            spread = self.head.get_buffer("std_embeddings")
            embeddings = embeddings + self.noise * spread * torch.randn_like(embeddings)
        others = {stream: values for stream, values in x.items() if stream != name}
        seen = {stream: m for stream, m in valid.items() if stream != name}
        return self.head({"embeddings": embeddings, **others}, {"embeddings": mask, **seen})

    def embed(self, frames: Tensor, name: str = "crops") -> Tensor:
        """Embeddings (F,D) of frames (F,…): crops, or activations at the cut."""
        if name == "activations":
            activations = frames.to(self.encoder.mean.dtype).contiguous(memory_format=torch.channels_last)
            found = self.encoder.head_of(activations, self.cut)
        else:
            found = self.encoder(frames)
        return found if self.training else found.half()

    def train(self, mode: bool = True) -> "CnnLstm":
        """As torch's, but the encoder's BatchNorm keeps the statistics it came with.

        One clip is 30 pictures of one face: its batch statistics would be that person's.
        """
        super().train(mode)
        self.encoder.eval()
        return self
