"""Rewrites an exported network into the operators of the table, computing the same (masked scores all but vanish).

Composite operators are opened first (`opening.py`); then passes over the graph fold, join and drop nodes, and
make constants of numbers, which can have a grid.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgedl.quantize.folding import attribute, constant
from edgedl.quantize.opening import opened
from edgedl.quantize.operators import ELEMENTWISE

aten = torch.ops.aten


def rewrite(program: ExportedProgram, masked: float) -> GraphModule:
    """The graph of `program` in operators of the table as far as they are known here; the others stay as they are.

    Masked scores are lowered by `masked`, which is below zero.
    """
    graph, graph.meta[REWRITES] = opened(program, masked)
    _drop_clones(graph)
    _fold_constants(graph)
    _fold_per_sample(graph, masked)
    _drop_flattening(graph)
    _join_rms_norms(graph)
    _drop_softmax_of_one(graph)
    _drop_mean_of_one(graph)
    _lift_numbers(graph)
    _join_pads(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


REWRITES = "edgedl_rewrites"
"""Under which a graph's `meta` tells what was rewritten in it: in words, and in how many places."""
BOUNDED = {"aten.clamp.default", "aten.hardtanh.default"}


def _drop_clones(graph: GraphModule) -> None:
    """Removes copies, among them dropouts; what they made contiguous is not any more, hence no views.

    And what only checks types, which would keep alive what it checks.
    """
    for node in list(graph.graph.nodes):
        if str(node.target) == "aten._assert_tensor_metadata.default":
            graph.graph.erase_node(node)
        elif str(node.target) == "aten.clone.default":
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif str(node.target) in ("aten.view.default", "aten._unsafe_view.default"):
            node.target = aten.reshape.default


def _fold_constants(graph: GraphModule) -> None:
    """Computes what depends on no input: masks, grids of positions, and the weights of a pooling."""
    fixed: dict[Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            fixed[node] = attribute(graph, str(node.target))
        elif node.op == "call_function" and _holds_tensors(node.meta.get("val")):
            if _is_random(node) or not all(source in fixed for source in node.all_input_nodes):
                continue
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), fixed.__getitem__)
            with torch.no_grad():
                value = node.target(*args, **kwargs)
            if not isinstance(value, torch.Tensor):  # several tensors, which are taken out of it one by one
                fixed[node] = value
                continue
            with graph.graph.inserting_before(node):
                made = constant(
                    graph, f"{node.name}_folded", value.detach().clone(memory_format=torch.contiguous_format)
                )
            node.replace_all_uses_with(made)
            graph.graph.erase_node(node)
            fixed[made] = attribute(graph, str(made.target))


def _holds_tensors(value: Any) -> bool:
    several = value if isinstance(value, list | tuple) else [value]
    return bool(several) and all(isinstance(one, torch.Tensor) for one in several)


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _fold_per_sample(graph: GraphModule, masked: float) -> None:
    """Makes constants of what depends on the number of samples alone and is the same for each.

    Such are the masks and positions that libraries compute anew at every call. A sum with a mask that masks nothing
    goes; one that does masks as opened attention does.
    """
    samples = _samples(graph)
    few, more = (_evaluated(graph, samples, num_samples) for num_samples in (2, 3))
    for node, value in few.items():
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or node not in more:
            continue
        if value.ndim < 2 or (len(value), len(more[node])) != (2, 3):
            continue
        sample = value[:1].clone()
        if not all(torch.equal(sample.expand_as(every), every) for every in (value, more[node])):
            continue
        for user in [user for user in node.users if user not in few and _spreads_samples(user, node)]:
            (other,) = (source for source in user.all_input_nodes if source is not node)
            is_sum = str(user.target) == "aten.add.Tensor"
            if is_sum and not sample.any() and user.meta["val"].shape == other.meta["val"].shape:
                user.replace_all_uses_with(other)
                graph.graph.erase_node(user)
                continue
            is_mask = is_sum and all(str(reader.target) == "aten.softmax.int" for reader in user.users)
            with graph.graph.inserting_before(user):
                made = constant(graph, f"{user.name}_of_each", sample.clamp(min=masked) if is_mask else sample)
            user.replace_input_with(node, made)


