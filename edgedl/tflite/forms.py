"""What becomes of a converted .tflite file in the forms that a PyTorch graph cannot say: edits of its contents."""

from __future__ import annotations

import copy

import numpy as np

from edgedl.tflite.flatbuffer import Flatbuffer

MIN_HALVED = 16
"""Constants of fewer numbers stay float32: storing them so takes more bytes than it saves."""

KNOWS_GROUPS = 13
"""A version of FULLY_CONNECTED that old interpreters refuse. Of another, tflite_runtime 2.14 takes such a file, ignores
the scales of groups, and answers nonsense."""

ONE_SCALE = {"FULLY_CONNECTED", "GATHER", "EMBEDDING_LOOKUP", "DEQUANTIZE"}
"""Kernels that know weights with a single scale."""


def scale_at_run_time(graph: Flatbuffer) -> None:
    """Gives convolutions and dense layers their int8 weights as they are: their kernels then scale inputs themselves.

    Depthwise convolutions keep float weights, dequantized once: their kernel for int8 ones is many times slower.
    """
    constants = graph.dequantized_constants()
    for operator in graph.operators:
        if graph.kind(operator) in ("CONV_2D", "FULLY_CONNECTED") and operator.inputs[1] in constants:
            source = constants[int(operator.inputs[1])].inputs[0]
            operator.inputs = [operator.inputs[0], source, *operator.inputs[2:]]
    used = {int(index) for operator in graph.operators for index in operator.inputs}
    idle = [id(operator) for made, operator in constants.items() if made not in used]
    graph.operators = [operator for operator in graph.operators if id(operator) not in idle]


