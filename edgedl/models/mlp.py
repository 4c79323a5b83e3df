"""The multilayer perceptron: dense layers with ReLU between them."""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from edgedl.core import Network, Task

if TYPE_CHECKING:
    from torch import nn


class MLP(Network):
    """Flattened input, a dense layer and ReLU per entry of `widths`, dense classes; one number if there are none."""

    use: str = "mlp"
    widths: tuple[PositiveInt, ...] = (128, 64)

    def build(self, task: Task) -> nn.Module:
        """A module (N, ...) float32 -> logits (N, classes), or numbers (N, 1) for a task that is no classification."""
        from torch import nn

        features = prod(next(iter(task.inputs.values())).shape)
        num_answers: int = getattr(task, "num_classes", 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index, width in enumerate(self.widths, start=1):
            layers[f"dense{index}"] = nn.Linear(features, width)
            layers[f"relu{index}"] = nn.ReLU()
            features = width
        layers[f"dense{len(self.widths) + 1}"] = nn.Linear(features, num_answers)
        return nn.Sequential(layers)
