"""Layers out of an exported graph: of functions of tensors, modules that can be trained, pruned and quantized again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

ATEN = torch.ops.aten
SAME = {ATEN.add_.Tensor: ATEN.add.Tensor, ATEN.sub_.Tensor: ATEN.sub.Tensor, ATEN.mul_.Tensor: ATEN.mul.Tensor,
        ATEN.div_.Tensor: ATEN.div.Tensor, ATEN.relu_.default: ATEN.relu.default,
        ATEN.subtract.Tensor: ATEN.sub.Tensor, ATEN.multiply.Tensor: ATEN.mul.Tensor,
        ATEN.divide.Tensor: ATEN.div.Tensor}  # fmt: skip
"""Operators under other names, or in place, which in a graph makes no difference where nobody else reads the value."""
NOTHING = {ATEN.to.dtype, ATEN.to.dtype_layout, ATEN.contiguous.default, ATEN.lift_fresh_copy.default,
           ATEN.detach.default, ATEN.detach_.default, ATEN.clone.default, ATEN.alias.default}  # fmt: skip
"""What leaves values as they are, if it leaves their type."""
CHANNELS_LAST = {3: [0, 2, 1], 4: [0, 2, 3, 1], 5: [0, 2, 3, 4, 1]}
CONVOLUTIONS = {ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default}

ELEMENTWISE = {
    ATEN.relu.default, ATEN.relu6.default, ATEN.sigmoid.default, ATEN.tanh.default, ATEN.silu.default,
    ATEN.gelu.default, ATEN.leaky_relu.default, ATEN.elu.default, ATEN.hardswish.default, ATEN.hardsigmoid.default,
    ATEN.hardtanh.default, ATEN.clamp.default, ATEN.add.Tensor, ATEN.mul.Tensor, ATEN.sub.Tensor,
}  # fmt: skip


def layers(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph with layers in place of the functions that they are; it can be set to training.

    Products and sums of channels that follow a convolution or dense layer, as batch norms are in some frameworks,
    go into its weights.
    """
    _tidy(module)
    _fold_constants(module)
    _multiply_out(module)
    _sink_permutes(module.graph)
    graph, uses = module.graph, Counter[str]()
    for node in graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] += len(node.users)
    for node in list(graph.nodes):
        found = _layer(module, node) if node.op == "call_function" else None
        if found is None:
            continue
        layer, tensors = found
        if any(uses[str(tensor.target)] > 1 for tensor in tensors.values()):
            continue
        path = _put(module, layer, {name: str(tensor.target) for name, tensor in tensors.items()}, node.name)
        given = next(arg for arg in node.all_input_nodes if arg not in tensors.values())
        with graph.inserting_before(node):
            called = graph.call_module(path, (given,))
        called.meta = node.meta
        node.replace_all_uses_with(called)
        graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        # Counters of batch norms are read and never used.
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(module, graph)


