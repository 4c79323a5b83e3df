"""NVIDIA engines, built from ONNX files and run, by TensorRT (10 or 11) or TensorRT-RTX.

Functions take the imported package as `trt`, as the two APIs are nearly the same. Running also needs cuda-python.
"""

from __future__ import annotations

import ctypes
import gc
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from edgedl.sessions import (
    Activation,
    Batch,
    ModelFileError,
    OperatorTime,
    Session,
    TargetError,
    TensorSpec,
    UsageError,
)

NUM_WARM_UP_RUNS = 5
NUM_PROFILED_RUNS = 50
NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
MAGIC = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}
"""The first four bytes of an engine file; bytes 24 to 27 are the version that built it."""


Shape: TypeAlias = tuple[int, ...]


class Range(NamedTuple):
    """Sizes of a dimension: from `least` to `most`, and the one for which kernels are chosen and which is measured."""

    least: int
    usual: int
    most: int


class Gpu(NamedTuple):
    """The first GPU that CUDA shows; `driver` is the newest CUDA version that its driver serves, such as "12.6"."""

    name: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}"


def find_gpu() -> Gpu | None:
    """The GPU that engines run on here; None without a GPU, its driver, or cuda-python. Raises nothing."""
    return found if isinstance(found := _probe(), Gpu) else None


def why_no_gpu() -> str | None:
    """Why no engine can run here, as a clause; None if one can. Raises nothing."""
    return found if isinstance(found := _probe(), str) else None


