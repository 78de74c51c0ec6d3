"""A GRU's training on a processor, in steps of few clips.

torch makes some fifty small calls for each step of each direction there; this makes nine for both directions
together, with the same numbers. Only for training: what is judged, exported and saved is `nn.GRU`.

B clips, T frames, H hidden, K directions (1 or 2).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_VALUES = 4096
"""B · K · H up to which the recurrence runs in float32, on one thread 1.2 to 5.7 times as fast as torch's."""
MOST_CLIPS = 64
"""Of a step of more values, in bfloat16 under autocast as torch's is: 1.1 to 1.8 times as fast up to here."""


def pays(recurrent: nn.Module, x: Tensor) -> bool:
    """Whether this is a GRU whose steps over x (B, T, ·) are so small that `quick_gru` is quicker."""
    if not isinstance(recurrent, nn.GRU) or x.device.type != "cpu":
        return False
    return _are_few(recurrent, x) or (torch.is_autocast_enabled("cpu") and len(x) <= MOST_CLIPS)


def quick_gru(gru: nn.GRU, x: Tensor) -> Tensor:
    """States (B, T, K·H) of the last layer, as `gru(x)[0]` gives them in training.

    gru: batch first, with biases. x: (B, T, ·); its products run in the dtype of autocast, and so does the
    recurrence, or in float32 where it is of few values.
    """
    directions = ("", "_reverse") if gru.bidirectional else ("",)
    few = _are_few(gru, x)
    for layer in range(gru.num_layers):
        if layer and gru.dropout:
            x = F.dropout(x, gru.dropout, gru.training)
        kinds = [
            [getattr(gru, f"{kind}_l{layer}{way}") for way in directions]
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        w_in, b_in = torch.cat(kinds[0]), torch.cat(kinds[2])
        inputs = F.linear(x, w_in, b_in)
        inputs = inputs.float() if few else inputs
        by_step = _turned(inputs.unflatten(-1, (len(directions), -1)).permute(1, 2, 0, 3))
        weights, biases = (torch.stack(kind).to(inputs.dtype) for kind in (kinds[1], kinds[3]))
        states = _Recurrence.apply(by_step, weights, biases)
        x = _turned(states).permute(2, 0, 1, 3).flatten(2)
    return x


def _are_few(gru: nn.GRU, x: Tensor) -> bool:
    return len(x) * gru.hidden_size * (1 + gru.bidirectional) <= FEW_VALUES


def _turned(values: Tensor) -> Tensor:
    """(T, K, ...) with the second direction's time reversed, in memory of its own."""
    if values.shape[1] == 1:
        return values.contiguous()
    return torch.stack([values[:, 0], values[:, 1].flip(0)], dim=1)


class _Recurrence(torch.autograd.Function):
    """h_t = (1 − z) n + z h_{t−1}; r, z = σ(x + W h + b); n = tanh(x + r (W h + b)) (Cho et al. 2014, in the
    variant of cuDNN and torch)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        """inputs: (T, K, B, 3H), the input's share of r, z and n. weights: (K, 3H, H). biases: (K, 3H).
        Returns the states (T, K, B, H), from h_0 = 0."""
        steps, ways, batch, wide = inputs.shape
        hidden = wide // 3
        states = inputs.new_zeros(steps + 1, ways, batch, hidden)
        gates = inputs.new_empty(steps, ways, batch, 2 * hidden)
        fresh, recurrent = torch.empty_like(states[1:]), torch.empty_like(inputs)
        back, biases = weights.transpose(1, 2), biases.unsqueeze(1)
        views = zip(
            states[:-1].unbind(),
            states[1:].unbind(),
            recurrent.unbind(),
            recurrent[..., : 2 * hidden].unbind(),
            recurrent[..., 2 * hidden :].unbind(),
            inputs[..., : 2 * hidden].unbind(),
            inputs[..., 2 * hidden :].unbind(),
            gates.unbind(),
            gates[..., :hidden].unbind(),
            gates[..., hidden:].unbind(),
            fresh.unbind(),
            strict=True,
        )
        for before, after, whole, of_gates, of_fresh, in_gates, in_fresh, both, reset, update, new in views:
            torch.baddbmm(biases, before, back, out=whole)
            torch.add(of_gates, in_gates, out=both).sigmoid_()
            torch.addcmul(in_fresh, reset, of_fresh, out=new).tanh_()
            torch.lerp(new, before, update, out=after)
        ctx.save_for_backward(states, gates, fresh, recurrent, weights)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the inputs, weights and biases."""
        states, gates, fresh, recurrent, weights = ctx.saved_tensors
        steps, hidden = len(fresh), fresh.shape[-1]
        reset, update = gates[..., :hidden], gates[..., hidden:]
        # How much of a state's gradient reaches W h + b of each gate; the same for all steps at once.
        of_fresh = (1 - update) * (1 - fresh.square())
        shares = torch.stack(
            [
                of_fresh * recurrent[..., 2 * hidden :] * reset * (1 - reset),
                (states[:-1] - fresh) * update * (1 - update),
                of_fresh * reset,
            ],
            dim=3,
        )
        of_states, of_gates = torch.empty_like(fresh), torch.empty_like(shares)
        received = [*gradients[0].unbind(), torch.zeros_like(fresh[0])]
        whole = received[steps - 1]
        by_step = [values.unbind() for values in (of_states, of_gates, of_gates.flatten(3), shares, update)]
        for step in range(steps - 1, -1, -1):
            mine, apart, flat, share, kept = (values[step] for values in by_step)
            mine.copy_(whole)
            torch.mul(mine.unsqueeze(2), share, out=apart)
            if step:
                whole = torch.baddbmm(torch.addcmul(received[step - 1], mine, kept), flat, weights)
        flat = of_gates.flatten(3)
        of_inputs = torch.cat([flat[..., : 2 * hidden], of_states * of_fresh], dim=-1)
        by_way = flat.transpose(0, 1).flatten(1, 2)
        of_weights = torch.bmm(by_way.transpose(1, 2), states[:-1].transpose(0, 1).flatten(1, 2))
        return of_inputs, of_weights, by_way.sum(dim=1)
