"""The predictor of positions: convolutions look at a map, an LSTM or GRU at the past, dense layers say what follows."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, PositiveInt

from edgedl.core import Network, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn


class Seen(Protocol):
    """What is asked of a task: a sequence of positions (T, 2), a map (C, H, W), and how many follow."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def num_future(self) -> int: ...


class PathPredictor(Network):
    """Per entry of `widths` a 3x3 convolution of stride 2 with batch norm; `hidden` units of a `cell`; `dense` units.

    All positions come out at once, which no error of the first can lead astray. Sources: A. Alahi et al., Social LSTM,
    2016; N. Deo and M. Trivedi, Convolutional Social Pooling for Vehicle Trajectory Prediction, 2018.
    """

    use: str = "path-predictor"
    cell: Literal["lstm", "gru"] = "lstm"
    widths: tuple[PositiveInt, ...] = Field(default=(16, 32, 32), min_length=1)
    hidden: PositiveInt = 32
    dense: PositiveInt = 128

    def build(self, task: Seen) -> nn.Module:  # type: ignore[override]
        """A module (N, T, 2), (N, C, H, W) float32 -> as many positions (N, T', 2) as follow."""
        positions, around = (spec.shape for spec in task.inputs.values())
        return _predictor()(positions[-1], around, task.num_future, self)


@cache
def _predictor() -> type[nn.Module]:
    """The class of the module, made when the first is built: reading a recipe must not import torch."""
    import torch
    from torch import nn

    class Predictor(nn.Module):
        def __init__(self, num_numbers: int, around: tuple[int, ...], num_future: int, network: PathPredictor) -> None:
            super().__init__()
            layers, side = OrderedDict[str, nn.Module](), around[-1]
            for index, (narrow, wide) in enumerate(pairwise([around[0], *network.widths]), start=1):
                layers[f"conv{index}"] = nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False)
                layers[f"norm{index}"] = nn.BatchNorm2d(wide)
                layers[f"relu{index}"] = nn.ReLU()
                side = (side + 1) // 2
            self.look = nn.Sequential(layers)
            cell = {"lstm": nn.LSTM, "gru": nn.GRU}[network.cell]
            self.recurrent = cell(num_numbers, network.hidden, batch_first=True)
            self.dense1 = nn.Linear(network.widths[-1] * side * side + network.hidden, network.dense)
            self.relu = nn.ReLU()
            self.dense2 = nn.Linear(network.dense, num_future * num_numbers)
            self.shape = (num_future, num_numbers)

        def forward(self, past: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
            steps, _ = self.recurrent(past)
            both = torch.cat([self.look(around).flatten(1), steps[:, -1]], 1)
            answer: torch.Tensor = self.dense2(self.relu(self.dense1(both)))
            return answer.reshape(-1, *self.shape)

    return Predictor
