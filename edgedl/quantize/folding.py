"""Factors of an exported graph, multiplied into the weights beside them.

A batch norm goes into the convolution or dense layer before it, the factors and offsets of layer and RMS norms into the
dense layers behind them, and a single number, such as what attention scales by, into the layer before it.
Source of batch norm folding: B. Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch.fx import GraphModule, Node

from edgedl.quantize.operators import OPERATORS, Role

Tensors: TypeAlias = Callable[[str], torch.Tensor]
"""A parameter or buffer by its name."""

BATCH_NORM = torch.ops.aten.batch_norm.default


@dataclass(frozen=True)
class Fold:
    """A batch norm that a weighted operator has taken in; all tensors by their attribute's name.

    `weight` and `bias` are what the operator has in the graph now, the others are what they are made of.
    """

    operator: str
    """The name of the operator's node."""
    weight: str
    bias: str
    own_weight: str
    own_bias: str | None
    scale: str | None
    shift: str | None
    mean: str
    variance: str
    epsilon: float
    momentum: float
    axis: int
    """The output-channel dimension of the weight."""

    def factor(self, tensor: Tensors) -> torch.Tensor:
        """What each output channel is multiplied by, (C,)."""
        inverse = (tensor(self.variance) + self.epsilon).rsqrt()
        return inverse if self.scale is None else inverse * tensor(self.scale)

    def folded_weight(self, tensor: Tensors, factor: torch.Tensor) -> torch.Tensor:
        """In the shape of the operator's own."""
        weight = tensor(self.own_weight)
        shape = [1] * weight.ndim
        shape[self.axis] = -1
        return weight * factor.reshape(shape)

    def folded_bias(self, tensor: Tensors, factor: torch.Tensor) -> torch.Tensor:
        """(C,)."""
        own = -tensor(self.mean) if self.own_bias is None else tensor(self.own_bias) - tensor(self.mean)
        return own * factor if self.shift is None else own * factor + tensor(self.shift)


def fold_batch_norms(graph: GraphModule) -> list[Fold]:
    """Folds every batch norm behind a weighted operator whose result nothing else needs, in place.

    One that stands elsewhere becomes a 1x1 depthwise convolution, or a product and a sum behind a dense layer.
    """
    folds = []
    for norm in list(graph.graph.nodes):
        if norm.target == BATCH_NORM:
            fold = _fold(graph, norm)
            if fold is not None:
                folds.append(fold)
            else:
                _stand_alone(graph, norm)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return folds


def _fold(graph: GraphModule, norm: Node) -> Fold | None:
    source, scale, shift, mean, variance, training, momentum, epsilon = cast("tuple[Any, ...]", norm.args[:8])
    weighted = cast("Any", _behind_reshapes(source))
    operator = OPERATORS.get(str(weighted.target))
    if operator is None or operator.role is not Role.WEIGHTED or len(weighted.users) > 1 or training:
        return None
    # A batch norm works on dimension 1, a dense layer on the last one.
    if str(weighted.target).startswith("aten.linear") and source.meta["val"].ndim != 2:
        return None
    weight = weighted.args[operator.weight]
    bias = weighted.args[operator.bias] if len(weighted.args) > operator.bias else None
    given = (weight, bias, scale, shift, mean, variance)
    if any(one is not None and one.op != "get_attr" for one in given):
        return None
    # Names of its own: the same weight may stand before two batch norms.
    fold = Fold(
        operator=weighted.name,
        weight=f"{weighted.name}_folded_weight",
        bias=f"{weighted.name}_folded_bias",
        own_weight=weight.target,
        own_bias=bias and bias.target,
        scale=scale and scale.target,
        shift=shift and shift.target,
        mean=mean.target,
        variance=variance.target,
        epsilon=epsilon,
        momentum=momentum,
        axis=operator.weight_axis,
    )

    def tensor(name: str) -> torch.Tensor:
        return attribute(graph, name).detach()

    factor = fold.factor(tensor)
    values = fold.folded_weight(tensor, factor), fold.folded_bias(tensor, factor)
    made = []
    with graph.graph.inserting_before(weighted):
        for name, value, like in zip((fold.weight, fold.bias), values, (weight, mean), strict=True):
            graph.register_parameter(name, torch.nn.Parameter(value))
            made.append(graph.graph.get_attr(name))
            made[-1].meta["val"] = like.meta["val"]
    args = list(weighted.args)
    args[operator.weight] = made[0]
    args[operator.bias : operator.bias + 1] = [made[1]]
    weighted.args = tuple(args)
    norm.replace_all_uses_with(source)
    graph.graph.erase_node(norm)
    return fold


def _behind_reshapes(source: Node) -> Node:
    """The dense layer that gives `source`, if only its other dimensions are put together; else `source` itself."""
    node = source
    while str(node.target) == "aten.reshape.default" and len(node.users) == 1:
        before = cast("Node", node.args[0])
        if before.meta["val"].shape[-1] != node.meta["val"].shape[-1]:
            break
        node = before
    return node if str(node.target).startswith("aten.linear") else source


