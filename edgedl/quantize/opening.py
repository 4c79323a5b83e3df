"""Opens the composite operators of an exported network, tracing it once more only where it has any.

The second trace, which `ExportedProgram.run_decompositions` is, takes as long as the export itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from edgedl.quantize.decompositions import ATTENTION, DECOMPOSITIONS, IN_WORDS, with_masks
from edgedl.quantize.operators import OPERATORS, Role

aten = torch.ops.aten

BATCH_NORM, DROPOUT, POOL_TO_SIZE = aten.batch_norm.default, aten.dropout.default, aten.adaptive_avg_pool2d.default
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)
SIZE = aten.sym_size.int
IN_PLACE = {
    aten.relu_.default: aten.relu.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.add_.Tensor: aten.add.Tensor,
}
RESHAPES = (aten.flatten.using_ints, aten.unflatten.int, aten.view.default)
NORM = "aten._native_batch_norm_legit_no_training.default"


def opened(program: ExportedProgram, masked: float) -> tuple[GraphModule, dict[str, int]]:
    """The graph of `program` in operators that compute one thing each, and what was opened in how many places.

    Masked scores are lowered by `masked`.
    """
    samples = _inputs_by_samples(program.graph)
    if all(_is_plain(node, samples) for node in program.graph.nodes if node.op == "call_function"):
        graph = program.module(check_guards=False)
        for node in graph.graph.nodes:
            node.target = IN_PLACE.get(node.target, node.target)
        _drop_dropouts(graph)
        _spell_shapes(graph)
        return graph, {}
    graph = cast("GraphModule", program.run_decompositions(cast("Any", with_masks(masked))).module(check_guards=False))
    _restore_batch_norms(graph)
    return graph, _told(program.graph, graph.graph)


def _inputs_by_samples(graph: Graph) -> dict[str, Node]:
    """By what stands for the number of samples: an input that has as many."""
    shapes = {node: node.meta["val"].shape for node in graph.nodes if node.op == "placeholder" and "val" in node.meta}
    return {str(shape[0]): node for node, shape in shapes.items() if shape and not isinstance(shape[0], int)}


def _is_plain(node: Node, samples: Container[str]) -> bool:
    """Whether a second trace would leave an operator as it is, or make of it what can be made in its place."""
    if node.target in (BATCH_NORM, DROPOUT):
        return node.args[5 if node.target == BATCH_NORM else 2] is False  # not in training
    if node.target in RESHAPES:
        source, result = cast("Node", node.args[0]).meta["val"].shape, node.meta["val"].shape
        keeps_samples = bool(source and result) and str(source[0]) == str(result[0]) in samples
        return keeps_samples and all(isinstance(size, int) for size in result[1:])
    if node.target == POOL_TO_SIZE:
        return node.args[1] == [1, 1]
    if node.target in IN_PLACE:
        changed = cast("Node", node.args[0])
        own = len(changed.users) == 1 and (changed.target in (BATCH_NORM, *IN_PLACE) or _makes_values(changed))
        return own and len({one.meta["val"].dtype for one in (node, *node.all_input_nodes)}) == 1
    if node.target in TRANSPOSED:
        return node.args[6:7] in ((), (1,))  # one group
    return node.target is SIZE or (str(node.target) in OPERATORS and node.target not in (ATTENTION, *DECOMPOSITIONS))


def _makes_values(node: Node) -> bool:
    """Whether an operator gives values in a place of their own, which are nobody else's."""
    operator = OPERATORS.get(str(node.target))
    return operator is not None and operator.role is not Role.MOVES


def _drop_dropouts(graph: GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.target == DROPOUT:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _spell_shapes(graph: GraphModule) -> None:
    """Makes reshapes, which name all sizes but that of the batch, of what names dimensions; some change nothing."""
    inputs, counts = _inputs_by_samples(graph.graph), dict[str, Node]()
    *_, last = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node in [node for node in graph.graph.nodes if node.target in RESHAPES]:
        source, (samples, *sizes) = node.args[0], node.meta["val"].shape
        if list(source.meta["val"].shape[1:]) == sizes:
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
            continue
        if str(samples) not in counts:
            with graph.graph.inserting_after(last):
                counts[str(samples)] = graph.graph.call_function(SIZE, (inputs[str(samples)], 0))
            counts[str(samples)].meta["val"] = samples
        node.target, node.args, node.kwargs = aten.reshape.default, (source, [counts[str(samples)], *sizes]), {}


def _restore_batch_norms(graph: GraphModule) -> None:
    """Makes one node again of what functionalization made of a batch norm."""
    for node in list(graph.graph.nodes):
        if str(node.target) == NORM:
            (result,) = node.users  # the statistics beside it are asked for in training only
            momentum, epsilon = node.args[5:7]
            with graph.graph.inserting_before(node):
                made = graph.graph.call_function(BATCH_NORM, (*node.args[:5], False, momentum, epsilon, False))
            made.meta = dict(result.meta)
            result.replace_all_uses_with(made)
            graph.graph.erase_node(result)
            graph.graph.erase_node(node)


def _told(before: Graph, after: Graph) -> dict[str, int]:
    """What the decompositions have done: operators that were there and are not any more."""
    counts = [Counter(str(node.target) for node in graph.nodes) for graph in (before, after)]
    found: Counter[str] = Counter()
    for name, words in IN_WORDS.items():
        found[words] += max(counts[0][name] - counts[1][name], 0)
    return {words: places for words, places in found.items() if places}