def pack_four_bits(graph: Flatbuffer) -> None:
    """Stores the weights of dense layers in 4 bits, where the graph has put them on such a grid.

    Those of groups come as a row for each group, dequantized and reshaped, and go to the layer as they are: so only
    its kernel that scales inputs at run time has groups: DEQUANTIZE gives codes instead of weights for such a tensor.
    """
    types, constants = graph.schema.TensorType, graph.dequantized_constants()
    reshapes = {int(made.outputs[0]): made for made in graph.operators if graph.kind(made) == "RESHAPE"}
    for operator in graph.operators:
        taken = int(operator.inputs[1]) if graph.kind(operator) == "FULLY_CONNECTED" else -1
        reshape = reshapes.get(taken)
        dequantize = constants.get(taken if reshape is None else int(reshape.inputs[0]))
        if dequantize is None:
            continue
        source = int(dequantize.inputs[0])
        tensor = graph.tensors[source]
        if tensor.type == types.INT8:
            codes = np.frombuffer(graph.constant(tensor), np.int8)
            if np.abs(codes).max() > 7:
                continue
            nibbles = np.append(codes, np.zeros(len(codes) % 2, np.int8)) & 15
            graph.store(tensor, (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes())
            tensor.type = types.INT4
            if reshape is not None:
                (_, size), shape = graph.shape(source), graph.shape(taken)
                scales = graph.schema.TensorT()
                scales.name, scales.type, scales.hasRank = tensor.name + b"_scales", types.FLOAT16, True
                scales.shape = [shape[0], shape[1] // size]
                graph.store(scales, np.asarray(tensor.quantization.scale, np.float16).tobytes())
                graph.group(tensor, size, graph.add(scales))
                tensor.shape = list(shape)
        if reshape is not None:
            operator.inputs = [operator.inputs[0], source, *operator.inputs[2:]]
            operator.opcodeIndex = graph.code("FULLY_CONNECTED", KNOWS_GROUPS)
    graph.drop_dead()


def store_in_half(graph: Flatbuffer) -> None:
    """Stores the constants that half precision holds exactly as float16, each dequantized when the file is loaded."""
    types, operators = graph.schema.TensorType, []
    for index, tensor in enumerate(list(graph.tensors)):
        if tensor.type != types.FLOAT32 or not graph.constant(tensor):
            continue
        values = np.frombuffer(graph.constant(tensor), np.float32)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if len(values) < MIN_HALVED or not np.array_equal(half.astype(np.float32), values):
            continue
        held = copy.copy(tensor)
        held.type, held.name = types.FLOAT16, tensor.name + b"_half"
        graph.store(held, half.tobytes())
        tensor.buffer = 0  # the empty one
        operators.append(graph.operator("DEQUANTIZE", [graph.add(held)], [index], version=3))
    graph.operators = operators + graph.operators


def share_scales(graph: Flatbuffer) -> None:
    """Stores a scale that all outputs of a dense layer, or all rows of an embedding, have but once, in place."""
    readers: dict[int, set[str]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(int(index), set()).add(graph.kind(operator))
    for index, tensor in enumerate(graph.tensors):
        grid = tensor.quantization
        if grid is None or grid.scale is None or len(grid.scale) < 2 or len({*grid.scale}) > 1:
            continue
        if readers.get(index, set()) <= ONE_SCALE and graph.constant(tensor) and not any(grid.zeroPoint):
            grid.scale, grid.zeroPoint, grid.quantizedDimension = grid.scale[:1], grid.zeroPoint[:1], 0


def compute_in_float(graph: Flatbuffer, kinds: tuple[str, ...]) -> int:
    """Puts operators that XNNPACK has no int8 kernel for between grids, in float, so that it can keep them.

    Returns how many.
    """
    types, operators, num = graph.schema.TensorType, [], 0

    def in_float(index: int) -> int:
        made = copy.copy(graph.tensors[index])
        made.type, made.quantization, made.name = types.FLOAT32, None, made.name + b"_float"
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    for operator in graph.operators:
        if graph.kind(operator) not in kinds or graph.tensors[operator.inputs[0]].type != types.INT8:
            operators.append(operator)
            continue
        num += 1
        (source,), (result,) = map(list, (operator.inputs, operator.outputs))
        operator.inputs, operator.outputs = [in_float(source)], [in_float(result)]
        operators += [
            graph.operator("DEQUANTIZE", [source], operator.inputs, version=2),
            operator,
            graph.operator("QUANTIZE", operator.outputs, [result], version=2),
        ]
    graph.operators = operators
    return num


def drop_fences(graph: Flatbuffer, fence: str) -> None:
    """Takes out the FLOORs whose names have `fence` in them, which `mixed.fenced` has put in."""
    kept, behind = [], dict[int, int]()
    for operator in graph.operators:
        if graph.kind(operator) == "FLOOR" and fence in graph.name(operator):
            behind[int(operator.outputs[0])] = int(operator.inputs[0])
        else:
            kept.append(operator)
    graph.operators = kept
    for operator in kept:
        operator.inputs = [behind.get(int(index), int(index)) for index in operator.inputs]


def dequantize_images(graph: Flatbuffer) -> bool:
    """Makes numbers of images of uint8 by XNNPACK, which has a kernel for dequantization and none for conversion.

    A number that all of an image is multiplied by is the scale of that. Returns whether there are any.
    """
    makers = {int(operator.outputs[0]): operator for operator in graph.operators}
    found = False
    for operator in [operator for operator in graph.operators if graph.kind(operator) == "CAST"]:
        source, result = int(operator.inputs[0]), int(operator.outputs[0])
        if source in makers or (graph.type_name(source), graph.type_name(result)) != ("UINT8", "FLOAT32"):
            continue
        scale, users = np.ones(1, np.float32), [user for user in graph.operators if result in map(int, user.inputs)]
        if len(users) == 1 and graph.kind(users[0]) == "MUL" and int(users[0].inputs[0]) == result:
            factor = np.frombuffer(graph.constant(graph.tensors[users[0].inputs[1]]), np.float32)
            if factor.size == 1 and factor[0] > 0:
                scale, result = factor, int(users[0].outputs[0])
                graph.operators = [other for other in graph.operators if other is not users[0]]
        grid = graph.schema.QuantizationParametersT()
        grid.scale, grid.zeroPoint = scale, np.zeros(1, np.int64)
        graph.tensors[source].quantization = grid
        made = graph.operator("DEQUANTIZE", [source], [result], version=2)
        graph.operators = [made if other is operator else other for other in graph.operators]
        found = True
    return found
