"""Reading, editing and writing .tflite files through the schema's object interface. No torch, no interpreter here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

IDENTIFIER = b"TFL3"
NUMPY_TYPES = {"FLOAT32": "float32", "INT8": "int8", "INT16": "int16", "INT32": "int32"}
"""Types of tensors that can be filled with zeros."""


class Flatbuffer:
    """A .tflite file as objects: change `model`, `tensors` and `operators` (those of the main subgraph), and `pack`.

    Operators know tensors by their index, which is -1 for an input that is left out. Raises `ModuleNotFoundError`
    where `ai_edge_litert`, which has the schema, is not installed.
    """

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        self.kinds = _names(schema.BuiltinOperator)
        self.types = _names(schema.TensorType)
        self.stored: dict[bytes, int] = {}
        """The buffers that `share_constants` and builders found or made, by their data."""

    @classmethod
    def read(cls, file: Path, without: Callable[[bytes], bytes] | None = None) -> Flatbuffer | None:
        """None where the schema is not installed, or where the file has several entries.

        `without` rewrites the content first, so as to leave one subgraph only: None where it cannot.
        """
        try:
            content = file.read_bytes()
            found = cls(content if without is None else without(content))
        except ModuleNotFoundError:
            return None
        whole = without is None or len(found.model.subgraphs) == 1
        return found if whole and len(found.model.signatureDefs or []) <= 1 else None

    @property
    def main(self) -> Any:
        return self.model.subgraphs[0]

    @property
    def tensors(self) -> list[Any]:
        tensors: list[Any] = self.main.tensors
        return tensors

    @property
    def operators(self) -> list[Any]:
        operators: list[Any] = self.main.operators
        return operators

    @operators.setter
    def operators(self, operators: list[Any]) -> None:
        self.main.operators = operators

    def name(self, operator: Any) -> str:
        """That of its first output, which has the paths of the modules that made it."""
        name: bytes | None = self.tensors[operator.outputs[0]].name  # which a file may leave out
        return (name or b"").decode("utf-8", "replace")

    def kind(self, operator: Any) -> str:
        """Such as `CONV_2D`."""
        return self.kinds[_builtin(self.model.operatorCodes[operator.opcodeIndex])]

    def type_name(self, index: int) -> str:
        """Such as `FLOAT32`."""
        return self.types[int(self.tensors[index].type)]

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
        groups = self.groups(tensor)
        grouped = None if groups is None else (groups.blockSize, self.held(groups.scales))
        return (self.shape(index), tensor.type, bool(tensor.isVariable), axis, *as_bytes, grouped)

    def groups(self, tensor: Any) -> Any:
        """How a tensor is quantized that has a scale for each group: `scales` is another's index; None for others."""
        grid, kinds = tensor.quantization, self.schema.QuantizationDetails
        return grid.details if grid is not None and grid.detailsType == kinds.BlockwiseQuantization else None

    def group(self, tensor: Any, size: int, scales: int) -> None:
        """Gives a tensor the scale of its group, for each `size` of its last dimension, from the tensor `scales`."""
        details, grid = self.schema.BlockwiseQuantizationT(), self.schema.QuantizationParametersT()
        details.scales, details.zeroPoints, details.blockSize = scales, -1, size
        grid.detailsType, grid.details = self.schema.QuantizationDetails.BlockwiseQuantization, details
        tensor.quantization = grid

    def constant(self, tensor: Any) -> bytes:
        """A tensor's data; empty if it is computed."""
        data = self.model.buffers[tensor.buffer].data
        return b"" if data is None else bytes(data)

    def integers(self, index: int) -> np.ndarray:
        """The values of an int32 constant."""
        return np.frombuffer(self.constant(self.tensors[index]), np.int32).astype(int)

    def held(self, index: int) -> int | None:
        """What tells constants apart once equal ones share a buffer; None for anything that is computed."""
        if index < 0:
            return -1
        buffer = int(self.tensors[index].buffer)
        data = self.model.buffers[buffer].data
        return None if data is None or len(data) == 0 else buffer

    def is_constant(self, operator: Any) -> bool:
        """Whether it dequantizes a constant, which the interpreter does once, when it loads a file."""
        return self.kind(operator) == "DEQUANTIZE" and bool(self.constant(self.tensors[operator.inputs[0]]))

    def dequantized_constants(self) -> dict[int, Any]:
        """The operators that dequantize constants, by the index of the tensor that they make."""
        return {int(operator.outputs[0]): operator for operator in self.operators if self.is_constant(operator)}

    def add(self, tensor: Any) -> int:
        """Its index in the main subgraph."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def new_buffer(self, data: bytes) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def store(self, tensor: Any, data: bytes) -> None:
        """Gives a tensor data of its own, whoever shared the old."""
        tensor.buffer = self.new_buffer(data)

    def share_constants(self) -> bool:
        """Stores equal constants once: a weight that is quantized for every step stands there as often."""
        shared = False
        for tensor in self.tensors:
            if data := self.constant(tensor):
                buffer = self.stored.setdefault(data, tensor.buffer)
                shared = shared or buffer != tensor.buffer
                tensor.buffer = buffer
        return shared

    def code(self, kind: str, version: int | None = None) -> int:
        """The index of an operator code, of any version or the one given; it is added where the model has none."""
        builtin = getattr(self.schema.BuiltinOperator, kind)
        for index, code in enumerate(self.model.operatorCodes):
            if _builtin(code) == builtin and version in (None, code.version):
                return index
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version or 1
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str | None = None,
        version: int | None = None,
        **settings: Any,
    ) -> Any:
        """An operator to be put among `operators`; `options` names the class in the schema that `settings` are of."""
        made = self.schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.code(kind, version), list(inputs), list(outputs)
        if options is not None:
            made.builtinOptions = getattr(self.schema, options + "T")()
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            for key, value in settings.items():
                setattr(made.builtinOptions, key, value)
        return made

    def drop_dead(self) -> None:
        """Removes operators whose results nobody takes any longer."""
        needed = {int(index) for index in self.main.outputs}
        kept = []
        for operator in reversed(self.operators):
            if needed & {int(index) for index in operator.outputs}:
                needed |= {int(index) for index in operator.inputs}
                kept.append(operator)
        self.operators = kept[::-1]

    def drop_unused(self) -> None:
        """Removes tensors that no operator takes any longer, and buffers; a file would carry them on."""
        used = {int(index) for operator in self.operators for index in (*operator.inputs, *operator.outputs)}
        used |= {int(index) for index in (*self.main.inputs, *self.main.outputs)}
        used |= {groups.scales for index in used - {-1} if (groups := self.groups(self.tensors[index])) is not None}
        used.discard(-1)
        place = {old: new for new, old in enumerate(sorted(used))} | {-1: -1}
        self.main.tensors = [self.tensors[index] for index in sorted(used)]
        for holder in (self.main, *self.operators):
            holder.inputs = [place[int(index)] for index in holder.inputs]
            holder.outputs = [place[int(index)] for index in holder.outputs]
        for tensor in self.tensors:
            if (groups := self.groups(tensor)) is not None:
                self.group(tensor, groups.blockSize, place[groups.scales])
        for signature in self.model.signatureDefs or []:
            for entry in (*signature.inputs, *signature.outputs):
                entry.tensorIndex = place[entry.tensorIndex]
        holders = [tensor for subgraph in self.model.subgraphs for tensor in subgraph.tensors]
        for tensor in holders:
            tensor.buffer = tensor.buffer if self.constant(tensor) else 0  # the empty one, which all can share
        holders += self.model.metadata or []
        kept = sorted({0} | {holder.buffer for holder in holders})
        new_buffer = {old: new for new, old in enumerate(kept)}
        self.model.buffers = [self.model.buffers[index] for index in kept]
        for holder in holders:
            holder.buffer = new_buffer[holder.buffer]

    def pack(self) -> bytes:
        """The file's content. Equal vectors are written once, such as the zero points of all layers of a width."""
        import flatbuffers

        class Sharing(flatbuffers.Builder):  # type: ignore[misc]
            def CreateNumpyVector(self, values: np.ndarray) -> int:
                key = values.dtype.str, values.tobytes()
                if key not in written:
                    written[key] = super().CreateNumpyVector(values)
                return written[key]

        written: dict[tuple[str, bytes], int] = {}
        builder = Sharing(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())