def _stand_alone(graph: GraphModule, norm: Node) -> None:
    source, scale, shift, mean, variance, _, _, epsilon = cast("tuple[Any, ...]", norm.args[:8])
    given = [
        None if node is None else attribute(graph, node.target).detach() for node in (scale, shift, mean, variance)
    ]
    factor = (given[3] + epsilon).rsqrt() * (1 if given[0] is None else given[0])
    offset = (0 if given[1] is None else given[1]) - given[2] * factor
    spatial = source.meta["val"].ndim - 2
    with graph.graph.inserting_before(norm):
        if spatial in (1, 2):
            weight = constant(graph, f"{norm.name}_weight", factor.reshape(-1, 1, *[1] * spatial))
            bias = constant(graph, f"{norm.name}_bias", offset)
            convolution = torch.ops.aten.conv1d.default if spatial == 1 else torch.ops.aten.conv2d.default
            args: tuple[Any, ...] = (source, weight, bias, [1] * spatial, [0] * spatial, [1] * spatial, len(factor))
            made = graph.graph.call_function(convolution, args)
        else:
            args = (source, constant(graph, f"{norm.name}_factor", factor))
            scaled = graph.graph.call_function(torch.ops.aten.mul.Tensor, args)
            scaled.meta = dict(norm.meta)
            args = (scaled, constant(graph, f"{norm.name}_offset", offset))
            made = graph.graph.call_function(torch.ops.aten.add.Tensor, args)
    made.meta = dict(norm.meta)
    norm.replace_all_uses_with(made)
    graph.graph.erase_node(norm)


def fold_factors(graph: GraphModule) -> None:
    """Folds factors and offsets of norms and products with a single number, in place, where layers can take them.

    Runtimes do so themselves in float networks; between the nodes of a quantized one they don't find them.
    """
    for node in list(graph.graph.nodes):
        if str(node.target) in (LAYER_NORM, RMS_NORM):
            _fold_norm(graph, node)
        elif str(node.target) == "aten.mul.Tensor":
            _fold_number(graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _fold_norm(graph: GraphModule, norm: Node) -> None:
    num_given = 2 if str(norm.target) == LAYER_NORM else 1
    source, shape, *rest = cast("Any", norm.args)
    scale, shift = [*rest[:num_given], None, None][:2]
    layers = list(norm.users)
    fits = len(shape) == 1 and all(
        str(layer.target) == "aten.linear.default" and layer.args[0] is norm and _has_constants(layer)
        for layer in layers
    )
    if not layers or not fits or any(given is not None and given.op != "get_attr" for given in (scale, shift)):
        return
    factor, offset = (None if given is None else attribute(graph, given.target).detach() for given in (scale, shift))
    for layer in layers:
        weight, bias = _constants(graph, layer)
        if offset is not None:
            bias = weight @ offset if bias is None else bias + weight @ offset
        _replace_constants(graph, layer, weight if factor is None else weight * factor, bias)
    norm.args = (source, shape, *[None] * num_given, *rest[num_given:])


LAYER_NORM, RMS_NORM = "aten.layer_norm.default", "aten.rms_norm.default"
"""The first has a factor and an offset for each feature, the second a factor alone."""


def _fold_number(graph: GraphModule, product: Node) -> None:
    number, source = product.args[1], cast("Node", product.args[0])
    if not isinstance(number, Node) or number.op != "get_attr" or attribute(graph, str(number.target)).numel() != 1:
        return
    while (operator := OPERATORS.get(str(source.target))) is not None and len(source.users) == 1:
        if operator.role is Role.WEIGHTED and _has_constants(source):
            weight, bias = _constants(graph, source)
            factor = attribute(graph, str(number.target)).detach().reshape(())
            _replace_constants(graph, source, weight * factor, None if bias is None else bias * factor)
            product.replace_all_uses_with(cast("Node", product.args[0]))
            graph.graph.erase_node(product)
            return
        behind = source.args[0]
        if operator.role is not Role.MOVES or not isinstance(behind, Node) or str(source.target) in FILLS:
            return
        source = behind


FILLS = {"aten.pad.default"}
"""Operators that move, and add values of their own."""


def _has_constants(layer: Node) -> bool:
    operator = OPERATORS[str(layer.target)]
    given = [layer.args[index] for index in (operator.weight, operator.bias) if index < len(layer.args)]
    return all(one is None or cast("Node", one).op == "get_attr" for one in given)


def _constants(graph: GraphModule, layer: Node) -> tuple[torch.Tensor, torch.Tensor | None]:
    operator = OPERATORS[str(layer.target)]
    bias = layer.args[operator.bias] if len(layer.args) > operator.bias else None
    weight = attribute(graph, str(cast("Node", layer.args[operator.weight]).target)).detach()
    return weight, None if bias is None else attribute(graph, str(cast("Node", bias).target)).detach()


def _replace_constants(graph: GraphModule, layer: Node, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Under names of its own, since other layers may share the old ones."""
    operator, args = OPERATORS[str(layer.target)], list(layer.args)
    with graph.graph.inserting_before(layer):
        args[operator.weight] = constant(graph, f"{layer.name}_scaled_weight", weight)
        if bias is not None:
            args[operator.bias : operator.bias + 1] = [constant(graph, f"{layer.name}_scaled_bias", bias)]
    layer.args = tuple(args)


def constant(graph: GraphModule, name: str, value: torch.Tensor) -> Node:
    """A node for a new constant of the graph; the insertion point is the caller's."""
    graph.register_buffer(name, value)
    node = graph.graph.get_attr(name)
    node.meta["val"] = value
    return node


def attribute(module: torch.nn.Module, path: str) -> torch.Tensor:
    """The parameter or buffer of a dotted name."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return cast("torch.Tensor", value)
