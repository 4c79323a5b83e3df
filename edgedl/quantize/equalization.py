"""Cross-layer equalization: moves scale between the channels of neighbouring layers, so that all of a tensor's channels
make use of its one int8 grid, and leaves what the network computes as it was.

After M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019. Weights have a
scale per output channel here, which the paper's do not; so what is balanced is not two weights but the range of a
value's channel against the weights that read it, as in G. Xiao et al., "SmoothQuant", 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import torch
from torch.fx import GraphModule, Interpreter, Node

from edgedl.quantize.folding import attribute
from edgedl.quantize.operators import OPERATORS
from edgedl.quantize.quantizer import is_weighted

POOLINGS = ("max_pool1d", "max_pool2d", "adaptive_avg_pool2d", "mean")
HOMOGENEOUS = (*POOLINGS, "relu", "leaky_relu")
"""Operators that work channel by channel and for which f(s x) = s f(x) for any s > 0."""
BALANCE = 0.75
"""1 gives every channel of a value the same range, 0 every column of the weights that read it."""


@dataclass
class _Channels:
    """Values that have to be scaled alike, channel by channel: those that convolutions and additions tie together."""

    size: int
    writers: list[Node] = field(default_factory=list)
    readers: list[tuple[Node, int]] = field(default_factory=list)
    """Weighted operators, and how many of their inputs stand for one channel: more than one behind a flattening."""
    values: list[Node] = field(default_factory=list)
    """What kernels read."""
    fixed: bool = False
    """Something depends on the channels that cannot be scaled."""
    merged_into: _Channels | None = None

    def root(self) -> _Channels:
        return self if self.merged_into is None else self.merged_into.root()


def equalize(graph: GraphModule, inputs: Sequence[torch.Tensor], balance: float = BALANCE) -> None:
    """Rescales weights and biases in place, with observers in the graph or without; ranges are those of `inputs`."""
    sets = _find(graph)
    ranges = _Ranges(graph, {value for channels in sets for value in channels.values})
    with torch.no_grad():
        ranges.run(*inputs)
        for channels in sets:
            _rescale(graph, channels, ranges.reach, balance)


def _rescale(graph: GraphModule, channels: _Channels, reaches: Mapping[Node, torch.Tensor], balance: float) -> None:
    reach = torch.stack([reaches[v].reshape(channels.size, -1).amax(1) for v in channels.values]).amax(0)
    columns = torch.zeros(channels.size)
    for reader, spread in channels.readers:
        weight = _parameter(graph, reader, "weight")
        num_groups = channels.size * spread // weight.shape[1]
        if num_groups < channels.size or num_groups == 1:
            largest = weight.abs().reshape(num_groups, -1, weight.shape[1], prod(weight.shape[2:])).amax((1, 3))
            columns = torch.maximum(columns, largest.reshape(channels.size, -1).amax(1))
    used = (reach > 0) & ((columns > 0) | (columns.max() == 0))
    log = balance * reach.clamp_min(1e-30).log2()
    if columns.max() > 0:
        log = log - (1 - balance) * columns.clamp_min(1e-30).log2()
    log = torch.where(used, log - log[used].mean(), 0.0) if used.any() else torch.zeros_like(log)
    scale = log.clamp(-10, 10).exp2()
    for writer in channels.writers:
        weight, bias = _parameter(graph, writer, "weight"), _parameter(graph, writer, "bias")
        weight.div_(scale.reshape(-1, *[1] * (weight.ndim - 1)))
        if bias is not None:
            bias.div_(scale)
    for reader, spread in channels.readers:
        weight = _parameter(graph, reader, "weight")
        factor = scale.repeat_interleave(spread)
        factor = factor.reshape(-1, weight.shape[1]).repeat_interleave(
            weight.shape[0] * weight.shape[1] // len(factor), 0
        )
        weight.mul_(factor.reshape(weight.shape[:2] + (1,) * (weight.ndim - 2)))


class _Ranges(Interpreter):
    """The largest magnitude of each channel (dimension 1) of some values."""

    def __init__(self, graph: GraphModule, wanted: set[Node]) -> None:
        super().__init__(graph)
        self.wanted = wanted
        self.reach: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n.op == "call_module":  # an observer, or a check of the inputs' shapes
            return self.env[cast("Node", n.args[0])] if n.args else None
        value = super().run_node(n)
        if n in self.wanted:
            self.reach[n] = value.abs().movedim(1, 0).flatten(1).amax(1)
        return value


def _find(graph: GraphModule) -> list[_Channels]:
    """The sets of a graph that may be scaled."""
    known: dict[Node, tuple[_Channels, int]] = {}
    found: list[_Channels] = []
    shared = _shared(graph)

    def lookup(argument: Any) -> tuple[_Channels, int] | None:
        if isinstance(argument, Node) and argument in known:
            channels, spread = known[argument]
            return channels.root(), spread
        return None

    for node in graph.graph.nodes:
        name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        sources = [source for source in map(lookup, node.all_input_nodes) if source]
        if node.op == "call_module" and sources:
            known[node] = sources[0]
        elif name in ("conv1d", "conv2d", "linear") and is_weighted(node):
            weight = _parameter(graph, node, "weight")
            tied = bool(shared & set(_paths(node)))
            channels = _Channels(
                weight.shape[0], writers=[node], fixed=tied or _rank(node) != (2 if name == "linear" else weight.ndim)
            )
            found.append(channels)
            known[node] = channels, 1
            if sources and (source := lookup(node.args[0])):
                source[0].readers.append((node, source[1]))
                source[0].values.append(_seen(node.args[0]))
                source[0].fixed |= channels.fixed
        elif name in HOMOGENEOUS and sources and _keeps_channels(node, name):
            known[node] = sources[0]
        elif name == "add" and (pair := _tied(node, lookup)):
            (first, spread), (second, _) = pair
            if first is not second:
                first.writers += second.writers
                first.readers += second.readers
                first.values += second.values
                first.fixed |= second.fixed
                second.merged_into = first
            first.values += [_seen(argument) for argument in node.args[:2]]
            known[node] = first, spread
        elif name == "reshape" and sources and _flattens(node):
            channels, spread = sources[0]
            known[node] = channels, spread * prod(int(side) for side in _value(node.args[0]).shape[2:])
        else:
            for channels, _ in sources:
                channels.fixed = True
    return [one for one in found if one.merged_into is None and one.readers and not one.fixed]


def _seen(node: Any) -> Node:
    """The operator behind an observer."""
    return _seen(node.args[0]) if node.op == "call_module" else cast("Node", node)


def _value(node: Any) -> torch.Tensor:
    return cast("torch.Tensor", _seen(node).meta["val"])


def _rank(node: Node) -> int:
    return _value(node).ndim


def _tied(node: Node, lookup: Any) -> list[tuple[_Channels, int]] | None:
    """The channels of an addition's two arguments, if they are of one shape and nothing else is added."""
    both = [lookup(argument) for argument in node.args[:2]]
    alike = None not in both and both[0][0].size == both[1][0].size and both[0][1] == both[1][1]
    if not alike or node.kwargs or _value(node.args[0]).shape[1:] != _value(node.args[1]).shape[1:]:
        return None
    return both


