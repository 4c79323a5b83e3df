"""From a quantized graph to what a runtime is given: weights and biases on their grids, and its kind of operators."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from typing import cast

import torch
from torch.fx import GraphModule, Node

from edgedl.quantize import forms, mixed
from edgedl.quantize.folding import attribute, constant
from edgedl.quantize.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE
from edgedl.quantize.operators import OPERATORS, Role
from edgedl.quantize.phases import open_transposed
from edgedl.quantize.quantizer import is_weighted
from edgedl.quantize.schemes import Scheme

Floats = Callable[[GraphModule], Collection[Node]]
"""Which operators of a quantized graph are to stay in float."""


def finished(draft: GraphModule, scheme: Scheme, floats: Floats | None = None) -> GraphModule:
    """What a runtime of the scheme is given: as its kernels keep weights and biases, and with its kind of outputs."""
    graph = copy.deepcopy(draft)
    wide = _wide(graph, scheme)
    foreign = {*mixed.without_int8(graph), *wide}
    in_float = foreign | mixed.between(graph, foreign) | set(floats(graph) if floats is not None else ())
    if in_float:
        mixed.leave_in_float(graph, in_float)
    if wide:
        forms.halved(graph, scheme, wide)
    _free_outputs(graph, scheme, in_float)
    open_transposed(graph, scheme)
    _round_weights(graph)
    _round_biases(graph)
    _drop_saturating_activations(graph)
    mixed.mark(graph)
    graph.recompile()
    for module in graph.modules():  # it knows one mode only, whatever this says; exporters look at it
        module.training = False
    return graph


def _wide(graph: GraphModule, scheme: Scheme) -> list[Node]:
    """The depthwise convolutions that have more taps than the int8 kernels of a runtime."""
    found = []
    for node in graph.graph.nodes:
        is_convolution = str(node.target) in ("aten.conv1d.default", "aten.conv2d.default")
        if scheme.most_depthwise_taps is not None and is_convolution and is_weighted(node):
            shape = _weight(graph, node).shape
            groups = node.args[6] if len(node.args) > 6 else 1
            if groups == shape[0] > 1 and math.prod(shape[2:]) > scheme.most_depthwise_taps:
                found.append(node)
    return found


def _free_outputs(graph: GraphModule, scheme: Scheme, in_float: Collection[Node]) -> None:
    """Takes the grid away from outputs that need none: files give float numbers, so it would only cost accuracy.

    Such are the results of functions, computed in float kernels, and of dense layers where those can give float
    numbers at little cost. A dense layer that is computed in float then needs no grid of what it takes, either, if
    that is computed in float.
    """
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    for value in output.all_input_nodes:
        if value.target == DEQUANTIZE and len(value.args[0].users) == 1:
            source = value.args[0].args[0]
            kind = str(source.target)
            dense = kind == "aten.linear.default" and _gives_float(graph, source, scheme)
            if kind in LAST or dense:
                output.replace_input_with(value, source)
            if dense and scheme.float_outputs == "kernel":
                _free_input(source, in_float)
    graph.graph.eliminate_dead_code()


def _free_input(dense: Node, in_float: Collection[Node]) -> None:
    entry = dense.all_input_nodes[0]
    if entry.target == DEQUANTIZE:
        given = entry.all_input_nodes[0].all_input_nodes[0]
        dense.replace_input_with(entry, given if given in in_float else entry)


def _gives_float(graph: GraphModule, dense: Node, scheme: Scheme) -> bool:
    if scheme.float_outputs != "kernel":
        return scheme.float_outputs == "sums"
    weighted = [node for node in graph.graph.nodes if is_weighted(node)]
    return _num_products(graph, dense) <= SMALL * sum(_num_products(graph, node) for node in weighted)


def _num_products(graph: GraphModule, node: Node) -> int:
    """Multiplications of a weighted operator for one sample, less what padding saves."""
    weight, axis = _weight(graph, node), OPERATORS[str(node.target)].weight_axis
    num_outputs = math.prod(int(side) for side in node.meta["val"].shape[1:])
    return num_outputs * weight.numel() // weight.shape[axis]


def _weight(graph: GraphModule, node: Node) -> torch.Tensor:
    """That of a weighted operator, before it is put on a grid."""
    source = cast("Node", node.args[OPERATORS[str(node.target)].weight])
    while source.op != "get_attr":
        source = source.all_input_nodes[0]
    return attribute(graph, str(source.target))


SMALL = 1 / 50
"""The share of a network's products that may be computed in float: it is what nobody notices, with kernels that take
three to four times as long."""

LAST = {
    *("aten.sigmoid.default", "aten.tanh.default", "aten.softmax.int", "aten.log_softmax.int", "aten.softplus.default"),
}
"""Functions that networks end in."""


def _drop_saturating_activations(graph: GraphModule) -> None:
    """Removes a ReLU or clamp whose bounds are the ends of the grid behind it: saturation does the same.

    onnxruntime fuses a convolution with the quantization behind it, but not across every clamp: such a
    layer would run in float.
    """
    for node in list(graph.graph.nodes):
        operator = OPERATORS.get(str(node.target))
        # One that stands alone stays: without it, nothing would be left between two grids.
        if operator is None or operator.role is not Role.ACTIVATES or node.args[0].target == DEQUANTIZE:
            continue
        if [user.target for user in node.users] != [QUANTIZE]:
            continue
        (quantize,) = node.users
        scale, zero_point, low, high = quantize.args[1:5]
        ends = torch.tensor([(low - zero_point) * scale, (high - zero_point) * scale], dtype=torch.float64)
        if (node.target(ends.clone(), *node.args[1:]) - ends).abs().max() < scale / 2:
            quantize.replace_input_with(node, node.args[0])
            graph.graph.erase_node(node)


def _round_weights(graph: GraphModule) -> None:
    """Puts weights on their grid before they are quantized there.

    A converter that divides where torch multiplies would round one weight in 100,000 the other way.
    """
    for node in graph.graph.nodes:
        if node.target != DEQUANTIZE_WEIGHT or node.args[0].args[0].op != "get_attr":
            continue
        quantize = node.args[0]
        weight, scale, zero_point = (attribute(graph, source.target).detach() for source in quantize.args[:3])
        codes = quantize.target(weight, scale, zero_point, *quantize.args[3:7])
        rounded = node.target(codes, scale, zero_point, *quantize.args[3:7])
        with graph.graph.inserting_before(quantize):
            own = constant(graph, f"{quantize.name}_rounded", rounded)
        quantize.replace_input_with(quantize.args[0], own)
    graph.graph.eliminate_dead_code()


def _round_biases(graph: GraphModule) -> None:
    """Puts biases on the grid of their kernel's int32 accumulator: input scale x weight scale.

    Runtimes store them so. Left between the grid's points, they make the simulation differ from the
    deployed file by one step in up to 0.8 % of a layer's outputs.
    """
    for node in graph.graph.nodes:
        operator = OPERATORS.get(str(node.target))
        if operator is None or operator.role is not Role.WEIGHTED or len(node.args) <= operator.bias:
            continue
        source, weight, bias = node.args[0], node.args[operator.weight], node.args[operator.bias]
        if bias is None or source.target != DEQUANTIZE or weight.target != DEQUANTIZE_WEIGHT:
            continue  # it has none, or was left in float
        grid = torch.tensor(source.args[1]) * attribute(graph, weight.args[1].target)
        rounded = torch.round(attribute(graph, bias.target).detach() / grid) * grid
        # A constant of its own: the same bias may lie on another grid elsewhere.
        with graph.graph.inserting_before(node):
            own = constant(graph, f"{node.name}_bias_rounded", rounded)
        node.replace_input_with(bias, own)
    graph.graph.eliminate_dead_code()
