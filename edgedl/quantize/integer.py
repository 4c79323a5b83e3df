"""Runs a simulated graph with the integer arithmetic of int8 kernels, so that it predicts them to the bit.

Computed in float32, a convolution's sum carries rounding errors that tip a value near the middle
between two codes to the other side: one output in 10,000 to 100,000. Kernels sum integers exactly and
round once, after multiplying by (input scale x weight scale / output scale) in float32; so does this.
The rounding is that of XNNPACK's "fp32" requantization and of onnxruntime's MLAS, to the nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgedl.core import Activation
from edgedl.origin import layer_of
from edgedl.quantize.one_channel import convolved
from edgedl.quantize.operators import OPERATORS, Operator, Role
from edgedl.quantize.quantizer import is_float

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
QUANTIZE_WEIGHT = torch.ops.quantized_decomposed.quantize_per_channel.default
DEQUANTIZE_WEIGHT = torch.ops.quantized_decomposed.dequantize_per_channel.default
EXACT_IN_FLOAT32 = 2**24
"""Integers below it have exact float32 sums."""

LEAKY_RELU, SOFTMAX, MEAN = "aten.leaky_relu.default", "aten.softmax.int", "aten.mean.dim"
POOL = "aten.adaptive_avg_pool2d.default"
UNARY = (LEAKY_RELU, SOFTMAX, MEAN, POOL)
"""Of the operators that round in a way of their own, those of one tensor and a setting."""


@dataclass(frozen=True)
class Operands:
    """What a kernel reads and writes: codes less their zero points, as float64, and the grids of all."""

    node: Node
    values: list[torch.Tensor]
    scales: list[np.float32]
    zero_points: list[int]
    scale: np.float32
    """That of the result, as its zero point."""
    zero_point: int


def _added(given: Operands) -> torch.Tensor:
    """XNNPACK's addition and subtraction: both sides times multipliers of 21 bits, one shift, ties upwards."""
    ratios = [one / given.scale for one in given.scales]
    shift = 20 - int(np.floor(np.log2(max(ratios))))
    left, right = (float(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios)
    sign = -1 if str(given.node.target).startswith("aten.sub") else 1
    return torch.floor((given.values[0] * left + sign * given.values[1] * right) * 2.0**-shift + 0.5)


def _multiplied(given: Operands) -> torch.Tensor:
    """LiteRT's product of two computed matrices: rounded to the multiplier's bits, ties upwards, and then to codes.

    One matrix a sample runs as a dense layer in a file of batch size 1, which again rounds ties upwards; several run
    as a batch, which rounds them away from zero. A batch whose right side has the zero point 0 goes to XNNPACK, which
    rounds as it does everywhere.
    """
    mantissa, exponent = np.frexp(np.float64(given.scales[0]) * np.float64(given.scales[1]) / np.float64(given.scale))
    sums: torch.Tensor = cast("Any", given.node.target)(*given.values)
    if given.zero_points[1] == 0 and sums.shape[1:-2].numel() > 1:
        return torch.round(sums.float() * torch.tensor(given.scales[0] * given.scales[1] / given.scale)).double()
    if exponent > 0:
        return torch.floor(sums * float(np.ldexp(mantissa, exponent)) + 0.5)
    rounded: torch.Tensor = torch.floor(sums * float(mantissa) + 0.5) * 2.0 ** float(exponent)
    if sums.shape[1:-2].numel() == 1:
        return torch.floor(rounded + 0.5)
    return rounded.sign() * torch.floor(rounded.abs() + 0.5)


def _leaky(given: Operands) -> torch.Tensor:
    """XNNPACK's leaky ReLU: a multiplier of 8 fractional bits for each side of zero, ties upwards."""
    slope = np.float32(cast("float", given.node.args[1]) if len(given.node.args) > 1 else 0.01)
    (value,), ratio = given.values, given.scales[0] / given.scale
    above, below = float(np.rint(256 * ratio)), float(np.rint(256 * ratio * slope))
    scaled = torch.where(value > 0, value * above, value * below)
    return torch.floor(scaled / 256 + 0.5)


def _averaged(given: Operands) -> torch.Tensor:
    """XNNPACK's mean, as it was seen to round: the sum of the codes, whole, times one factor, ties to even."""
    sums = cast("torch.Tensor", cast("Any", given.node.target)(given.values[0], *given.node.args[1:]))
    count = given.values[0].numel() // sums.numel()
    ratio = given.scales[0] / (given.scale * np.float32(count))
    return torch.round(torch.round(sums * count).float() * torch.tensor(ratio)).double()


def _softmax(given: Operands) -> torch.Tensor:
    """LiteRT's softmax: float32 exponentials of how far a code lies below the largest, added up one after the other.

    By LiteRT's source (`optimized_ops.h`), which has another kernel for 64-bit Arm: there a code may be another.
    """
    dim = cast("int", given.node.args[1])
    codes = given.values[0].movedim(dim, -1).numpy()
    below = (codes.max(-1, keepdims=True) - codes).astype(np.float32)
    exponentials = np.exp(np.float64(-given.scales[0] * below)).astype(np.float32)
    sums = np.cumsum(exponentials, axis=-1, dtype=np.float32)[..., -1:]
    shares = exponentials * (np.float32(1) / (sums * given.scale))
    return torch.from_numpy(np.floor(shares.astype(np.float64) + 0.5)).movedim(-1, dim)


def _converted(given: Operands) -> torch.Tensor:
    """XNNPACK's conversion from one grid to another: a multiplier of 8 fractional bits, ties upwards."""
    return torch.floor(given.values[0] * float(np.rint(256 * (given.scales[0] / given.scale))) / 256 + 0.5)


def _sum_of_bytes(given: Operands) -> torch.Tensor:
    """MLAS's addition: zero points make one offset, then comes a fused multiply-add a side, the right one first.

    The offset is made by a fused multiply-add, too, of which its source says nothing: compilers make one.
    """
    left, right = (float(one / given.scale) for one in given.scales)
    zeros = [float(zero_point - LOWEST) for zero_point in given.zero_points]
    fused = np.float32(left * zeros[0] + float(np.float32(right * zeros[1])))
    found = torch.tensor(float(np.float32(given.zero_point - LOWEST) - fused), dtype=torch.float64)
    for side, ratio in ((1, right), (0, left)):
        found = ((given.values[side] + zeros[side]) * ratio + found).float().double()
    return torch.round(found) - (given.zero_point - LOWEST)


def _product_of_bytes(given: Operands) -> torch.Tensor:
    """MLAS's product: the zero point is added before it rounds, so that an odd one turns ties the other way."""
    ratio = given.scales[0] * given.scales[1] / given.scale
    zero = given.zero_point - LOWEST
    return torch.round((given.values[0] * given.values[1]).float() * torch.tensor(ratio) + zero).double() - zero


NOT_COMPUTED = (DEQUANTIZE, DEQUANTIZE_WEIGHT, torch.ops.aten.zeros.default)
"""Not values of layers: in files, what a recurrent layer starts from is a constant."""
LOWEST = -128
"""What files for onnxruntime, whose activations are bytes, have as code 0."""

Kernel = Callable[[Operands], torch.Tensor]
KERNELS: dict[str, dict[str, Kernel]] = {
    "litert": {
        "aten.add.Tensor": _added,
        "aten.sub.Tensor": _added,
        "aten.matmul.default": _multiplied,
        "aten.bmm.default": _multiplied,
        LEAKY_RELU: _leaky,
        SOFTMAX: _softmax,
        MEAN: _averaged,
        POOL: _averaged,
        str(DEQUANTIZE): _converted,
    },
    "onnxruntime": {"aten.add.Tensor": _sum_of_bytes, "aten.mul.Tensor": _product_of_bytes},
}
"""By runtime, what rounds in a way of its own: LiteRT's in fixed point, by XNNPACK's and LiteRT's source,
onnxruntime's as its kernels for bytes were seen to do, on random grids and such as make ties."""


DIVIDING = ("onnxruntime", "tensorrt")
"""Runtimes that divide by a scale to find the codes of float values (ONNX's QuantizeLinear); XNNPACK multiplies."""


def _is_constant(quantize: Node) -> bool:
    """Whether the codes stand in files as they are, and are no runtime's work."""
    return bool(cast("Node", quantize.args[0]).op == "get_attr")


def _grid_of(value: Node, through: bool) -> Node | None:
    """The dequantization that a value comes from, if `through` also where it has been moved since; None if from none.

    LiteRT's converter takes a dequantization through what only moves values, so that an int8 kernel is behind it.
    """
    while through and (operator := OPERATORS.get(str(value.target))) and operator.role is Role.MOVES:
        if len(value.all_input_nodes) > 1 or str(value.target) == "aten.pad.default":
            return None
        value = value.all_input_nodes[0]
    return value if value.target == DEQUANTIZE else None


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
        if value is None and n.target == QUANTIZE and self.runtime in DIVIDING and not _is_constant(n):
            value = self._divided(n)
        if value is None and self.runtime and _has_float_weight(n):
            value = self.of_one_channel(n)
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
        codes = self._codes_of_its_own(weighted, activation, scale, zero_point)
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

    def _divided(self, node: Node) -> torch.Tensor:
        """The codes of a float value by a kernel that divides by the scale; torch multiplies with its inverse."""
        value = self.env[cast("Node", node.args[0])]
        scale, zero_point, low, high = cast("tuple[float, int, int, int]", node.args[1:5])
        return (torch.round(value / torch.tensor(scale)) + zero_point).clamp(low, high).to(torch.int8)

    def _codes_of_its_own(
        self, node: Node, activation: Node | None, scale: float, zero_point: int
    ) -> torch.Tensor | None:
        """Codes, less the zero point, of a kernel that does not round as all others do; None for any other."""
        kernel = KERNELS.get(self.runtime, {}).get(str(node.target))
        if kernel is None:
            return None
        if activation is not None and node.target == DEQUANTIZE:
            return None
        if str(node.target) == POOL and any(size != 1 for size in cast("Sequence[int]", node.args[1])):
            return None  # windows that overlap, or are of several sizes: no mean of the whole
        # onnxruntime fuses nothing behind these kernels, nor them where others read the float value: they run in float.
        if self.runtime == "onnxruntime" and (activation is not None or len(node.users) > 1):
            return None
        arguments = [node] if node.target == DEQUANTIZE else node.args[: 1 if str(node.target) in UNARY else 2]
        through = self.runtime == "litert"
        sources = [_grid_of(source, through) for source in arguments if isinstance(source, Node)]
        grids = [cast("tuple[float, int]", source.args[1:3]) for source in sources if source is not None]
        if len(grids) < len(arguments) or node.kwargs:
            return None
        scales = [np.float32(one) for one, _ in grids]
        reals = [self.env[cast("Node", argument)].double() for argument in arguments]
        values = [torch.round(real / float(one)) for real, one in zip(reals, scales, strict=True)]
        return kernel(Operands(node, values, scales, [zero for _, zero in grids], np.float32(scale), zero_point))

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

    def of_one_channel(self, node: Node) -> torch.Tensor | None:
        """What a float convolution gives whose outputs see one channel each; None for any other operator."""
        if not str(node.target).startswith(("aten.conv1d.default", "aten.conv2d.default")):
            return None
        given: list[Any] = [self.env[argument] if isinstance(argument, Node) else argument for argument in node.args]
        x, weight = given[:2]
        return convolved(self.runtime, *given) if weight.shape[1] == 1 and x.dtype == torch.float32 else None

    def _note(self, node: Node, value: Any) -> None:
        if node.target == QUANTIZE and _is_constant(node):
            return
        if node.target == QUANTIZE:
            scale, zero_point = cast("float", node.args[1]), cast("int", node.args[2])
            real = (value.numpy().astype(np.float32) - zero_point) * np.float32(scale)
            self.quantized.append(Activation(source_layer(node), real, scale))
        elif node.op == "call_function" and is_float(node) and node.target not in NOT_COMPUTED:
            self.computed.append(Activation(layer_of(node) or node.name, value.numpy(), None))


class FloatInterpreter(Interpreter):
    """Runs a q/dq graph in float, as it stands, in a fraction of the time: the nodes that put a value on its grid are
    one step, which makes no codes, and weights are put on theirs once for all runs.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.weights: dict[Node, Any] = {}
        self.one_step = {
            node
            for node in graph.graph.nodes
            if node.target == QUANTIZE
            and all(user.target == DEQUANTIZE and user.args[1:] == node.args[1:] for user in node.users)
        }

    def run_node(self, n: Node) -> Any:
        if n.target in (QUANTIZE_WEIGHT, DEQUANTIZE_WEIGHT):
            if n not in self.weights:
                self.weights[n] = super().run_node(n)
            return self.weights[n]
        if n in self.one_step:
            scale, zero_point, low, high = cast("tuple[float, int, int, int]", n.args[1:5])
            steps = (self.env[cast("Node", n.args[0])] * (1 / scale)).round_()
            return steps.clamp_(low - zero_point, high - zero_point).mul_(scale)
        if n.target == DEQUANTIZE and n.args[0] in self.one_step:
            return self.env[cast("Node", n.args[0])]
        return super().run_node(n)


def _has_float_weight(node: Node) -> bool:
    operator = OPERATORS.get(str(node.target))
    if operator is None or operator.role is not Role.WEIGHTED:
        return False
    weight = node.args[operator.weight]
    return isinstance(weight, Node) and weight.op == "get_attr"


def source_layer(node: Node) -> str:
    """The module path of what a quantize node quantizes, or the name of the input that it quantizes."""
    source = node.args[0]
    assert isinstance(source, Node)
    return layer_of(source) or source.name
