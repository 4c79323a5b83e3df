"""From a PyTorch graph to an ONNX file: shared by every target that starts from one."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.onnx import OnnxExporterError
from torch.utils._pytree import tree_map

from edgedl import dimensions
from edgedl.core import BATCH, SIZES, TargetError, Task
from edgedl.origin import Origin, origin
from edgedl.torch_tables import keep_tables

OPSET = 18
HALVES = "SlicesSplit"
"""What onnxscript calls its rule that makes one Split of two slices."""
LAYER_NOTE = "pkg.torch.onnx.name_scopes"
NEXT_TO_ZERO = -(2.0**-126)
"""Which half precision makes -0 of: neither is the zero that optimizers look for."""
FIXED_BATCH = (
    "max_batch: {} samples; reshape with x.shape[0] or -1 in the network, not with a number, or leave max_batch out"
)
Inputs: TypeAlias = tuple[torch.Tensor, ...]
Dynamic: TypeAlias = tuple[Any, ...] | None
"""For each parameter the names of the dimensions that may have any size, by axis; None where all are fixed."""


def example_inputs(task: Task, batch_size: int, sizes: Mapping[str, int] | None = None) -> tuple[torch.Tensor, ...]:
    """Zeros in the shapes and dtypes of the task's inputs, in order, each (batch_size, ...); or at other sizes."""
    dynamic = task.dynamic if sizes else {}
    return tuple(
        torch.zeros(
            (batch_size, *dimensions.shape(spec, dynamic.get(name, {}), sizes or {})), dtype=getattr(torch, spec.dtype)
        )
        for name, spec in task.inputs.items()
    )


def export_onnx(graph: torch.nn.Module, task: Task, file: Path, batch_size: int, any_batch: bool = False) -> None:
    """Writes `file` with fixed shapes; an int8 graph becomes Q/DQ nodes around int8 weights.

    With `any_batch` the first dimension is `BATCH`, for any number of samples, and dimensions that the task names have
    these names; the file then notes the sizes to be measured: `batch_size`, and those of the data.

    Weights are folded to int8 before the export, so that the file holds a quarter of the bytes;
    biases stay float32, which onnxruntime and TensorRT both fuse (TensorRT refuses int32 ones).
    Of the exporter's notes only those of each node's layer are kept: all of them are more than the weights of
    a small int8 network, and name folders of this machine.
    """
    file.write_bytes(exported(graph, task, batch_size, any_batch))


def exported(graph: torch.nn.Module, task: Task, batch_size: int, any_batch: bool = False) -> bytes:
    """What `export_onnx` writes, made but once of a graph."""
    key = hashlib.sha256(repr((batch_size, any_batch, task.inputs, task.dynamic, task.outputs)).encode())
    for name, value in graph.state_dict().items():
        key.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
        key.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    last = _exported.get(graph)
    if last is None or last[0] != key.digest():
        last = _exported[graph] = key.digest(), _exported_anew(graph, task, batch_size, any_batch)
    return last[1]


_exported: WeakKeyDictionary[torch.nn.Module, tuple[bytes, bytes]] = WeakKeyDictionary()
"""The last file of each graph and what it was made of: targets of one scheme share it, and exporting takes long."""


