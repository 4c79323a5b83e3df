"""Runs a simulated graph with the integer arithmetic of int8 kernels, so that it predicts them to the bit.

Computed in float32, a convolution's sum carries rounding errors that tip a value near the middle
between two codes to the other side: one output in 10,000 to 100,000. Kernels sum integers exactly and
round once, after multiplying by (input scale x weight scale / output scale) in float32; so does this.
The rounding is that of XNNPACK's "fp32" requantization and of onnxruntime's MLAS, to the nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgedl.core import Activation
from edgedl.quantize.operators import OPERATORS, Operator, Role
from edgedl.quantize.quantizer import is_float, layer_of

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
QUANTIZE_WEIGHT = torch.ops.quantized_decomposed.quantize_per_channel.default
DEQUANTIZE_WEIGHT = torch.ops.quantized_decomposed.dequantize_per_channel.default
EXACT_IN_FLOAT32 = 2**24
"""Integers below it have exact float32 sums."""


LEAKY_RELU = "aten.leaky_relu.default"


def _added(node: Node, values: list[torch.Tensor], scales: list[np.float32], scale: np.float32) -> torch.Tensor:
    """XNNPACK's addition and subtraction: both sides times multipliers of 21 bits, one shift, ties upwards."""
    ratios = [one / scale for one in scales]
    shift = 20 - int(np.floor(np.log2(max(ratios))))
    left, right = (float(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios)
    sign = -1 if str(node.target).startswith("aten.sub") else 1
    return torch.floor((values[0] * left + sign * values[1] * right) * 2.0**-shift + 0.5)


def _multiplied(node: Node, values: list[torch.Tensor], scales: list[np.float32], scale: np.float32) -> torch.Tensor:
    """LiteRT's product of two computed matrices: rounded once to the multiplier's bits, and once more to codes.

    One matrix a sample runs as a dense layer in a file of batch size 1, which rounds ties upwards; several run as
    a batch, which rounds them away from zero.
    """
    mantissa, exponent = np.frexp(np.float64(scales[0]) * np.float64(scales[1]) / np.float64(scale))
    sums: torch.Tensor = cast("Any", node.target)(*values)
    if exponent > 0:
        return torch.round(sums * float(np.ldexp(mantissa, exponent)))
    rounded: torch.Tensor = torch.round(sums * float(mantissa)) * 2.0 ** float(exponent)
    if sums.shape[1:-2].numel() == 1:
        return torch.floor(rounded + 0.5)
    return rounded.sign() * torch.floor(rounded.abs() + 0.5)


def _leaky(node: Node, values: list[torch.Tensor], scales: list[np.float32], scale: np.float32) -> torch.Tensor:
    """XNNPACK's leaky ReLU: a multiplier of 8 fractional bits for each side of zero, ties upwards."""
    slope = np.float32(cast("float", node.args[1]) if len(node.args) > 1 else 0.01)
    ratio = scales[0] / scale
    above, below = float(np.rint(256 * ratio)), float(np.rint(256 * ratio * slope))
    scaled = torch.where(values[0] > 0, values[0] * above, values[0] * below)
    return torch.floor(scaled / 256 + 0.5)


def _converted(node: Node, values: list[torch.Tensor], scales: list[np.float32], scale: np.float32) -> torch.Tensor:
    """XNNPACK's conversion from one grid to another: a multiplier of 8 fractional bits, ties upwards."""
    return torch.floor(values[0] * float(np.rint(256 * (scales[0] / scale))) / 256 + 0.5)


NOT_COMPUTED = (DEQUANTIZE, DEQUANTIZE_WEIGHT, torch.ops.aten.zeros.default)
"""Not values of layers: in files, what a recurrent layer starts from is a constant."""

LITERT_KERNELS = {
    "aten.add.Tensor": _added,
    "aten.sub.Tensor": _added,
    "aten.matmul.default": _multiplied,
    "aten.bmm.default": _multiplied,
    LEAKY_RELU: _leaky,
    str(DEQUANTIZE): _converted,
}
"""What LiteRT computes in fixed point with a rounding of its own, by XNNPACK's and LiteRT's source."""


class IntegerInterpreter(Interpreter):
    """Runs a q/dq graph; what is not int8 runs as it stands. A float graph runs unchanged.

    After a run, `quantized` holds the values of all quantize nodes and `computed` those of all
    others, in execution order, if `record` was asked for.
    """

    def __init__(self, graph: GraphModule, runtime: str = "", record: bool = False) -> None:
        """`runtime` names the one whose rounding is to be repeated where runtimes differ; "" is the plain one."""
        super().__init__(graph, garbage_collect_values=False)  # codes are asked for behind their dequantization
        self.runtime, self.record = runtime, record
        self.quantized: list[Activation] = []
        self.computed: list[Activation] = []

    def run_node(self, n: Node) -> Any:
        value = self._requantized(n) if n.target == QUANTIZE else None
        if value is None:
            value = super().run_node(n)
        if self.record:
            self._note(n, value)
        return value

    def _requantized(self, node: Node) -> torch.Tensor | None:
        """The int8 result of a weighted operator and what is fused behind it; None for any other."""
        activation, weighted = None, cast("Node", node.args[0])
        operator = OPERATORS.get(str(weighted.target))
        if operator is not None and operator.role is Role.ACTIVATES:
            activation, weighted = weighted, cast("Node", weighted.args[0])
            operator = OPERATORS.get(str(weighted.target))
        scale, zero_point, low, high = cast("tuple[float, int, int, int]", node.args[1:5])
        alone = activation is not None and weighted.target == DEQUANTIZE
        codes = self._litert_codes(weighted, scale) if self.runtime == "litert" and not alone else None
        if codes is None:
            found = None
            if operator is not None and operator.role is Role.WEIGHTED:
                found = self._sums(weighted, operator)
            elif operator is not None and operator.role is Role.MULTIPLIES:
                found = self._products(weighted)
            if found is None:
                return None
            sums, grid = found
            codes = torch.round(sums * (grid / torch.tensor(scale)))
        if activation is not None:
            # Bounds such as 0 and 6 are codes of the output's grid; the kernel saturates there.
            bounds = self._activated(activation, torch.tensor([-np.inf, np.inf]))
            inverse = np.float32(1) / np.float32(scale)
            codes = codes.clamp(*(float(torch.round(bound * inverse)) for bound in bounds))
        return (codes + zero_point).clamp(low, high).to(torch.int8)

    def _litert_codes(self, node: Node, scale: float) -> torch.Tensor | None:
        """Codes, less the zero point, of the kernels that don't round as all others do; None for those that do."""
        kind = str(node.target)
        arguments = [node] if node.target == DEQUANTIZE else node.args[:2]
        sources = [source for source in arguments if isinstance(source, Node) and source.target == DEQUANTIZE]
        if kind in LITERT_KERNELS and len(sources) == (1 if kind in (LEAKY_RELU, str(DEQUANTIZE)) else 2):
            values = [
                self.env[cast("Node", source.args[0])].double() - cast("int", source.args[2]) for source in sources
            ]
            scales = [np.float32(cast("float", source.args[1])) for source in sources]
            return LITERT_KERNELS[kind](node, values, scales, np.float32(scale))
        return None

    def _products(self, node: Node) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The kernel's int32 products of two activations, or sums of them, as float32, and the size of their unit."""
        left, right = cast("tuple[Node, Node]", node.args[:2])
        if left.target != DEQUANTIZE or right.target != DEQUANTIZE:
            return None
        codes = [self.env[cast("Node", side.args[0])].double() - cast("int", side.args[2]) for side in (left, right)]
        grid = torch.tensor(cast("float", left.args[1])) * torch.tensor(cast("float", right.args[1]))
        # Not by node, for the two may be one.
        return cast("Any", node.target)(*codes).float(), grid

    def _sums(self, node: Node, operator: Operator) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The kernel's int32 sums, as float32, and the size of their unit for each output channel, broadcastable."""
        source, weight = cast("Node", node.args[0]), cast("Node", node.args[operator.weight])
        if source.target != DEQUANTIZE or weight.target != DEQUANTIZE_WEIGHT:
            return None
        codes = self.env[cast("Node", source.args[0])].double() - cast("int", source.args[2])
        weights, scales = self.env[cast("Node", weight.args[0])].double(), self.env[cast("Node", weight.args[1])]
        grid = torch.tensor(cast("float", source.args[1])) * scales
        bias = node.args[operator.bias] if len(node.args) > operator.bias else None
        integers = torch.round(self.env[bias].double() / grid.double()) if isinstance(bias, Node) else None
        largest = weights.abs().flatten(1).sum(1).max() * 255 + (0 if integers is None else integers.abs().max())
        dtype = torch.float32 if largest < EXACT_IN_FLOAT32 else torch.float64
        replaced = {source: codes.to(dtype), weight: weights.to(dtype)}
        if isinstance(bias, Node) and integers is not None:
            replaced[bias] = integers.to(dtype)
        sums = self._call(node, replaced).float()
        is_dense = str(node.target).startswith("aten.linear")
        return sums, grid if is_dense else grid.reshape(1, -1, *[1] * (sums.ndim - 2))

    def _activated(self, node: Node, values: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self._call(node, {cast("Node", node.args[0]): values}))

    def _call(self, node: Node, replaced: Mapping[Node, torch.Tensor]) -> Any:
        """The operator of `node` on other values for some of its arguments."""
        args = torch.fx.node.map_arg(node.args, lambda argument: replaced.get(argument, self.env.get(argument)))
        return cast("Any", node.target)(*cast("tuple[Any, ...]", args), **node.kwargs)

    def _note(self, node: Node, value: Any) -> None:
        if node.target == QUANTIZE and cast("Node", node.args[0]).op == "get_attr":
            return  # constants stand in files as they are, and are no runtime's work
        if node.target == QUANTIZE:
            scale, zero_point = cast("float", node.args[1]), cast("int", node.args[2])
            real = (value.numpy().astype(np.float32) - zero_point) * np.float32(scale)
            self.quantized.append(Activation(source_layer(node), real, scale))
        elif node.op == "call_function" and is_float(node) and node.target not in NOT_COMPUTED:
            self.computed.append(Activation(layer_of(node) or node.name, value.numpy(), None))


def source_layer(node: Node) -> str:
    """The module path of what a quantize node quantizes, or the name of the input that it quantizes."""
    source = node.args[0]
    assert isinstance(source, Node)
    return layer_of(source) or source.name
