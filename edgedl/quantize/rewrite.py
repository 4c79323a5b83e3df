"""Rewrites an exported network into the operators of the table, computing the same (masked scores all but vanish).

Composite operators are opened into what int8 kernels exist for, and numbers become constants that can have a grid.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from edgedl.quantize.folding import attribute, constant
from edgedl.quantize.operators import ELEMENTWISE

aten = torch.ops.aten


def rewrite(program: ExportedProgram) -> GraphModule:
    """The graph of `program` in operators of the table as far as they are known here; the others stay as they are."""
    graph = cast("GraphModule", program.run_decompositions(cast("Any", DECOMPOSITIONS)).module())
    graph.meta[REWRITES] = _told(program.graph, graph.graph)
    _drop_clones(graph)
    _fold_constants(graph)
    _fold_per_sample(graph)
    _restore_batch_norms(graph)
    _drop_flattening(graph)
    _join_rms_norms(graph)
    _drop_softmax_of_one(graph)
    _lift_numbers(graph)
    _join_pads(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _told(before: Graph, after: Graph) -> dict[str, int]:
    """What the decompositions have done: operators that were there and are not any more."""
    counts = [Counter(str(node.target) for node in graph.nodes) for graph in (before, after)]
    found: Counter[str] = Counter()
    for name, words in IN_WORDS.items():
        found[words] += max(counts[0][name] - counts[1][name], 0)
    return {words: places for words, places in found.items() if places}


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Scaled dot-product attention as two products and a softmax, each with a grid of its own."""
    if enable_gqa:
        return NotImplemented
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))  # a dense layer before can take the factor in
    if is_causal or attn_mask is not None:
        size = (query.shape[-2], key.shape[-2])
        allowed = torch.ones(size, dtype=torch.bool).tril() if attn_mask is None else attn_mask
        mask = allowed.clamp(min=MASKED) if allowed.is_floating_point() else torch.where(allowed, 0.0, MASKED)
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, -1), value)


MASKED = -16.0
"""What a masked score is lowered by: e^-16 is a ten-millionth, int8 has no code for minus infinity, and a grid has to
span it."""


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def _mish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tanh(torch.nn.functional.softplus(x))


def _log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return -torch.nn.functional.softplus(-x)


def _glu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    values, gate = x.chunk(2, dim)
    return values * torch.sigmoid(gate)


def _absolute(x: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x, -x) if x.is_floating_point() else NotImplemented


def _least(x: torch.Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> torch.Tensor:
    return -torch.amax(-x, list(dim), keepdim) if x.is_floating_point() else NotImplemented


def _reciprocal(x: torch.Tensor) -> torch.Tensor:
    return torch.ones((), dtype=x.dtype) / x if x.is_floating_point() else NotImplemented


def _clamp_min(x: torch.Tensor, low: float) -> torch.Tensor:
    return torch.clamp(x, min=low)


def _split(x: torch.Tensor, size: int, dim: int = 0) -> list[torch.Tensor]:
    whole = x.shape[dim]
    return [x.narrow(dim, start, min(size, whole - start)) for start in range(0, whole, size)]


def _split_with_sizes(x: torch.Tensor, sizes: Sequence[int], dim: int = 0) -> list[torch.Tensor]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]


def _unbind(x: torch.Tensor, dim: int = 0) -> list[torch.Tensor]:
    return [x.select(dim, index) for index in range(x.shape[dim])]


