"""ONNX files read back as layers of PyTorch, which can be trained, pruned and quantized like any others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import fx

from edgedl.core import ModelFileError
from edgedl.onnx import operators as onnx_operators
from edgedl.onnx.builder import Builder, Sizes, Value, as_tensor

QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
             "DynamicQuantizeLinear", "QGemm"}  # fmt: skip


def read(
    model: onnx.ModelProto, name: str, examples: Mapping[str, tuple[torch.Tensor, torch.Tensor]], fixed: int | None
) -> fx.GraphModule:
    """The module: takes the inputs in order, and returns a tensor, or a dictionary of several by name.

    `examples` are the inputs twice, for two numbers of samples; `fixed` is that number which the file was exported
    for, if it takes no other. Raises `ModelFileError`, which names the node of the file called `name`.
    """
    builder = Builder(model, name, fixed)
    for constant in model.graph.initializer:
        builder.keep(constant.name, as_tensor(numpy_helper.to_array(constant)))
    for given, pair in examples.items():
        builder.values[given] = Value(builder.graph.placeholder(builder.label(given)), pair)
    for node in model.graph.node:
        found = _read_node(builder, node)
        several = found if isinstance(found, tuple) else (found,)
        for output, value in zip(node.output, several, strict=False):
            builder.values[output] = _settled(value)
    results = {output.name: builder.node(builder.values[output.name]) for output in model.graph.output}
    builder.graph.output(next(iter(results.values())) if len(results) == 1 else results)
    module = fx.GraphModule(builder.root, builder.graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _read_node(builder: Builder, node: onnx.NodeProto) -> Any:
    if node.op_type in QUANTIZED:
        raise ModelFileError(f"{builder.file}: is quantized already (operator {node.op_type}); give the float network")
    meaning = _meaning(node)
    if meaning is None:
        raise builder.refusal(node, "is not among those that edgedl reads; export the network without it")
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    try:
        return meaning(builder, node, *(builder.values[name] for name in node.input), **attributes)
    except ModelFileError:
        raise
    # Whatever torch says of arguments that it was not made for.
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise builder.refusal(node, f"is used in a way that edgedl does not read: {said}") from error


def _meaning(node: onnx.NodeProto) -> Callable[..., Any] | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if function := onnx_operators.FUNCTIONS.get(node.op_type):
        return partial(onnx_operators.plain, function)
    return getattr(onnx_operators, f"on_{node.op_type}", None)


def _settled(value: Any) -> Any:
    """Sizes that depend on nothing are a constant."""
    if not isinstance(value, Sizes) or any(isinstance(size, Value) for size in value):
        return value
    return torch.tensor(value[0] if value.is_scalar else list(value), dtype=torch.int64)
