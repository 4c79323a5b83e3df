"""torch-tensorrt, for those who stay in PyTorch on the GPU: a compiled module, and its engine where it is a single one.

Written against torch-tensorrt 2.13 (its TensorRT is 11.0), and not run on a GPU yet: `tests/gpu` does.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgedl import dimensions
from edgedl.core import (
    Activation,
    Artifact,
    Batch,
    Model,
    ModelFileError,
    OperatorTime,
    Session,
    Target,
    TargetError,
    Task,
    TensorSpec,
)
from edgedl.nvidia import passport
from edgedl.nvidia.building import timing_cache
from edgedl.nvidia.gpu import Gpu, power_mode
from edgedl.quantize.schemes import TENSORRT, Form, Scheme

if TYPE_CHECKING:
    import torch

LIBRARY = "TensorRT"
TOLD = "edgedl.json"
"""The file inside of a module's with names, shapes and types, which PyTorch does not keep."""
MIN_BLOCK = 1
"""Operators that are worth an engine of their own; what TensorRT does not have runs in PyTorch between two."""


class TorchTensorRT(Target):
    """Modules that `torch.export.load` opens where torch-tensorrt is, built on the GPU that is to run them.

    They take float32 and half precision; for int8 on a GPU there is `tensorrt`, whose engines need no PyTorch.
    """

    use: str = "torch-tensorrt"

    scheme: ClassVar[Scheme] = TENSORRT
    forms: ClassVar[tuple[Form, ...]] = ("fp16",)
    suffixes: ClassVar[tuple[str, ...]] = (".ep",)
    requires: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "build": ("torch", "torch_tensorrt"),
        "open": ("torch", "torch_tensorrt"),
    }
    needs_gpu: ClassVar[bool] = True
    extra: ClassVar[str] = "torch-tensorrt"

    @property
    def builds_apart(self) -> bool:
        """Never: it takes CUDA into use as soon as it is imported."""
        return False

    def build(self, model: Model, task: Task, folder: Path, batch_size: int) -> Artifact:
        """Writes `model.ep` and, where TensorRT takes all of the network, `model.engine` for the target `tensorrt`.

        Raises `TargetError` without a GPU, or with what torch-tensorrt says.
        """
        import torch

        from edgedl.onnx.export import example_inputs

        graph, here = self.graph(model), _gpu(f"{self.use} builds for the GPU that is there")
        torch_tensorrt, tensorrt = _libraries()
        inputs = tuple(value.cuda() for value in example_inputs(task, batch_size))
        settings = {
            "arg_inputs": inputs,
            "min_block_size": MIN_BLOCK,
            "sparse_weights": model.sparse,
            "timing_cache_path": str(timing_cache(tensorrt, here)),
        }
        file, engine = folder / "model.ep", folder / "model.engine"
        try:
            program = torch.export.export(copy.deepcopy(graph).cuda(), inputs)
            compiled = torch_tensorrt.dynamo.compile(program, **settings)
            told = {"inputs": _specs(task, inputs), "outputs": _specs_of(task, compiled(*inputs))}
            torch_tensorrt.save(compiled, str(file), arg_inputs=inputs, extra_files={TOLD: json.dumps(told)})
        except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
            raise TargetError(f"torch-tensorrt cannot compile it: {_first_line(error)}") from error
        source = file.read_bytes()
        self._keep(file, source, source, here, tensorrt.__version__)
        try:
            plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                program, require_full_compilation=True, **settings
            )
            engine.write_bytes(plan)
            self._keep(engine, bytes(plan), source, here, tensorrt.__version__)
            whole = engine.name
        except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
            whole = f"none, since parts stay in PyTorch: {_first_line(error)}"
        versions = {"torch": torch.__version__, "torch-tensorrt": torch_tensorrt.__version__}
        return Artifact(
            file=file,
            precision=model.precision,
            versions=versions | {"tensorrt": tensorrt.__version__, "whole_engine": whole},
            notes=dimensions.kept(task, "it is built for fixed shapes"),
            built_for=f"{here}, {LIBRARY} {tensorrt.__version__}",
        )

    def open(self, file: Path) -> TorchTensorRTSession:
        """Raises `ModelFileError` for a module of another TensorRT or GPU, `TargetError` without a GPU."""
        return TorchTensorRTSession(file)

    def _keep(self, file: Path, content: bytes, source: bytes, here: Gpu, version: str) -> None:
        passport.write(file, passport.make(LIBRARY, version, content, source, here, None))


