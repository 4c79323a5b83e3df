"""Makes a .tflite file take other sizes of its inputs: converters fix them, and write them into shapes everywhere.

The network is converted at two sizes. Whatever differs between the two files comes from the sizes: dimensions of
computed values, which the interpreter finds out by itself, and what some operators are told, which has to be told
otherwise. Needs the schema of `ai_edge_litert`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from edgedl.core import TargetError
from edgedl.tflite.any_batch import REST, tell
from edgedl.tflite.flatbuffer import Flatbuffer


def with_any_size(content: bytes, other: bytes) -> bytes:
    """The file for any size of what is not as in `other`, which is of the same network at other sizes.

    Raises `TargetError` naming the layer of an operator that has a value or a shape for one size alone.
    """
    graph, compared = Flatbuffer(content), Flatbuffer(other)
    kinds = [[found.kind(operator) for operator in found.operators] for found in (graph, compared)]
    if kinds[0] != kinds[1]:
        raise TargetError("its operators are others at other sizes")
    for operator, beside in zip(graph.operators, compared.operators, strict=True):
        _free(graph, compared, operator, beside)
    pairs = [*zip(graph.main.inputs, compared.main.inputs, strict=True)]
    for operator, beside in zip(graph.operators, compared.operators, strict=True):
        pairs += zip(operator.outputs, beside.outputs, strict=True)
    for index, twin in pairs:
        shape = np.array(graph.shape(int(index)), np.int32)
        differs = shape != compared.shape(int(twin))
        if differs.any():
            graph.tensors[int(index)].shapeSignature = np.where(differs, REST, shape).astype(np.int32)
    return graph.pack()


def _free(graph: Flatbuffer, compared: Flatbuffer, operator: Any, beside: Any) -> None:
    """Takes sizes out of what an operator is told."""
    kind = graph.kind(operator)
    for slot, (index, twin) in enumerate(zip(map(int, operator.inputs), map(int, beside.inputs), strict=True)):
        if index < 0 or graph.held(index) is None:
            continue
        told, otherwise = (found.constant(found.tensors[at]) for found, at in ((graph, index), (compared, twin)))
        if told == otherwise and graph.shape(index) == compared.shape(twin):
            continue
        freed = None
        if graph.type_name(index) == "INT32" and len(told) == len(otherwise):
            freed = _freed(graph, operator, kind, slot, graph.integers(index), compared.integers(twin))
        if freed is None:
            layer = graph.name(operator).partition(";")[0]  # the converter's own name, where it is in none
            where = kind if layer.startswith("tfl.") else f"{kind} of layer {layer}"
            raise TargetError(f"{where} is told that size, or has a constant of it, such as a table of positions")
        tell(graph, operator, slot, freed)


def _freed(
    graph: Flatbuffer, operator: Any, kind: str, slot: int, told: np.ndarray, otherwise: np.ndarray
) -> np.ndarray | None:
    """Numbers that say the same at every size, in place of what differs; None where there are none."""
    differs = told != otherwise
    if kind == "RESHAPE" and slot == 1 and differs.sum() == 1:
        shape = np.where(differs, REST, told)
        if operator.builtinOptions is not None:
            operator.builtinOptions = copy.copy(operator.builtinOptions)
            operator.builtinOptions.newShape = shape.astype(np.int32)
        return shape
    if kind in ("SLICE", "STRIDED_SLICE") and slot == 2:
        start, whole = graph.integers(int(operator.inputs[1])), np.array(graph.shape(int(operator.inputs[0])))
        if not ((start[differs] == 0) & (told[differs] == whole[differs])).all():
            return None
        if kind == "SLICE":
            return np.where(differs, REST, told)
        options = operator.builtinOptions = copy.copy(operator.builtinOptions)
        options.endMask |= sum(1 << int(axis) for axis in np.flatnonzero(differs))
        return told
    return None
