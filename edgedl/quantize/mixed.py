"""Networks of which a part stays in float: which operators, and how sensitive each part is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias, cast

from torch.fx import GraphModule, Node

from edgedl.quantize.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, QUANTIZE_WEIGHT
from edgedl.quantize.operators import OPERATORS, Role
from edgedl.quantize.quantizer import enters, is_float, layer_of

GRIDS = (QUANTIZE, DEQUANTIZE, QUANTIZE_WEIGHT, DEQUANTIZE_WEIGHT)
HEAVY = (Role.WEIGHTED, Role.MULTIPLIES, Role.LOOKS_UP)
"""What int8 is for; all else follows what it stands behind."""


PartOf: TypeAlias = Callable[[Node], str]
"""The name of the part of its network that a heavy operator belongs to."""


def block_of(node: Node) -> str:
    """The module that holds an operator's layer; the layer itself where that is the network or a plain row of them.

    Layers that stand together in one module are one part: islands of float between them would cost two
    conversions each.
    """
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = layer_of(node)
    if len(stack) < 3 or path.rpartition(".")[2].isdigit():
        return path
    return path.rpartition(".")[0]


def is_heavy(node: Node) -> bool:
    """Whether a node multiplies: by weights, or activations with each other."""
    operator = OPERATORS.get(str(node.target))
    return operator is not None and operator.role in HEAVY and is_float(node)


def parts(graph: GraphModule, part_of: PartOf = block_of) -> list[str]:
    """The parts of a network that may be left in float, in order: those that hold its heavy operators."""
    found = dict.fromkeys(part_of(node) for node in graph.graph.nodes if is_heavy(node))
    return list(found)


def kept(graph: GraphModule, names: Collection[str], part_of: PartOf = block_of) -> set[Node]:
    """The operators to leave in float so that the parts of these names are, with what follows up to the next."""
    floats: set[Node] = set()
    for node in graph.graph.nodes:
        if not _computes(node):
            continue
        sources = [source for source in map(_origin, node.all_input_nodes) if _computes(source)]
        if is_heavy(node):
            if part_of(node) in names:
                floats.add(node)
        elif any(source in floats for source in sources):
            floats.add(node)
    return floats


def all_but_weighted(graph: GraphModule) -> set[Node]:
    """Every operator but those with weights or tables, and what kernels apply: the stream between stays in float."""
    return {node for node in graph.graph.nodes if _computes(node) and not _in_weighted_kernel(node)}


def _in_weighted_kernel(node: Node) -> bool:
    operator = OPERATORS.get(str(node.target))
    if operator is None or operator.role is not Role.ACTIVATES:
        return operator is not None and operator.role in (Role.WEIGHTED, Role.LOOKS_UP)
    source = node.args[0]  # right behind it: with a grid between the two it would be a kernel of its own
    return isinstance(source, Node) and _in_weighted_kernel(source)


def leave_in_float(graph: GraphModule, floats: Collection[Node]) -> None:
    """Takes the grids away between operators of `floats`, in place; at their borders to int8 ones they stay."""
    for node in list(graph.graph.nodes):
        if node.target not in (DEQUANTIZE, DEQUANTIZE_WEIGHT):
            continue
        source = _origin(node)
        in_float = source in floats or source.op in ("placeholder", "get_attr") or enters(source)
        for user in list(node.users):
            follows = user in floats or (user.op == "output" and source in floats)
            if in_float and follows:
                user.replace_input_with(node, source)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _computes(node: Node) -> bool:
    return node.op == "call_function" and node.target not in GRIDS and is_float(node)


def _origin(node: Node) -> Node:
    """What a value is before it is quantized and dequantized."""
    while node.target in GRIDS:
        node = cast("Node", node.args[0])
    return node