class Builder:
    """Adds tensors and operators to one subgraph of a file, by default a new one; equal constants share a buffer."""

    def __init__(self, graph: Flatbuffer, name: str, subgraph: Any = None) -> None:
        if subgraph is None:
            subgraph = graph.schema.SubGraphT()
            subgraph.name, subgraph.tensors, subgraph.operators = name.encode(), [], []
            graph.model.subgraphs.append(subgraph)
        self.graph, self.subgraph, self.name = graph, subgraph, name
        self.types = graph.schema.TensorType

    def tensor(self, kind: int, shape: Sequence[int] | np.ndarray, grid: Any = None, buffer: int = 0) -> int:
        tensor = self.graph.schema.TensorT()
        tensor.type, tensor.shape, tensor.quantization, tensor.buffer = kind, [*map(int, shape)], grid, buffer
        tensor.name, tensor.hasRank = f"{self.name}/{len(self.subgraph.tensors)}".encode(), True
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def like(self, index: int, shape: Sequence[int] | np.ndarray | None = None, other: Builder | None = None) -> int:
        """A tensor of the form of one of the main subgraph's, or of another builder's, or with another shape."""
        original = (self.graph.main if other is None else other.subgraph).tensors[index]
        size = original.shape if shape is None else shape
        return self.tensor(original.type, () if size is None else size, original.quantization)

    def same(self, index: int) -> int:
        """A constant of the main subgraph."""
        original = self.graph.tensors[index]
        made = self.tensor(original.type, self.graph.shape(index), original.quantization, original.buffer)
        if (groups := self.graph.groups(original)) is not None:
            self.graph.group(self.subgraph.tensors[made], groups.blockSize, self.same(groups.scales))
        return made

    def constant(self, values: np.ndarray, kind: int, grid: Any = None) -> int:
        data, stored = values.tobytes(), self.graph.stored
        if data not in stored:
            stored[data] = self.graph.new_buffer(data)
        return self.tensor(kind, values.shape, grid, stored[data])

    def integers(self, values: Sequence[int] | np.ndarray) -> int:
        return self.constant(np.array(values, np.int32), self.types.INT32)

    def zero(self, index: int) -> int:
        """The number that fills a tensor of the main subgraph's form with zeros, or with any code of its grid."""
        original, numpy_type = self.graph.tensors[index], NUMPY_TYPES[self.graph.type_name(index)]
        return self.constant(np.zeros((), numpy_type), original.type, original.quantization)

    def counter(self, size: int = 1) -> int:
        return self.tensor(self.types.INT32, (size,))

    def add(self, kind: str, inputs: Sequence[int], output: int, options: str | None = None, **settings: Any) -> int:
        """Appends an operator with one output, which it returns."""
        self.subgraph.operators.append(self.graph.operator(kind, inputs, [output], options, **settings))
        return output

    def add_copy(self, operator: Any, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Appends an operator that does the same to other tensors."""
        made = copy.copy(operator)
        made.inputs, made.outputs = list(inputs), list(outputs)
        self.subgraph.operators.append(made)


def _names(codes: Any) -> dict[int, str]:
    return {value: name for name, value in vars(codes).items() if isinstance(value, int)}


def _builtin(code: Any) -> int:
    """Codes above 127 stand in a field of their own."""
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