def describe(trt: Any) -> str:
    """The package and its version: "TensorRT 10.3.0"."""
    return f"{NAMES[trt.__name__]} {trt.__version__}"


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """NVIDIA's library logs under a lock that its destructors take too: collecting a dead builder there never ends."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        (gc.enable if enabled else gc.disable)()


@_without_garbage_collection()
def build_engine(
    trt: Any,
    onnx_file: Path,
    compute_capabilities: Sequence[str] = (),
    *,
    sparse: bool = False,
    sizes: Mapping[str, Range] = MappingProxyType({}),
) -> bytes:
    """The serialized engine of an ONNX file, strongly typed: precision is what the file says.

    `sizes` are for dimensions that have a name in the file, of which it must have no other without a fixed size.
    With `sparse`, layers with two zeros in every four weights may run on the GPU's sparse tensor cores.
    TensorRT builds for the GPU here. TensorRT-RTX needs none: its engine is for `compute_capabilities` ("8.6", "12.0"),
    or all from 8.0 on. Raises `TargetError` with the node and operator that is refused, or the builder's words.
    """
    if trt.__name__ == "tensorrt" and int(trt.__version__.split(".")[0]) < 10:
        raise TargetError(f"{describe(trt)} is too old for strongly typed networks; install TensorRT 10 or 11")
    log = _message_log(trt)
    builder = trt.Builder(log)
    # TensorRT 10 has to be asked for strong typing; later ones know nothing else, and may drop the flag.
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, log)  # owns the weights: it has to live until the engine is built
    if not parser.parse(onnx_file.read_bytes(), str(onnx_file)):
        raise TargetError(f"{onnx_file}: {describe(trt)} {_refusal(parser, log)}")
    config = builder.create_builder_config()
    if sizes:
        _add_profile(builder, network, config, sizes, onnx_file)
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if compute_capabilities:
        config.num_compute_capabilities = len(compute_capabilities)
    for index, version in enumerate(compute_capabilities):
        capability = getattr(trt.ComputeCapability, "SM" + version.replace(".", ""), None)
        if capability is None or not config.set_compute_capability(capability, index):
            raise TargetError(f"{describe(trt)} cannot build for compute capability {version}")
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise TargetError(f"{onnx_file}: {describe(trt)} cannot build an engine: {log.text()}")
    return bytes(serialized)


def _add_profile(builder: Any, network: Any, config: Any, sizes: Mapping[str, Range], onnx_file: Path) -> None:
    """Tells the builder which sizes an engine has to take, and for which to choose kernels."""
    profile = builder.create_optimization_profile()
    for value in (network.get_input(index) for index in range(network.num_inputs)):
        ranges = [
            Range(size, size, size) if size >= 0 else sizes[value.get_dimension_name(axis)]
            for axis, size in enumerate(value.shape)
        ]
        profile.set_shape(value.name, *zip(*ranges, strict=True))
    if config.add_optimization_profile(profile) < 0:
        raise TargetError(f"{onnx_file}: NVIDIA's builder does not take the sizes {dict(sizes)}")


class EngineSession:
    """An engine on the first NVIDIA GPU; `run` copies in, computes, copies out and waits: its time is host to host.

    Raises `ModelFileError` for a file that is no engine of this package, version and GPU, `TargetError` without a GPU.
    """

    @_without_garbage_collection()
    def __init__(self, trt: Any, file: Path) -> None:
        plan = _read_plan(trt, file)
        if (reason := why_no_gpu()) is not None:
            raise TargetError(f"{file} cannot run here: {reason}")
        self.file, self._trt, self._cuda = file, trt, _cuda_runtime()
        self.runtime = describe(trt).lower()
        self._log = _message_log(trt)
        with ExitStack() as resources:  # gives back what was taken if a later step fails
            self._runtime = trt.Runtime(self._log)
            self._engine = _deserialize(trt, self._runtime, plan, file, self._log)
            names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
            taken = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
            self._buffers: dict[str, tuple[np.ndarray, int, int]] = {}
            self._context = self._new_context()
            largest = self._shapes(names, {name: self._sizes(name)[2] for name in taken})
            usual = self._shapes(names, {name: self._sizes(name)[1] for name in taken})
            specs = {name: self._spec(name, shape) for name, shape in usual.items()}
            self.inputs: Mapping[str, TensorSpec] = {name: spec for name, spec in specs.items() if name in taken}
            self.outputs: Mapping[str, TensorSpec] = {name: spec for name, spec in specs.items() if name not in taken}
            self.graphs: Mapping[str, Session] = {}
            self._stream = _call(self._cuda, "cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
            resources.callback(_call, self._cuda, "cudaStreamDestroy", self._stream)
            self._buffers = {
                name: self._allocate(replace(spec, shape=largest[name]), resources) for name, spec in specs.items()
            }
            self._place(self._context)
            self._resources = resources.pop_all()

    def run(self, batch: Batch) -> Batch:
        """Raises `UsageError` for arrays of other names, shapes or dtypes than `inputs` says."""
        return self._execute(self._context, batch)

    def profile(self, batch: Batch) -> Sequence[OperatorTime]:
        """Times of the engine's layers, most of them several operators in one, by NVIDIA's own profiler."""
        times: dict[str, float] = {}

        class Profiler(self._trt.IProfiler):  # type: ignore[misc, name-defined]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] = times.get(layer_name, 0.0) + ms

        # A context of its own: a profiler, once attached, would slow down the one that is timed.
        context, profiler = self._new_context(), Profiler()
        for _ in range(NUM_WARM_UP_RUNS):
            self._execute(context, batch)
        context.profiler = profiler
        for _ in range(NUM_PROFILED_RUNS):
            self._execute(context, batch)
        return [OperatorTime(name, "layer", ms / NUM_PROFILED_RUNS) for name, ms in times.items()]

    def activations(self, batch: Batch) -> Sequence[Activation]:
        """None: the fused layers of an engine show no intermediate values."""
        return ()

    @_without_garbage_collection()
    def close(self) -> None:
        """Gives back everything on the device; a second call does nothing."""
        self._context = None
        self._resources.close()
        self._engine = self._runtime = None

    def _execute(self, context: Any, batch: Batch) -> Batch:
        cuda, kind, stream = self._cuda, self._cuda.cudaMemcpyKind, self._stream
        for name, spec in self.inputs.items():
            (host, pinned, device), values = self._buffers[name], batch.get(name)
            if values is None or not self._takes(name, spec, values) or values.dtype != host.dtype:
                given = "nothing" if values is None else f"{values.dtype} {values.shape}"
                raise UsageError(f"{self.file}: input {name} wants {spec}, was given {given}")
            if spec.free:
                context.set_input_shape(name, values.shape)
            np.copyto(_first(host, values.shape), values)
            _call(cuda, "cudaMemcpyAsync", device, pinned, values.nbytes, kind.cudaMemcpyHostToDevice, stream)
        if not context.execute_async_v3(int(stream)):
            raise TargetError(f"{self.file}: {self.runtime} cannot run it: {self._log.text()}")
        found = {}
        for name, spec in self.outputs.items():
            host, pinned, device = self._buffers[name]
            found[name] = _first(host, tuple(context.get_tensor_shape(name)) if spec.free else spec.shape)
            _call(cuda, "cudaMemcpyAsync", pinned, device, found[name].nbytes, kind.cudaMemcpyDeviceToHost, stream)
        _call(cuda, "cudaStreamSynchronize", stream)
        return {name: values.copy() for name, values in found.items()}

    @_without_garbage_collection()
    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise TargetError(f"{self.file}: {self.runtime} cannot prepare it to run: {self._log.text()}")
        self._place(context)
        return context

    def _place(self, context: Any) -> None:
        for name, (_, _, device) in self._buffers.items():
            context.set_tensor_address(name, device)

    def _sizes(self, name: str) -> Sequence[Shape]:
        """The smallest, the usual and the largest shape of an input."""
        shape = tuple(int(size) for size in self._engine.get_tensor_shape(name))
        if min(shape, default=1) >= 0:
            return shape, shape, shape
        return [tuple(int(size) for size in found) for found in self._engine.get_tensor_profile_shape(name, 0)]

    def _shapes(self, names: Sequence[str], inputs: Mapping[str, Shape]) -> dict[str, Shape]:
        """Those of inputs and outputs, with inputs of these."""
        for name, shape in inputs.items():
            self._context.set_input_shape(name, shape)
        return {name: tuple(int(size) for size in self._context.get_tensor_shape(name)) for name in names}

    def _takes(self, name: str, spec: TensorSpec, values: np.ndarray) -> bool:
        if values.shape == spec.shape or not spec.free or values.ndim != len(spec.shape):
            return values.shape == spec.shape
        least, _, most = self._sizes(name)
        return all(low <= size <= high for low, size, high in zip(least, values.shape, most, strict=True))

    def _spec(self, name: str, shape: Shape) -> TensorSpec:
        dtype = self._engine.get_tensor_dtype(name)
        if min(shape, default=1) < 1 or self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise TargetError(f"{self.file}: {name} has no fixed shape {shape}; export the network with fixed shapes")
        free = tuple(axis for axis, size in enumerate(self._engine.get_tensor_shape(name)) if size < 0)
        try:
            return TensorSpec(shape, np.dtype(self._trt.nptype(dtype)).name, free)
        except TypeError as error:
            raise TargetError(f"{self.file}: {name} is {dtype.name}, a type that numpy does not have") from error

    def _allocate(self, spec: TensorSpec, resources: ExitStack) -> tuple[np.ndarray, int, int]:
        """A view of page-locked host memory, the address of that memory, and of as much on the device."""
        dtype = np.dtype(spec.dtype)
        num_bytes = int(np.prod(spec.shape, dtype=np.int64)) * dtype.itemsize
        device = int(_call(self._cuda, "cudaMalloc", num_bytes))
        resources.callback(_call, self._cuda, "cudaFree", device)
        pinned = int(_call(self._cuda, "cudaMallocHost", num_bytes))
        resources.callback(_call, self._cuda, "cudaFreeHost", pinned)
        memory = (ctypes.c_byte * num_bytes).from_address(pinned)
        return np.ndarray(spec.shape, dtype, memoryview(memory)), pinned, device


def _first(host: np.ndarray, shape: Shape) -> np.ndarray:
    """As much of a buffer as an array of this shape takes."""
    return host if host.shape == shape else host.reshape(-1)[: math.prod(shape)].reshape(shape)


def _read_plan(trt: Any, file: Path) -> bytes:
    """A file's bytes, after the checks that need no GPU."""
    if not file.is_file():
        raise ModelFileError(f"no file {file}")
    plan, package = file.read_bytes(), trt.__name__
    for other, magic in MAGIC.items():
        if plan.startswith(magic) and other != package:
            raise ModelFileError(f"{file} is an engine of {NAMES[other]}, which {NAMES[package]} cannot open")
    if not plan.startswith(MAGIC[package]) or len(plan) < 28:
        raise ModelFileError(f"{file} is no {NAMES[package]} engine; build one from the ONNX file on this device")
    size = int.from_bytes(plan[16:24], "little")
    if package == "tensorrt_rtx" and size != len(plan):
        raise ModelFileError(f"{file} is damaged: it has {len(plan)} bytes, its header says {size}; build it again")
    if [str(part) for part in plan[24:26]] != trt.__version__.split(".")[:2]:
        raise ModelFileError(_foreign(trt, plan, file))
    return plan


