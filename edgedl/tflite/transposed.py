"""Finishes the transposed convolutions of a converted .tflite file, which converters leave half done.

Their weights stay behind operators that turn them around at every inference; quantized ones compute in float between
a DEQUANTIZE and a QUANTIZE operator, though there is an int8 kernel; and the bias that a batch norm is folded into has
a shape that XNNPACK does not take. Needs the schema of `ai_edge_litert`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedl.tflite.flatbuffer import Flatbuffer

ACTIVATIONS = {"RELU": "RELU", "RELU_N1_TO_1": "RELU_N1_TO_1", "RELU6": "RELU6"}
"""Operators that a convolution's kernel can do itself, and what its options call them."""


@dataclass(frozen=True)
class _Places:
    """Where a convolution has its inputs."""

    source: int
    weight: int
    bias: int


CONVOLUTIONS = {"TRANSPOSE_CONV": _Places(2, 1, 3), "CONV_2D": _Places(0, 1, 2)}
"""With a stride of 1, a transposed convolution has been converted to an ordinary one."""


@dataclass(frozen=True)
class _Weights:
    """An int8 constant on its way through operators that move its elements."""

    codes: np.ndarray
    channels: np.ndarray
    """Of the same shape: whose scale each element has."""
    scales: np.ndarray
    maker: Any
    """The operator that dequantizes the constant."""

    def through(self, kind: str, settings: np.ndarray, shape: tuple[int, ...]) -> _Weights | None:
        """Behind an operator of one kind; None behind one that does not just move elements."""

        def moved(values: np.ndarray) -> np.ndarray:
            if kind == "REVERSE_V2":
                return np.flip(values, tuple(settings))
            if kind == "TRANSPOSE":
                return np.transpose(values, tuple(settings))
            return values.reshape(shape)

        if kind not in ("REVERSE_V2", "TRANSPOSE", "RESHAPE"):
            return None
        return _Weights(moved(self.codes), moved(self.channels), self.scales, self.maker)

    def axis(self) -> int | None:
        """The dimension along which the scale changes; None if it is not one only."""
        for axis in range(self.channels.ndim):
            rows = np.moveaxis(self.channels, axis, 0).reshape(self.channels.shape[axis], -1)
            if np.array_equal(rows.min(1), rows.max(1)):
                return axis
        return None


def finished(content: bytes) -> bytes:
    """The same model with its transposed convolutions as kernels want them; `content` where there is nothing to do."""
    graph = Flatbuffer(content)
    if len(graph.model.subgraphs) != 1:
        return content
    flattened = _flatten_biases(graph)
    folded = _fold_weights(graph)
    if not (_compute_in_integers(graph) or folded or flattened):
        return content
    graph.drop_dead()
    graph.drop_unused()
    return graph.pack()


def _flatten_biases(graph: Flatbuffer) -> bool:
    """Makes vectors of biases: XNNPACK leaves operators with others to a slower kernel."""
    found = False
    for operator in graph.operators:
        if graph.kind(operator) == "TRANSPOSE_CONV" and len(operator.inputs) > CONVOLUTIONS["TRANSPOSE_CONV"].bias:
            index = int(operator.inputs[CONVOLUTIONS["TRANSPOSE_CONV"].bias])
            tensor = graph.tensors[index]
            if index < 0 or len(tensor.shape) == 1 or not graph.constant(tensor):
                continue
            flat = copy.copy(tensor)  # others may take it as it is
            flat.shape, flat.shapeSignature = [int(np.prod(tensor.shape))], None
            _replace_input(operator, CONVOLUTIONS["TRANSPOSE_CONV"].bias, graph.add(flat))
            found = True
    return found


