"""A convolutional autoencoder: images halved again and again, and then doubled back to what went in."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from edgedl.core import Network, Task, UsageError

if TYPE_CHECKING:
    from torch import nn


class Autoencoder(Network):
    """Per entry of `widths` a 3x3 convolution of stride 2 and ReLU, and the same way back.

    Back it goes by doubling pixels before each convolution, which leaves no checkerboard as transposed ones do
    (A. Odena, V. Dumoulin and C. Olah, Deconvolution and Checkerboard Artifacts, 2016).
    """

    use: str = "autoencoder"
    widths: tuple[PositiveInt, ...] = Field(default=(32, 64), min_length=1)

    def build(self, task: Task) -> nn.Module:
        """A module (N, C, H, W) float32 -> the same in [0, 1]. Raises `UsageError` for a size it cannot halve."""
        from torch import nn

        channels, height, width = next(iter(task.inputs.values())).shape
        unit = 2 ** len(self.widths)
        if height % unit or width % unit:
            raise UsageError(
                f"autoencoder: a {height}x{width} image cannot be halved {len(self.widths)} times; "
                f"take sides that are multiples of {unit}, or fewer widths"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        path = [channels, *self.widths]
        for index, (narrow, wide) in enumerate(pairwise(path), start=1):
            layers[f"encode{index}"] = nn.Conv2d(narrow, wide, 3, stride=2, padding=1)
            layers[f"encode_act{index}"] = nn.ReLU()
        for index in range(len(self.widths), 0, -1):
            layers[f"double{index}"] = nn.Upsample(scale_factor=2, mode="nearest")
            layers[f"decode{index}"] = nn.Conv2d(path[index], path[index - 1], 3, padding=1)
            layers[f"decode_act{index}"] = nn.ReLU() if index > 1 else nn.Sigmoid()
        return nn.Sequential(layers)
