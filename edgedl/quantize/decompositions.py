"""What composite operators are opened into: plain functions, which `torch.export` decomposes a network with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

aten = torch.ops.aten


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    masked: float,
) -> Any:
    """Scaled dot-product attention as two products and a softmax, each with a grid of its own.

    What is masked is lowered by `masked`, which is below zero: int8 has no code for minus infinity.
    """
    if enable_gqa:
        return NotImplemented
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))  # a dense layer before can take the factor in
    if is_causal or attn_mask is not None:
        size = (query.shape[-2], key.shape[-2])
        allowed = torch.ones(size, dtype=torch.bool).tril() if attn_mask is None else attn_mask
        # Of a mask that depends on inputs no kernel chooses int8 codes.
        mask = allowed.clamp(min=masked) if allowed.is_floating_point() else (allowed.to(scores.dtype) - 1) * -masked
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, -1), value)


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def _mish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tanh(torch.nn.functional.softplus(x))


def _log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return -torch.nn.functional.softplus(-x)


def _glu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    values, gate = x.chunk(2, dim)
    return values * torch.sigmoid(gate)


def _absolute(x: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x, -x) if x.is_floating_point() else NotImplemented


def _least(x: torch.Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> torch.Tensor:
    return -torch.amax(-x, list(dim), keepdim) if x.is_floating_point() else NotImplemented


def _reciprocal(x: torch.Tensor) -> torch.Tensor:
    return torch.ones((), dtype=x.dtype) / x if x.is_floating_point() else NotImplemented


def _clamp_min(x: torch.Tensor, low: float) -> torch.Tensor:
    return torch.clamp(x, min=low)


def _split(x: torch.Tensor, size: int, dim: int = 0) -> list[torch.Tensor]:
    whole = x.shape[dim]
    return [x.narrow(dim, start, min(size, whole - start)) for start in range(0, whole, size)]


def _split_with_sizes(x: torch.Tensor, sizes: Sequence[int], dim: int = 0) -> list[torch.Tensor]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]


def _unbind(x: torch.Tensor, dim: int = 0) -> list[torch.Tensor]:
    return [x.select(dim, index) for index in range(x.shape[dim])]


def mean_of_whole(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """Average pooling whose window holds all of the image, and ends where that does; other windows stay as they are."""
    (height, width), sides = (kernel[0], kernel[-1]), x.shape[2:]
    is_all = (height, width) == tuple(sides) or (ceil_mode and height >= sides[0] and width >= sides[1])
    return x.mean((2, 3), keepdim=True) if is_all and not any(padding) and not divisor_override else NotImplemented


def _average_pool(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """A depthwise convolution with equal weights: pooling kernels must keep their input's scale, and round twice."""
    height, width = kernel if len(kernel) == 2 else (kernel[0], kernel[0])
    channels, sides = x.shape[1], x.shape[2:]
    strides = list(stride) or [height, width]
    paddings = [padding[0], padding[-1]]
    whole = mean_of_whole(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if whole is not NotImplemented:
        return whole
    if divisor_override or (
        ceil_mode
        and any(
            (side + 2 * pad - size) % step
            for side, pad, size, step in zip(sides, paddings, (height, width), strides, strict=True)
        )
    ):
        return NotImplemented
    weight = torch.full((channels, 1, height, width), 1 / (height * width), dtype=x.dtype)
    pooled = torch.conv2d(x, weight, None, strides, paddings, [1, 1], channels)
    if count_include_pad or not any(paddings):
        return pooled
    inside = torch.conv2d(torch.ones((1, 1, *sides), dtype=x.dtype), weight[:1], None, strides, paddings)
    return pooled * (1 / inside)


def _padded_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: str = "valid",
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> torch.Tensor:
    """With numbers for the words "same" and "valid", which litert-torch does not take for sequences."""
    total = dilation[0] * (weight.shape[-1] - 1) if padding == "same" else 0
    if total % 2:
        x = torch.nn.functional.pad(x, (total // 2, total - total // 2))
    return torch.conv1d(x, weight, bias, list(stride), [0 if total % 2 else total // 2], list(dilation), groups)


def _transposed(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Any:
    """Each group by itself: a grouped weight has no dimension of all its output channels, to scale them one by one."""
    if groups == 1:
        return NotImplemented
    operator = aten.conv_transpose1d.default if weight.ndim == 3 else aten.conv_transpose2d.input
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = zip(x.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
    return torch.cat([operator(*part, stride, padding, output_padding, 1, dilation) for part in parts], 1)


def _bilinear(x: torch.Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None) -> Any:
    """Doubling as a depthwise convolution over repeated pixels; other factors stay as they are.

    Resizing kernels must keep their input's scale, where the means of two codes are ties.
    """
    height, width = x.shape[-2:]
    target = [int(side * scale) for side, scale in zip((height, width), scales, strict=True)] if scales else size
    if align_corners or list(target or ()) != [2 * height, 2 * width]:
        return NotImplemented
    doubled = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    for dim in (2, 3):
        last = 2 * x.shape[dim] - 1
        doubled = torch.cat([doubled.narrow(dim, 0, 1), doubled, doubled.narrow(dim, last, 1)], dim)
    line = torch.full((3,), 0.25, dtype=x.dtype) * (1 + (torch.arange(3) == 1))
    weight = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    return torch.conv2d(doubled, weight, None, [1, 1], [0, 0], [1, 1], x.shape[1])


def _dense(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """With the weight as dense layers have it."""
    return torch.nn.functional.linear(x, weight.t(), bias) if beta == alpha == 1 and bias.ndim == 1 else NotImplemented


def _einsum(equation: str, operands: Sequence[torch.Tensor], path: Sequence[int] | None = None) -> Any:
    """A product of matrices in a batch; other sums over indices stay as they are."""
    terms, _, result = equation.replace(" ", "").partition("->")
    left, _, right = terms.partition(",")
    batch = [index for index in result if index in left and index in right]
    sides = [[index for index in side if index not in batch] for side in (left, right, result)]
    rows, columns = ([index for index in sides[2] if index in side] for side in (left, right))
    summed = [index for index in sides[0] if index in right]
    is_product = len(rows) == len(columns) == len(summed) == 1 and len(operands) == 2
    if not is_product or [len(side) for side in sides] != [2, 2, 2] or not (left + right + result).isalpha():
        return NotImplemented
    wanted = ((left, batch + rows + summed), (right, batch + summed + columns))
    matrices = [
        operand.permute([indices.index(index) for index in order])
        for operand, (indices, order) in zip(operands, wanted, strict=True)
    ]
    made = batch + rows + columns
    return torch.matmul(*matrices).permute([made.index(index) for index in result])


def _power(x: torch.Tensor, exponent: float) -> Any:
    """Whole powers as products."""
    if exponent == 2:
        return x * x
    return x * x * x if exponent == 3 else NotImplemented


def _adaptive_pool(x: torch.Tensor, size: Sequence[int]) -> Any:
    """Windows of one size are those of an average pooling; one over all is a mean, which kernels have."""
    height, width = x.shape[2:]
    if list(size) == [1, 1] or height % size[0] or width % size[1]:
        return NotImplemented
    return _average_pool(x, [height // size[0], width // size[1]])


def _pool_to_one(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return x.mean(-1, keepdim=True) if list(size) == [1] else NotImplemented


def _instance_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> torch.Tensor:
    return torch.nn.functional.group_norm(x, x.shape[1], weight, bias, eps) if use_input_stats else NotImplemented


def _reversed_difference(x: torch.Tensor, number: float, alpha: float = 1) -> torch.Tensor:
    return torch.sub(torch.full((), number, dtype=x.dtype), x, alpha=alpha)


ATTENTION = aten.scaled_dot_product_attention.default

DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    aten.silu.default: _silu,
    aten.mish.default: _mish,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.glu.default: _glu,
    aten.abs.default: _absolute,
    aten.amin.default: _least,
    aten.reciprocal.default: _reciprocal,
    aten.clamp_min.default: _clamp_min,
    aten.adaptive_avg_pool2d.default: _adaptive_pool,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.unbind.int: _unbind,
    aten.conv1d.padding: _padded_conv1d,
    aten.avg_pool2d.default: _average_pool,
    aten.conv_transpose1d.default: _transposed,
    aten.conv_transpose2d.input: _transposed,
    aten.upsample_bilinear2d.vec: _bilinear,
    aten.adaptive_avg_pool1d.default: _pool_to_one,
    aten.instance_norm.default: _instance_norm,
    aten.rsub.Scalar: _reversed_difference,
    aten.addmm.default: _dense,
    aten.einsum.default: _einsum,
    aten.pow.Tensor_Scalar: _power,
}


def with_masks(masked: float) -> dict[Any, Callable[..., Any]]:
    """`DECOMPOSITIONS`, and that of attention, whose masked scores are lowered by `masked`."""
    return {**DECOMPOSITIONS, ATTENTION: partial(_attention, masked=masked)}


IN_WORDS = {
    "aten.scaled_dot_product_attention.default": "attention opened into products and softmax",
    "aten.silu.default": "SiLU opened into sigmoid and product",
    "aten.mish.default": "Mish opened into softplus, tanh and product",
    "aten.log_sigmoid.default": "log-sigmoid opened into softplus and sign",
    "aten.glu.default": "GLU opened into sigmoid and product",
    "aten.abs.default": "absolute value opened into maximum and sign",
    "aten.amin.default": "minimum over a dimension opened into maximum and signs",
    "aten.reciprocal.default": "reciprocal opened into division",
    "aten.clamp_min.default": "one-sided clamp made a clamp",
    "aten.avg_pool2d.default": "average pooling made a depthwise convolution",
    "aten.adaptive_avg_pool1d.default": "adaptive pooling made a mean",
    "aten.adaptive_avg_pool2d.default": "adaptive pooling made a depthwise convolution",
    "aten.upsample_bilinear2d.vec": "bilinear doubling made a depthwise convolution",
    "aten.instance_norm.default": "instance norm made a group norm",
    "aten.pow.Tensor_Scalar": "power opened into products",
}
"""What decompositions do, where a person would look for the operator in vain."""
