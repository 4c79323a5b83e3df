"""A detector in a single stage, without anchors: how likely each cell of a grid is a thing's middle, and its box."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, PositiveInt

from edgedl.core import Network, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

RARE = -2.2
"""Where logits of middles begin: most cells are none, and would drown the few that are."""
USUAL_REACH = 2.0
"""Where distances from middle to sides begin, in cells."""
SHARPLY = 100.0
"""So many times as much as it is below a neighbour a cell's logit is lowered, by 6 at most."""


class Pictures(Protocol):
    """What is asked of a task."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def suppression(self) -> Literal["outside", "inside"]: ...


class Detector(Network):
    """Convolutions that halve a picture each, to `widths` channels, and a way back up to a grid of a quarter its sides.

    On it each cell says for each class whether the middle of a thing is there, and how far the sides of the thing's
    box are, in cells. With suppression inside, the file gives cells that are less likely than one of their eight
    neighbours a far lower logit; on a grid of int8, neighbours may be alike, and then both stay.

    Sources: X. Zhou et al., Objects as Points, 2019; Z. Tian et al., FCOS, 2019.
    """

    use: str = "detector"
    widths: tuple[PositiveInt, ...] = Field(default=(16, 32, 64, 96), min_length=3)
    head: PositiveInt = 48
    """Channels of the head."""

    def build(self, task: Pictures) -> nn.Module:  # type: ignore[override]
        """A module (N, 3, H, W) -> heat (N, classes, H / 4, W / 4), boxes (N, 4, H / 4, W / 4). Raises `UsageError`."""
        channels, height, width = task.image_shape
        unit = 2 ** len(self.widths)
        if height % unit or width % unit:
            raise UsageError(
                f"detector: a {height}x{width} picture cannot be halved {len(self.widths)} times; "
                f"take sides that are multiples of {unit}, or fewer widths"
            )
        return _detector()(channels, task.num_classes, task.suppression == "inside", self)


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Module:
    from torch import nn

    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        norm=nn.BatchNorm2d(out_channels),
        relu=nn.ReLU(),
    )
    return nn.Sequential(layers)


@cache
def _detector() -> type[nn.Module]:
    """The class of the module, made when the first is built: reading a recipe must not import torch."""
    from torch import nn
    from torch.nn import functional

    class Net(nn.Module):
        def __init__(self, channels: int, num_classes: int, suppresses: bool, network: Detector) -> None:
            super().__init__()
            path, head = [channels, *network.widths], network.head
            self.down = nn.ModuleList([_convolution(path[i], path[i + 1], 3, 2) for i in range(len(network.widths))])
            self.narrow = nn.ModuleList([_convolution(width, head, 1) for width in network.widths[1:]])
            self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
            self.mix = nn.ModuleList([_convolution(head, head, 3) for _ in network.widths[2:]])
            self.heat, self.boxes = nn.Conv2d(head, num_classes, 1), nn.Conv2d(head, 4, 1)
            for layer, value in ((self.heat, RARE), (self.boxes, USUAL_REACH)):
                assert layer.bias is not None
                nn.init.constant_(layer.bias, value)
            self.suppresses = suppresses
            self.neighbours = nn.MaxPool2d(3, 1, 1)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            x, seen = image, []
            for layer, narrow in zip(self.down, (None, *self.narrow), strict=True):
                x = layer(x)
                if narrow is not None:
                    seen.append(narrow(x))
            merged = seen.pop()
            for mix in self.mix:
                merged = mix(self.enlarge(merged) + seen.pop())
            heat: Tensor = self.heat(merged)
            if self.suppresses and not self.training:
                below = self.neighbours(heat) - heat  # 0 where no neighbour is likelier
                heat = heat - functional.relu6(below * SHARPLY)
            return heat, self.boxes(merged)

    return Net