def _fold_weights(graph: Flatbuffer) -> bool:
    """Computes now what would turn dequantized constants around at every inference."""
    known = {
        index: weights
        for index, operator in graph.dequantized_constants().items()
        if (weights := _weights(graph, operator)) is not None
    }
    plain = set(known)
    needed = {int(index) for index in graph.main.outputs}
    for operator in graph.operators:
        weights = known.get(int(operator.inputs[0])) if len(operator.inputs) else None
        output = int(operator.outputs[0])
        if weights is not None:
            settings = graph.constant(graph.tensors[operator.inputs[1]]) if len(operator.inputs) > 1 else b""
            shape = graph.shape(output)
            moved = weights.through(graph.kind(operator), np.frombuffer(settings, np.int32), shape)
            if moved is not None and moved.axis() is not None:
                known[output] = moved
                continue
        needed |= {int(index) for index in operator.inputs}
    folded = [index for index in known if index in needed and index not in plain]
    makers = {}
    for index in folded:
        weights, tensor = known[index], copy.copy(graph.tensors[index])
        made = copy.copy(weights.maker)
        made.inputs, made.outputs = [_add_codes(graph, tensor, weights)], [index]
        makers[index] = made
    kept = [operator for operator in graph.operators if int(operator.outputs[0]) not in makers]
    graph.operators = [*makers.values(), *kept]
    return bool(folded)


def _compute_in_integers(graph: Flatbuffer) -> bool:
    """Gives convolutions between a DEQUANTIZE and a QUANTIZE operator, whose weights are int8, to the int8 kernel."""
    makers = {int(index): operator for operator in graph.operators for index in operator.outputs}
    users: dict[int, list[Any]] = {int(index): [] for index in graph.main.outputs}
    results = set(users)
    for operator in graph.operators:
        for index in operator.inputs:
            users.setdefault(int(index), []).append(operator)
    found = False
    for operator in list(graph.operators):
        places = CONVOLUTIONS.get(graph.kind(operator))
        if places is None:
            continue
        source, maker = (makers.get(int(operator.inputs[place])) for place in (places.source, places.weight))
        if source is None or graph.kind(source) != "DEQUANTIZE" or graph.is_constant(source):
            continue
        weights = _weights(graph, maker) if maker is not None and graph.is_constant(maker) else None
        behind = _until_quantized(graph, operator, users, results)
        if weights is None or weights.axis() != 0 or behind is None:
            continue
        _become_int8(graph, operator, places, int(source.inputs[0]), weights, behind)
        found = True
    return found


def _until_quantized(
    graph: Flatbuffer, operator: Any, users: dict[int, list[Any]], results: set[int]
) -> list[Any] | None:
    """What stands between a convolution and the QUANTIZE operator behind it, and that one; None if it isn't so."""
    behind: list[Any] = []
    last = operator
    while not behind or graph.kind(last) != "QUANTIZE":
        output = int(last.outputs[0])
        if output in results or len(users.get(output, ())) != 1:
            return None
        (last,) = users[output]
        if graph.kind(last) not in ("QUANTIZE", "SLICE", *ACTIVATIONS):
            return None
        behind.append(last)
    clamps = [one for one in behind if graph.kind(one) in ACTIVATIONS]
    fused = operator.builtinOptions.fusedActivationFunction != graph.schema.ActivationFunctionType.NONE
    return behind if len(clamps) + fused <= 1 else None


