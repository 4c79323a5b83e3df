"""Collaborative filtering: what is learned of each user and each item, joined by a dot product or by dense layers."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import PositiveInt

from edgedl.core import Network

if TYPE_CHECKING:
    import torch
    from torch import nn


class Pairs(Protocol):
    """What is asked of a task: its inputs are numbers of a user and an item."""

    @property
    def num_users(self) -> int: ...
    @property
    def num_items(self) -> int: ...


class NCF(Network):
    """`size` values for each user and item, and what becomes of them by the `join`.

    "dot": their dot product, plus one value more for each user and each item. "mlp": one after the other through dense
    layers of `widths` with ReLU. Either is added to `middle`, the middle of the ratings. Sources: Y. Koren et al.,
    Matrix Factorization Techniques for Recommender Systems, 2009; X. He et al., Neural Collaborative Filtering, 2017.
    """

    use: str = "ncf"
    join: Literal["dot", "mlp"] = "mlp"
    size: PositiveInt = 50
    widths: tuple[PositiveInt, ...] = (64, 32)
    middle: float = 3.5

    def build(self, task: Pairs) -> nn.Module:  # type: ignore[override]
        """A module (N,) int32, (N,) int32 -> stars (N,) float32."""
        join = _dot() if self.join == "dot" else _mlp()
        return join(task.num_users, task.num_items, self)


def table(num_rows: int, size: int) -> nn.Embedding:
    """An embedding that begins small: who is rarely seen stays near the middle."""
    from torch import nn

    made = nn.Embedding(num_rows, size)
    nn.init.normal_(made.weight, std=0.1)
    return made


@cache
def _dot() -> type[nn.Module]:
    from torch import nn

    class Dot(nn.Module):
        def __init__(self, num_users: int, num_items: int, network: NCF) -> None:
            super().__init__()
            self.users, self.items = table(num_users, network.size), table(num_items, network.size)
            self.user_bias, self.item_bias = table(num_users, 1), table(num_items, 1)
            self.middle = network.middle

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            match = (self.users(user) * self.items(item)).sum(1, keepdim=True)
            stars: torch.Tensor = match + self.user_bias(user) + self.item_bias(item) + self.middle
            return stars.squeeze(1)

    return Dot


@cache
def _mlp() -> type[nn.Module]:
    import torch
    from torch import nn

    class MLP(nn.Module):
        def __init__(self, num_users: int, num_items: int, network: NCF) -> None:
            super().__init__()
            self.users, self.items = table(num_users, network.size), table(num_items, network.size)
            widths = [2 * network.size, *network.widths]
            layers = OrderedDict[str, nn.Module]()
            for index, (before, after) in enumerate(pairwise(widths), start=1):
                layers[f"dense{index}"] = nn.Linear(before, after)
                layers[f"relu{index}"] = nn.ReLU()
            layers[f"dense{len(widths)}"] = nn.Linear(widths[-1], 1)
            self.layers = nn.Sequential(layers)
            self.middle = network.middle

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            both = torch.cat([self.users(user), self.items(item)], 1)
            stars: torch.Tensor = (self.layers(both) + self.middle).squeeze(1)
            return stars

    return MLP