def _exported_anew(graph: torch.nn.Module, task: Task, batch_size: int, any_batch: bool) -> bytes:
    # An example of one sample would fix the number at one.
    inputs = example_inputs(task, max(batch_size, 2) if any_batch else batch_size)
    dynamic: Dynamic = None
    named = _named_axes(task, any_batch)
    if any(named.values()):  # by parameter: one that takes several inputs has theirs together
        dynamic = tuple(inspect.signature(graph.forward).bind(*named.values()).arguments.values())
    shapes = _output_shapes(graph, inputs) if task.dynamic else None
    if isinstance(graph, torch.fx.GraphModule):
        graph = _with_means(fold_weights(graph))
    with _in_linear_time():
        try:
            program = _converted(graph, task, inputs, dynamic)
        except OnnxExporterError:
            try:
                program = _converted(_with_open_attention(graph, inputs, dynamic), task, inputs, dynamic)
            except OnnxExporterError as error:
                raise TargetError(_reason(error, graph, task, batch_size)) from error
            except RuntimeError as error:
                if "Constraints violated" not in str(error):
                    raise
                raise TargetError(_fixed(task, any_batch)) from error
    model = program.model_proto
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer)
    for noted in (model, model.graph, *model.graph.node, *values):
        kept = [note for note in noted.metadata_props if note.key == LAYER_NOTE]
        del noted.metadata_props[:]
        noted.metadata_props.extend(kept)
    _keep_paddings_apart(model.graph)
    if any_batch:
        _check_any_batch(model.graph)
    if dynamic is not None:
        _check_named(model.graph, named)
        sizes = {name: one.size for name, one in dimensions.by_name(task.dynamic).items()}
        sizes |= {BATCH: batch_size} if any_batch else {}
        derived = {} if shapes is None else _derived_sizes(model.graph, shapes)
        model.metadata_props.add(key=SIZES, value=json.dumps(derived | sizes))
    content: bytes = model.SerializeToString()
    return content


def _keep_paddings_apart(graph: Any) -> None:
    """Lets paddings with zeros before a max pooling pad with a number next to zero.

    onnxruntime makes padding of the pooling's own of it, which is minus infinity: where all values are negative, as
    those of BiT may be, the answers are others (seen with 1.31).
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    for node in graph.node:
        if node.op_type != "Pad" or node.output[0] not in pooled:
            continue
        told = constants.get("".join(node.input[2:3]))
        if not any(node.input[2:3]) or (told is not None and not numpy_helper.to_array(told).any()):
            name = f"{node.output[0]}_next_to_zero"
            graph.initializer.append(numpy_helper.from_array(np.array(NEXT_TO_ZERO, np.float32), name))
            del node.input[2:3]
            node.input.insert(2, name)


def _named_axes(task: Task, any_batch: bool) -> dict[str, dict[int, str]]:
    """What dimensions of inputs are called that may have any size, by axis."""
    batch = {0: BATCH} if any_batch else {}
    return {name: batch | {axis: one.name for axis, one in task.dynamic.get(name, {}).items()} for name in task.inputs}


def _output_shapes(graph: torch.nn.Module, inputs: Inputs) -> list[torch.Size]:
    with torch.no_grad():
        found = graph(*inputs)
    return [values.shape for values in (found if isinstance(found, tuple | list) else (found,))]


def _derived_sizes(graph: Any, shapes: list[torch.Size]) -> dict[str, int]:
    """Sizes of outputs that follow from those of inputs, such as half of one, by what the exporter calls them."""
    return {
        dimension.dim_param: size
        for value, shape in zip(graph.output, shapes, strict=True)
        for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True)
        if dimension.dim_param
    }


def _fixed(task: Task, any_batch: bool) -> str:
    """What to say of a network that the exporter has found to be for one size, where it does not say of which."""
    if not task.dynamic:
        return FIXED_BATCH.format("the network is for a fixed number of")
    names = [*dimensions.by_name(task.dynamic), *(["number of samples"] if any_batch else [])]
    return f"dynamic: the network is for a fixed {' or '.join(names)}; compute with sizes of tensors, not with numbers"


def _check_named(graph: Any, named: Mapping[str, Mapping[int, str]]) -> None:
    """Raises `TargetError` for an input with a dimension whose size the exporter has found to be fixed."""
    for value in graph.input:
        for axis, name in named.get(value.name, {}).items():
            size = value.type.tensor_type.shape.dim[axis]
            if not size.dim_param:
                raise TargetError(
                    f"dynamic: {value.name} is for {name} {size.dim_value} alone; compute with sizes of tensors, not "
                    f"with numbers, or leave {name} out"
                )


def _check_any_batch(graph: Any) -> None:
    """Raises `TargetError` for an input or output whose number of samples the exporter has found to be fixed."""
    for value in (*graph.input, *graph.output):
        sizes = [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        if sizes[:1] != [BATCH]:
            raise TargetError(FIXED_BATCH.format(f"{value.name} is for {sizes[0] if sizes else 'all'}"))


def _converted(
    graph: torch.nn.Module | torch.export.ExportedProgram, task: Task, inputs: Inputs, dynamic: Dynamic
) -> torch.onnx.ONNXProgram:
    keep_tables()
    program = torch.onnx.export(
        graph,
        inputs,
        dynamic_shapes=dynamic,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(task.inputs),
        output_names=list(task.outputs),
        verbose=False,
    )
    assert program is not None
    return program


def _with_means(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Makes means of poolings to one value, in place, as the exporter would after tracing the whole graph again."""
    aten = torch.ops.aten
    for node in graph.graph.nodes:
        if node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            node.target, node.args = aten.mean.dim, (node.args[0], [-1, -2], True)
    graph.recompile()
    return graph


