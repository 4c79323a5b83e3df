"""TFLite / LiteRT: flatbuffers for phones and small boards, converted by litert-torch."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import PositiveInt

from edgedl import dimensions, stats
from edgedl.core import Artifact, Model, ModelFileError, Target, TargetError, Task
from edgedl.origin import origin
from edgedl.quantize.schemes import LITERT, STATIC_FORMS, Form, Scheme
from edgedl.tflite.litert import LiteRTSession

if TYPE_CHECKING:
    import torch

    from edgedl.tflite.flatbuffer import Flatbuffer

MIN_HALVED = 16
"""Constants of fewer numbers stay float32: storing them so takes more bytes than it saves."""

KNOWS_GROUPS = 13
"""A version of FULLY_CONNECTED that old interpreters refuse. Of another, tflite_runtime 2.14 takes such a file, ignores
the scales of groups, and answers nonsense."""

ONE_SCALE = {"FULLY_CONNECTED", "GATHER", "EMBEDDING_LOOKUP", "DEQUANTIZE"}
"""Kernels that know weights with a single scale."""

ONE_FREE = "with max_batch it has the number of samples free, and a shape can have one such size"
NUM_TRIED = 3
"""Samples in a batch with which a file for batches of any size is tried."""
SAME_DB = 60.0
"""Float kernels may sum a batch in another order; samples that are mixed up agree to some decibels."""


class TFLite(Target):
    """`.tflite` files with float inputs and outputs, for the interpreter of ai_edge_litert or tflite_runtime."""

    use: str = "tflite"
    threads: PositiveInt = 1
    """Of the runtime."""
    max_batch: PositiveInt | None = None
    """With any, files take batches of any size, by `resize_tensor_input`."""
    metadata: bool = False
    """Whether files carry what MediaPipe's and ML Kit's tasks want to know of them, and the names of classes."""

    scheme: ClassVar[Scheme] = LITERT
    forms: ClassVar[tuple[Form, ...]] = (
        *("int8", "int8 layers", "mixed", "int8 dynamic", "int8 weights"),
        *("int4 dynamic", "int4 weights", "fp16"),
    )
    suffixes: ClassVar[tuple[str, ...]] = (".tflite",)
    requires: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "build": ("torch", "litert_torch", "ai_edge_litert"),
        "open": ("ai_edge_litert|tflite_runtime",),
    }
    extra: ClassVar[str] = "tflite"

    def build(self, model: Model, task: Task, folder: Path, batch_size: int) -> Artifact:
        """Writes `model.tflite`. Raises `TargetError` if the converter refuses the graph."""
        from importlib.metadata import version

        os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")  # which a notebook shows wherever it is written
        import litert_torch

        from edgedl.onnx.export import example_inputs
        from edgedl.quantize import mixed
        from edgedl.quantize.recurrent import open_recurrent
        from edgedl.tflite.any_batch import foreign_prime, with_any_batch
        from edgedl.tflite.loops import with_loops
        from edgedl.tflite.model_metadata import with_metadata
        from edgedl.tflite.transposed import finished
        from edgedl.torch_tables import keep_tables

        keep_tables()
        graph = open_recurrent(self.graph(model))
        if model.precision in STATIC_FORMS:
            graph = mixed.fenced(cast("torch.fx.GraphModule", graph))
        file = folder / "model.tflite"
        ours = partial(_conversion_of_ours, list(task.inputs), list(task.outputs))
        any_batch, notes = self.max_batch is not None, dimensions.kept(task, ONE_FREE)

        def converted(inputs: tuple[torch.Tensor, ...]) -> tuple[bytes, Mapping[str, int]]:
            with ours() as lowered, _converting_transposed(model.precision), _one_thread():
                try:
                    made = litert_torch.convert(graph, inputs)
                except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
                    raise TargetError(f"litert-torch cannot convert {_failed(error, lowered)}") from error
                stored, rewrites = _stored(made.model_content(), model.precision)
                return finished(stored), rewrites

        num_samples = foreign_prime(_sizes(graph, task)) if any_batch else batch_size
        content, rewrites = converted(example_inputs(task, num_samples))
        # Loops would have the number of samples, or of steps, in their bodies.
        if any_batch:
            content = with_any_batch(content, num_samples, batch_size)
        elif task.dynamic:
            freed, notes = self._for_any_size(content, converted, task, batch_size, folder)
            content = freed or with_loops(content)
        else:
            content = with_loops(content)
        if self.metadata:
            inputs = task.input_specs(batch_size)
            content = with_metadata(content, task.use, inputs, list(task.outputs), task.preprocessing, task.class_names)
        file.write_bytes(content)  # by Python, whose error names a full disk
        if any_batch:
            _try_batches(self.open(file), task)
        versions = {"litert-torch": version("litert-torch"), "ai-edge-litert": version("ai-edge-litert")}
        return Artifact(file=file, precision=model.precision, versions=versions, rewrites=rewrites, notes=notes)

    def _for_any_size(
        self,
        content: bytes,
        converted: Callable[[tuple[torch.Tensor, ...]], tuple[bytes, Mapping[str, int]]],
        task: Task,
        batch_size: int,
        folder: Path,
    ) -> tuple[bytes | None, tuple[str, ...]]:
        """The file for other sizes of its inputs, as far as it runs at them; else None, and why in a note."""
        from edgedl.onnx.export import example_inputs
        from edgedl.tflite.any_size import with_any_size

        tried = dimensions.to_try(task.dynamic)
        if not tried:
            return None, ()
        try:
            freed = with_any_size(
                content, converted(example_inputs(task, batch_size, dimensions.elsewhere(task.dynamic)))[0]
            )
            trial = folder / "trial.tflite"
            trial.write_bytes(freed)
            session = self.open(trial)
            for sizes in tried:
                inputs = example_inputs(task, batch_size, sizes)
                session.run({name: one.numpy() for name, one in zip(task.inputs, inputs, strict=True)})
            session.close()
        except (TargetError, ModelFileError, RuntimeError, ValueError) as error:
            return None, dimensions.kept(task, _first_line(error))
        finally:
            (folder / "trial.tflite").unlink(missing_ok=True)
        return freed, ()

    def open(self, file: Path) -> LiteRTSession:
        """Raises `ModelFileError` for a file that the interpreter refuses."""
        return LiteRTSession(file, self.threads)


def _sizes(graph: torch.nn.Module, task: Task) -> set[int]:
    """Of all dimensions of a network's values for one sample, and of its weights.

    Raises `TargetError` for a network that does not take one sample.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from edgedl.onnx.export import example_inputs

    found = {size for tensor in graph.state_dict().values() for size in tensor.shape}

    class Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            several = result if isinstance(result, list | tuple) else [result]
            found.update(size for one in several if isinstance(one, torch.Tensor) for size in one.shape)
            return result

    try:
        with torch.no_grad(), Noting():  # type: ignore[no-untyped-call]
            graph(*example_inputs(task, 1))
    except (RuntimeError, ValueError) as error:
        raise TargetError(f"litert-torch cannot convert {_failed(error, [])}") from error
    return found


