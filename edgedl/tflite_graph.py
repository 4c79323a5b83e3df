"""Editing .tflite files as graphs, through the schema's object interface: what `loops` builds with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

NUMPY_TYPES = {"FLOAT32": "float32", "INT8": "int8", "INT16": "int16", "INT32": "int32"}
"""Types of tensors that can be filled with zeros."""
IDENTIFIER = b"TFL3"


class Graph:
    """The main subgraph of a model; tensors are known by their index, constants by their bytes."""

    def __init__(self, schema: Any, model: Any) -> None:
        self.schema, self.model = schema, model
        self.main = model.subgraphs[0]
        self.tensors: list[Any] = self.main.tensors
        self.operators: list[Any] = self.main.operators
        self.codes = vars(schema.BuiltinOperator)
        self.types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
        self.stored: dict[bytes, int] = {}
        """The buffer of each constant, by its bytes, once `share_constants` has run."""

    def kind(self, operator: Any) -> int:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))

    def is_a(self, operator: Any, name: str) -> bool:
        return self.kind(operator) == int(self.codes[name])

    def code(self, name: str) -> int:
        """The index of an operator code, which is added where the model has none."""
        builtin = self.codes[name]
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
                return index
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def constant(self, index: int) -> bytes | None:
        """The bytes of a constant; None for anything that is computed."""
        if index < 0:
            return b""
        data = self.model.buffers[self.tensors[index].buffer].data
        return None if data is None or len(data) == 0 else bytes(np.asarray(data, np.uint8))

    def held(self, index: int) -> int | None:
        """What tells constants apart once equal ones share a buffer; None for anything that is computed."""
        if index < 0:
            return -1
        buffer = int(self.tensors[index].buffer)
        data = self.model.buffers[buffer].data
        return None if data is None or len(data) == 0 else buffer

    def share_constants(self) -> bool:
        """Stores equal constants once: a weight that is quantized for every step stands there as often."""
        shared = False
        for tensor in self.tensors:
            data = self.model.buffers[tensor.buffer].data
            if data is not None and len(data):
                buffer = self.stored.setdefault(bytes(np.asarray(data, np.uint8)), tensor.buffer)
                shared = shared or buffer != tensor.buffer
                tensor.buffer = buffer
        return shared

    def type_name(self, index: int) -> str:
        """Such as `FLOAT32`."""
        name: str = self.types[int(self.tensors[index].type)]
        return name

    def integers(self, index: int) -> np.ndarray:
        """The values of an int32 constant."""
        return np.frombuffer(self.constant(index) or b"", np.int32).astype(int)

    def shape(self, index: int) -> tuple[int, ...]:
        shape = self.tensors[index].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def form(self, index: int) -> tuple[Any, ...]:
        """Shape, type and grid: tensors of one form can take each other's place."""
        if index < 0:
            return ()
        tensor = self.tensors[index]
        grid = tensor.quantization
        scales, zeros, axis = (None, None, 0) if grid is None else (grid.scale, grid.zeroPoint, grid.quantizedDimension)
        as_bytes = [b"" if values is None else np.asarray(values, np.float64).tobytes() for values in (scales, zeros)]
        return (self.shape(index), tensor.type, bool(tensor.isVariable), axis, *as_bytes)

    def packed(self) -> bytes:
        import flatbuffers

        self._drop_unused()
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())

    def _drop_unused(self) -> None:
        used = {int(index) for operator in self.operators for index in (*operator.inputs, *operator.outputs)}
        used |= {int(index) for index in (*self.main.inputs, *self.main.outputs)}
        used.discard(-1)
        place = {old: new for new, old in enumerate(sorted(used))} | {-1: -1}
        self.main.tensors = self.tensors = [self.tensors[index] for index in sorted(used)]
        for operator in self.operators:
            operator.inputs = [place[int(index)] for index in operator.inputs]
            operator.outputs = [place[int(index)] for index in operator.outputs]
        self.main.inputs = [place[int(index)] for index in self.main.inputs]
        self.main.outputs = [place[int(index)] for index in self.main.outputs]
        for signature in self.model.signatureDefs or []:
            for entry in (*signature.inputs, *signature.outputs):
                entry.tensorIndex = place[entry.tensorIndex]
        holders = [tensor for subgraph in self.model.subgraphs for tensor in subgraph.tensors]
        holders += self.model.metadata or []
        kept = sorted({0} | {holder.buffer for holder in holders})
        new_buffer = {old: new for new, old in enumerate(kept)}
        self.model.buffers = [self.model.buffers[index] for index in kept]
        for holder in holders:
            holder.buffer = new_buffer[holder.buffer]


