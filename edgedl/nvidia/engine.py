"""NVIDIA engines, opened and run by TensorRT (10 or 11) or TensorRT-RTX, with cuda-python; not done here."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgedl.nvidia import passport
from edgedl.nvidia.gpu import call, cuda_runtime, find_gpu, power_mode, why_no_gpu
from edgedl.nvidia.library import MAGIC, NAMES, describe, message_log, without_garbage_collection
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
Shape: TypeAlias = tuple[int, ...]


class EngineSession:
    """An engine on the first NVIDIA GPU; `run` copies in, computes, copies out and waits: its time is host to host.

    With `cuda_graph`, copies and kernels are launched at once, as recorded when a shape was run first. With
    `spin_wait`, the host asks for the end without pause, which takes a whole core and the least time; else it sleeps.
    Raises `ModelFileError` for a file that is no engine of this package, version and GPU, `TargetError` without a GPU.
    """

    @without_garbage_collection()
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
        self._log = message_log(trt)
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

    @without_garbage_collection()
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

    @without_garbage_collection()
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
