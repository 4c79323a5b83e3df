"""Residual networks for small images; as it stands it is the ResNet-8 of the MLPerf Tiny benchmark."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from edgedl.core import Network
from edgedl.images import Classification

if TYPE_CHECKING:
    import torch
    from torch import nn


class ResNet(Network):
    """A 3x3 stem, one stage of `blocks` residual blocks per entry of `widths`, global average pooling, dense classes.

    Every stage but the first halves height and width. Source: C. Banbury et al., MLPerf Tiny Benchmark, 2021,
    after K. He et al., Deep Residual Learning for Image Recognition, 2016.
    """

    use: str = "resnet"
    widths: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=1)
    blocks: PositiveInt = 1

    def build(self, task: Classification) -> nn.Module:  # type: ignore[override]
        """A module (N, C, H, W) float32 -> logits (N, classes); its layers are `stem.conv`, `stage1.block1.conv1`..."""
        from torch import nn

        channels = self.widths[0]
        stem = OrderedDict(
            conv=nn.Conv2d(task.image_shape[0], channels, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
        )
        layers = OrderedDict[str, nn.Module](stem=nn.Sequential(stem))
        for stage, width in enumerate(self.widths, start=1):
            blocks = OrderedDict[str, nn.Module]()
            for block in range(1, self.blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                blocks[f"block{block}"] = _residual()(channels, width, stride)
                channels = width
            layers[f"stage{stage}"] = nn.Sequential(blocks)
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dense"] = nn.Linear(channels, task.num_classes)
        return nn.Sequential(layers)


@cache
def _residual() -> type[nn.Module]:
    """The class of a block, made when the first is built: reading a recipe must not import torch."""
    from torch import nn

    class Residual(nn.Module):
        """Two 3x3 convolutions, added to the input: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

        def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(out_channels)
            self.relu1 = nn.ReLU()
            self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(out_channels)
            same = stride == 1 and in_channels == out_channels
            self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride)
            self.relu2 = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
            summed: torch.Tensor = self.relu2(inner + self.shortcut(x))
            return summed

    return Residual