class Builder:
    """Adds tensors and operators to a subgraph; constants share the model's buffers."""

    def __init__(self, graph: Graph, subgraph: Any, name: str) -> None:
        self.graph, self.schema, self.subgraph, self.name = graph, graph.schema, subgraph, name

    @classmethod
    def of_new(cls, graph: Graph, name: str) -> tuple[Builder, int]:
        """A builder of a new, empty subgraph, and that one's index."""
        subgraph = graph.schema.SubGraphT()
        subgraph.name, subgraph.tensors, subgraph.operators = name.encode(), [], []
        graph.model.subgraphs.append(subgraph)
        return cls(graph, subgraph, name), len(graph.model.subgraphs) - 1

    def tensor(self, kind: int, shape: Sequence[int], grid: Any = None, buffer: int = 0) -> int:
        tensor = self.schema.TensorT()
        tensor.type, tensor.shape, tensor.quantization, tensor.buffer = kind, list(shape), grid, buffer
        tensor.name, tensor.hasRank = f"{self.name}/{len(self.subgraph.tensors)}".encode(), True
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def like(self, index: int, shape: Sequence[int] | np.ndarray | None = None) -> int:
        """A tensor of the form of one of the main subgraph's, or with another shape."""
        original = self.graph.tensors[index]
        size = self.graph.shape(index) if shape is None else [int(length) for length in shape]
        return self.tensor(original.type, size, original.quantization)

    def same(self, index: int) -> int:
        """A constant of the main subgraph."""
        original = self.graph.tensors[index]
        return self.tensor(original.type, self.graph.shape(index), original.quantization, original.buffer)

    def integers(self, values: Sequence[int] | np.ndarray) -> int:
        return self.constant(np.array(values, np.int32), self.schema.TensorType.INT32)

    def constant(self, values: np.ndarray, kind: int, grid: Any = None) -> int:
        data, buffers = values.tobytes(), self.graph.model.buffers
        if data not in self.graph.stored:
            buffers.append(self.schema.BufferT())
            buffers[-1].data = np.frombuffer(data, np.uint8)
            self.graph.stored[data] = len(buffers) - 1
        return self.tensor(kind, values.shape, grid, self.graph.stored[data])

    def counter(self, size: int = 1) -> int:
        return self.tensor(self.schema.TensorType.INT32, (size,))

    def add(self, name: str, inputs: Sequence[int], output: int, options: str | None = None, **settings: Any) -> int:
        """Appends an operator with one output, which it returns."""
        self.subgraph.operators.append(self.operator(name, inputs, [output], options, **settings))
        return output

    def add_copy(self, operator: Any, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Appends an operator that does the same to other tensors."""
        made = copy.copy(operator)
        made.inputs, made.outputs = list(inputs), list(outputs)
        self.subgraph.operators.append(made)

    def copy_of(self, other: Builder, index: int) -> int:
        """A tensor of the form of one in another subgraph."""
        original = other.subgraph.tensors[index]
        return self.tensor(original.type, original.shape, original.quantization)

    def zero(self, index: int) -> int:
        """The number that fills a tensor of the main subgraph's form with zeros, or with any code of its grid."""
        original = self.graph.tensors[index]
        return self.constant(
            np.zeros((), NUMPY_TYPES[self.graph.type_name(index)]), original.type, original.quantization
        )

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: str | None = None, **settings: Any
    ) -> Any:
        made = self.schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.graph.code(name), list(inputs), list(outputs)
        if options is not None:
            made.builtinOptions = getattr(self.schema, options + "T")()
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            for key, value in settings.items():
                setattr(made.builtinOptions, key, value)
        return made
