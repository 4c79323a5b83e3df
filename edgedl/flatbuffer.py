"""Reading, editing and writing .tflite files through the schema's object interface. No torch, no interpreter here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

IDENTIFIER = b"TFL3"


class Flatbuffer:
    """A .tflite file as objects: change `model`, `tensors` and `operators` (those of the first subgraph), and `pack`.

    Raises `ModuleNotFoundError` where `ai_edge_litert`, which has the schema, is not installed.
    """

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        self.kinds = {value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}

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
    def tensors(self) -> list[Any]:
        tensors: list[Any] = self.model.subgraphs[0].tensors
        return tensors

    @property
    def operators(self) -> list[Any]:
        operators: list[Any] = self.model.subgraphs[0].operators
        return operators

    @operators.setter
    def operators(self, operators: list[Any]) -> None:
        self.model.subgraphs[0].operators = operators

    def name(self, operator: Any) -> str:
        """That of its first output, in which litert-torch keeps the layer's path."""
        name: bytes = self.tensors[operator.outputs[0]].name
        return name.decode("utf-8", "replace")

    def kind(self, operator: Any) -> str:
        """Such as `CONV_2D`."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        kind: str = self.kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        return kind

    def constant(self, tensor: Any) -> bytes:
        """A tensor's data; empty if it is computed."""
        data = self.model.buffers[tensor.buffer].data
        return b"" if data is None else bytes(data)

    def store(self, tensor: Any, data: bytes) -> None:
        """Gives a tensor data of its own, whoever shared the old."""
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1

    def is_constant(self, operator: Any) -> bool:
        """Whether it dequantizes a constant, which the interpreter does once, when it loads a file."""
        return self.kind(operator) == "DEQUANTIZE" and bool(self.constant(self.tensors[operator.inputs[0]]))

    def dequantized_constants(self) -> dict[int, Any]:
        """The operators that dequantize constants, by the index of the tensor that they make."""
        return {int(operator.outputs[0]): operator for operator in self.operators if self.is_constant(operator)}

    def new_operator(self, kind: str, version: int, inputs: list[int], outputs: list[int]) -> Any:
        """An operator without options, to be put among `operators`."""
        code = self.schema.OperatorCodeT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        self.model.operatorCodes.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, outputs
        return operator

    def drop_unused(self) -> None:
        """Removes the data of tensors that no operator takes any longer; a file would carry it on."""
        subgraph = self.model.subgraphs[0]
        used = {int(index) for operator in self.operators for index in (*operator.inputs, *operator.outputs)}
        used |= {int(index) for index in (*subgraph.inputs, *subgraph.outputs)}
        kept = {tensor.buffer for index, tensor in enumerate(self.tensors) if index in used}
        kept |= {metadata.buffer for metadata in self.model.metadata or []}
        for index, buffer in enumerate(self.model.buffers):
            if index not in kept:
                buffer.data = None

    def pack(self) -> bytes:
        """The file's content."""
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())
