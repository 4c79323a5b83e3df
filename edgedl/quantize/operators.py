"""The operator table: what each ATen operator needs to run in int8.

An operator that is not listed is an error that names it, never a silent float island.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """How an operator treats the grid of its inputs."""

    WEIGHTED = "has an int8 weight with a scale per output channel; its output gets a scale of its own"
    COMPUTES = "mixes or rescales values; its output gets a scale of its own"
    ACTIVATES = "computes element by element; right after a weighted operator or an addition it joins that kernel"
    MOVES = "only moves or selects data; its output keeps the scale of its input"


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    `inputs` are the positions of the activations among the arguments, `weight` and `bias` those of
    the parameters, `weight_axis` is the output-channel dimension of the weight.
    """

    role: Role
    inputs: tuple[int, ...] = (0,)
    weight: int = 1
    bias: int = 2
    weight_axis: int = 0


_CONVOLUTION = Operator(Role.WEIGHTED)
_BINARY = Operator(Role.COMPUTES, inputs=(0, 1))
_UNARY = Operator(Role.COMPUTES)
_MOVE = Operator(Role.MOVES)

OPERATORS: dict[str, Operator] = {
    # Weighted. A convolution's grouping, stride, padding and dilation don't matter to its grid.
    "aten.conv1d.default": _CONVOLUTION,
    "aten.conv2d.default": _CONVOLUTION,
    "aten.conv2d.padding": _CONVOLUTION,
    "aten.linear.default": _CONVOLUTION,
    # Element by element, fused into the operator before.
    "aten.relu.default": Operator(Role.ACTIVATES),
    "aten.relu_.default": Operator(Role.ACTIVATES),
    "aten.hardtanh.default": Operator(Role.ACTIVATES),
    "aten.hardtanh_.default": Operator(Role.ACTIVATES),
    "aten.relu6.default": Operator(Role.ACTIVATES),
    # Computing.
    "aten.add.Tensor": _BINARY,
    "aten.add_.Tensor": _BINARY,
    "aten.mean.dim": _UNARY,
    "aten.adaptive_avg_pool2d.default": _UNARY,
    # Moving.
    "aten.max_pool2d.default": _MOVE,
    "aten.flatten.using_ints": _MOVE,
    "aten.view.default": _MOVE,
    "aten.reshape.default": _MOVE,
    "aten.permute.default": _MOVE,
    "aten.transpose.int": _MOVE,
    "aten.squeeze.dims": _MOVE,
    "aten.squeeze.dim": _MOVE,
    "aten.unsqueeze.default": _MOVE,
    "aten.dropout.default": _MOVE,
    "aten.pad.default": _MOVE,
    "aten.cat.default": _MOVE,
}
