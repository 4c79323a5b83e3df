"""The small convolutional network that courses begin with: convolutions with max-pooling, then dense layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from edgedl.core import Network, UsageError
from edgedl.images import Classification

if TYPE_CHECKING:
    from torch import nn


class CNN(Network):
    """Per entry of `widths` a 3x3 convolution, ReLU and 2x2 max-pooling; then dense `hidden`, ReLU, dense classes."""

    use: str = "cnn"
    widths: tuple[PositiveInt, ...] = (32, 64)
    hidden: PositiveInt = 128

    def build(self, task: Classification) -> nn.Module:  # type: ignore[override]
        """A module (N, C, H, W) float32 -> logits (N, classes). Raises `UsageError` if pooling leaves no pixels."""
        from torch import nn

        channels, height, width = task.image_shape
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, out_channels in enumerate(self.widths, start=1):
            layers[f"conv{index}"] = nn.Conv2d(channels, out_channels, 3, padding=1)
            layers[f"relu{index}"] = nn.ReLU()
            layers[f"pool{index}"] = nn.MaxPool2d(2)
            channels, height, width = out_channels, height // 2, width // 2
        if height * width == 0:
            _, height, width = task.image_shape
            raise UsageError(
                f"cnn: {len(self.widths)} poolings leave nothing of a {height}x{width} image; take fewer widths"
            )
        layers["flatten"] = nn.Flatten()
        layers["dense1"] = nn.Linear(channels * height * width, self.hidden)
        layers["relu_dense1"] = nn.ReLU()
        layers["dense2"] = nn.Linear(self.hidden, task.num_classes)
        return nn.Sequential(layers)
