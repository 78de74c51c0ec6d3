"""Depthwise convolutions with fast gradients in bfloat16 on a processor.

A training step is limited by memory bandwidth, and bfloat16 needs half of it. But for depthwise convolutions,
oneDNN has no fast bfloat16 gradient of the input with stride 2 (90 ms instead of 7), nor of 5 × 5 kernels
(35 ms instead of 2), so plain autocast is slower than float32. Here the first is computed in float32, and the
second as four 3 × 3 gradients. F frames, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

QUARTER = 3
"""Size of the four kernels that cover a 5 × 5 kernel; they overlap in its middle row and column."""


def applies(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `depthwise` can compute this convolution: depthwise, 3 × 3 or 5 × 5, with bfloat16 autocast on
    a processor and gradients enabled."""
    kernel = conv.kernel_size[0]
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and 1 < conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size in ((3, 3), (5, 5))
        and conv.padding == (kernel // 2, kernel // 2)
        and conv.dilation == (1, 1)
        and conv.stride[0] == conv.stride[1]
    )


def depthwise(x: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
    """The convolution (F,C,h,w) bfloat16 of x (F,C,H,W) with kernel (C,1,k,k), k 3 or 5, padded to keep its
    size, plus bias (C,)."""
    return _Depthwise.apply(x.bfloat16(), kernel.bfloat16(), bias.bfloat16(), stride)


class _Depthwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.stride = stride
        return F.conv2d(x, kernel, bias, stride, kernel.shape[-1] // 2, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, kernel), stride, wanted = ctx.saved_tensors, ctx.stride, ctx.needs_input_grad
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_x = _gradient_of_input(gradient, x, kernel, stride) if wanted[0] else None
        of_kernel = _gradient_of_kernel(gradient, x, kernel, stride) if wanted[1] else None
        return of_x, of_kernel, gradient.sum((0, 2, 3)) if wanted[2] else None, None


def _gradient_of_input(gradient: Tensor, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    padding = kernel.shape[-1] // 2
    if stride == 1:
        return _torch_gradient(gradient, x, kernel, 1, padding, of_input=True)
    shape_alone = torch.empty(x.shape, memory_format=torch.channels_last)
    return _torch_gradient(
        gradient.float(), shape_alone, kernel.float(), stride, padding, of_input=True
    ).bfloat16()


def _gradient_of_kernel(gradient: Tensor, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    if kernel.shape[-1] == QUARTER:
        return _torch_gradient(gradient, x, kernel, stride, 1, of_input=False)
    height, width = gradient.shape[2:]
    padded = F.pad(x, (2, 2, 2, 2))
    quarter, found = kernel[..., :QUARTER, :QUARTER].contiguous(), torch.empty_like(kernel)
    tall, wide = stride * (height - 1) + QUARTER, stride * (width - 1) + QUARTER
    for top in (0, 2):
        for left in (0, 2):
            seen = padded[:, :, top : top + tall, left : left + wide]
            seen = seen.contiguous(memory_format=torch.channels_last)
            part = _torch_gradient(gradient, seen, quarter, stride, 0, of_input=False)
            found[:, :, top : top + QUARTER, left : left + QUARTER] = part
    return found


def _torch_gradient(
    gradient: Tensor, x: Tensor, kernel: Tensor, stride: int, padding: int, *, of_input: bool
) -> Tensor:
    """torch's gradient of a depthwise convolution with respect to the input or the kernel."""
    found = torch.ops.aten.convolution_backward(
        gradient,
        x,
        kernel,
        None,
        [stride, stride],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        x.shape[1],
        (of_input, not of_input, False),
    )
    return found[0] if of_input else found[1]
