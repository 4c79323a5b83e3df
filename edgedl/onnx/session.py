"""Running .onnx files with onnxruntime, timing their operators and looking inside. No torch here."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.sessions import SIZES, Activation, Batch, ModelFileError, OperatorTime, Session, TargetError, TensorSpec

if TYPE_CHECKING:
    import onnx

NUM_PROFILED_RUNS = 100


class OnnxRuntimeSession:
    """A file in onnxruntime, on the CPU, with a fixed number of threads.

    onnxruntime makes one change of grid of two in a row, which rounds once, or to another grid; not where a file is to
    be run `as_written`.
    """

    def __init__(self, file: Path, threads: int, as_written: bool = False) -> None:
        import onnxruntime

        self.file, self.threads, self.as_written = file, threads, as_written
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.session = _load(str(file), file, self._options())
        noted = self.session.get_modelmeta().custom_metadata_map.get(SIZES, "{}")
        try:
            sizes = {str(name): int(size) for name, size in json.loads(noted).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelFileError(f"{file}: damaged: its {SIZES} are {noted[:80]!r}") from error
        self.inputs = {value.name: _spec(file, value, sizes) for value in self.session.get_inputs()}
        self.outputs = {value.name: _spec(file, value, sizes) for value in self.session.get_outputs()}
        self.graphs: Mapping[str, Session] = {}
        self._names = list(self.outputs)

    def run(self, batch: Batch) -> Batch:
        return dict(zip(self._names, self.session.run(self._names, batch), strict=True))

    def profile(self, batch: Batch) -> Sequence[OperatorTime]:
        """Kernel times from onnxruntime's own profiler, after its graph optimisations.

        Means without the slowest tenth: one run that is interrupted would make a kernel look ten times as slow, and
        medians of whole microseconds, which is what the profiler gives, tell too little.
        """
        with tempfile.TemporaryDirectory() as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = _load(str(self.file), self.file, options)
            for _ in range(NUM_PROFILED_RUNS):
                session.run(self._names, batch)
            events = json.loads(Path(session.end_profiling()).read_text())
        times: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                key = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
                times.setdefault(key, []).append(event["dur"] / 1e3)
        return [OperatorTime(name, kind, _typical(samples)) for (name, kind), samples in times.items()]

    def activations(self, batch: Batch) -> Sequence[Activation]:
        """Every quantized value, from a copy of the file that also returns them; every value if none is quantized."""
        import onnx

        model = onnx.load(str(self.file))
        shown: dict[str, tuple[float, int] | None] = dict(_quantized_values(model))
        if not shown:
            shown = {name: None for node in model.graph.node for name in node.output}
        present = {output.name for output in model.graph.output}
        inferred = onnx.shape_inference.infer_shapes(model)
        types = {value.name: value for value in [*inferred.graph.value_info, *inferred.graph.output]}
        shown = {name: grid for name, grid in shown.items() if name in types}
        model.graph.output.extend(types[name] for name in shown if name not in present)
        session = _load(model.SerializeToString(), self.file, self._options())
        values = session.run(list(shown), batch)
        return [
            Activation(name, _real(value, grid), grid[0] if grid else None)
            for (name, grid), value in zip(shown.items(), values, strict=True)
        ]

    def close(self) -> None:
        del self.session

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # By default, it may round the inputs of a dense layer with dequantized weights to int8, whatever the file says.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        if self.as_written:
            options.add_session_config_entry("session.disable_double_qdq_remover", "1")
        return options


def _typical(samples: list[float]) -> float:
    return float(np.mean(np.sort(samples)[: math.ceil(0.9 * len(samples))]))


def _load(source: str | bytes, file: Path, options: Any) -> Any:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    if not file.is_file():
        raise ModelFileError(f"no file {file}")
    refusals = tuple(
        getattr(errors, name)
        for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    )
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except refusals as error:
        reason = str(error).split(" : ")[-1].splitlines()[0]
        raise ModelFileError(f"{file}: onnxruntime cannot load it: {reason}") from error


def _spec(file: Path, value: Any, sizes: Mapping[str, int]) -> TensorSpec:
    dtypes = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
    kind = value.type
    dtype = dtypes.get(kind, kind.removeprefix("tensor(").removesuffix(")"))
    try:
        np.dtype(dtype)
        known = kind.startswith("tensor(") and dtype != "string"
    except TypeError:  # bfloat16, and whatever comes after it
        known = False
    if not known:
        raise TargetError(f"{file}: input or output {value.name} is a {kind}; only tensors that NumPy knows can be run")
    # A dimension without a fixed size is run at 1, unless the file notes another.
    free = tuple(axis for axis, size in enumerate(value.shape) if not isinstance(size, int))
    shape = tuple(size if isinstance(size, int) else sizes.get(size, 1) for size in value.shape)
    return TensorSpec(shape, dtype, free)


def _quantized_values(model: onnx.ModelProto) -> dict[str, tuple[float, int]]:
    """Outputs of QuantizeLinear with their scale and zero point."""
    from onnx import numpy_helper

    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in constants:
            scale = numpy_helper.to_array(constants[node.input[1]])
            zero_point = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 else np.zeros(1)
            if scale.size == 1:
                found[node.output[0]] = (float(scale.item()), int(zero_point.item()))
    return found


def _real(values: np.ndarray, grid: tuple[float, int] | None) -> np.ndarray:
    if grid is None:
        return values
    scale, zero_point = grid
    return (values.astype(np.float32) - zero_point) * np.float32(scale)