def _keeps_channels(node: Node, name: str) -> bool:
    if name == "mean":
        dims = cast("Sequence[int]", node.args[1])
        return all(dim % _rank(cast("Node", node.args[0])) > 1 for dim in dims)
    return True


def _flattens(node: Node) -> bool:
    """Whether a reshape makes one row of a sample's channels and pixels."""
    before, after = _value(node.args[0]), _value(node)
    return after.ndim == 2 and after.shape[1] == prod(before.shape[1:])


def _paths(node: Node) -> list[str]:
    operator = OPERATORS[str(node.target)]
    arguments = [node.args[operator.weight], *node.args[operator.bias : operator.bias + 1]]
    return [str(_seen(argument).target) for argument in arguments if isinstance(argument, Node)]


def _shared(graph: GraphModule) -> set[str]:
    """Parameters that more than one operator reads."""
    seen: list[str] = []
    for node in graph.graph.nodes:
        if is_weighted(node):
            seen += _paths(node)
    return {path for path in seen if seen.count(path) > 1}


def _parameter(graph: GraphModule, node: Node, which: str) -> Any:
    """The weight or bias of an operator, or None."""
    operator = OPERATORS[str(node.target)]
    position = operator.weight if which == "weight" else operator.bias
    argument = node.args[position] if len(node.args) > position else None
    if argument is None:
        return None
    return attribute(graph, str(_seen(argument).target))
