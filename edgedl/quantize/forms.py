"""The forms of a quantized network beside static int8: what becomes of its graph, and how kernels run the dynamic one.

Weights pass through quantize and dequantize nodes, from which exporters make int8 constants; in fp16 they are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

from edgedl.core import TargetError
from edgedl.quantize.dynamic_lstm import QuantizedWeight, Weights, dynamic_lstm, onnxruntime_codes
from edgedl.quantize.folding import attribute, constant, fold_batch_norms, fold_factors
from edgedl.quantize.integer import DEQUANTIZE_WEIGHT, QUANTIZE_WEIGHT, IntegerInterpreter
from edgedl.quantize.one_channel import fused
from edgedl.quantize.operators import GRU, LSTM, OPERATORS, RECURRENT_PARAMETERS, Operator, Role
from edgedl.quantize.quantizer import has_one_scale, is_float
from edgedl.quantize.schemes import Form, Scheme

SMALLEST_HALF, LARGEST_HALF = 2.0**-24, 65504.0
LARGEST_4_BIT = 7
RESHAPE = torch.ops.aten.reshape.default
SENSITIVE = (
    *("layer_norm", "group_norm", "batch_norm", "rms_norm", "softmax", "log_softmax", "logsumexp"),
    *("mean", "sum", "var", "norm", "exp", "pow", "rsqrt", "cumsum", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
)
"""ATen operators that sum or exponentiate: they overflow in half precision, or lose much, and stay in float32."""
EMBEDDING = Operator(Role.WEIGHTED, inputs=(1,), weight=0)


def rewritten(graph: GraphModule, form: Form, scheme: Scheme, group_size: int) -> GraphModule:
    """An exported float graph in one of the forms, with batch norms folded into the layers before them.

    Raises `TargetError` where 4-bit weights are asked for and no layer can have them.
    """
    fold_batch_norms(graph)
    fold_factors(graph)
    if form == "fp16":
        _round_parameters(graph)
        return _computing_in_half(graph) if scheme.computes_in_half else graph
    four_bits, group = form.startswith("int4"), group_size if form in scheme.grouped else 0
    weighted = [(node, operator) for node in graph.graph.nodes if (operator := weighted_operator(node)) is not None]
    groups = {node: _group(graph, node, operator, group, scheme) for node, operator in weighted if four_bits}
    small = {node: size for node, size in groups.items() if size is not None}
    if four_bits and not small:
        unless = "" if scheme.whole_rows else f" whose number of inputs is a multiple of {group}"
        raise TargetError(f"{form}: the network has no linear layer{unless}, and no other can have 4-bit weights")
    for node, operator in weighted:
        largest = LARGEST_4_BIT if node in small else scheme.weight_max
        weight = cast("Node", node.args[operator.weight])
        made = _quantized(
            *(graph, node, weight, f"{node.name}_weight", operator.weight_axis, largest),
            group=small.get(node, 0),
            half=scheme.half_group_scales,
            alike=node not in small and has_one_scale(node, scheme),
        )
        node.update_arg(operator.weight, made)
    for node in graph.graph.nodes:
        if str(node.target) in (LSTM, GRU) and form in scheme.whole_recurrent:
            _quantize_recurrent(graph, node, scheme.weight_max)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def weighted_operator(node: Node) -> Operator | None:
    """The row of the table of a node that has a constant float weight; None for any other."""
    operator = EMBEDDING if str(node.target) == "aten.embedding.default" else OPERATORS.get(str(node.target))
    if operator is None or operator.role is not Role.WEIGHTED:
        return None
    weight = node.args[operator.weight]
    return operator if isinstance(weight, Node) and weight.op == "get_attr" else None


def is_dense(node: Node) -> bool:
    """Whether it is a linear layer."""
    return str(node.target).startswith("aten.linear")


def _group(graph: GraphModule, node: Node, operator: Operator, size: int, scheme: Scheme) -> int | None:
    """How many inputs of an operator share a scale of its 4-bit weights, 0 if all do; None if it can't have such."""
    if not is_dense(node):
        return None
    num_inputs = attribute(graph, str(cast("Node", node.args[operator.weight]).target)).shape[1]
    if size and num_inputs % size == 0 and (num_inputs > size or not scheme.whole_rows):
        return size
    return 0 if scheme.whole_rows else None


