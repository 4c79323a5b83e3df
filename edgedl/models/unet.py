"""A small U-Net: pairs of convolutions on halved images and back, where each size sees again what it lost."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from edgedl.core import Network, UsageError
from edgedl.images import Classification

if TYPE_CHECKING:
    import torch
    from torch import nn


class UNet(Network):
    """After Ronneberger, Fischer and Brox, U-Net, MICCAI 2015: padded and with batch norms, as it is built today.

    One level per entry of `widths`, the last at the bottom. Ways up double pixels instead of transposing convolutions.
    """

    use: str = "unet"
    widths: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=2)

    def build(self, task: Classification) -> nn.Module:  # type: ignore[override]
        """A module (N, C, H, W) float32 -> logits (N, classes, H, W). Raises `UsageError` for a size it cannot halve.

        It asks the task for `image_shape` and `num_classes` alone.
        """
        channels, height, width = task.image_shape
        unit = 2 ** (len(self.widths) - 1)
        if height % unit or width % unit:
            raise UsageError(
                f"unet: a {height}x{width} image cannot be halved {len(self.widths) - 1} times; "
                f"take sides that are multiples of {unit}, or fewer widths"
            )
        return _unet()(channels, self.widths, task.num_classes)


def _pair(in_channels: int, out_channels: int) -> nn.Module:
    """Two 3x3 convolutions: (N, in, H, W) -> (N, out, H, W)."""
    from torch import nn

    layers = OrderedDict[str, nn.Module]()
    for index, channels in enumerate((in_channels, out_channels), start=1):
        layers[f"conv{index}"] = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        layers[f"norm{index}"] = nn.BatchNorm2d(out_channels)
        layers[f"relu{index}"] = nn.ReLU()
    return nn.Sequential(layers)


@cache
def _unet() -> type[nn.Module]:
    """The class of the network, made when the first is built: reading a recipe must not import torch."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, channels: int, widths: tuple[int, ...], num_classes: int) -> None:
            super().__init__()
            path = [channels, *widths]
            self.down = nn.ModuleList([_pair(path[i], path[i + 1]) for i in range(len(widths) - 1)])
            self.bottom = _pair(widths[-2], widths[-1])
            self.up = nn.ModuleList(
                [_pair(widths[i + 1] + widths[i], widths[i]) for i in reversed(range(len(widths) - 1))]
            )
            self.pool = nn.MaxPool2d(2)
            self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
            self.classes = nn.Conv2d(widths[0], num_classes, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skipped = []
            for pair in self.down:
                x = pair(x)
                skipped.append(x)
                x = self.pool(x)
            x = self.bottom(x)
            for pair in self.up:
                x = pair(torch.cat([skipped.pop(), self.enlarge(x)], dim=1))
            logits: torch.Tensor = self.classes(x)
            return logits

    return Net
