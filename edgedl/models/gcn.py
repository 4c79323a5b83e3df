"""The graph convolutional network: each node takes from those next to it, twice."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field, PositiveInt

from edgedl.core import Network, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor, nn


class Joined(Protocol):
    """What is asked of a task: features (n, F) of nodes to be told apart, and who takes how much from whom (n, n)."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def num_classes(self) -> int: ...
    def adjacency(self) -> np.ndarray: ...


class GCN(Network):
    """Â ReLU(Â X W) W', with `hidden` values a node in between, and the graph's Â as a constant in the file.

    Source: T. Kipf and M. Welling, Semi-Supervised Classification with Graph Convolutional Networks, 2017.
    """

    use: str = "gcn"
    hidden: PositiveInt = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of values that training leaves out."""

    def build(self, task: Joined) -> nn.Module:  # type: ignore[override]
        """A module (N, n, F) float32 -> logits (N, n, classes)."""
        num_features = next(iter(task.inputs.values())).shape[-1]
        return _gcn()(task.adjacency(), num_features, self.hidden, task.num_classes, self.dropout)


@cache
def _gcn() -> type[nn.Module]:
    """The class of the module, made when the first is built: reading a recipe must not import torch."""
    import torch
    from torch import nn
    from torch.nn.functional import linear

    class Neighbours(nn.Module):
        """Sums over neighbours, written as a dense layer of fixed weights: int8 kernels have those."""

        def __init__(self, adjacency: np.ndarray) -> None:
            super().__init__()
            self.register_buffer("weight", torch.from_numpy(adjacency))

        def forward(self, nodes: Tensor) -> Tensor:
            return linear(nodes.transpose(1, 2), self.get_buffer("weight")).transpose(1, 2)

    class Net(nn.Module):
        def __init__(self, adjacency: np.ndarray, features: int, hidden: int, classes: int, dropout: float) -> None:
            super().__init__()
            self.dense1, self.dense2 = nn.Linear(features, hidden), nn.Linear(hidden, classes)
            self.neighbours = Neighbours(adjacency)
            self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)

        def forward(self, features: Tensor) -> Tensor:
            nodes = self.relu(self.neighbours(self.dense1(self.dropout(features))))
            logits: Tensor = self.neighbours(self.dense2(self.dropout(nodes)))
            return logits

    return Net