def sharing_a_scale(node: Node, weight: torch.Tensor, scheme: Scheme) -> tuple[int, ...] | None:
    """Dimensions of an operator's input over which one run-time scale goes; None if it computes in float.

    On LiteRT those are XNNPACK's: its dense kernels scale row by row, those of convolutions image by image, and a
    convolution that is a dense layer for each pixel runs as one. Depthwise ones would fall back to a slow kernel
    of the interpreter's own, and transposed ones have none: on every runtime only their storage shrinks.
    """
    kind = str(node.target)
    num_spatial = weight.ndim - 2
    if is_dense(node):
        return None if scheme.run_time_scales is None else (-1,) if scheme.run_time_scales == "row" else ()
    if not kind.startswith(("aten.conv1d", "aten.conv2d")) or weight.shape[1] == 1:
        return None
    if scheme.run_time_scales == "tensor":
        return ()
    by_pixel = set(weight.shape[2:]) == {1} and not _strides(node) - {1} and not _paddings(node) - {0}
    return (1,) if by_pixel else tuple(range(1, 2 + num_spatial))


class DynamicInterpreter(IntegerInterpreter):
    """Runs a graph whose weights are quantized with activations scaled at run time, as the runtime's kernels do.

    Sums are exact, and the rest is done in float32 in the order of the kernels: such a layer repeats the runtime's
    bit for bit. Operators that stay float differ in their last bits, which tips a code over now and then. Where a
    runtime scales a whole tensor at once, that is done for each sample: files of batch size 1 do so.
    """

    def __init__(self, graph: GraphModule, scheme: Scheme, record: bool = False) -> None:
        super().__init__(graph, scheme.runtime, record)
        self.scheme = scheme
        dense = [node for node in graph.graph.nodes if is_dense(node)] if scheme.run_time_scales == "tensor" else []
        self.one_by_one = any(_sample_dimension(node) is None for node in dense)
        """Whether samples have to run alone, since one of their tensors can't be told from the others'."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        if not self.one_by_one or len(args[0]) == 1:
            return super().run(*args, **kwargs)
        samples = zip(*(values.split(1) for values in args), strict=True)
        outputs = [super(DynamicInterpreter, self).run(*sample, **kwargs) for sample in samples]
        return tree_map(lambda *parts: torch.cat(parts), *outputs)

    def run_node(self, n: Node) -> Any:
        value = self._run_time_scaled(n)
        if value is None:
            return super().run_node(n)
        if self.record:
            self._note(n, value)
        return value

    def _run_time_scaled(self, node: Node) -> torch.Tensor | tuple[torch.Tensor, ...] | None:
        operator = OPERATORS.get(str(node.target))
        if str(node.target) == LSTM and self.scheme.run_time_scales == "tensor":
            return self._lstm(node)
        if operator is None or operator.role is not Role.WEIGHTED:
            return None
        weight = cast("Node", node.args[operator.weight])
        source = cast("Node", node.args[operator.inputs[0]])
        if weight.target == RESHAPE and (rows := cast("Node", weight.args[0])).target == DEQUANTIZE_WEIGHT:
            return self._grouped(node, self.env[source], rows)
        if weight.target != DEQUANTIZE_WEIGHT:
            return None
        shared = sharing_a_scale(node, self.env[weight], self.scheme)
        if shared is None:
            return self.of_one_channel(node)
        values = self.env[source]
        by_row = self.scheme.run_time_scales == "row"
        if not shared:
            own = _sample_dimension(node)
            shared = tuple(dimension for dimension in range(values.ndim) if dimension != own)
        codes, unit = _litert_codes(values, shared)[::2] if by_row else onnxruntime_codes(values, shared)
        codes_of_weight, scales = self.env[cast("Node", weight.args[0])], self.env[cast("Node", weight.args[1])]
        replaced: dict[Node, Any] = {source: codes, weight: codes_of_weight.double()}
        bias = node.args[operator.bias] if len(node.args) > operator.bias else None
        if isinstance(bias, Node):
            replaced[bias] = torch.zeros_like(self.env[bias], dtype=torch.float64)
        sums = self._call(node, replaced).float()
        channels = (-1,) if is_dense(node) else (1, -1, *[1] * (sums.ndim - 2))
        scales = scales.reshape(channels)
        offset = self.env[bias].reshape(channels) if isinstance(bias, Node) else torch.zeros(1)
        return fused(sums * unit, scales, offset) if by_row else sums * (unit * scales) + offset

    def _grouped(self, node: Node, values: torch.Tensor, rows: Node) -> torch.Tensor:
        """A dense layer on `values` whose 4-bit weights have a scale for each group of inputs: they are `rows`."""
        codes_of_weight, scales = (self.env[cast("Node", part)] for part in rows.args[:2])
        num_outputs, size = self.env[cast("Node", node.args[1])].shape[0], codes_of_weight.shape[1]
        weights = codes_of_weight.double().reshape(num_outputs, -1, size).unbind(1)
        units = scales.reshape(num_outputs, -1).unbind(1)
        bias = self.env[cast("Node", node.args[2])] if len(node.args) > 2 else torch.zeros(1)
        in_groups = (*values.shape[:-1], -1, size)
        if self.scheme.run_time_scales == "tensor":
            return _products_of_groups(values.reshape(in_groups).unbind(-2), weights, units) + bias
        codes, zero_point, unit = _litert_codes(values, (-1,))
        # XNNPACK's kernels take bytes, and begin with what their zero point adds to each sum.
        codes, zero_point = codes + zero_point + 128, zero_point + 128
        offset = torch.zeros(num_outputs)
        for weight, scale in zip(weights, units, strict=True):
            offset = offset - weight.sum(1).float() * scale
        sums = zero_point * offset
        for part, weight, scale in zip(codes.reshape(in_groups).unbind(-2), weights, units, strict=True):
            sums = fused((part @ weight.T).float(), scale, sums)
        return sums * unit + bias

    def _lstm(self, node: Node) -> tuple[torch.Tensor, ...] | None:
        """A whole LSTM with int8 products; None if its weights aren't constants."""
        x, initial, parameters, has_biases, _, _, _, both, batch_first = cast("tuple[Any, ...]", node.args)
        size = 4 if has_biases else 2
        directions: list[Weights] = []
        for start in range(0, len(parameters), size):
            weights, biases = parameters[start : start + 2], parameters[start + 2 : start + size]
            if any(weight.target != DEQUANTIZE_WEIGHT for weight in weights):
                return None
            of_inputs, of_states = (
                QuantizedWeight(*(self.env[part] for part in weight.args[:2])) for weight in weights
            )
            bias = sum((self.env[bias] for bias in biases), start=torch.zeros(1))
            directions.append((of_inputs, of_states, bias))
        values = self.env[x].transpose(0, 1) if batch_first else self.env[x]
        outputs, h, c = dynamic_lstm(values, [self.env[state] for state in initial], directions, both)
        return outputs.transpose(0, 1) if batch_first else outputs, h, c