def _samples(graph: GraphModule) -> set[Any]:
    """The symbol, or symbols, that stand for the number of samples."""
    shapes = [node.meta["val"].shape for node in graph.graph.nodes if node.op == "placeholder" and "val" in node.meta]
    return {
        symbol for shape in shapes if isinstance(shape[0], torch.SymInt) for symbol in shape[0].node.expr.free_symbols
    }


def _evaluated(graph: GraphModule, samples: set[Any], num_samples: int) -> dict[Node, Any]:
    """The values for so many samples of all nodes that depend on nothing else."""
    found: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.target is aten.sym_size.int and isinstance(value, torch.SymInt):
            size = value.node.expr
            if size.free_symbols <= samples:
                found[node] = int(size.subs(dict.fromkeys(size.free_symbols, num_samples)))
        elif node.op == "get_attr":
            found[node] = attribute(graph, str(node.target))
        elif node.op == "call_function" and isinstance(value, torch.Tensor | torch.SymInt):
            if _is_random(node) or not all(source in found for source in node.all_input_nodes):
                continue
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
            with torch.no_grad():
                found[node] = node.target(*args, **kwargs)
    return found


def _spreads_samples(user: Node, source: Node) -> bool:
    """Whether one sample's worth of `source` does in `user`, where the other operand has all samples."""
    others = [other for other in user.all_input_nodes if other is not source]
    if str(user.target) not in ELEMENTWISE or len(others) != 1:
        return False
    shapes = [node.meta["val"].shape for node in (user, source, others[0])]
    return len({len(shape) for shape in shapes}) == 1 and shapes[0][0] == shapes[2][0]


def _join_pads(graph: GraphModule) -> None:
    """Lets convolutions pad with zeros themselves what is padded alike on both sides before them."""
    for node in list(graph.graph.nodes):
        if str(node.target) != "aten.conv2d.default" or not isinstance(node.args[0], Node):
            continue
        pad = node.args[0]
        if str(pad.target) != "aten.pad.default":
            continue
        amounts, mode, value = cast("Any", (*pad.args[1:], *("constant", 0.0)[len(pad.args) - 2 :]))
        left, right, top, bottom = (*amounts, 0, 0)[:4]
        if len(amounts) > 4 or mode != "constant" or value:
            continue
        if left != right or top != bottom or min(left, top) < 0:
            continue
        args: list[Any] = [*node.args, *(None, [1, 1], [0, 0])[len(node.args) - 2 :]]
        args[4] = [args[4][0] + top, args[4][-1] + left]
        node.args = (pad.args[0], *args[1:])


def _drop_flattening(graph: GraphModule) -> None:
    """Lets dense layers take values over several places as they are, without a reshape before and behind.

    A reshape between a layer and its activation keeps the two from one kernel in the simulation, but not in a file.
    """
    for node in list(graph.graph.nodes):
        flat = node.args[0] if str(node.target) == "aten.linear.default" else None
        if not isinstance(flat, Node) or str(flat.target) != "aten.reshape.default":
            continue
        source, users = cast("Node", flat.args[0]), list(node.users)
        places, features = source.meta["val"].shape[:-1], node.meta["val"].shape[-1]
        is_flat = flat.meta["val"].shape[-1] == source.meta["val"].shape[-1]
        if (
            is_flat
            and users
            and all(
                str(user.target) == "aten.reshape.default" and user.meta["val"].shape == (*places, features)
                for user in users
            )
        ):
            node.replace_input_with(flat, source)
            node.meta["val"] = users[0].meta["val"]
            for user in users:
                user.replace_all_uses_with(node)


def _join_rms_norms(graph: GraphModule) -> None:
    """Makes one node of a product with the inverse root of a mean of squares, and of the factor behind it.

    Squares span twice as many powers of two as what they are made of: none of the steps between fits into 8 bits.
    """
    for node in list(graph.graph.nodes):
        if str(node.target) == "aten.mul.Tensor" and (found := _inverse_root_mean_square(node)) is not None:
            source, epsilon = found
            factor, last = _factor_behind(graph, node)
            with graph.graph.inserting_before(last):
                args = (source, [source.meta["val"].shape[-1]], factor, epsilon)
                made = graph.graph.call_function(aten.rms_norm.default, args)
            made.meta = dict(node.meta)
            last.replace_all_uses_with(made)


