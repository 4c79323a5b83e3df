"""The depthwise-separable network of keyword spotting; as it stands it is the DS-CNN of the MLPerf Tiny benchmark."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from edgedl.core import Network
from edgedl.images import Classification

if TYPE_CHECKING:
    from torch import nn


class DSCNN(Network):
    """A large convolution to `width` channels, `blocks` depthwise-separable 3x3 blocks, pooling, dense classes.

    `kernel` and `stride` of the first convolution are those along time and along frequency of a spectrogram, 10 and 4
    of its cells; other images are seen with the same oblong. What comes after keeps width and resolution. Source:
    Y. Zhang et al., Hello Edge: Keyword Spotting on Microcontrollers, 2017, in the small form that C. Banbury et al.,
    MLPerf Tiny Benchmark, 2021, took over.
    """

    use: str = "dscnn"
    width: PositiveInt = 64
    blocks: PositiveInt = 4
    kernel: tuple[PositiveInt, PositiveInt] = (10, 4)
    stride: tuple[PositiveInt, PositiveInt] = (2, 2)

    def build(self, task: Classification) -> nn.Module:  # type: ignore[override]
        """A module (N, C, H, W) float32 -> logits (N, classes); its layers are `stem.conv`, `block1.depthwise`..."""
        from torch import nn

        channels, height, width = task.image_shape
        padding = (
            _padding(height, self.kernel[0], self.stride[0]),
            _padding(width, self.kernel[1], self.stride[1]),
        )
        stem = OrderedDict(
            conv=nn.Conv2d(channels, self.width, self.kernel, self.stride, padding, bias=False),
            norm=nn.BatchNorm2d(self.width),
            relu=nn.ReLU(),
        )
        layers = OrderedDict[str, nn.Module](stem=nn.Sequential(stem))
        for index in range(1, self.blocks + 1):
            block = OrderedDict(
                depthwise=nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.width, bias=False),
                norm1=nn.BatchNorm2d(self.width),
                relu1=nn.ReLU(),
                pointwise=nn.Conv2d(self.width, self.width, 1, bias=False),
                norm2=nn.BatchNorm2d(self.width),
                relu2=nn.ReLU(),
            )
            layers[f"block{index}"] = nn.Sequential(block)
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dense"] = nn.Linear(self.width, task.num_classes)
        return nn.Sequential(layers)


def _padding(size: int, kernel: int, stride: int) -> int:
    """What on both sides makes `size / stride` positions, rounded up; one more if stride is 1 and the kernel even.

    Alike on both sides, as runtimes take it into the convolution; more on one side would be an operator of its own.
    """
    last = (-(-size // stride) - 1) * stride
    return max(0, (last + kernel - size + 1) // 2)
