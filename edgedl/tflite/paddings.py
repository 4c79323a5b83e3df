"""Padding before the convolutions of a .tflite file: in their layout, and by themselves where that is "same" padding.

The converter does so in float. Between int8 values it leaves each padding in the network's layout, with a
transposition before and behind, which in a small network take as long as its convolutions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgedl.tflite.flatbuffer import Flatbuffer

CHANNELS_LAST, CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Permutations into each layout from the other."""
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


def pad_by_convolutions(graph: Flatbuffer) -> None:
    """Rewrites, in place, every padding of an image before a convolution."""
    for pad in [operator for operator in graph.operators if graph.kind(operator) == "PAD"]:
        users = _users(graph, int(pad.outputs[0]))
        if len(users) != 1 or graph.form(int(pad.inputs[0]))[1:] != graph.form(int(pad.outputs[0]))[1:]:
            continue  # a padding that others take, or that gives another grid
        if _permutes(graph, users[0], CHANNELS_LAST):
            _put_behind(graph, pad, users[0])
        users = _users(graph, int(pad.outputs[0]))
        if len(users) == 1 and graph.kind(users[0]) in CONVOLUTIONS and _is_same(graph, pad, users[0]):
            convolution = users[0]
            convolution.builtinOptions.padding = graph.schema.Padding.SAME
            convolution.inputs = [pad.inputs[0], *convolution.inputs[1:]]
    graph.drop_dead()


def _put_behind(graph: Flatbuffer, pad: Any, transpose: Any) -> None:
    """Lets a padding follow the transposition that it stood before, or take what that only turns back."""
    source = int(pad.inputs[0])
    amounts = graph.integers(int(pad.inputs[1])).reshape(4, 2)[CHANNELS_LAST]
    maker = next((other for other in graph.operators if source in map(int, other.outputs)), None)
    result = transpose.outputs[0]
    if maker is not None and _permutes(graph, maker, CHANNELS_FIRST):
        source = int(maker.inputs[0])
    else:
        shape = graph.shape(source)
        turned = _like(graph, source, [shape[axis] for axis in CHANNELS_LAST])
        transpose.inputs, transpose.outputs = [source, transpose.inputs[1]], [turned]
        place = graph.operators.index(pad)
        others = [other for other in graph.operators if other is not transpose]
        graph.operators = [*others[:place], transpose, *others[place:]]
        source = turned
    told = _like(graph, int(pad.inputs[1]), (4, 2))
    graph.store(graph.tensors[told], amounts.astype(np.int32).tobytes())
    pad.inputs, pad.outputs = [source, told], [result]
    graph.operators = [other for other in graph.operators if other is not transpose or result not in other.outputs]


def _like(graph: Flatbuffer, index: int, shape: Any) -> int:
    """A new tensor of another's type and grid."""
    original, made = graph.tensors[index], graph.schema.TensorT()
    made.type, made.quantization, made.name = original.type, original.quantization, original.name
    made.shape, made.hasRank = list(shape), True
    return graph.add(made)


def _users(graph: Flatbuffer, index: int) -> list[Any]:
    users = [operator for operator in graph.operators if index in map(int, operator.inputs)]
    return users if index not in map(int, graph.main.outputs) else [*users, None]


def _permutes(graph: Flatbuffer, operator: Any, order: list[int]) -> bool:
    if operator is None or graph.kind(operator) != "TRANSPOSE" or graph.held(int(operator.inputs[1])) is None:
        return False
    return list(graph.integers(int(operator.inputs[1]))) == order


def _is_same(graph: Flatbuffer, pad: Any, convolution: Any) -> bool:
    """Whether a convolution that pads "same" pads as much, and where, as the padding before it."""
    options = convolution.builtinOptions
    if options.padding != graph.schema.Padding.VALID or int(convolution.inputs[0]) != int(pad.outputs[0]):
        return False
    amounts, sizes = graph.integers(int(pad.inputs[1])).reshape(4, 2), graph.shape(int(pad.inputs[0]))
    kernel = graph.shape(int(convolution.inputs[1]))
    steps = (options.strideH, options.dilationHFactor), (options.strideW, options.dilationWFactor)
    if amounts[0].any() or amounts[3].any():
        return False
    for axis, (stride, dilation) in zip((1, 2), steps, strict=True):
        reach = (kernel[axis] - 1) * dilation + 1
        total = max((-(-sizes[axis] // stride) - 1) * stride + reach - sizes[axis], 0)
        if amounts[axis].tolist() != [total // 2, total - total // 2]:
            return False
    return True
