"""Float convolutions whose outputs see one channel each, depthwise or not, with the sums in a runtime's own order.

PyTorch adds the same few products in another order, and a sum's last bit may tip a code of the next int8 layer over.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional

from edgedl.tflite.wide_kernels import tiles


def convolved(
    runtime: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> torch.Tensor:
    """x (N, C, ...), weight (M, 1, ...) -> (N, M, ...), as `aten.conv1d` and `aten.conv2d`.

    XNNPACK starts with the bias, and a depthwise kernel goes down the columns of each of its tiles, whose sums are
    added then; onnxruntime goes along the rows, and ends with the bias.
    """
    sizes = weight.shape[2:]
    ones = [1] * len(sizes)
    strides, paddings, dilations = (list(given) * (len(sizes) // len(given)) for given in (stride, padding, dilation))
    x = functional.pad(x.double(), [size for size in reversed(paddings) for _ in range(2)])
    taps: list[tuple[int, ...]] = list(itertools.product(*map(range, sizes)))
    in_litert, orders = runtime == "litert", [taps]
    if in_litert and groups > 1:
        is_narrowed = groups == len(weight) and len(sizes) < 3
        orders = _down_columns(sizes) if is_narrowed else [sorted(taps, key=lambda tap: tap[::-1])]
    if groups > 1:
        x = x.repeat_interleave(len(weight) // groups, 1)
    last = torch.zeros(1) if bias is None else bias.reshape(1, -1, *ones)
    parts: list[torch.Tensor] = []
    for order in orders:
        sums = last if in_litert and not parts else torch.zeros(1)
        for tap in order:
            seen = [
                slice(place * step, length - (size - 1 - place) * step, stride)
                for place, size, length, step, stride in zip(tap, sizes, x.shape[2:], dilations, strides, strict=True)
            ]
            factor = weight[:, 0].movedim(0, -1)[tap].reshape(1, -1, *ones)
            sums = fused(x[(slice(None), slice(None), *seen)], factor, sums)
        parts.append(sums)
    first, *others = parts if in_litert else [*parts, last]
    for other in others:
        first = first + other
    return first


def fused(values: torch.Tensor, factor: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """Fused multiply-add of float32: float64 holds the product exactly."""
    return torch.addcmul(added.double(), values.double(), factor.double()).float()


def _down_columns(sizes: Sequence[int]) -> list[list[tuple[int, ...]]]:
    """The taps of each tile."""
    height, width = (1, *sizes)[-2:]
    return [
        [
            (row, column)[-len(sizes) :]
            for column in range(tile.column, tile.column + tile.width)
            for row in range(tile.row, tile.row + tile.height)
        ]
        for tile in tiles(height, width)
    ]
