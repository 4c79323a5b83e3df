"""Networks of which a part stays in float: which operators, and how sensitive each part is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias, cast

import torch
from torch.fx import GraphModule, Node

from edgedl.origin import IN_FLOAT, Origin, layer_of, makers, origin
from edgedl.quantize.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, QUANTIZE_WEIGHT
from edgedl.quantize.operators import OPERATORS, Role
from edgedl.quantize.quantizer import enters, has_int8_form, is_float

GRIDS = (QUANTIZE, DEQUANTIZE, QUANTIZE_WEIGHT, DEQUANTIZE_WEIGHT)
HEAVY = (Role.WEIGHTED, Role.MULTIPLIES, Role.LOOKS_UP)
"""What int8 is for; all else follows what it stands behind."""
FENCE = "edgedl-fence"
"""What operators are called that keep LiteRT's converter from carrying grids on."""

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


def without_int8(graph: GraphModule) -> list[Node]:
    """The operators that have no int8 form, in order."""
    return [node for node in graph.graph.nodes if _computes(node) and not has_int8_form(node) and not enters(node)]


def between(graph: GraphModule, floats: Collection[Node]) -> set[Node]:
    """What only moves values from operators of `floats` to others of them or to the outputs: a grid would cost both
    time and accuracy there."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        operator = OPERATORS.get(str(node.target))
        if _computes(node) and operator is not None and operator.role is Role.MOVES:
            sources = [source for source in map(_origin, node.all_input_nodes) if _computes(source)]
            if sources and all(source in floats or source in found for source in sources):
                found.add(node)
    for node in reversed(graph.graph.nodes):
        if node in found and not all(user.op == "output" or user in floats or user in found for user in _readers(node)):
            found.remove(node)
    return found


def mark(graph: GraphModule) -> None:
    """Gives each operator without an int8 form a path of its own, in place: by it, it is found again in files."""
    for node in makers(without_int8(graph)):
        path = f"{layer_of(node)}.{node.name}{IN_FLOAT}".removeprefix(".")
        node.meta["nn_module_stack"] = {**(node.meta.get("nn_module_stack") or {}), path: (path, "")}


def marked(graph: GraphModule) -> dict[str, Origin]:
    """Where the operators come from that `mark` has marked, by their paths."""
    return {path: origin(node) for node in graph.graph.nodes if (path := layer_of(node)).endswith(IN_FLOAT)}


def fenced(graph: GraphModule) -> GraphModule:
    """A copy for LiteRT's converter, which carries grids into operators behind a dequantization, and makes up others.

    It does not beyond a FLOOR: one stands there at each border, by a name that tells that it is to go afterwards.
    Values on several grids, or on none, that are joined in float would all be put on one of them.
    """
    fenced_graph: GraphModule = copy.deepcopy(graph)
    for node in list(fenced_graph.graph.nodes):
        if node.target == DEQUANTIZE:
            behind = [user for user in node.users if user.op == "call_function" and user.target not in GRIDS]
            _fence(node, [user for user in behind if not has_int8_form(user)])
        elif str(node.target) in JOINS and not all(user.target == QUANTIZE for user in node.users):
            for source in [source for source in node.all_input_nodes if _is_moved(source)]:
                _fence(source, [node])
    fenced_graph.recompile()
    return fenced_graph


JOINS = ("aten.cat.default", "aten.stack.default")


def _fence(node: Node, readers: Sequence[Node]) -> None:
    """Puts a FLOOR between a value and some of its readers."""
    if readers:
        with node.graph.inserting_after(node):
            fence = node.graph.call_function(torch.ops.aten.floor.default, (node,))
        fence.meta = dict(node.meta) | {"nn_module_stack": {FENCE: (FENCE, "")}}
        for reader in readers:
            reader.replace_input_with(node, fence)


def _is_moved(value: Node) -> bool:
    """Whether a value comes from a grid, and has at most been moved since."""
    while (operator := OPERATORS.get(str(value.target))) is not None and operator.role is Role.MOVES:
        value = value.all_input_nodes[0]
    return bool(value.target == DEQUANTIZE)


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


def _computes(node: Node) -> bool:
    return node.op == "call_function" and node.target not in GRIDS and is_float(node)


def _readers(node: Node) -> list[Node]:
    """What reads a value, behind the nodes that quantize and dequantize it."""
    return [reader for user in node.users for reader in (_readers(user) if user.target in GRIDS else [user])]


def _origin(node: Node) -> Node:
    """What a value is before it is quantized and dequantized."""
    while node.target in GRIDS:
        node = cast("Node", node.args[0])
    return node
