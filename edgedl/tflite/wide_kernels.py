"""Wide depthwise kernels as sums of narrower ones, which XNNPACK has fast kernels for.

XNNPACK computes a depthwise convolution with at most 25 taps by a kernel made for it (`dwconv` in its source, by 3, 4,
9 and 25 taps), and any other as an ordinary one with a group for each channel, which takes many times as long for a
product. The taps of a wide kernel are laid out in tiles of at most 25, each a convolution of its own on the part of the
image that it sees, and the results added. In int8, each sum would be rounded: there, such a layer computes in float.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgedl.tflite.flatbuffer import Flatbuffer

MOST_TAPS = 25
KERNELS = (3, 4, 9, 25)
"""What a number of taps is filled up to."""


class Tile(NamedTuple):
    """Taps of a kernel: the first of its rows and of its columns, and how many there are."""

    row: int
    column: int
    height: int
    width: int


def tiles(height: int, width: int) -> list[Tile]:
    """The taps of a kernel in as few tiles as it takes, row by row; one if a kernel is narrow enough."""

    def laid(rows: int, columns: int) -> list[Tile]:
        return [
            Tile(row, column, min(rows, height - row), min(columns, width - column))
            for row in range(0, height, rows)
            for column in range(0, width, columns)
        ]

    def cost(found: Sequence[Tile]) -> tuple[int, int]:
        return len(found), sum(min(size for size in KERNELS if size >= tile.height * tile.width) for tile in found)

    sizes = [(rows, min(MOST_TAPS // rows, width)) for rows in range(1, min(height, MOST_TAPS) + 1)]
    return min((laid(*size) for size in sizes), key=cost)


def narrow(graph: Flatbuffer) -> int:
    """Rewrites, in place, every float depthwise convolution of too many taps. Returns how many there were."""
    constants, operators, num = graph.dequantized_constants(), list[Any](), 0
    for operator in graph.operators:
        if _is_wide(graph, operator, constants):
            operators += _narrowed(graph, operator, constants)
            num += 1
        else:
            operators.append(operator)
    graph.operators = operators
    if num:
        graph.drop_dead()
    return num


def _is_wide(graph: Flatbuffer, operator: Any, constants: dict[int, Any]) -> bool:
    if graph.kind(operator) != "DEPTHWISE_CONV_2D":
        return False
    source, weight = (int(index) for index in operator.inputs[:2])
    _, height, width, channels = graph.shape(weight)
    is_constant = weight in constants or bool(graph.constant(graph.tensors[weight]))
    is_float = graph.type_name(source) == graph.type_name(weight) == "FLOAT32"
    return is_float and is_constant and height * width > MOST_TAPS and graph.shape(source)[3] == channels


def _narrowed(graph: Flatbuffer, convolution: Any, constants: dict[int, Any]) -> list[Any]:
    """What computes the same as a convolution: a padding, and for each tile a slice, a convolution and an addition."""
    options, activation = convolution.builtinOptions, convolution.builtinOptions.fusedActivationFunction
    (result,) = map(int, convolution.outputs)
    _, height, width, channels = graph.shape(int(convolution.inputs[1]))
    steps = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    made = _padded(graph, convolution, (height, width), *steps)
    source = int(made[-1].outputs[0]) if made else int(convolution.inputs[0])
    sides = graph.shape(result)[1:3]
    bias, total = [*map(int, convolution.inputs), -1][2], -1
    none = _constant(graph, np.zeros(channels, np.float32), "FLOAT32")
    parts = tiles(height, width)
    for tile in parts:
        begin = [0, *(first * step for first, step in zip(tile[:2], steps[1], strict=True)), 0]
        seen = [
            (side - 1) * stride + (size - 1) * step + 1
            for side, size, stride, step in zip(sides, tile[2:], *steps, strict=True)
        ]
        part = _like(graph, source, (graph.shape(source)[0], *seen, channels))
        bounds = [_constant(graph, np.array(values, np.int32), "INT32") for values in (begin, [-1, *seen, -1])]
        made.append(graph.operator("SLICE", [source, *bounds], [part], "SliceOptions"))
        weight, before = _cut(graph, int(convolution.inputs[1]), tile, constants)
        sums = _like(graph, result, graph.shape(result))
        piece = copy.copy(convolution)
        piece.builtinOptions = copy.copy(options)
        piece.builtinOptions.padding = graph.schema.Padding.VALID
        piece.builtinOptions.fusedActivationFunction = graph.schema.ActivationFunctionType.NONE
        first_bias = bias if tile is parts[0] and bias >= 0 else none
        piece.inputs, piece.outputs = [part, weight, first_bias], [sums]
        made += [*before, piece]
        if total < 0:
            total = sums
            continue
        is_last = tile is parts[-1]
        added = result if is_last else _like(graph, result, graph.shape(result))
        function = activation if is_last else graph.schema.ActivationFunctionType.NONE
        made.append(graph.operator("ADD", [total, sums], [added], "AddOptions", fusedActivationFunction=function))
        total = added
    return made


def _padded(
    graph: Flatbuffer, convolution: Any, sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[Any]:
    """The padding that a convolution does itself as an operator, if it does any."""
    if convolution.builtinOptions.padding == graph.schema.Padding.VALID:
        return []
    source = int(convolution.inputs[0])
    shape, result = graph.shape(source), graph.shape(int(convolution.outputs[0]))
    totals = [
        max((made - 1) * stride + (size - 1) * step + 1 - side, 0)
        for made, side, size, stride, step in zip(result[1:3], shape[1:3], sizes, strides, dilations, strict=True)
    ]
    amounts = [(0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)]
    sides = [side + total for side, total in zip(shape[1:3], totals, strict=True)]
    padded = _like(graph, source, (shape[0], *sides, shape[3]))
    told = _constant(graph, np.array(amounts, np.int32), "INT32")
    return [graph.operator("PAD", [source, told], [padded], "PadOptions")]


def _cut(graph: Flatbuffer, weight: int, tile: Tile, constants: dict[int, Any]) -> tuple[int, list[Any]]:
    """The weights of a tile, and what dequantizes them."""
    maker = constants.get(weight)
    stored = weight if maker is None else int(maker.inputs[0])
    tensor = graph.tensors[stored]
    values = np.frombuffer(graph.constant(tensor), graph.type_name(stored).lower()).reshape(graph.shape(stored))
    rows, columns = slice(tile.row, tile.row + tile.height), slice(tile.column, tile.column + tile.width)
    part = values[:, rows, columns]
    cut = _like(graph, stored, part.shape)
    graph.store(graph.tensors[cut], np.ascontiguousarray(part).tobytes())
    if maker is None:
        return cut, []
    whole = _like(graph, weight, part.shape)
    return whole, [graph.operator("DEQUANTIZE", [cut], [whole], version=3)]


def _like(graph: Flatbuffer, index: int, shape: Sequence[int]) -> int:
    """A new tensor of another's type and grid; its name begins with the same module's path, and is its own."""
    original, made = graph.tensors[index], graph.schema.TensorT()
    made.type, made.quantization = original.type, original.quantization
    made.name = original.name.partition(b";")[0] + f";narrow{len(graph.tensors)}".encode()
    made.shape, made.hasRank = [*map(int, shape)], True
    return graph.add(made)


def _constant(graph: Flatbuffer, values: np.ndarray, kind: str) -> int:
    made = graph.schema.TensorT()
    made.type, made.shape, made.hasRank = getattr(graph.schema.TensorType, kind), list(values.shape), True
    made.name = f"narrow{len(graph.tensors)}".encode()
    index = graph.add(made)
    graph.store(made, values.tobytes())
    return index