def _average_pool(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """A depthwise convolution with equal weights: pooling kernels must keep their input's scale, and round twice."""
    height, width = kernel if len(kernel) == 2 else (kernel[0], kernel[0])
    channels, sides = x.shape[1], x.shape[2:]
    strides = list(stride) or [height, width]
    paddings = [padding[0], padding[-1]]
    is_all = (height, width) == tuple(sides) or (ceil_mode and height >= sides[0] and width >= sides[1])
    if not any(paddings) and is_all and not divisor_override:
        return x.mean((2, 3), keepdim=True)  # the window ends where the image does
    if divisor_override or (
        ceil_mode
        and any(
            (side + 2 * pad - size) % step
            for side, pad, size, step in zip(sides, paddings, (height, width), strides, strict=True)
        )
    ):
        return NotImplemented
    weight = torch.full((channels, 1, height, width), 1 / (height * width), dtype=x.dtype)
    pooled = torch.conv2d(x, weight, None, strides, paddings, [1, 1], channels)
    if count_include_pad or not any(paddings):
        return pooled
    inside = torch.conv2d(torch.ones((1, 1, *sides), dtype=x.dtype), weight[:1], None, strides, paddings)
    return pooled * (1 / inside)


def _padded_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: str = "valid",
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> torch.Tensor:
    """With numbers for the words "same" and "valid", which litert-torch does not take for sequences."""
    total = dilation[0] * (weight.shape[-1] - 1) if padding == "same" else 0
    if total % 2:
        x = torch.nn.functional.pad(x, (total // 2, total - total // 2))
    return torch.conv1d(x, weight, bias, list(stride), [0 if total % 2 else total // 2], list(dilation), groups)


def _transposed(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Any:
    """Each group by itself: a grouped weight has no dimension of all its output channels, to scale them one by one."""
    if groups == 1:
        return NotImplemented
    operator = aten.conv_transpose1d.default if weight.ndim == 3 else aten.conv_transpose2d.input
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = zip(x.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
    return torch.cat([operator(*part, stride, padding, output_padding, 1, dilation) for part in parts], 1)


def _bilinear(x: torch.Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None) -> Any:
    """Doubling as a depthwise convolution over repeated pixels; other factors stay as they are.

    Resizing kernels must keep their input's scale, where the means of two codes are ties.
    """
    height, width = x.shape[-2:]
    target = [int(side * scale) for side, scale in zip((height, width), scales, strict=True)] if scales else size
    if align_corners or list(target or ()) != [2 * height, 2 * width]:
        return NotImplemented
    doubled = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    for dim in (2, 3):
        last = 2 * x.shape[dim] - 1
        doubled = torch.cat([doubled.narrow(dim, 0, 1), doubled, doubled.narrow(dim, last, 1)], dim)
    line = torch.full((3,), 0.25, dtype=x.dtype) * (1 + (torch.arange(3) == 1))
    weight = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    return torch.conv2d(doubled, weight, None, [1, 1], [0, 0], [1, 1], x.shape[1])


def _dense(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """With the weight as dense layers have it."""
    return torch.nn.functional.linear(x, weight.t(), bias) if beta == alpha == 1 and bias.ndim == 1 else NotImplemented


def _einsum(equation: str, operands: Sequence[torch.Tensor], path: Sequence[int] | None = None) -> Any:
    """A product of matrices in a batch; other sums over indices stay as they are."""
    terms, _, result = equation.replace(" ", "").partition("->")
    left, _, right = terms.partition(",")
    batch = [index for index in result if index in left and index in right]
    sides = [[index for index in side if index not in batch] for side in (left, right, result)]
    rows, columns = ([index for index in sides[2] if index in side] for side in (left, right))
    summed = [index for index in sides[0] if index in right]
    is_product = len(rows) == len(columns) == len(summed) == 1 and len(operands) == 2
    if not is_product or [len(side) for side in sides] != [2, 2, 2] or not (left + right + result).isalpha():
        return NotImplemented
    wanted = ((left, batch + rows + summed), (right, batch + summed + columns))
    matrices = [
        operand.permute([indices.index(index) for index in order])
        for operand, (indices, order) in zip(operands, wanted, strict=True)
    ]
    made = batch + rows + columns
    return torch.matmul(*matrices).permute([made.index(index) for index in result])


def _power(x: torch.Tensor, exponent: float) -> Any:
    """Whole powers as products."""
    if exponent == 2:
        return x * x
    return x * x * x if exponent == 3 else NotImplemented


def _adaptive_pool(x: torch.Tensor, size: Sequence[int]) -> Any:
    """Windows of one size are those of an average pooling; one over all is a mean, which kernels have."""
    height, width = x.shape[2:]
    if list(size) == [1, 1] or height % size[0] or width % size[1]:
        return NotImplemented
    return _average_pool(x, [height // size[0], width // size[1]])


def _pool_to_one(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return x.mean(-1, keepdim=True) if list(size) == [1] else NotImplemented


def _instance_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> torch.Tensor:
    return torch.nn.functional.group_norm(x, x.shape[1], weight, bias, eps) if use_input_stats else NotImplemented


def _reversed_difference(x: torch.Tensor, number: float, alpha: float = 1) -> torch.Tensor:
    return torch.sub(torch.full((), number, dtype=x.dtype), x, alpha=alpha)


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: _attention,
    aten.silu.default: _silu,
    aten.mish.default: _mish,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.glu.default: _glu,
    aten.abs.default: _absolute,
    aten.amin.default: _least,
    aten.reciprocal.default: _reciprocal,
    aten.clamp_min.default: _clamp_min,
    aten.adaptive_avg_pool2d.default: _adaptive_pool,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.unbind.int: _unbind,
    aten.conv1d.padding: _padded_conv1d,
    aten.avg_pool2d.default: _average_pool,
    aten.conv_transpose1d.default: _transposed,
    aten.conv_transpose2d.input: _transposed,
    aten.upsample_bilinear2d.vec: _bilinear,
    aten.adaptive_avg_pool1d.default: _pool_to_one,
    aten.instance_norm.default: _instance_norm,
    aten.rsub.Scalar: _reversed_difference,
    aten.addmm.default: _dense,
    aten.einsum.default: _einsum,
    aten.pow.Tensor_Scalar: _power,
}

REWRITES = "edgedl_rewrites"
"""Under which a graph's `meta` tells what was rewritten in it: in words, and in how many places."""
IN_WORDS = {
    "aten.scaled_dot_product_attention.default": "attention opened into products and softmax",
    "aten.silu.default": "SiLU opened into sigmoid and product",
    "aten.mish.default": "Mish opened into softplus, tanh and product",
    "aten.log_sigmoid.default": "log-sigmoid opened into softplus and sign",
    "aten.glu.default": "GLU opened into sigmoid and product",
    "aten.abs.default": "absolute value opened into maximum and sign",
    "aten.amin.default": "minimum over a dimension opened into maximum and signs",
    "aten.reciprocal.default": "reciprocal opened into division",
    "aten.clamp_min.default": "one-sided clamp made a clamp",
    "aten.avg_pool2d.default": "average pooling made a depthwise convolution",
    "aten.adaptive_avg_pool1d.default": "adaptive pooling made a mean",
    "aten.adaptive_avg_pool2d.default": "adaptive pooling made a depthwise convolution",
    "aten.upsample_bilinear2d.vec": "bilinear doubling made a depthwise convolution",
    "aten.instance_norm.default": "instance norm made a group norm",
    "aten.pow.Tensor_Scalar": "power opened into products",
}
"""What `DECOMPOSITIONS` do, where a person would look for the operator in vain."""

NORM = "aten._native_batch_norm_legit_no_training.default"
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


def _fold_per_sample(graph: GraphModule) -> None:
    """Makes constants of what depends on the number of samples alone and is the same for each.

    Such are the masks and positions that libraries compute anew at every call. A sum with a mask that masks nothing
    goes; one that does masks as `_attention` does.
    """
    few, more = (_evaluated(graph, num_samples) for num_samples in (2, 3))
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
                made = constant(graph, f"{user.name}_of_each", sample.clamp(min=MASKED) if is_mask else sample)
            user.replace_input_with(node, made)


def _evaluated(graph: GraphModule, num_samples: int) -> dict[Node, Any]:
    """The values for so many samples of all nodes that depend on nothing else."""
    found: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.target is aten.sym_size.int and isinstance(value, torch.SymInt):
            size = value.node.expr
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


def _restore_batch_norms(graph: GraphModule) -> None:
    """Makes one node again of what functionalization made of a batch norm."""
    for node in list(graph.graph.nodes):
        if str(node.target) == NORM:
            (result,) = node.users  # the statistics beside it are asked for in training only
            momentum, epsilon = node.args[5:7]
            with graph.graph.inserting_before(node):
                made = graph.graph.call_function(
                    aten.batch_norm.default, (*node.args[:5], False, momentum, epsilon, False)
                )
            made.meta = dict(result.meta)
            result.replace_all_uses_with(made)
            graph.graph.erase_node(result)
            graph.graph.erase_node(node)


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
