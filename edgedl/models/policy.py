"""The policy network: dense layers with ReLU from an observation to a logit for each action."""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING, Protocol

from pydantic import PositiveInt

from edgedl.core import Network, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


class Acting(Protocol):
    """What is asked of a task: an observation, and `num_actions` to choose from."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def num_actions(self) -> int: ...


class Policy(Network):
    """Flattened observation, a dense layer and ReLU per entry of `widths`, dense logits."""

    use: str = "policy"
    widths: tuple[PositiveInt, ...] = (64, 64)

    def build(self, task: Acting) -> nn.Module:  # type: ignore[override]
        """A module (N, ...) float32 -> logits (N, actions)."""
        from torch import nn

        numbers = prod(next(iter(task.inputs.values())).shape)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index, width in enumerate(self.widths, start=1):
            layers[f"dense{index}"] = nn.Linear(numbers, width)
            layers[f"relu{index}"] = nn.ReLU()
            numbers = width
        layers[f"dense{len(self.widths) + 1}"] = nn.Linear(numbers, task.num_actions)
        return nn.Sequential(layers)
