"""Gives int8 transposed convolutions to kernels of ordinary ones, where a runtime has none or a slow one for them.

The codes are the same: sums of the same products on the same grids, each output pixel's computed as a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

from edgedl.quantize import sub_pixel
from edgedl.quantize.folding import attribute, constant
from edgedl.quantize.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, QUANTIZE_WEIGHT
from edgedl.quantize.quantizer import joined_activation
from edgedl.quantize.schemes import Scheme

TRANSPOSED = "aten.conv_transpose2d.input"
DEFAULTS: tuple[Any, ...] = (None, (1, 1), (0, 0), (0, 0), 1, (1, 1))
"""Of the arguments behind the weight."""


def open_transposed(graph: GraphModule, scheme: Scheme) -> None:
    """Rewrites, in place, those of a q/dq graph that compute on codes; the others stay as they are."""
    if scheme.int8_transposed == "fast":
        return
    for node in list(graph.graph.nodes):
        if str(node.target) != TRANSPOSED:
            continue
        source, weight = node.args[:2]
        quantize = _quantize_behind(node)
        if quantize is None or source.target != DEQUANTIZE or weight.target != DEQUANTIZE_WEIGHT:
            continue
        given: tuple[Any, ...] = node.args[2:]
        bias, stride, padding, output_padding, groups, dilation = given + DEFAULTS[len(given) :]
        values = attribute(graph, weight.args[0].args[0].target).detach()
        if not sub_pixel.fits(values, stride, groups, dilation):
            continue
        if scheme.int8_transposed == "slow" and not sub_pixel.saves(values, stride):
            continue
        margins = sub_pixel.crops(values, stride, padding, output_padding)
        if min(min(pair) for pair in margins) >= 0:
            _open(graph, node, bias, stride[0])
            _put_in_place(graph, quantize, stride[0], margins)
    graph.graph.eliminate_dead_code()


def _quantize_behind(node: Node) -> Node | None:
    """The one node that puts its result on a grid, behind what its kernel does besides; None if it isn't so."""
    users = list((joined_activation(node) or node).users)
    return users[0] if len(users) == 1 and users[0].target == QUANTIZE else None


def _open(graph: GraphModule, node: Node, bias: Node | None, stride: int) -> None:
    """Puts an ordinary convolution in the node's place, whose channels are output channels and phases."""
    weight = cast("Node", node.args[1])
    original, scale, zero_point, _, *limits = cast("Any", weight.args[0]).args
    kernel = sub_pixel.filters(attribute(graph, original.target).detach(), stride).contiguous()
    name, nodes = f"{node.name}_phases", graph.graph
    with nodes.inserting_before(node):
        parameters = {"weight": kernel, "scale": _repeated(graph, scale, stride)}
        parameters |= {"zero_point": _repeated(graph, zero_point, stride)}
        value, *grid = (constant(graph, f"{name}_{key}", tensor) for key, tensor in parameters.items())
        own = None if bias is None else constant(graph, f"{name}_bias", _repeated(graph, bias, stride))
        codes = nodes.call_function(QUANTIZE_WEIGHT, (value, *grid, 0, *limits))
        real = nodes.call_function(DEQUANTIZE_WEIGHT, (codes, *grid, 0, *limits))
        padding = [size - 1 for size in kernel.shape[2:]]
        made = nodes.call_function(torch.ops.aten.conv2d.default, (node.args[0], real, own, [1, 1], padding))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    nodes.erase_node(node)


def _repeated(graph: GraphModule, node: Node, stride: int) -> torch.Tensor:
    return attribute(graph, str(node.target)).detach().repeat_interleave(stride**2)


def _put_in_place(graph: GraphModule, quantize: Node, stride: int, margins: Sequence[tuple[int, int]]) -> None:
    """Shuffles codes behind a quantize node from channels to pixels, and cuts off those that are too many."""
    steps: list[tuple[Any, tuple[Any, ...]]] = [(torch.ops.aten.pixel_shuffle.default, (stride,))]
    for dim, (start, end) in enumerate(margins, 2):
        if start or end:
            steps.append((torch.ops.aten.slice.Tensor, (dim, start, -end if end else 2**63 - 1)))
    users, last = list(quantize.users), quantize
    grid = quantize.args[1:]
    for target, arguments in steps:
        with graph.graph.inserting_after(last):
            real = graph.graph.call_function(DEQUANTIZE, (last, *grid))
        with graph.graph.inserting_after(real):
            moved = graph.graph.call_function(target, (real, *arguments))
        with graph.graph.inserting_after(moved):
            last = graph.graph.call_function(QUANTIZE, (moved, *grid))
        moved.meta = dict(cast("Node", quantize.args[0]).meta)
        real.meta, last.meta = dict(moved.meta), dict(quantize.meta)
    for user in users:
        user.replace_input_with(quantize, last)
