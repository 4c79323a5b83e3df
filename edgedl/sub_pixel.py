"""Transposed convolutions as ordinary ones: what kernels are fast at.

Output pixels of one phase (their position modulo the stride) see the same taps of the kernel, so that an ordinary
convolution can compute each phase as channels of its own, which a pixel shuffle then puts in their places (Shi et
al., "Is the deconvolution layer the same as a convolutional layer?", 2016). The sums are those of the same products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def fits(weight: torch.Tensor, stride: Sequence[int], groups: int, dilation: Sequence[int]) -> bool:
    """Whether a transposed convolution is of the kind that is rewritten here: in two dimensions, with one stride."""
    return weight.ndim == 4 and len(set(stride)) == 1 and stride[0] > 1 and groups == 1 and set(dilation) == {1}


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
