"""Small MobileNets: depthwise-separable convolutions, most of whose work is in 1x1 convolutions."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from edgedl.core import Network
from edgedl.images import Classification

if TYPE_CHECKING:
    from torch import nn


class MobileNet(Network):
    """A 3x3 convolution to `stem` channels, a depthwise-separable block per entry of `widths`, pooling, dense classes.

    A block halves height and width where it is wider than the block before it; the first never does.
    Source: A. Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017.
    """

    use: str = "mobilenet"
    stem: PositiveInt = 16
    widths: tuple[PositiveInt, ...] = (32, 64, 64, 128, 128)

    def build(self, task: Classification) -> nn.Module:  # type: ignore[override]
        """A module (N, C, H, W) float32 -> logits (N, classes); its layers are `stem.conv`, `block1.depthwise`..."""
        from torch import nn

        stem = OrderedDict(
            conv=nn.Conv2d(task.image_shape[0], self.stem, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(self.stem),
            relu=nn.ReLU(),
        )
        layers = OrderedDict[str, nn.Module](stem=nn.Sequential(stem))
        channels = self.stem
        for index, width in enumerate(self.widths, start=1):
            stride = 2 if index > 1 and width > channels else 1
            block = OrderedDict(
                depthwise=nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
                norm1=nn.BatchNorm2d(channels),
                relu1=nn.ReLU(),
                pointwise=nn.Conv2d(channels, width, 1, bias=False),
                norm2=nn.BatchNorm2d(width),
                relu2=nn.ReLU(),
            )
            layers[f"block{index}"] = nn.Sequential(block)
            channels = width
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dense"] = nn.Linear(channels, task.num_classes)
        return nn.Sequential(layers)
