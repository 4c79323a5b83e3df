"""The multilayer perceptron: dense layers with ReLU between them."""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from edgedl.core import Network
from edgedl.images import Classification

if TYPE_CHECKING:
    from torch import nn


class MLP(Network):
    """Flattened input, a dense layer and ReLU per entry of `widths`, dense classes."""

    use: str = "mlp"
    widths: tuple[PositiveInt, ...] = (128, 64)

    def build(self, task: Classification) -> nn.Module:  # type: ignore[override]
        """A module (N, ...) float32 -> logits (N, classes)."""
        from torch import nn

        features = prod(task.image_shape)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index, width in enumerate(self.widths, start=1):
            layers[f"dense{index}"] = nn.Linear(features, width)
            layers[f"relu{index}"] = nn.ReLU()
            features = width
        layers[f"dense{len(self.widths) + 1}"] = nn.Linear(features, task.num_classes)
        return nn.Sequential(layers)