def _deserialize(trt: Any, runtime: Any, plan: bytes, file: Path, log: Any) -> Any:
    engine = runtime.deserialize_cuda_engine(plan)
    # TensorRT opens an engine of a sister GPU and warns that it may be slow or wrong: nothing to measure with.
    if engine is not None and "different models of devices" not in log.text():
        return engine
    if engine is None and re.search(r"cudaError|out of ?memory", log.text(), re.IGNORECASE):
        raise TargetError(f"{file}: {describe(trt)} cannot load it: {log.text()}")
    raise ModelFileError(f"{_foreign(trt, plan, file)} ({log.text()})")


def _foreign(trt: Any, plan: bytes, file: Path) -> str:
    built_by = f"{NAMES[trt.__name__]} {'.'.join(map(str, plan[24:28]))}"
    return f"{file}, built by {built_by}, is not for {describe(trt)} and the GPU here; build it again on this device"


def _message_log(trt: Any) -> Any:
    """A logger that prints nothing and keeps what went wrong."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:  # the lower, the worse
                kept = self.warnings if severity == trt.ILogger.Severity.WARNING else self.errors
                kept.append(_one_line(message))

        def text(self) -> str:
            return "; ".join(dict.fromkeys(self.errors or self.warnings))[:600] or "NVIDIA's library gave no reason"

    return Log()


def _refusal(parser: Any, log: Any) -> str:
    """What the parser refuses, in one line: node, operator, NVIDIA's own words."""
    error = parser.get_error(0) if parser.num_errors else None
    if error is None or not error.node_operator():
        return f"cannot parse it: {log.text()}"
    node = f"{error.node_name() or error.node()} ({error.node_operator()})"
    return f"refuses node {node}: {error.code().name}: {_one_line(error.desc())} (in {error.func()})"