def _with_open_attention(graph: torch.nn.Module, inputs: Inputs, dynamic: Dynamic) -> torch.export.ExportedProgram:
    """The program of a module with products and softmax for attention.

    The exporter opens it late, and views behind it are made for how its kernel lays out what it gives.
    """
    aten = torch.ops.aten

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *masks: Any, **options: Any) -> Any:
        return aten._scaled_dot_product_attention_math(query, key, value, *masks, **options)[0]

    free = None if dynamic is None else tree_map(lambda name: torch.export.Dim.DYNAMIC, dynamic)
    program = torch.export.export(graph, inputs, dynamic_shapes=free)
    for node in program.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    opened: torch.export.ExportedProgram = program.run_decompositions(
        {aten.scaled_dot_product_attention.default: attention}
    )
    return opened


def _reason(error: Exception, graph: torch.nn.Module, task: Task, batch_size: int) -> str:
    """What PyTorch's exporter says behind its advice on whom to tell, and of which operator."""
    cause = error.__cause__ or error
    if node := re.search(r"translating node %(\w+) ", str(cause)):
        found = _origin(graph, task, batch_size, node[1])
        if found is not None:
            return f"PyTorch's ONNX exporter cannot translate {found}: {_first_line(cause.__cause__ or cause)}"
    return f"PyTorch's ONNX exporter fails: {type(cause).__name__}: {_first_line(cause)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _origin(graph: torch.nn.Module, task: Task, batch_size: int, name: str) -> Origin | None:
    """Where a node comes from that the exporter knows by this name; it decomposes what it is given."""
    program = torch.export.export(graph, example_inputs(task, batch_size))
    nodes = [*program.graph.nodes, *program.run_decompositions().graph.nodes]
    # It calls `special_bessel_j0` by the end of its name.
    found = [node for node in nodes if node.name == name] or [node for node in nodes if node.name.endswith(name)]
    return origin(found[0]) if found else None


@contextmanager
def naming_operators(file: Path, graph: torch.nn.Module, task: Task, batch_size: int) -> Iterator[None]:
    """Adds to what is said of a node that is refused where it comes from, if it is one of a file exported from here."""
    import onnx

    try:
        yield
    except TargetError as error:
        refused = re.search(r"refuses node (\S+) \(", str(error))
        nodes = onnx.load(str(file), load_external_data=False).graph.node
        notes = [note.value for node in nodes if refused and node.name == refused[1] for note in node.metadata_props]
        found = _origin(graph, task, batch_size, ast.literal_eval(notes[0])[-1]) if notes else None
        if found is None:
            raise
        raise TargetError(f"{error}; it is {found}") from error


@contextmanager
def _in_linear_time() -> Iterator[None]:
    """Keeps the exporter from looking for pairs of slices that are the halves of a value.

    It holds each node of the graph against each slice: for an LSTM of 64 steps in both directions that takes minutes.
    """
    from onnxscript import rewriter

    rules = rewriter._DEFAULT_REWRITE_RULES
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule.name != HALVES)
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


def fold_weights(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy of a simulated graph whose quantized weights are int8 constants."""
    import copy

    from torchao.quantization.pt2e.constant_fold import constant_fold
    from torchao.quantization.pt2e.quantize_pt2e import _quant_node_constraint

    folded = copy.deepcopy(graph)
    constant_fold(folded, _quant_node_constraint)
    return folded
