"""Running .tflite files with the LiteRT interpreter, timing their operators and looking inside. No torch here."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgedl.origin import IN_FLOAT
from edgedl.sessions import (
    Activation,
    Batch,
    MissingPackage,
    ModelFileError,
    OperatorTime,
    Session,
    TargetError,
    TensorSpec,
)
from edgedl.tflite.flatbuffer import IDENTIFIER, Flatbuffer
from edgedl.tflite.loops import without_loops

MAX_PROFILED_OPERATORS = 64
NUM_PROFILED_RUNS = 200


class LiteRTSession:
    """A file in the LiteRT interpreter, on the CPU (with the XNNPACK delegate, its default)."""

    def __init__(self, file: Path, threads: int) -> None:
        self.file, self.threads = file, threads
        library = interpreter_library()
        self.runtime = f"{library.__name__.partition('.')[0]} {_version(library)}"
        self.interpreter = _load(file, threads)
        try:
            inputs, outputs = _named_details(self.interpreter)
        except (ValueError, LookupError) as error:  # names of tensors that are not there
            raise ModelFileError(f"{file}: damaged: {' '.join(str(error).split())}") from error
        self.inputs = {name: _spec(detail) for name, detail in inputs.items()}
        self.outputs = {name: _spec(detail) for name, detail in outputs.items()}
        self.graphs: Mapping[str, Session] = {}
        self._inputs = [(name, detail["index"]) for name, detail in inputs.items()]
        self._outputs = [(name, detail["index"]) for name, detail in outputs.items()]

    def run(self, batch: Batch) -> Batch:
        interpreter = self.interpreter
        for name, index in self._inputs:
            values = batch[name]
            if values.dtype == np.int64:  # the converter narrows some, such as those that only look something up
                values = _narrowed(name, values, self.inputs[name])
            try:
                interpreter.set_tensor(index, values)
            except ValueError:
                if not self._resized(batch):
                    raise
                return self.run(batch)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self._outputs}

    def _resized(self, batch: Batch) -> bool:
        """Makes room for arrays of other sizes; False where they are of these sizes, or the file takes no others."""
        sizes = {detail["index"]: tuple(detail["shape"]) for detail in self.interpreter.get_input_details()}
        if all(sizes[index] == batch[name].shape for name, index in self._inputs):
            return False
        try:
            for name, index in self._inputs:
                self.interpreter.resize_tensor_input(index, batch[name].shape, strict=True)
            self.interpreter.allocate_tensors()
        except RuntimeError:
            return False
        return True

    def profile(self, batch: Batch) -> Sequence[OperatorTime]:
        """Times of operators with the kernels that the whole file uses.

        The interpreter has no profiler in Python, so the file is cut after each operator in turn and
        what each cut adds to the latency is that operator's time. Empty without `ai_edge_litert`
        (whose flatbuffer schema does the cutting). A loop counts as one operator.
        """
        graph = Flatbuffer.read(self.file)
        if (
            graph is None
            or sum(not graph.is_constant(operator) for operator in graph.operators) > MAX_PROFILED_OPERATORS
        ):
            return ()
        times = []
        reached = 0.0
        for index, operator in enumerate(graph.operators):
            if graph.is_constant(operator):  # takes no time, and the delegate refuses a file of nothing else
                continue
            with _cut_after(graph, index) as file:
                latency = _median_latency_ms(LiteRTSession(file, self.threads), batch)
            # A cut can be faster than the one before where the delegate fuses; time can't be negative.
            times.append(OperatorTime(graph.name(operator), graph.kind(operator), max(latency - reached, 0.0)))
            reached = max(latency, reached)
        return times

    def activations(self, batch: Batch) -> Sequence[Activation]:
        """Every intermediate value, from a copy of the file that also returns them. Empty without `ai_edge_litert`.

        The copy has no loops: their values are seen for every step.
        """
        graph = Flatbuffer.read(self.file, without_loops)
        if graph is None:
            return ()
        with _returning_everything(graph) as (file, names):
            session = LiteRTSession(file, self.threads)
            session.run(batch)
            details = session.interpreter.get_output_details()
            return [
                _activation(name, session.interpreter.get_tensor(detail["index"]), detail["quantization_parameters"])
                for name, detail in zip(names, details, strict=True)
            ]

    def close(self) -> None:
        del self.interpreter


def interpreter_library() -> ModuleType:
    """`ai_edge_litert.interpreter`, else `tflite_runtime.interpreter`: the same interface under two names."""
    try:
        from ai_edge_litert import interpreter

        return interpreter  # type: ignore[no-any-return]
    except ModuleNotFoundError:
        pass
    try:
        from tflite_runtime import interpreter

        return interpreter  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        raise MissingPackage("TFLite files need a runtime: pip install ai-edge-litert") from error


@contextmanager
def _cut_after(graph: Flatbuffer, index: int) -> Iterator[Path]:
    """The file that ends with operator `index`."""
    cut = Flatbuffer(graph.pack())
    cut.operators = cut.operators[: index + 1]
    with _written(cut, list(cut.operators[-1].outputs)) as file:
        yield file


@contextmanager
def _returning_everything(graph: Flatbuffer) -> Iterator[tuple[Path, list[str]]]:
    """The file that returns every operator's outputs but constants, in execution order, and their names."""
    outputs = [index for operator in graph.operators if not graph.is_constant(operator) for index in operator.outputs]
    names = [(graph.tensors[index].name or b"").decode("utf-8", "replace") for index in outputs]
    with _written(graph, outputs) as file:
        yield file, names