def _try_batches(session: LiteRTSession, task: Task) -> None:
    """Raises `TargetError` where the answers to three samples are not those to each alone."""
    import numpy as np

    samples = {name: task.arrays("test")[name][:NUM_TRIED] for name in task.inputs}
    try:
        together = session.run(samples)
        alone = [session.run({name: one[row : row + 1] for name, one in samples.items()}) for row in range(NUM_TRIED)]
    except (RuntimeError, ValueError) as error:
        raise TargetError(f"max_batch: the file takes one number of samples only: {_first_line(error)}") from error
    for name, values in together.items():
        single = np.concatenate([answers[name] for answers in alone])
        if single.shape != values.shape or stats.sqnr_db(single, values) < SAME_DB:
            raise TargetError(
                f"max_batch: output {name} for {NUM_TRIED} samples is not what each gives alone; "
                "leave max_batch out for this target"
            )


def _stored(content: bytes, precision: str) -> tuple[bytes, Mapping[str, int]]:
    """A converted file with its weights as a form wants them, and what was rewritten in it."""
    from edgedl.tflite.flatbuffer import Flatbuffer
    from edgedl.tflite.paddings import pad_by_convolutions
    from edgedl.tflite.wide_kernels import narrow

    graph, rewrites = Flatbuffer(content), dict[str, int]()
    if precision.startswith("int4"):
        _pack_four_bits(graph)
    if precision.endswith("dynamic"):
        _scale_at_run_time(graph)
    if precision == "fp16" or precision in STATIC_FORMS:
        _store_in_half(graph)
    if precision in STATIC_FORMS:
        _drop_fences(graph)
        pad_by_convolutions(graph)
        if num_in_float := _compute_in_float(graph, ("GELU", "HARD_SWISH", "SQRT", "RSQRT")):
            rewrites["GELUs, hard swishes and roots computed in float between int8 values"] = num_in_float
    _share_scales(graph)
    num_narrowed = narrow(graph)
    if num_narrowed:
        rewrites["wide depthwise kernels made sums of narrower ones"] = num_narrowed
    if not _dequantize_images(graph) and not num_narrowed and precision == "fp32":
        return content, rewrites
    graph.drop_unused()
    return graph.pack(), rewrites