class TorchTensorRTSession:
    """A compiled module on the first GPU; `run` copies in, computes, copies out and waits: its time is host to host."""

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise ModelFileError(f"no file {file}")
        here = _gpu(f"{file} cannot run here")
        torch_tensorrt, tensorrt = _libraries()
        known = passport.read(file)
        if known is not None:
            passport.check(file, known, file.read_bytes(), LIBRARY, tensorrt.__version__, here)
        told = {TOLD: ""}
        try:
            self.module = torch_tensorrt.load(str(file), extra_files=told).module()
            specs = json.loads(told[TOLD])
        except (RuntimeError, ValueError) as error:
            raise ModelFileError(f"{file}: no module of torch-tensorrt's: {_first_line(error)}") from error
        self.file, self.runtime = file, f"torch-tensorrt {torch_tensorrt.__version__}"
        self.inputs: Mapping[str, TensorSpec] = _read_specs(specs["inputs"])
        self.outputs: Mapping[str, TensorSpec] = _read_specs(specs["outputs"])
        self.graphs: Mapping[str, Session] = {}
        now = power_mode()
        self.settings: Mapping[str, Any] = {
            "cuda_graph": False, "spin_wait": None, "transfers": True, "power_mode": now,
            "passport": None if known is None else asdict(known),
            "warning": None if known is None else passport.other_power_mode(known, now),
        }  # fmt: skip

    def run(self, batch: Batch) -> Batch:
        import torch

        given = [torch.from_numpy(np.ascontiguousarray(batch[name])).cuda(non_blocking=True) for name in self.inputs]
        with torch.no_grad():
            answers = self.module(*given)
        values = answers if isinstance(answers, tuple | list) else (answers,)
        return {name: value.cpu().numpy() for name, value in zip(self.outputs, values, strict=True)}  # waits

    def profile(self, batch: Batch) -> Sequence[OperatorTime]:
        """Nothing: an engine is one operator to PyTorch."""
        return ()

    def activations(self, batch: Batch) -> Sequence[Activation]:
        """None: the fused layers of an engine show no intermediate values."""
        return ()

    def close(self) -> None:
        del self.module


def _gpu(otherwise: str) -> Gpu:
    """The GPU that PyTorch sees. Raises `TargetError`, since torch-tensorrt cannot even be imported without one."""
    import torch

    if not torch.cuda.is_available():
        how = "sees no NVIDIA GPU" if torch.version.cuda else "is built without CUDA"
        raise TargetError(f"{otherwise}, and torch {torch.__version__} {how}")
    found = torch.cuda.get_device_properties(0)
    capability = f"{found.major}.{found.minor}"
    return Gpu(found.name, capability, str(torch.version.cuda), found.multi_processor_count)


def _libraries() -> tuple[Any, Any]:
    """torch-tensorrt, and the TensorRT that it brings."""
    import tensorrt
    import torch_tensorrt

    return torch_tensorrt, tensorrt


def _specs(task: Task, inputs: Sequence[torch.Tensor]) -> dict[str, Any]:
    return {
        name: [list(value.shape), spec.dtype] for (name, spec), value in zip(task.inputs.items(), inputs, strict=True)
    }


def _specs_of(task: Task, answers: Any) -> dict[str, Any]:
    from edgedl.torch_session import named_outputs

    found = named_outputs(answers, task)
    return {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in found.items()}


def _read_specs(told: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(shape), dtype) for name, (shape, dtype) in told.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
