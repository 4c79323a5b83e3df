"""The fully connected autoencoder: dense layers down to a few numbers and back to what went in."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from edgedl.core import Network, Task

if TYPE_CHECKING:
    from torch import nn


class DenseAutoencoder(Network):
    """Per entry of `widths` a dense layer, batch norm and ReLU, then `code` numbers, and the same way back.

    With the defaults it is that of C. Banbury et al., MLPerf Tiny Benchmark, 2021, after Y. Koizumi et al.,
    Description and Discussion on DCASE2020 Challenge Task2, 2020.
    """

    use: str = "dense-autoencoder"
    widths: tuple[PositiveInt, ...] = Field(default=(128, 128, 128, 128), min_length=1)
    code: PositiveInt = 8

    def build(self, task: Task) -> nn.Module:
        """A module (N, ...) float32 -> the same shape."""
        from torch import nn

        shape = next(iter(task.inputs.values())).shape
        path = [prod(shape), *self.widths, self.code, *reversed(self.widths)]
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index, (before, after) in enumerate(pairwise(path), start=1):
            layers[f"dense{index}"] = nn.Linear(before, after, bias=False)
            layers[f"norm{index}"] = nn.BatchNorm1d(after)
            layers[f"relu{index}"] = nn.ReLU()
        layers[f"dense{len(path)}"] = nn.Linear(path[-1], path[0])
        layers["unflatten"] = nn.Unflatten(1, shape)
        return nn.Sequential(layers)
