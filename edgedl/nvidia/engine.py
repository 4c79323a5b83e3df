"""NVIDIA engines, built from ONNX files and run, by TensorRT (10 or 11) or TensorRT-RTX.

Functions take the imported package as `trt`, as the APIs are nearly the same. What differs: strong typing is a flag of
TensorRT 10 and all that later ones know; compute capabilities are chosen for TensorRT-RTX alone; a timing cache does
something in TensorRT alone; and the first bytes of files. Running also needs cuda-python, and has not been done here.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from edgedl.nvidia import passport
from edgedl.nvidia.gpu import Gpu, call, cuda_runtime, find_gpu, power_mode, why_no_gpu
from edgedl.nvidia.passport import Passport
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
    timing_cache: Path | None = None,
) -> bytes:
    """The serialized engine of an ONNX file, strongly typed: precision is what the file says.

    `sizes` are for dimensions that have a name in the file, of which it must have no other without a fixed size.
    With `sparse`, layers with two zeros in every four weights may run on the GPU's sparse tensor cores.
    `timing_cache` is a file with the times of kernels from earlier builds, to which those of this one are added.
    TensorRT builds for the GPU here. TensorRT-RTX needs none: its engine is for `compute_capabilities` ("8.6", "12.0"),
    or all from 8.0 on. Raises `TargetError` with the node and operator that is refused, or the builder's words.
    """
    if trt.__name__ == "tensorrt" and int(trt.__version__.split(".")[0]) < 10:
        raise TargetError(f"{describe(trt)} is too old for strongly typed networks; install TensorRT 10 or 11")
    log = _message_log(trt)
    builder = trt.Builder(log)
    network, parser = _parsed(trt, builder, onnx_file, log)
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
    if timing_cache is not None:
        _take_timings(config, timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise TargetError(f"{onnx_file}: {describe(trt)} cannot build an engine: {log.text()}")
    del parser
    if timing_cache is not None:
        _keep_timings(config, timing_cache)
    return bytes(serialized)


def _parsed(trt: Any, builder: Any, onnx_file: Path, log: Any) -> tuple[Any, Any]:
    """The network of an ONNX file, and the parser, which owns the weights: it has to live as long."""
    # TensorRT 10 has to be asked for strong typing; later ones know nothing else, and may drop the flag.
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_file.read_bytes(), str(onnx_file)):
        raise TargetError(f"{onnx_file}: {describe(trt)} {_refusal(parser, log)}")
    return network, parser


def write_engine(
    trt: Any,
    onnx_file: Path,
    file: Path,
    compute_capabilities: Sequence[str] = (),
    *,
    sparse: bool = False,
    sizes: Mapping[str, Range] = MappingProxyType({}),
    timing_cache: Path | None = None,
) -> Passport:
    """Writes what `build_engine` gives, and its passport beside it."""
    plan = build_engine(
        trt, onnx_file, compute_capabilities, sparse=sparse, sizes=sizes, timing_cache=timing_cache
    )  # fmt: skip
    file.write_bytes(plan)
    capabilities = compute_capabilities if trt.__name__ == "tensorrt_rtx" else None
    made = passport.make(
        NAMES[trt.__name__], trt.__version__, plan, onnx_file.read_bytes(), find_gpu(), capabilities
    )  # fmt: skip
    passport.write(file, made)
    return made


def build_apart(
    trt: Any,
    onnx_file: Path,
    file: Path | None,
    compute_capabilities: Sequence[str] = (),
    *,
    sparse: bool = False,
    sizes: Mapping[str, Range] = MappingProxyType({}),
    timing_cache: Path | None = None,
) -> Passport | None:
    """As `write_engine` or, without `file`, `build_engine` for what it refuses.

    Where there is a GPU, that is in a fresh process: CUDA, once it is in use, as asking for the GPU takes it, is of no
    use to a copy of this one.
    """
    asked = {
        "package": trt.__name__,
        "onnx_file": str(onnx_file),
        "file": file and str(file),
        "compute_capabilities": list(compute_capabilities),
        "sparse": sparse,
        "sizes": {name: list(found) for name, found in sizes.items()},
        "timing_cache": timing_cache and str(timing_cache),
    }
    if find_gpu() is None:
        made = build_as_asked(asked)
    else:
        from edgedl import child  # which devices that engines are opened on do not have

        made = child.fresh(f"the builder of {NAMES[trt.__name__]}", build_as_asked, asked, child.Bounds(math.inf))
    return None if made is None else passport.of(made)


def build_as_asked(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `build_apart` asks for, which is JSON; the passport."""
    trt, onnx_file = importlib.import_module(asked["package"]), Path(asked["onnx_file"])
    sizes = {name: Range(*found) for name, found in asked["sizes"].items()}
    cache = None if asked["timing_cache"] is None else Path(asked["timing_cache"])
    options: dict[str, Any] = {"sparse": asked["sparse"], "sizes": sizes, "timing_cache": cache}
    if asked["file"] is None:
        build_engine(trt, onnx_file, asked["compute_capabilities"], **options)
        return None
    return asdict(write_engine(trt, onnx_file, Path(asked["file"]), asked["compute_capabilities"], **options))


