"""What a network's files do to images by themselves, as its first layers: whatever is done to it covers them, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Image:
    """What is done to one input. `factor` and `offset` make the network's numbers of uint8; None where it has these."""

    factor: np.ndarray | None
    offset: np.ndarray | None
    turned: bool
    """Whether channels come last, and the network takes them first."""


class Entrance(nn.Module):
    """A network behind what is to be done to its images, in the order of its inputs.

    Channels are put first behind the arithmetic: converters for phones, which put them last again for each layer, then
    leave out both. Its constants are no weights: those in a run folder are the network's alone.
    """

    def __init__(self, net: nn.Module, images: Mapping[int, Image]) -> None:
        super().__init__()
        self.net, self.images = net, images
        for index, image in images.items():
            for name, values in (("factor", image.factor), ("offset", image.offset)):
                tensor = None if values is None else torch.from_numpy(values)
                self.register_buffer(f"{name}_{index}", tensor, persistent=False)

    def forward(self, *given: torch.Tensor) -> object:
        return self.net(*(self._entered(index, values) for index, values in enumerate(given)))

    def _entered(self, index: int, values: torch.Tensor) -> torch.Tensor:
        if index not in self.images:
            return values
        factor, offset = getattr(self, f"factor_{index}"), getattr(self, f"offset_{index}")
        if factor is not None:
            values = values.float() * factor
        if offset is not None:
            values = values + offset
        return values.permute(0, 3, 1, 2) if self.images[index].turned else values


def image(
    shape: tuple[int, ...], normalization: tuple[np.ndarray, np.ndarray] | None, channels_last: bool, turned: bool
) -> Image:
    """(x / 255 - mean) / deviation of each channel, both (C,), as a product and a sum, for images of `shape`.

    A number where it is the same for all channels, and no sum of zero. With channels last the constants are (width,
    channels): kernels take such a row in one go, and three numbers over and over take ten times as long.
    """
    if normalization is None:
        return Image(None, None, turned)
    mean, deviation = normalization
    made = []
    for values in (1 / (255 * deviation.astype(np.float64)), -mean.astype(np.float64) / deviation):
        same = bool((values == values[0]).all())
        spread = values[0] if same else np.tile(values, (shape[1], 1)) if channels_last else values.reshape(-1, 1, 1)
        made.append(np.asarray(spread, np.float32))
    factor, offset = made
    return Image(factor, offset if offset.any() else None, turned)
