"""LeNet-5 as courses draw it today: two 5x5 convolutions with ReLU and max-pooling, then three dense layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from edgedl.core import Network, UsageError
from edgedl.images import Classification

if TYPE_CHECKING:
    from torch import nn


class LeNet(Network):
    """After LeCun, Bottou, Bengio and Haffner, Gradient-Based Learning Applied to Document Recognition, 1998."""

    use: str = "lenet"
    widths: tuple[PositiveInt, PositiveInt] = (6, 16)
    """Channels of the two convolutions."""
    hidden: tuple[PositiveInt, PositiveInt] = (120, 84)
    """Units of the two hidden dense layers."""

    def build(self, task: Classification) -> nn.Module:  # type: ignore[override]
        """A module (N, C, H, W) float32 -> logits (N, classes). Raises `UsageError` if nothing is left to pool."""
        from torch import nn

        channels, height, width = task.image_shape
        rows, columns = (((size - 4) // 2 - 4) // 2 for size in (height, width))
        if rows < 1 or columns < 1:
            raise UsageError(f"lenet: nothing is left of a {height}x{width} image; it needs 16x16 at least")
        first, second = self.widths
        layers = OrderedDict(
            conv1=nn.Conv2d(channels, first, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense1=nn.Linear(second * rows * columns, self.hidden[0]),
            relu3=nn.ReLU(),
            dense2=nn.Linear(*self.hidden),
            relu4=nn.ReLU(),
            dense3=nn.Linear(self.hidden[1], task.num_classes),
        )
        return nn.Sequential(layers)