def _sample_dimension(node: Node) -> int | None:
    """The dimension of a weighted operator's input that counts samples alone; None if the graph doesn't show it.

    Behind a transpose it need not be the first: recurrent layers go through (steps, samples, values).
    """
    if not is_dense(node):
        return 0
    value = cast("Node", node.args[0]).meta.get("val")
    shape = () if value is None else value.shape
    varying = [index for index, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    return varying[0] if len(varying) == 1 and shape[varying[0]].node.expr.is_symbol else None


def _products_of_groups(
    values: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], scales: Sequence[torch.Tensor]
) -> torch.Tensor:
    """onnxruntime's dense layer in groups of inputs: each group of a row has symmetric int8 codes of its own."""
    sums = torch.zeros(1, dtype=torch.float64)
    for part, weight, scale in zip(values, weights, scales, strict=True):
        reach = part.abs().amax(-1, keepdim=True)
        codes = torch.round(part * torch.where(reach > 0, torch.tensor(127.0) / reach, torch.zeros(1)))
        sums = sums + (codes.double() @ weight.T) * (reach / torch.tensor(127.0)).double() * scale.double()
    return sums.float()


def _litert_codes(values: torch.Tensor, shared: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """XNNPACK's int8 codes, less their zero point, as float64, that zero point, and the size of their unit."""
    low = values.amin(tuple(shared), keepdim=True).clamp(max=0)
    high = values.amax(tuple(shared), keepdim=True).clamp(min=0)
    # As a tensor: torch divides a number by multiplying it with the rounded inverse.
    factor = torch.where(low == high, torch.ones_like(low), torch.tensor(255.0) / (high - low))
    steps_low, steps_high = low * factor, high * factor
    # Of the two ends, the zero point is made exact for the one whose rounding errs more.
    is_low = (-128 + steps_low) + (127 + steps_high) > 0
    zero_point = torch.where(is_low, -128 - steps_low, 127 - steps_high).clamp(-128, 127).round()
    codes = (torch.round(values * factor) + zero_point).clamp(-128, 127) - zero_point
    return codes.double(), zero_point, 1 / factor


def _quantize_recurrent(graph: GraphModule, node: Node, largest: int) -> None:
    """Puts quantize and dequantize nodes between a whole LSTM or GRU and its weights."""
    parameters = list(cast("Sequence[Node]", node.args[RECURRENT_PARAMETERS]))
    for index, parameter in enumerate(parameters):
        if parameter.op == "get_attr" and attribute(graph, str(parameter.target)).ndim == 2:  # biases have one
            name = f"{node.name}_weight_{index}"
            parameters[index] = _quantized(graph, node, parameter, name, axis=0, largest=largest)
    node.update_arg(RECURRENT_PARAMETERS, parameters)


def _quantized(
    graph: GraphModule,
    node: Node,
    source: Node,
    name: str,
    axis: int,
    largest: int,
    group: int = 0,
    half: bool = False,
    alike: bool = False,
) -> Node:
    """Makes quantize and dequantize nodes before `node`, behind its weight `source`, with one scale along `axis`.

    With `group`, a scale goes over as many neighbouring inputs of one output: the groups are rows while quantized.
    With `half`, such scales are numbers that bfloat16 and float16 hold. If they are to be `alike`, all are the largest.
    """
    weight = attribute(graph, str(source.target)).detach()
    rows = weight.reshape(-1, group) if group else weight
    scales = _scales(rows.movedim(axis, 0).flatten(1), largest, half and group > 0)
    if alike:
        scales = scales.max().expand_as(scales).clone()
    unit = scales.reshape([-1 if dimension == axis else 1 for dimension in range(rows.ndim)])
    # On the grid already: a converter that divides where torch multiplies would round one in 100,000 the other way.
    graph.register_buffer(name, (torch.round(rows / unit).clamp(-largest, largest) * unit).reshape(weight.shape))
    graph.register_buffer(f"{name}_scale", scales)
    graph.register_buffer(f"{name}_zero_point", torch.zeros_like(scales, dtype=torch.int64))
    with graph.graph.inserting_before(node):
        value = graph.graph.get_attr(name)
        if group:
            value = graph.graph.call_function(RESHAPE, (value, list(rows.shape)))
        grid = (graph.graph.get_attr(f"{name}_scale"), graph.graph.get_attr(f"{name}_zero_point"))
        limits = (axis, -largest, largest, torch.int8)
        value = graph.graph.call_function(QUANTIZE_WEIGHT, (value, *grid, *limits))
        value = graph.graph.call_function(DEQUANTIZE_WEIGHT, (value, *grid, *limits))
        if group:
            value = graph.graph.call_function(RESHAPE, (value, list(weight.shape)))
    return value


def _scales(rows: torch.Tensor, largest: int, half: bool = False) -> torch.Tensor:
    """One scale a row (R, K) -> (R,): with 8 bits its largest magnitude counts, with 4 the least squared error."""
    reach = rows.abs().amax(1)
    reach = torch.where(reach > 0, reach, torch.ones_like(reach))  # a row of zeros still needs a scale to divide by
    if largest != LARGEST_4_BIT:
        return reach / largest
    best, least = reach / largest, torch.full_like(reach, torch.inf)
    for shrink in torch.linspace(1.0, 0.6, 41):
        scale = reach * shrink / largest
        if half:
            scale = scale.clamp(SMALLEST_HALF, LARGEST_HALF).bfloat16().half().float()
        error = (torch.round(rows / scale[:, None]).clamp(-largest, largest) * scale[:, None] - rows).square().sum(1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def halved(graph: GraphModule, scheme: Scheme, among: Sequence[Node] | None = None) -> GraphModule:
    """Gives layers that stay in float weights of half precision, in place: half the bytes, as exact as int8 ones beside
    them need. Where the scheme computes in half precision, these layers do so too. All such layers, or `among` some."""
    to, nodes = torch.ops.aten.to.dtype, graph.graph
    for node in list(nodes.nodes if among is None else among):
        operator = weighted_operator(node)
        if operator is None:
            continue
        args, computes = list(node.args), scheme.computes_in_half and operator is not EMBEDDING
        sources = [cast("Node | None", args[index]) for index in (operator.weight, operator.bias) if index < len(args)]
        values = [None if one is None else attribute(graph, str(one.target)).detach() for one in sources]
        if any(value is not None and float(value.abs().max()) > LARGEST_HALF for value in values):
            continue
        with nodes.inserting_before(node):
            for index, name, value in zip((operator.weight, operator.bias), ("weight", "bias"), values, strict=False):
                if value is not None and (computes or index == operator.weight):
                    half = value.half() if computes else value.half().float()
                    args[index] = constant(graph, f"{node.name}_half_{name}", half)
            if computes:
                args[0] = nodes.call_function(to, (args[0], torch.float16))
        node.args = tuple(args)
        if computes:
            with nodes.inserting_after(node):
                whole = nodes.call_function(to, (node, torch.float32))
            node.replace_all_uses_with(whole, delete_user_cb=lambda user, made=whole: user is not made)
    nodes.eliminate_dead_code()
    graph.recompile()
    return graph


def _round_parameters(graph: GraphModule) -> None:
    """Puts weights and tables on numbers that half precision holds; those too large for it, and numbers, stay."""
    with torch.no_grad():
        for value in [*graph.parameters(), *graph.buffers()]:
            if value.is_floating_point() and value.ndim and bool(value.abs().max() <= LARGEST_HALF):
                value.copy_(value.half().float())


def _computing_in_half(graph: GraphModule) -> GraphModule:
    """Inputs and outputs stay float32, and so do the operators that are sensitive to rounding."""
    graph.half()
    nodes = graph.graph
    for node in list(nodes.nodes):
        if node.op == "placeholder" and is_float(node):
            with nodes.inserting_after(node):
                cast_node = nodes.call_function(torch.ops.aten.to.dtype, (node, torch.float16))
            node.replace_all_uses_with(cast_node, delete_user_cb=lambda user, made=cast_node: user is not made)
        elif node.op == "output":
            for value in list(node.all_input_nodes):
                if is_float(value):
                    with nodes.inserting_before(node):
                        node.replace_input_with(
                            value, nodes.call_function(torch.ops.aten.to.dtype, (value, torch.float32))
                        )
        elif node.op == "call_function" and is_float(node):
            if str(node.target).split(".")[1].lstrip("_") in SENSITIVE:
                _keep_in_float(nodes, node)
            else:
                half = {torch.float32: torch.float16}
                node.args = tuple(half.get(a, a) if isinstance(a, torch.dtype) else a for a in node.args)
                node.kwargs = {k: half.get(a, a) if isinstance(a, torch.dtype) else a for k, a in node.kwargs.items()}
    graph.recompile()
    return graph


def _keep_in_float(nodes: torch.fx.Graph, node: Node) -> None:
    with nodes.inserting_before(node):
        for value in node.all_input_nodes:
            node.replace_input_with(value, nodes.call_function(torch.ops.aten.to.dtype, (value, torch.float32)))
    with nodes.inserting_after(node):
        cast_node = nodes.call_function(torch.ops.aten.to.dtype, (node, torch.float16))
    node.replace_all_uses_with(cast_node, delete_user_cb=lambda user: user is not cast_node)


def _strides(node: Node) -> set[int]:
    return set(cast("Sequence[int]", node.args[3])) if len(node.args) > 3 else {1}


def _paddings(node: Node) -> set[Any]:
    padding = node.args[4] if len(node.args) > 4 else 0
    if isinstance(padding, str):  # a kernel of one pixel needs none, whatever the rule
        return {0}
    return set(padding) if isinstance(padding, list | tuple) else {padding}
