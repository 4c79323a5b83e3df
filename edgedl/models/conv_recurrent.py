"""The recognizer of speech: convolutions over frames, an LSTM or GRU over what they make, letters at every step."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field, PositiveInt

from edgedl.core import Network

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from edgedl.core import TensorSpec


class Frames(Protocol):
    """What is asked of a task: `frames` (T, bands), to be told apart into `num_classes` at every step."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def num_classes(self) -> int: ...


class ConvRecurrent(Network):
    """A convolution along time for each of `widths`, `kernel` frames wide, the first with a stride of `stride`.

    Each is normed and rectified; a recurrent layer of `hidden` units of a `cell` follows, with `bidirectional` a second
    one that reads backwards, and a dense layer at every step. Source: D. Amodei et al., Deep Speech 2, 2016.
    """

    use: str = "conv-recurrent"
    widths: tuple[PositiveInt, ...] = Field(default=(64, 64), min_length=1)
    kernel: PositiveInt = 7
    stride: PositiveInt = 2
    cell: Literal["lstm", "gru"] = "gru"
    hidden: PositiveInt = 64
    bidirectional: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of values that training leaves out."""

    def build(self, task: Frames) -> nn.Module:  # type: ignore[override]
        """A module (N, T, bands) float32 -> logits (N, T / stride, classes)."""
        (spec,) = task.inputs.values()
        return _recognizer()(spec.shape[-1], task.num_classes, self)


@cache
def _recognizer() -> type[nn.Module]:
    """The class of the module, made when the first is built: reading a recipe must not import torch."""
    from torch import nn

    class Recognizer(nn.Module):
        def __init__(self, bands: int, num_classes: int, network: ConvRecurrent) -> None:
            super().__init__()
            layers = OrderedDict[str, nn.Module]()
            for index, (before, after) in enumerate(pairwise((bands, *network.widths)), start=1):
                stride = network.stride if index == 1 else 1
                padding = network.kernel // 2
                layers[f"conv{index}"] = nn.Conv1d(before, after, network.kernel, stride, padding, bias=False)
                layers[f"norm{index}"] = nn.BatchNorm1d(after)
                layers[f"relu{index}"] = nn.ReLU()
            self.convolutions = nn.Sequential(layers)
            layer = {"lstm": nn.LSTM, "gru": nn.GRU}[network.cell]
            self.recurrent = layer(
                network.widths[-1], network.hidden, batch_first=True, bidirectional=network.bidirectional
            )
            self.dropout = nn.Dropout(network.dropout)
            self.dense = nn.Linear(network.hidden * (2 if network.bidirectional else 1), num_classes)

        def forward(self, frames: Tensor) -> Tensor:
            heard = self.convolutions(frames.transpose(1, 2)).transpose(1, 2)
            outputs, _ = self.recurrent(self.dropout(heard))
            logits: Tensor = self.dense(self.dropout(outputs))
            return logits

    return Recognizer
