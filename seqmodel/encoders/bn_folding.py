"""Folding of BatchNorm into convolutions, for training with constant BatchNorm statistics."""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmodel.encoders import depthwise
from seqmodel.encoders.backbone import Encoder


def fold_norms(encoder: Encoder) -> None:
    """Fold each BatchNorm into the convolution before it, in place: both are then computed as one
    convolution.

    With constant BatchNorm statistics, its scale goes into the kernel and the rest into a bias. Values and
    gradients are equal up to rounding; names and shapes of weights do not change. It saves a pass over every
    activation, forwards and backwards, which nearly doubles the speed of training on a CPU.
    """
    modules = list(encoder.modules())
    for conv, norm in pairwise(modules):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            conv.forward = partial(_conv_with_norm, conv, norm)  # type: ignore[method-assign]
            norm.forward = partial(_without_norm, norm)  # type: ignore[method-assign]


def _conv_with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    assert conv.bias is None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    kernel = conv.weight * scale.view(-1, 1, 1, 1)
    bias = norm.bias - norm.running_mean * scale
    if depthwise.applies(conv, x):
        return depthwise.depthwise(x, kernel, bias, conv.stride[0])
    return F.conv2d(x, kernel, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _without_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The identity, or the activation function that timm's BatchNorm contains."""
    return norm.act(x) if "act" in norm._modules else x  # type: ignore[operator]
