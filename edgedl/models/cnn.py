"""The small convolutional network that courses begin with: convolutions with max-pooling, then dense layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from edgedl.core import Network, UsageError
from edgedl.images import Classification

if TYPE_CHECKING:
    from torch import nn


class CNN(Network):
    """Per entry of `widths` a 3x3 convolution, ReLU and 2x2 max-pooling; then dense `hidden`, ReLU, dense classes.

    The first convolution has the `stride`. With `look = "anywhere"` the dense layers see the largest value of each
    channel instead of every pixel: for things that may be anywhere in a large image.
    """

    use: str = "cnn"
    widths: tuple[PositiveInt, ...] = (32, 64)
    hidden: PositiveInt = 128
    stride: Literal[1, 2] = 1
    look: Literal["everywhere", "anywhere"] = "everywhere"
    """Whether it reads the whole map of features, or takes the largest of each, wherever it is."""

    def build(self, task: Classification) -> nn.Module:  # type: ignore[override]
        """A module (N, C, H, W) float32 -> logits (N, classes). Raises `UsageError` if pooling leaves no pixels."""
        from torch import nn

        channels, height, width = task.image_shape
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, out_channels in enumerate(self.widths, start=1):
            stride = self.stride if index == 1 else 1
            height, width = -(-height // stride), -(-width // stride)
            layers[f"conv{index}"] = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)
            layers[f"relu{index}"] = nn.ReLU()
            layers[f"pool{index}"] = nn.MaxPool2d(2)
            channels, height, width = out_channels, height // 2, width // 2
        if height * width == 0:
            _, height, width = task.image_shape
            raise UsageError(
                f"cnn: {len(self.widths)} poolings leave nothing of a {height}x{width} image; take fewer widths"
            )
        if self.look == "anywhere":
            layers["largest"] = nn.MaxPool2d((height, width))
            height = width = 1
        layers["flatten"] = nn.Flatten()
        layers["dense1"] = nn.Linear(channels * height * width, self.hidden)
        layers["relu_dense1"] = nn.ReLU()
        layers["dense2"] = nn.Linear(self.hidden, task.num_classes)
        return nn.Sequential(layers)