def _tidy(module: fx.GraphModule) -> None:
    """Without assertions, and what does nothing or goes under another name."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target == ATEN._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in NOTHING and _dtype(node) == _dtype(node.args[0]) is not None:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
        elif node.target in SAME and len(node.args[0].users) == 1:
            node.target = SAME[node.target]


def _dtype(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, torch.Tensor) else None


def _fold_constants(module: fx.GraphModule) -> None:
    """Makes a parameter of what is computed from others alone, as where weights are kept in another order."""
    for node in list(module.graph.nodes):
        inner = node.all_input_nodes
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not inner:
            continue
        if any(value.op != "get_attr" for value in inner):
            continue
        tensors = {value: _tensor(module, str(value.target)) for value in inner}
        with torch.no_grad():
            args, kwargs = (fx.map_arg(given, tensors.__getitem__) for given in (node.args, node.kwargs))
            value = node.target(*args, **kwargs)
        if not isinstance(value, torch.Tensor) or value.numel() > max(tensor.numel() for tensor in tensors.values()):
            continue
        _replace(module, node, value)


def _replace(module: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> fx.Node:
    """Puts a constant in place of a node."""
    stored = _stored(module, node, value)
    stored.meta = dict(node.meta)
    node.replace_all_uses_with(stored)
    module.graph.erase_node(node)
    return stored


def _stored(module: fx.GraphModule, before: fx.Node, value: torch.Tensor) -> fx.Node:
    """A constant of the graph, to be read in front of a node."""
    name = f"constant_{before.name}"
    while hasattr(module, name):
        name += "_"
    kept = value.detach().clone(memory_format=torch.contiguous_format)
    if kept.is_floating_point():
        module.register_parameter(name, nn.Parameter(kept))
    else:
        module.register_buffer(name, kept)
    with module.graph.inserting_before(before):
        return module.graph.get_attr(name)


def _multiply_out(module: fx.GraphModule) -> None:
    """Puts the factors and offsets of channels behind a convolution or dense layer into its weight and bias."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target == ATEN.matmul.default and node.args[1].op == "get_attr":
            weight = _tensor(module, str(node.args[1].target))
            if weight.ndim == 2:
                node.target, node.args = ATEN.linear.default, (node.args[0], _stored(module, node, weight.T), None)
        is_dense = node.target == ATEN.linear.default
        if not is_dense and node.target not in CONVOLUTIONS:
            continue
        x, weight_node, bias_node, *rest = (*node.args, None)[: max(3, len(node.args))]
        if weight_node.op != "get_attr" or len(weight_node.users) > 1 or (bias_node and len(bias_node.users) > 1):
            continue
        weight = _tensor(module, str(weight_node.target))
        width, last = len(weight), node
        if not is_dense:
            if len(node.users) != 1:
                continue
            last = next(iter(node.users))
            if last.target != ATEN.permute.default or list(last.args[1]) != CHANNELS_LAST[weight.ndim]:
                continue
        factor, offset, chain = torch.ones(width), torch.zeros(width), list[fx.Node]()
        while len(last.users) == 1:
            after = next(iter(last.users))
            constant = _channels(module, after, last, width)
            if constant is None:
                break
            if after.target == ATEN.mul.Tensor:
                factor, offset = factor * constant, offset * constant
            elif after.target == ATEN.add.Tensor:
                offset = offset + constant
            else:
                offset = offset - constant
            chain.append(after)
            last = after
        if not chain:
            continue
        bias = torch.zeros(width) if bias_node is None else _tensor(module, str(bias_node.target))
        shape = (-1, *(1,) * (weight.ndim - 1))
        new_weight = _stored(module, node, weight * factor.reshape(shape))
        new_bias = _stored(module, node, bias * factor + offset)
        node.args = (x, new_weight, new_bias, *rest)
        first = chain[0].all_input_nodes[0] if chain[0].all_input_nodes[0].op != "get_attr" else chain[0].args[1]
        assert isinstance(first, fx.Node)
        chain[-1].replace_all_uses_with(first)
        for absorbed in reversed(chain):
            graph.erase_node(absorbed)


def _sink_permutes(graph: fx.Graph) -> None:
    """Has a permutation after what comes behind it, value by value, so that it meets the next and both go.

    Frameworks that keep channels last have two around each layer; an activation belongs to the layer before it.
    """
    moved = True
    while moved:
        moved = False
        for node in list(graph.nodes):
            given = [value for value in node.all_input_nodes if value.op != "get_attr"]
            if not given or len(given) != len(node.all_input_nodes):
                continue
            if any(value.target != ATEN.permute.default for value in given):
                continue
            dims = [tuple(value.args[1]) for value in given]
            if node.target == ATEN.permute.default and [dims[0][dim] for dim in node.args[1]] == [*range(len(dims[0]))]:
                node.replace_all_uses_with(given[0].all_input_nodes[0])
            elif node.target in ELEMENTWISE and len({*dims}) == 1 and all(len(value.users) == 1 for value in given):
                for value in given:
                    node.replace_input_with(value, value.all_input_nodes[0])
                with graph.inserting_after(node):
                    later = graph.call_function(ATEN.permute.default, (node, [*dims[0]]))
                later.meta = dict(node.meta)
                node.replace_all_uses_with(later, delete_user_cb=lambda user, later=later: user is not later)
            else:
                continue
            moved = True
            for old in (node, *given):
                if not old.users and old.op == "call_function":
                    graph.erase_node(old)