@contextmanager
def _written(graph: Flatbuffer, outputs: list[int]) -> Iterator[Path]:
    graph.main.outputs = outputs
    for signature in graph.model.signatureDefs or []:
        signature.outputs = []  # they may be gone; the names of inputs are still needed
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        file.write_bytes(graph.pack())
        yield file


def _load(file: Path, threads: int) -> Any:
    library = interpreter_library()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read: {error.strerror}") from error
    if content[4:8] != IDENTIFIER:
        raise ModelFileError(f"{file}: no TFLite file (it lacks the identifier TFL3)")
    try:
        interpreter = library.Interpreter(model_path=str(file), num_threads=threads)
        interpreter.allocate_tensors()
        return interpreter
    except SystemError as error:  # tflite_runtime 2.14 under a NumPy that it was not built for
        name = library.__name__.partition(".")[0]
        raise MissingPackage(f"{name} does not work with NumPy {np.__version__}: pip install 'numpy<2'") from error
    except (ValueError, RuntimeError) as error:
        said = f"{file}: the interpreter cannot load it: {str(error).splitlines()[0]}"
        raise ModelFileError(f"{said}{_makers_of(file, said)}") from error


def _makers_of(file: Path, said: str) -> str:
    """Which modules made the operators that the interpreter does not know, if that is what it says."""
    unknown = re.search(r"builtin opcode '(\w+)'", said)
    graph = Flatbuffer.read(file) if unknown else None
    if unknown is None or graph is None:
        return ""
    paths = {graph.name(found).partition(";")[0] for found in graph.operators if graph.kind(found) == unknown[1]}
    layers = sorted(path.rpartition(".")[0] if path.endswith(IN_FLOAT) else path for path in paths)
    return f"; {unknown[1]} is made by {' and '.join(layers)}" if layers else ""


def _named_details(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Input and output details under the names of the file's signature, or of its tensors where it has none."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return {detail["name"]: detail for detail in inputs}, {detail["name"]: detail for detail in outputs}
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    return _in_order(runner.get_input_details(), inputs), _in_order(runner.get_output_details(), outputs)


def _in_order(named: dict[str, Any], details: list[Any]) -> dict[str, Any]:
    by_index = {detail["index"]: name for name, detail in named.items()}
    return {by_index.get(detail["index"], detail["name"]): detail for detail in details}


def _narrowed(name: str, values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Integers in the type that a file has for them. Raises `TargetError` for one that it does not hold."""
    if spec.dtype != "int32":
        return values
    narrowed: np.ndarray = values.astype(np.int32)
    if not np.array_equal(narrowed, values):
        raise TargetError(f"input {name} holds numbers that the file's int32 cannot")
    return narrowed


def _spec(detail: Any) -> TensorSpec:
    free = tuple(axis for axis, size in enumerate(detail["shape_signature"]) if size < 0)
    return TensorSpec(tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name, free)


def _activation(name: str, values: np.ndarray, grid: Any) -> Activation:
    if len(grid["scales"]) != 1:
        return Activation(name, values, None)
    scale, zero_point = grid["scales"][0], grid["zero_points"][0]
    return Activation(name, (values.astype(np.float32) - zero_point) * np.float32(scale), float(scale))


def _median_latency_ms(session: LiteRTSession, batch: Batch) -> float:
    samples = []
    for _ in range(NUM_PROFILED_RUNS):
        start = time.perf_counter_ns()
        session.run(batch)
        samples.append(time.perf_counter_ns() - start)
    return float(np.median(samples[NUM_PROFILED_RUNS // 4 :])) / 1e6


def _version(library: ModuleType) -> str:
    from importlib.metadata import PackageNotFoundError, version

    package = library.__name__.partition(".")[0].replace("_", "-")
    try:
        return version(package)
    except PackageNotFoundError:  # a system package without Python metadata
        return "(version unknown)"