def _become_int8(
    graph: Flatbuffer, operator: Any, places: _Places, source: int, weights: _Weights, behind: list[Any]
) -> None:
    """Takes codes in place of numbers, and leaves the grid behind it to the kernel: it is the same."""
    quantize = behind[-1]
    grid = graph.tensors[quantize.outputs[0]].quantization
    scales = weights.scales[weights.channels.reshape(len(weights.codes), -1)[:, 0]]
    _replace_input(operator, places.source, source)
    filter_shape = copy.copy(graph.tensors[operator.inputs[places.weight]])
    per_channel = _Weights(weights.codes, _along_first(weights.codes.shape), scales, weights.maker)
    _replace_input(operator, places.weight, _add_codes(graph, filter_shape, per_channel))
    if len(operator.inputs) > places.bias and int(operator.inputs[places.bias]) >= 0:
        unit = np.float32(graph.tensors[source].quantization.scale[0]) * scales
        bias = copy.copy(graph.tensors[operator.inputs[places.bias]])
        numbers = np.frombuffer(graph.constant(bias), np.float32)
        graph.store(bias, np.rint(numbers.astype(np.float64) / unit).astype(np.int32).tobytes())
        bias.type, bias.quantization = graph.schema.TensorType.INT32, _grid(graph, unit, 0)
        _replace_input(operator, places.bias, graph.add(bias))
    movers = [one for one in behind if graph.kind(one) == "SLICE"]
    for clamp in (one for one in behind if graph.kind(one) in ACTIVATIONS):
        # Cutting a piece out and clamping can be done in any order.
        activations = graph.schema.ActivationFunctionType
        operator.builtinOptions = copy.copy(operator.builtinOptions)
        operator.builtinOptions.fusedActivationFunction = getattr(activations, ACTIVATIONS[graph.kind(clamp)])
    name = graph.tensors[operator.outputs[0]].name
    steps = [operator, *movers]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if following is None:
            step.outputs = [int(quantize.outputs[0])]
            graph.tensors[quantize.outputs[0]].name = name  # the layer's; that of the QUANTIZE operator says nothing
        else:
            tensor = graph.tensors[step.outputs[0]]
            tensor.type, tensor.quantization = graph.schema.TensorType.INT8, grid
            following.inputs = [int(step.outputs[0]), *(int(index) for index in following.inputs[1:])]
    fused = operator.builtinOptions.fusedActivationFunction != graph.schema.ActivationFunctionType.NONE
    versions = {"CONV_2D": 3, "TRANSPOSE_CONV": 4 if fused else 3, "SLICE": 2}
    for step in steps:
        kind = graph.kind(step)
        step.opcodeIndex = graph.code(kind, versions[kind])
    gone = {id(one) for one in behind} - {id(one) for one in movers}
    graph.operators = [one for one in graph.operators if id(one) not in gone]


def _weights(graph: Flatbuffer, maker: Any) -> _Weights | None:
    """The int8 constant that an operator dequantizes; None if it is of another kind."""
    tensor = graph.tensors[maker.inputs[0]]
    grid = tensor.quantization
    if tensor.type != graph.schema.TensorType.INT8 or grid is None or np.any(grid.zeroPoint):
        return None
    codes = np.frombuffer(graph.constant(tensor), np.int8).reshape([int(size) for size in tensor.shape])
    scales = np.asarray(grid.scale, np.float32)
    channels = np.zeros(codes.shape, np.int64)
    if len(scales) > 1:
        along = [-1 if axis == grid.quantizedDimension else 1 for axis in range(codes.ndim)]
        channels += np.arange(len(scales)).reshape(along)
    return _Weights(codes, channels, scales, maker)


def _add_codes(graph: Flatbuffer, tensor: Any, weights: _Weights) -> int:
    """Makes an int8 constant of a float tensor's copy."""
    axis = weights.axis()
    assert axis is not None
    rows = np.moveaxis(weights.channels, axis, 0).reshape(weights.channels.shape[axis], -1)
    scales = weights.scales[rows[:, 0]] if len(weights.scales) > 1 else weights.scales
    graph.store(tensor, np.ascontiguousarray(weights.codes).tobytes())
    tensor.type, tensor.quantization = graph.schema.TensorType.INT8, _grid(graph, scales, axis)
    tensor.name = (tensor.name or b"") + b"_codes"
    return graph.add(tensor)


def _grid(graph: Flatbuffer, scales: np.ndarray, axis: int) -> Any:
    grid = graph.schema.QuantizationParametersT()
    grid.scale, grid.zeroPoint, grid.quantizedDimension = scales, np.zeros(len(scales), np.int64), axis
    return grid


def _along_first(shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)), shape)


def _replace_input(operator: Any, place: int, index: int) -> None:
    inputs = [int(one) for one in operator.inputs]
    inputs[place] = index
    operator.inputs = inputs
