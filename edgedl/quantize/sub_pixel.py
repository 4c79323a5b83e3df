"""Transposed convolutions as ordinary ones: what kernels are fast at.

Output pixels of one phase (their position modulo the stride) see the same taps of the kernel, so that an ordinary
convolution can compute each phase as channels of its own, which a pixel shuffle then puts in their places (Shi et
al., "Is the deconvolution layer the same as a convolutional layer?", 2016). The sums are those of the same products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def fits(weight: torch.Tensor, stride: Sequence[int], groups: int, dilation: Sequence[int]) -> bool:
    """Whether a transposed convolution is of the kind that is rewritten here: in two dimensions, with one stride."""
    return weight.ndim == 4 and len(set(stride)) == 1 and stride[0] > 1 and groups == 1 and set(dilation) == {1}


def saves(weight: torch.Tensor, stride: Sequence[int]) -> bool:
    """Whether an ordinary convolution takes no more products, and more than one pixel's for each of its outputs."""
    return divides(weight, stride) and all(size > step for size, step in zip(weight.shape[2:], stride, strict=True))


def divides(weight: torch.Tensor, stride: Sequence[int]) -> bool:
    """Whether all phases have as many taps: else, the weight is filled up with zeros."""
    return all(size % step == 0 for size, step in zip(weight.shape[2:], stride, strict=True))


def num_taps(size: int, stride: int) -> int:
    """How many pixels of the input an output pixel sees along a side."""
    return -(-size // stride)


def filters(weight: torch.Tensor, stride: int) -> torch.Tensor:
    """The ordinary convolution's weight: (I, O, h, w) -> (O * stride * stride, I, taps, taps)."""
    num_in, num_out, height, width = weight.shape
    rows, columns = num_taps(height, stride), num_taps(width, stride)
    spare = (0, columns * stride - width, 0, rows * stride - height)
    padded = torch.nn.functional.pad(weight, spare) if any(spare) else weight
    phases = padded.reshape(num_in, num_out, rows, stride, columns, stride).permute(1, 3, 5, 0, 2, 4)
    return phases.reshape(num_out * stride**2, num_in, rows, columns).flip((2, 3))


def crops(
    weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int], output_padding: Sequence[int]
) -> list[tuple[int, int]]:
    """How many pixels are too many at the start and the end of each side; a negative one is missing there."""
    sizes = zip(weight.shape[2:], stride, padding, output_padding, strict=True)
    return [(cut, num_taps(size, step) * step - size + cut - more) for size, step, cut, more in sizes]


def as_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
) -> torch.Tensor:
    """What `conv_transpose2d` computes, where it `fits` and `crops` are not negative."""
    kernel = filters(weight, stride[0])
    own = None if bias is None else bias.repeat_interleave(stride[0] ** 2)
    pixels = torch.conv2d(x, kernel, own, [1, 1], [size - 1 for size in kernel.shape[2:]])
    return cropped(torch.pixel_shuffle(pixels, stride[0]), crops(weight, stride, padding, output_padding))


def cropped(x: torch.Tensor, margins: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Without so many values at the start and the end of each dimension from the third on."""
    for dim, (start, end) in enumerate(margins, 2):
        x = x.narrow(dim, start, x.shape[dim] - start - end) if start or end else x
    return x


def decompositions(kept: Callable[[torch.Tensor, Sequence[int]], bool]) -> dict[Any, Any]:
    """What a converter that knows few transposed convolutions, and whose float kernel is slow, is to make of them.

    All that can be are ordinary convolutions, but for those whose weight and stride are to be `kept`: of them, the
    kernel computes all pixels, and what it cannot leave out by itself is cut off.
    """

    def transposed(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        output_padding: Sequence[int] = (0,),
        groups: int = 1,
        dilation: Sequence[int] = (1,),
    ) -> Any:
        num_sides = weight.ndim - 2
        stride, padding, output_padding, dilation = (
            list(values) * num_sides if len(values) == 1 else list(values)
            for values in (stride, padding, output_padding, dilation)
        )
        margins = crops(weight, stride, padding, output_padding)
        if not kept(weight, stride) and fits(weight, stride, groups, dilation) and min(map(min, margins)) >= 0:
            return as_convolution(x, weight, bias, stride, padding, output_padding)
        spans = [span * (size - 1) + 1 for size, span in zip(weight.shape[2:], dilation, strict=True)]
        evenly = all(2 * cut == span - step for span, step, cut in zip(spans, stride, padding, strict=True))
        ends = [(cut, cut - more) for cut, more in zip(padding, output_padding, strict=True)]
        known = set(stride) == {1} or not any(map(any, ends)) or (evenly and not any(output_padding))
        convolution = torch.ops.aten.convolution.default  # as PyTorch would decompose it
        if known or min(map(min, ends)) < 0:
            return convolution(x, weight, bias, stride, padding, dilation, True, output_padding, groups)
        whole = convolution(x, weight, bias, stride, [0] * num_sides, dilation, True, [0] * num_sides, groups)
        return cropped(whole, ends)

    return {
        torch.ops.aten.conv_transpose1d.default: transposed,
        torch.ops.aten.conv_transpose2d.input: transposed,
    }
