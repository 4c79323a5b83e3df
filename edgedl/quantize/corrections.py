"""Corrections of static quantization: plain functions that make good some of what rounding has cost.

`equalization` changes the float network before its values are observed. The others change the quantized graph: layer
by layer, where each weighted layer makes good what the layers before it lost, or at its outputs. All of them are done
before biases are put on their int32 grid, so that deployed files still repeat the simulation bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from edgedl.quantize.adaround import learned_rounding
from edgedl.quantize.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, QUANTIZE_WEIGHT
from edgedl.quantize.operators import OPERATORS, Operator, Role

HEADROOM = 1.1
"""What the range of the network's outputs is widened by: new inputs may go beyond what calibration has seen."""
USUAL_GAIN = (0.5, 2.0)
"""Beyond it, a channel is so noisy that its gain says nothing."""


@dataclass
class Layer:
    """A weighted layer and what it ought to give; corrections change `weight`, `scale` and `bias`.

    `weight` (O, ...) has its output channels first whatever the operator's layout; `scale` (O,) is its grid, whose
    codes end at `highest`. `inputs` are what the quantized layers before give, `wanted` are the float layer's outputs
    on float inputs, with their channels in dimension `channel`.
    """

    compute: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    """`(inputs, weight, bias) -> outputs`: the operator."""
    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    highest: int
    inputs: torch.Tensor
    wanted: torch.Tensor
    channel: int

    @property
    def has_one_scale(self) -> bool:
        """Whether all output channels share it, of several."""
        return len(self.scale) > 1 and bool((self.scale == self.scale[0]).all())

    def rounded(self) -> torch.Tensor:
        """The weight on its grid."""
        scale = self.scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        return (self.weight / scale).round().clamp(-self.highest, self.highest) * scale

    def outputs(self) -> torch.Tensor:
        """What the layer gives with its weight on its grid."""
        return self.compute(self.inputs, self.rounded(), self.bias)

    def by_channel(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the layout of `wanted` as (O, rows) float64."""
        return values.movedim(self.channel, 0).flatten(1).double()


def bias_correction(layer: Layer) -> None:
    """Takes each output channel's mean error out of its bias.

    M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, with data.
    """
    if layer.bias is not None:
        layer.bias = layer.bias + layer.by_channel(layer.wanted - layer.outputs()).mean(1).float()


def re_estimation(layer: Layer) -> None:
    """Gives each output channel the gain and the offset that bring it nearest to the float channel.

    It is what re-estimating a batch norm's statistics is to one that has been folded. The gain goes into the weight's
    scale, which leaves its codes as they are; the offset goes into the bias. Outputs that share a scale get no gain.
    """
    if layer.has_one_scale:
        bias_correction(layer)
        return
    given, wanted = layer.by_channel(layer.outputs()), layer.by_channel(layer.wanted)
    if layer.bias is not None:
        given, wanted = given - given.mean(1, keepdim=True), wanted - wanted.mean(1, keepdim=True)
    gain = (given * wanted).sum(1) / given.square().sum(1).clamp_min(1e-30)
    lowest, highest = USUAL_GAIN
    gain = torch.where((gain > lowest) & (gain < highest), gain, 1.0).float()
    layer.weight = layer.weight * gain.reshape(-1, *[1] * (layer.weight.ndim - 1))
    layer.scale = layer.scale * gain
    bias_correction(layer)


LAYERWISE: dict[str, Callable[[Layer], None]] = {
    "adaround": learned_rounding,
    "bias-correction": bias_correction,
    "re-estimation": re_estimation,
}
"""What is done to each layer, in this order."""
CORRECTIONS = ("equalization", *LAYERWISE, "headroom")


def correct(graph: GraphModule, inputs: Sequence[torch.Tensor], names: Sequence[str]) -> None:
    """Applies those of `LAYERWISE` among `names` to a q/dq graph in place.

    `inputs` are calibration data, all of which pass through the graph as one batch.
    """
    wanted = [correction for name, correction in LAYERWISE.items() if name in names]
    if wanted:
        with torch.no_grad():
            _Walk(graph, wanted).run(*inputs)


def give_headroom(graph: GraphModule) -> None:
    """Widens the grids of the outputs in place."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    grids = {node.args[1:3] for node in output.all_input_nodes if node.target == DEQUANTIZE}
    for node in graph.graph.nodes:
        # All that has such a grid has it from one observer: an operator that moves data must keep it.
        if node.target in (QUANTIZE, DEQUANTIZE) and node.args[1:3] in grids:
            scale = float(np.float32(cast("float", node.args[1]) * HEADROOM))  # as runtimes keep it
            node.args = (node.args[0], scale, *node.args[2:])


class _Pair(NamedTuple):
    real: Any
    simulated: Any


class _Walk(Interpreter):
    """Runs a q/dq graph twice side by side, without quantization and with it; corrects each weighted layer it meets."""

    def __init__(self, graph: GraphModule, corrections: Sequence[Callable[[Layer], None]]) -> None:
        super().__init__(graph)
        self.corrections = corrections

    def run_node(self, n: Node) -> Any:
        if n.op == "call_module":  # a check of the inputs' shapes
            return None
        if n.op != "call_function":
            value = super().run_node(n)
            return value if n.op == "output" else _Pair(value, value)
        real = self._call(n, 0)
        operator = OPERATORS.get(str(n.target))
        if operator is not None and operator.role is Role.WEIGHTED:
            self._correct(n, operator, real)
        return _Pair(real, self._call(n, 1))

    def _call(self, node: Node, side: int) -> Any:
        args = map_arg(node.args, lambda argument: self.env[argument][side])
        if side == 0 and node.target in (QUANTIZE, DEQUANTIZE, QUANTIZE_WEIGHT, DEQUANTIZE_WEIGHT):
            return args[0]
        return cast("Any", node.target)(*args, **node.kwargs)

    def _correct(self, node: Node, operator: Operator, wanted: torch.Tensor) -> None:
        dequantize = cast("Node", node.args[operator.weight])
        bias = node.args[operator.bias] if len(node.args) > operator.bias else None
        if dequantize.target != DEQUANTIZE_WEIGHT:
            return
        quantize = cast("Node", dequantize.args[0])
        weight_node, scale_node = cast("tuple[Node, Node]", quantize.args[:2])
        if len(weight_node.users) > 1 or (isinstance(bias, Node) and len(bias.users) > 1):
            return  # shared: what is right for one layer is wrong for the other
        weight, scale = self.fetch_attr(str(weight_node.target)), self.fetch_attr(str(scale_node.target))
        offset = self.fetch_attr(str(bias.target)) if isinstance(bias, Node) else None
        axis = operator.weight_axis

        def compute(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            args = list(map_arg(node.args, lambda argument: self.env[argument].simulated))
            args[0], args[operator.weight] = inputs, weight.movedim(0, axis)
            if len(args) > operator.bias:
                args[operator.bias] = bias
            return cast("torch.Tensor", cast("Any", node.target)(*args, **node.kwargs))

        layer = Layer(
            compute=compute,
            weight=weight.detach().movedim(axis, 0),
            scale=scale.detach(),
            bias=None if offset is None else offset.detach(),
            highest=cast("int", quantize.args[5]),
            inputs=self.env[cast("Node", node.args[0])].simulated,
            wanted=wanted,
            channel=wanted.ndim - 1 if str(node.target).startswith("aten.linear") else 1,
        )
        for correction in self.corrections:
            correction(layer)
        weight.copy_(layer.rounded().movedim(0, axis))
        scale.copy_(layer.scale)
        self.env[dequantize] = _Pair(self.env[dequantize].real, weight)
        if offset is not None and layer.bias is not None:
            offset.copy_(layer.bias)