def _one_line(text: str) -> str:
    # Without a driver the library adds a CUDA error to whatever it says, which has nothing to do with the matter.
    return " ".join(re.sub(r"\[checkMacros\.cpp::catchCudaError.*?\)\)", "", text, flags=re.DOTALL).split())


def _cuda_runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:  # cuda-python before 12.6.1, such as JetPack 6's own
        from cuda import cudart as runtime
    return runtime


def _call(cuda: Any, function: str, *arguments: Any) -> Any:
    """What a function of the CUDA runtime returns beside its status. Raises `TargetError` for a bad status."""
    status, *values = getattr(cuda, function)(*arguments)
    if int(status) != 0:
        _, text = cuda.cudaGetErrorString(status)
        raise TargetError(f"{function} failed: {text.decode()} ({status.name})")
    return values[0] if values else None


def _probe() -> Gpu | str:
    """The first GPU, or why none can be used."""
    try:
        cuda = _cuda_runtime()
        driver = _call(cuda, "cudaDriverGetVersion")
        if driver == 0:
            return "there is no NVIDIA driver"
        gpu = _call(cuda, "cudaGetDeviceProperties", 0)
    except ImportError:
        return "cuda-python is not installed"
    except RuntimeError:  # what cuda-python before 12.8 raises where there is no driver
        return "there is no NVIDIA driver"
    except TargetError as error:
        return f"no NVIDIA GPU can be used: {error}"
    return Gpu(gpu.name.decode(), f"{gpu.major}.{gpu.minor}", f"{driver // 1000}.{driver % 1000 // 10}")