def timing_cache(trt: Any, gpu: Gpu) -> Path:
    """Where times of kernels are kept from one build to the next, for this version, this GPU and its power mode."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    told = f"{trt.__name__} {trt.__version__} {gpu.name} {gpu.multiprocessors} {power_mode() or ''}"
    return cache / "edgedl" / "timing" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', told).strip('-')}.cache"


def _take_timings(config: Any, file: Path) -> None:
    """A cache that is damaged, or of another version or GPU, is not taken: the builder starts one anew."""
    for content in (file.read_bytes() if file.is_file() else b"", b""):
        found = config.create_timing_cache(content)
        if found is not None and config.set_timing_cache(found, False):
            return


def _keep_timings(config: Any, file: Path) -> None:
    found = config.get_timing_cache()
    if found is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")  # two may build at the same time
    partial.write_bytes(bytes(found.serialize()))
    partial.replace(file)


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


@_without_garbage_collection()
def not_on_dla(trt: Any, onnx_file: Path) -> list[tuple[str, str]] | None:
    """Kind and name of each layer that TensorRT says a DLA cannot run; None where no DLA is. Not run on one yet."""
    if find_gpu() is None:
        return None
    log = _message_log(trt)
    builder = trt.Builder(log)
    if builder.num_DLA_cores == 0:
        return None
    network, parser = _parsed(trt, builder, onnx_file, log)
    config = builder.create_builder_config()
    config.default_device_type, config.DLA_core = trt.DeviceType.DLA, 0
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = [(layer.type.name, layer.name) for layer in layers if not config.can_run_on_DLA(layer)]
    del parser
    return found


class EngineSession:
    """An engine on the first NVIDIA GPU; `run` copies in, computes, copies out and waits: its time is host to host.

    With `cuda_graph`, copies and kernels are launched at once, as recorded when a shape was run first. With
    `spin_wait`, the host asks for the end without pause, which takes a whole core and the least time; else it sleeps.
    Raises `ModelFileError` for a file that is no engine of this package, version and GPU, `TargetError` without a GPU.
    """

    @_without_garbage_collection()
    def __init__(self, trt: Any, file: Path, *, cuda_graph: bool = False, spin_wait: bool = True) -> None:
        plan, here = _read_plan(trt, file), find_gpu()
        known = passport.read(file)
        if known is not None:
            passport.check(file, known, plan, NAMES[trt.__name__], trt.__version__, here)
        if (reason := why_no_gpu()) is not None:
            raise TargetError(f"{file} cannot run here: {reason}")
        self.settings: Mapping[str, Any] = _settings(known, cuda_graph, spin_wait)
        self.file, self._trt, self._cuda = file, trt, cuda_runtime()
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
            waits = self._cuda.cudaDeviceScheduleSpin if spin_wait else self._cuda.cudaDeviceScheduleBlockingSync
            call(self._cuda, "cudaSetDeviceFlags", waits)
            self._cuda_graph, self._recorded = cuda_graph, tuple[Any, Any]((None, None))
            self._stream = call(self._cuda, "cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
            resources.callback(call, self._cuda, "cudaStreamDestroy", self._stream)
            self._buffers = {
                name: self._allocate(replace(spec, shape=largest[name]), resources) for name, spec in specs.items()
            }
            self._place(self._context)
            self._recording = resources.enter_context(ExitStack())
            self._resources = resources.pop_all()

    def run(self, batch: Batch) -> Batch:
        """Raises `UsageError` for arrays of other names, shapes or dtypes than `inputs` says."""
        self._fill(self._context, batch)
        if self._cuda_graph:
            call(self._cuda, "cudaGraphLaunch", self._graph_of(batch), self._stream)
        else:
            self._enqueue(self._context, batch)
        self._wait()
        return {name: values.copy() for name, values in self._views(self._context).items()}

    def profile(self, batch: Batch) -> Sequence[OperatorTime]:
        """Times of the engine's layers, most of them several operators in one, by NVIDIA's own profiler."""
        times: dict[str, float] = {}

        class Profiler(self._trt.IProfiler):  # type: ignore[misc, name-defined]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] = times.get(layer_name, 0.0) + ms

        # A context of its own: a profiler, once attached, would slow down the one that is timed.
        context, profiler = self._new_context(), Profiler()
        self._fill(context, batch)
        for run in range(NUM_WARM_UP_RUNS + NUM_PROFILED_RUNS):
            if run == NUM_WARM_UP_RUNS:
                context.profiler = profiler
            self._enqueue(context, batch)
            self._wait()
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

    def _fill(self, context: Any, batch: Batch) -> None:
        """Puts arrays into page-locked memory, and tells the context their shapes where it takes several."""
        for name, spec in self.inputs.items():
            (host, _, _), values = self._buffers[name], batch.get(name)
            if values is None or not self._takes(name, spec, values) or values.dtype != host.dtype:
                given = "nothing" if values is None else f"{values.dtype} {values.shape}"
                raise UsageError(f"{self.file}: input {name} wants {spec}, was given {given}")
            if spec.free:
                context.set_input_shape(name, values.shape)
            np.copyto(_first(host, values.shape), values)

    def _enqueue(self, context: Any, batch: Batch) -> None:
        """Copies in, computes and copies out, on the stream: without waiting, and without touching the host's data."""
        cuda, kind, stream = self._cuda, self._cuda.cudaMemcpyKind, self._stream
        for name in self.inputs:
            _, pinned, device = self._buffers[name]
            call(cuda, "cudaMemcpyAsync", device, pinned, batch[name].nbytes, kind.cudaMemcpyHostToDevice, stream)
        if not context.execute_async_v3(int(stream)):
            raise TargetError(f"{self.file}: {self.runtime} cannot run it: {self._log.text()}")
        for name, values in self._views(context).items():
            _, pinned, device = self._buffers[name]
            call(cuda, "cudaMemcpyAsync", pinned, device, values.nbytes, kind.cudaMemcpyDeviceToHost, stream)

    def _graph_of(self, batch: Batch) -> Any:
        """The CUDA graph of a run with arrays of these shapes; the last is kept. Raises `TargetError` for none."""
        shapes = tuple(batch[name].shape for name in self.inputs)
        if self._recorded[0] != shapes:
            self._enqueue(self._context, batch)  # in its first run of a shape TensorRT prepares itself
            self._wait()
            self._recording.close()
            self._recorded = shapes, self._record(batch)
        return self._recorded[1]

    def _record(self, batch: Batch) -> Any:
        cuda, stream = self._cuda, self._stream
        call(cuda, "cudaStreamBeginCapture", stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            self._enqueue(self._context, batch)
            graph = call(cuda, "cudaStreamEndCapture", stream)
            self._recording.callback(call, cuda, "cudaGraphDestroy", graph)
            launched = call(cuda, "cudaGraphInstantiate", graph, 0)
        except TargetError as error:
            cuda.cudaStreamEndCapture(stream)  # or else nothing could be run any more; it fails where it has ended
            raise TargetError(
                f"{self.file}: no CUDA graph can be made of it; set cuda_graph = false: {error}"
            ) from error
        self._recording.callback(call, cuda, "cudaGraphExecDestroy", launched)
        return launched

    def _wait(self) -> None:
        call(self._cuda, "cudaStreamSynchronize", self._stream)

    def _views(self, context: Any) -> Batch:
        """As much of the host's memory as the outputs take."""
        return {
            name: _first(self._buffers[name][0], tuple(context.get_tensor_shape(name)) if spec.free else spec.shape)
            for name, spec in self.outputs.items()
        }

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
        device = int(call(self._cuda, "cudaMalloc", num_bytes))
        resources.callback(call, self._cuda, "cudaFree", device)
        pinned = int(call(self._cuda, "cudaMallocHost", num_bytes))
        resources.callback(call, self._cuda, "cudaFreeHost", pinned)
        memory = (ctypes.c_byte * num_bytes).from_address(pinned)
        return np.ndarray(spec.shape, dtype, memoryview(memory)), pinned, device


def _settings(known: Passport | None, cuda_graph: bool, spin_wait: bool) -> dict[str, Any]:
    """What a row says of how an engine is run here, and of where it was built."""
    now = power_mode()
    return {
        "cuda_graph": cuda_graph,
        "spin_wait": spin_wait,
        "transfers": True,  # always: a session takes arrays of the host and gives such
        "power_mode": now,
        "passport": None if known is None else asdict(known),
        "warning": None if known is None else passport.other_power_mode(known, now),
    }


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
        raise ModelFileError(f"{file} is no {NAMES[package]} engine; {passport.remedy(file)}")
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
    return f"{file}, built by {built_by}, is not for {describe(trt)} and the GPU here; {passport.remedy(file)}"


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