def _dequantize_images(graph: Flatbuffer) -> bool:
    """Makes numbers of images of uint8 by XNNPACK, which has a kernel for dequantization and none for conversion.

    A number that all of an image is multiplied by is the scale of that. Returns whether there are any.
    """
    import numpy as np

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


def _scale_at_run_time(graph: Flatbuffer) -> None:
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


def _pack_four_bits(graph: Flatbuffer) -> None:
    """Stores the weights of dense layers in 4 bits, where the graph has put them on such a grid.

    Those of groups come as a row for each group, dequantized and reshaped, and go to the layer as they are: so only
    its kernel that scales inputs at run time has groups: DEQUANTIZE gives codes instead of weights for such a tensor.
    """
    import numpy as np

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


def _drop_fences(graph: Flatbuffer) -> None:
    """Takes out what `mixed.fenced` has put in."""
    from edgedl.quantize.mixed import FENCE

    kept, behind = [], dict[int, int]()
    for operator in graph.operators:
        if graph.kind(operator) == "FLOOR" and FENCE in graph.name(operator):
            behind[int(operator.outputs[0])] = int(operator.inputs[0])
        else:
            kept.append(operator)
    graph.operators = kept
    for operator in kept:
        operator.inputs = [behind.get(int(index), int(index)) for index in operator.inputs]


def _compute_in_float(graph: Flatbuffer, kinds: tuple[str, ...]) -> int:
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


def _share_scales(graph: Flatbuffer) -> None:
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


