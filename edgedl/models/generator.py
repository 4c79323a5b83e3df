"""The generator of a DCGAN: a dense layer, and transposed convolutions that double it until it is an image."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, PositiveInt

from edgedl.core import Network, TensorSpec, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


class Drawing(Protocol):
    """What is asked of a task: noise to start from, and the shape (C, H, W) of images."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...


class Generator(Network):
    """Per entry of `widths` the image is doubled once: 4x4 transposed convolutions of stride 2, batch norm and ReLU.

    Source: A. Radford, L. Metz and S. Chintala, Unsupervised Representation Learning with DCGAN, 2016; the last
    activation is a sigmoid, since images lie in [0, 1] here.
    """

    use: str = "generator"
    widths: tuple[PositiveInt, ...] = Field(default=(64, 32), min_length=1)

    def build(self, task: Drawing) -> nn.Module:  # type: ignore[override]
        """A module (N, numbers) float32 -> (N, C, H, W) in [0, 1]. Raises `UsageError` for a size it cannot halve."""
        from torch import nn

        channels, height, width = task.image_shape
        unit = 2 ** len(self.widths)
        if height % unit or width % unit:
            raise UsageError(
                f"generator: a {height}x{width} image cannot be halved {len(self.widths)} times; "
                f"take sides that are multiples of {unit}, or fewer widths"
            )
        numbers, first = next(iter(task.inputs.values())).shape[0], self.widths[0]
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            dense=nn.Linear(numbers, first * (height // unit) * (width // unit)),
            unflatten=nn.Unflatten(1, (first, height // unit, width // unit)),
            norm0=nn.BatchNorm2d(first),
            relu0=nn.ReLU(),
        )
        for index, (wide, narrow) in enumerate(pairwise([*self.widths, channels]), start=1):
            layers[f"double{index}"] = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)
            if index < len(self.widths):
                layers[f"norm{index}"] = nn.BatchNorm2d(narrow)
                layers[f"relu{index}"] = nn.ReLU()
        layers["sigmoid"] = nn.Sigmoid()
        return nn.Sequential(layers)
