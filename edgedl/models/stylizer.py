"""The feed-forward style network: an image halved, changed by residual blocks, and doubled back to its size."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt, PositiveInt

from edgedl.core import Network, Task, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


class Stylizer(Network):
    """One level per entry of `widths`, each at half the size of the one before; `blocks` residual ones at the bottom.

    After J. Johnson, A. Alahi and L. Fei-Fei, Perceptual Losses for Real-Time Style Transfer, 2016, with batch norms
    as there; ways up double pixels instead of transposing convolutions.
    """

    use: str = "stylizer"
    widths: tuple[PositiveInt, ...] = Field(default=(12, 24, 32), min_length=2)
    blocks: NonNegativeInt = 2

    def build(self, task: Task) -> nn.Module:
        """A module (N, C, H, W) -> the same in [0, 1]. Raises `UsageError` for a size it cannot halve."""
        channels, height, width = next(iter(task.inputs.values())).shape
        unit = 2 ** (len(self.widths) - 1)
        if height % unit or width % unit:
            raise UsageError(
                f"stylizer: a {height}x{width} image cannot be halved {len(self.widths) - 1} times; "
                f"take sides that are multiples of {unit}, or fewer widths"
            )
        return _stylizer()(channels, self.widths, self.blocks)


@cache
def _stylizer() -> type[nn.Module]:
    """The class of the network, made when the first is built: reading a recipe must not import torch."""
    from torch import nn

    def layer(before: int, after: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(
            OrderedDict[str, nn.Module](
                conv=nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                norm=nn.BatchNorm2d(after),
                relu=nn.ReLU(),
            )
        )

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first = layer(width, width)
            self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            changed: torch.Tensor = self.norm(self.conv(self.first(x)))
            return x + changed

    class Net(nn.Module):
        def __init__(self, channels: int, widths: tuple[int, ...], num_blocks: int) -> None:
            super().__init__()
            down = [layer(before, after, stride=2) for before, after in pairwise(widths)]
            self.down = nn.Sequential(layer(channels, widths[0]), *down)
            self.blocks = nn.Sequential(*(Block(widths[-1]) for _ in range(num_blocks)))
            self.up = nn.ModuleList([layer(before, after) for before, after in pairwise(reversed(widths))])
            self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
            self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
            self.sigmoid = nn.Sigmoid()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.blocks(self.down(x))
            for up in self.up:
                x = up(self.enlarge(x))
            styled: torch.Tensor = self.sigmoid(self.last(x))
            return styled

    return Net