def _store_in_half(graph: Flatbuffer) -> None:
    """Stores the constants that half precision holds exactly as float16, each dequantized when the file is loaded."""
    import numpy as np

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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Lets JAX, which litert-torch lowers by, verify graphs without its pool of threads.

    Such a pool has none in a copy of the process (`child.py`), where whoever waits for it waits for ever.
    """
    from jax._src.interpreters import mlir

    make = mlir.make_ir_context

    def make_without_threads() -> Any:
        context = make()
        context.enable_multithreading(False)
        return context

    mlir.make_ir_context = make_without_threads
    try:
        yield
    finally:
        mlir.make_ir_context = make


@contextmanager
def _conversion_of_ours(inputs: list[str], outputs: list[str]) -> Iterator[list[torch.fx.Node]]:
    """Makes the converter take the graph's quantization as it stands, the task's names, and modules' paths as names.

    Gives a list of the operators that it has come to.

    In its default mode litert-torch leaves float kernels between Q/DQ pairs; in the modes that its
    public options reach it makes scales of its own where it finds none, and int8 inputs and outputs.
    The strict mode does neither. No public option reaches it, nor the names, hence the substitution.
    It calls a tensor by the classes of all modules around it, which can take up a third of a small file. And it tells
    constants apart by their place in memory alone, where another may lie after the first is gone: here all are kept
    (https://github.com/google-ai-edge/litert-torch/issues/1061).
    """
    from litert_torch._convert import litert_converter
    from litert_torch.backend import debuginfo, inline_consts

    api = litert_converter.converter_api_ext

    class Ours:
        def __getattr__(self, name: str) -> Any:
            return getattr(api, name)

        @staticmethod
        def ConvertToTFLConfig() -> Any:
            config = api.ConvertToTFLConfig()
            config.strict_qdq_mode = True
            return config

        @staticmethod
        def set_signature(operation: Any, *, signature_name: str, **_: Any) -> None:
            api.set_signature(operation, signature_name=signature_name, input_names=inputs, output_names=outputs)

    kept: list[torch.Tensor] = []
    by_classes, by_place = debuginfo.build_mlir_debuginfo, inline_consts._ConstantFingerprint

    class Kept(by_place):  # type: ignore[misc,valid-type]
        @classmethod
        def from_tensor(cls, tensor: torch.Tensor) -> Any:
            kept.append(tensor)
            return by_place.from_tensor(tensor)

    lowered: list[torch.fx.Node] = []

    def named(node: torch.fx.Node) -> str | None:
        lowered.append(node)
        return _module_path(node)

    litert_converter.converter_api_ext, debuginfo.build_mlir_debuginfo = Ours(), named
    inline_consts._ConstantFingerprint = Kept
    try:
        yield lowered
    finally:
        litert_converter.converter_api_ext, debuginfo.build_mlir_debuginfo = api, by_classes
        inline_consts._ConstantFingerprint = by_place


def _module_path(node: torch.fx.Node) -> str | None:
    """The innermost module that a node was made in; behind the semicolon the converter adds numbers and more paths."""
    around = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return f"{around[-1]};" if around and around[-1] else None


@contextmanager
def _converting_transposed(precision: str) -> Iterator[None]:
    """Makes the converter take transposed convolutions with any padding, and in float make fast ones of them."""
    from litert_torch.fx_infra import decomp

    from edgedl.quantize.sub_pixel import decompositions, divides

    if precision in STATIC_FORMS:  # the int8 kernel is fast, and what is not for it is opened by now
        added = decompositions(lambda weight, stride: True)
    elif precision in ("fp32", "fp16"):
        added = decompositions(lambda weight, stride: False)
    else:  # the weight is computed from codes, which cannot be filled up
        added = decompositions(lambda weight, stride: not divides(weight, stride))
    # The converter has entries of its own for these operators, which the caller may need after.
    tables = decomp._pre_convert_decomp, decomp._pre_lower_decomp
    overloads = [overload for operator in added for overload in decomp._get_ops(operator)]
    before = [{overload: table[overload] for overload in overloads if overload in table} for table in tables]
    for operator, made_of in added.items():
        decomp.add_pre_convert_decomp(operator, made_of)
    try:
        yield
    finally:
        for operator in added:
            decomp.remove_pre_lower_decomp(operator)
        for table, entries in zip(tables, before, strict=True):
            for overload, made_of in entries.items():
                table[overload] = made_of


def _failed(error: Exception, lowered: list[torch.fx.Node]) -> str:
    """The operator at which a conversion has failed, as far as that is known, and why."""
    last = lowered[-1] if lowered else None
    at_last = last is not None and f"%{last.name} " in str(error)
    return f"{origin(last) if last is not None and at_last else 'the network'}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