def _inverse_root_mean_square(product: Node) -> tuple[Node, float] | None:
    """x and epsilon of x * rsqrt(mean(x * x) + epsilon) over the last dimension; None for other products."""
    for source, root in (product.args[:2], product.args[1::-1]):
        if not isinstance(source, Node) or not isinstance(root, Node) or str(root.target) != "aten.rsqrt.default":
            continue
        total = cast("Node", root.args[0])
        if str(total.target) != "aten.add.Tensor" or not isinstance(total.args[1], int | float) or total.kwargs:
            continue
        mean = cast("Node", total.args[0])
        if not isinstance(mean, Node) or str(mean.target) != "aten.mean.dim" or len(mean.args) < 3 or mean.kwargs:
            continue
        square, last = cast("Node", mean.args[0]), source.meta["val"].ndim - 1
        is_over_last = mean.args[1] in ([-1], [last]) and bool(mean.args[2])
        if is_over_last and str(square.target) == "aten.mul.Tensor" and square.args[:2] == (source, source):
            return source, float(total.args[1])
    return None


def _factor_behind(graph: GraphModule, norm: Node) -> tuple[Node | None, Node]:
    """The constant for each feature that a result is multiplied by, if that is all it is for, and the last node."""
    users = list(norm.users)
    if len(users) == 1 and str(users[0].target) == "aten.mul.Tensor":
        for factor in users[0].all_input_nodes:
            features = norm.meta["val"].shape[-1:]
            if factor.op == "get_attr" and attribute(graph, str(factor.target)).shape == features:
                return factor, users[0]
    return None, norm


def _drop_softmax_of_one(graph: GraphModule) -> None:
    """Takes out every softmax over a single value, which is 1: onnxruntime's int8 kernel makes 0 of it.

    Attention has such where all that is left of an image is one place; there the values are what it gives.
    """
    for node in list(graph.graph.nodes):
        if str(node.target) != "aten.softmax.int" or node.meta["val"].shape[node.args[1]] != 1:
            continue
        for user in list(node.users):
            is_product = str(user.target) in ("aten.matmul.default", "aten.bmm.default") and user.args[0] is node
            if is_product and user.meta["val"].shape == user.args[1].meta["val"].shape:
                user.replace_all_uses_with(user.args[1])
                graph.graph.erase_node(user)
        node.target, node.args = aten.clamp.default, (node.args[0], 1.0, 1.0)


def _drop_mean_of_one(graph: GraphModule) -> None:
    """Takes out every mean over a single value, which is that value: a grid of its own would only cost accuracy."""
    for node in list(graph.graph.nodes):
        if str(node.target) not in ("aten.mean.dim", "aten.adaptive_avg_pool2d.default") or node.kwargs:
            continue
        value, axes, keeps = node.args[0], node.args[1], any(node.args[2:])
        if str(node.target) == "aten.adaptive_avg_pool2d.default":
            axes, keeps = (2, 3), True
        if not axes or "val" not in value.meta or any(value.meta["val"].shape[axis] != 1 for axis in axes):
            continue
        if node.meta["val"].shape == value.meta["val"].shape:
            node.replace_all_uses_with(value)
            graph.graph.erase_node(node)
        elif not keeps:
            node.target, node.args = aten.squeeze.dims, (value, axes)


def _lift_numbers(graph: GraphModule) -> None:
    """Makes constants of the numbers in sums and products, and products of divisions by constants."""
    for node in list(graph.graph.nodes):
        if str(node.target) in BOUNDED:  # the ONNX exporter makes tensors of bounds of two types
            node.args = tuple(float(bound) if isinstance(bound, int) else bound for bound in node.args)
        if str(node.target) not in ELEMENTWISE or "val" not in node.meta or not node.meta["val"].is_floating_point():
            continue
        left, right = node.args[:2]
        if not isinstance(right, int | float):
            continue
        number = float(right) * float(node.kwargs.get("alpha", 1))
        if str(node.target) == "aten.div.Tensor":
            node.target, number = aten.mul.Tensor, 1 / number
        elif str(node.target) == "aten.sub.Tensor":
            node.target, number = aten.add.Tensor, -number
        with graph.graph.inserting_before(node):
            node.args = (left, constant(graph, f"{node.name}_number", torch.tensor(number)))
        node.kwargs = {}
