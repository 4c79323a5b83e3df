"""Makes a .tflite file take batches of any size: converters fix the size, and write it into shapes everywhere.

The file is converted for a prime number of samples that is in no other dimension of the network, so that whatever is a
multiple of it comes from the batch. Needs the schema of `ai_edge_litert`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgedl.core import TargetError
from edgedl.tflite.flatbuffer import Flatbuffer

MAX_PADDING = 8
REST = -1
"""As a size: all that there is."""
SHAPES = {"RESHAPE": 1, "SLICE": 2, "BROADCAST_TO": 1, "FILL": 0, "TILE": 1, "TRANSPOSE_CONV": 0}
"""Which input of an operator says what size its output has."""
SPREADING = {"ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"}


def foreign_prime(sizes: Iterable[int]) -> int:
    """The smallest prime from 11 on that divides none of the sizes: smaller ones are axes and kernels, too.

    Nor may it divide what a converter makes of a size by padding.
    """
    found, given = 11, {size + padding for size in sizes for padding in range(MAX_PADDING + 1)} - {0}
    while any(size % found == 0 for size in given) or any(found % low == 0 for low in range(2, found)):
        found += 1
    return found


def with_any_batch(content: bytes, prime: int, batch_size: int) -> bytes:
    """The file that was converted for `prime` samples, for any number; opened, it is for `batch_size`.

    Raises `TargetError` naming the layer of an operator that cannot take several sizes.
    """
    graph = Flatbuffer(content)
    _drop_broadcasts(graph)
    for operator in graph.operators:
        _free(graph, operator, prime)
    for index, tensor in enumerate(graph.tensors):
        if graph.held(index) is not None:
            continue
        shape = np.array(graph.shape(index), int)
        from_batch = (shape > 0) & (shape % prime == 0)
        if from_batch.any():
            tensor.shape = np.where(from_batch, shape // prime * batch_size, shape).astype(np.int32)
            tensor.shapeSignature = np.where(from_batch, REST, shape).astype(np.int32)
    return graph.pack()


def _free(graph: Flatbuffer, operator: Any, prime: int) -> None:
    """Takes the number of samples out of what an operator is told."""
    kind, inputs = graph.kind(operator), [int(index) for index in operator.inputs]
    if kind == "RESHAPE":
        shape = np.array(graph.shape(int(operator.outputs[0])), int)
        if (shape % prime == 0).sum() == 1 and shape.all():
            told = np.where(shape % prime == 0, REST, shape).astype(np.int32)
            if operator.builtinOptions is not None:
                operator.builtinOptions.newShape = told
            tell(graph, operator, 1, told)
            return
    if kind in ("SLICE", "STRIDED_SLICE") and None not in (graph.held(inputs[1]), graph.held(inputs[2])):
        begin, until = graph.integers(inputs[1]), graph.integers(inputs[2])
        whole = (np.array(graph.shape(inputs[0]), int) % prime == 0) & (begin == 0) & (until % prime == 0)
        if kind == "SLICE":
            tell(graph, operator, 2, np.where(whole, REST, until))
        else:
            options = operator.builtinOptions = copy.copy(operator.builtinOptions)
            options.endMask |= sum(1 << int(axis) for axis in np.flatnonzero(whole))
        return
    for slot, index in enumerate(inputs):
        if index >= 0 and graph.held(index) is not None and _tells_batch(graph, index, prime, SHAPES.get(kind) == slot):
            raise TargetError(
                f"max_batch: {kind} of layer {graph.name(operator).partition(';')[0]} is for one number of samples "
                "in a TFLite file; leave max_batch out for this target"
            )


def _tells_batch(graph: Flatbuffer, index: int, prime: int, is_shape: bool) -> bool:
    """Whether a constant is one for each sample, or a shape with the number of samples in it."""
    sizes = graph.integers(index) if is_shape else np.array(graph.shape(index), int)
    return bool((sizes % prime == 0).any())


def _drop_broadcasts(graph: Flatbuffer) -> None:
    """Lets operators that spread a value themselves do so, where it would be spread for them to a fixed size."""
    for operator in [operator for operator in graph.operators if graph.kind(operator) == "BROADCAST_TO"]:
        source, spread = int(operator.inputs[0]), int(operator.outputs[0])
        users = [user for user in graph.operators if spread in map(int, user.inputs)]
        beside = [int(index) for user in users for index in user.inputs if int(index) != spread]
        whole = len(beside) == len(users) and all(graph.shape(other) == graph.shape(spread) for other in beside)
        if not whole or any(graph.kind(user) not in SPREADING for user in users):
            continue
        for user in users:
            user.inputs = [source if int(index) == spread else int(index) for index in user.inputs]
        graph.operators = [other for other in graph.operators if other is not operator]


def tell(graph: Flatbuffer, operator: Any, slot: int, values: np.ndarray) -> None:
    """Gives an operator whole numbers of its own in the place of a constant that others may take, too."""
    tensor = copy.copy(graph.tensors[operator.inputs[slot]])
    graph.store(tensor, values.astype(np.int32).tobytes())
    operator.inputs = [*operator.inputs[:slot], graph.add(tensor), *operator.inputs[slot + 1 :]]