def _channels(module: fx.GraphModule, node: fx.Node, value: fx.Node, width: int) -> torch.Tensor | None:
    """What a product, sum or difference does to each channel, which lie last in `value`, (C,); None for another."""
    if node.target not in (ATEN.mul.Tensor, ATEN.add.Tensor, ATEN.sub.Tensor) or node.kwargs:
        return None
    one, other = node.args
    if one is not value and node.target != ATEN.sub.Tensor:
        one, other = other, one
    if one is not value or not isinstance(other, fx.Node) or other.op != "get_attr":
        return None
    tensor = _tensor(module, str(other.target))
    fits = tensor.numel() in (1, width) and tensor.shape[-1:].numel() == tensor.numel()
    return tensor.reshape(-1).expand(width) if fits and tensor.ndim <= value.meta["val"].ndim else None


def _put(module: nn.Module, layer: nn.Module, tensors: Mapping[str, str], name: str) -> str:
    """Puts a layer with the tensors of the graph where they were, if that is one place, and says where it is."""
    layer.load_state_dict({role: _tensor(module, target) for role, target in tensors.items()}, strict=False)
    folders = {target.rpartition(".")[0] for role, target in tensors.items() if target.rpartition(".")[2] == role}
    path = next(iter(folders)) if len(folders) == 1 else ""
    if not path:
        path = name
        while hasattr(module, path):
            path += "_"
    parent, _, own = path.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)
    return path


def _tensor(module: nn.Module, path: str) -> torch.Tensor:
    parent, _, name = path.rpartition(".")
    found: torch.Tensor = getattr(module.get_submodule(parent), name)
    return found.detach()


ROLES = ("weight", "bias", "running_mean", "running_var")


def _layer(module: nn.Module, node: fx.Node) -> tuple[nn.Module, dict[str, fx.Node]] | None:
    """The layer behind a call of one of ATen's functions, and its tensors by their names there; None if it is none."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema, given = node.target._schema, dict[str, Any]()
    for position, argument in enumerate(schema.arguments):
        value = node.args[position] if position < len(node.args) else argument.default_value
        given[argument.name] = node.kwargs.get(argument.name, value)
    name = schema.name.removeprefix("aten::")
    weight = given.get("weight")
    shape = None
    if isinstance(weight, fx.Node):
        if weight.op != "get_attr":
            return None
        shape = _tensor(module, str(weight.target)).shape
    tensors = {name: given[name] for name in ROLES if isinstance(given.get(name), fx.Node)}
    inputs = [value for value in node.all_input_nodes if value not in tensors.values()]
    if any(tensor.op != "get_attr" for tensor in tensors.values()) or len(inputs) != 1:
        return None
    layer = _made(name, given, shape)
    return None if layer is None else (layer, tensors)


def _made(name: str, given: Mapping[str, Any], shape: torch.Size | None) -> Any:
    bias = given.get("bias") is not None
    convolution = {key: given.get(key) for key in ("stride", "padding", "dilation", "groups")}
    if any(isinstance(value, fx.Node) for value in convolution.values()):
        return None
    if shape is not None and name in ("conv1d", "conv2d", "conv3d"):
        kind: Any = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}[name]
        return kind(shape[1] * given["groups"], shape[0], tuple(shape[2:]), bias=bias, **_tuples(convolution))
    if shape is not None and name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        transposed: Any = {"1": nn.ConvTranspose1d, "2": nn.ConvTranspose2d, "3": nn.ConvTranspose3d}[name[14]]
        more = _tuples({**convolution, "output_padding": given["output_padding"]})
        return transposed(shape[0], shape[1] * given["groups"], tuple(shape[2:]), bias=bias, **more)
    if shape is not None and name == "linear":
        return nn.Linear(shape[1], shape[0], bias=bias)
    if shape is not None and name == "batch_norm" and given["running_mean"] is not None and not given["training"]:
        ndim = given["input"].meta["val"].ndim
        norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[ndim]
        return norm(shape[0], eps=given["eps"], momentum=given["momentum"])
    if shape is not None and name == "layer_norm":
        return nn.LayerNorm(tuple(shape), eps=given["eps"], bias=bias)
    if shape is not None and name == "rms_norm":
        return nn.RMSNorm(tuple(shape), eps=given["eps"])
    if shape is not None and name == "group_norm":
        return nn.GroupNorm(given["num_groups"], shape[0], eps=given["eps"])
    if shape is not None and name == "embedding":
        return nn.Embedding(shape[0], shape[1])
    if name == "dropout":
        return nn.Dropout(given["p"])
    return None


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in given.items()}
