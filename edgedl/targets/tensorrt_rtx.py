"""TensorRT-RTX, for GeForce and RTX GPUs: engines built ahead of time on any machine, finished by the GPU's runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import PositiveInt

from edgedl import dimensions
from edgedl.core import Artifact, Model, Target, Task
from edgedl.nvidia.building import Range, build_apart
from edgedl.nvidia.engine import EngineSession
from edgedl.nvidia.gpu import find_gpu, why_no_gpu
from edgedl.nvidia.library import describe
from edgedl.quantize.schemes import TENSORRT, Form, Scheme


class TensorRTRTX(Target):
    """Engines for TensorRT-RTX. One serves several GPUs, and is built without any.

    `compute_capabilities` limits it to the GPUs that are listed; if it is empty, it serves 8.0 (Ampere) and later.
    7.5 (Turing) has to be asked for.
    """

    use: str = "tensorrt-rtx"
    compute_capabilities: tuple[Literal["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"], ...] = ()
    max_batch: PositiveInt | None = None
    """With any, engines take batches of 1 to so many samples; kernels are chosen for that of the recipe's bench."""
    cuda_graph: bool = False
    """Whether a run's kernels and copies are launched at once, as recorded before, instead of one by one."""
    spin_wait: bool = True
    """Whether the host waits by asking without pause: the least latency, for a whole core of the host."""

    scheme: ClassVar[Scheme] = TENSORRT
    forms: ClassVar[tuple[Form, ...]] = ("int8", "int8 layers", "mixed", "int8 weights", "int4 weights", "fp16")
    suffixes: ClassVar[tuple[str, ...]] = (".rtx",)
    requires: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "build": ("torch", "onnx", "onnxscript", "onnxruntime", "tensorrt_rtx"),
        "open": ("tensorrt_rtx", "cuda.bindings|cuda.cudart"),
    }
    needs_gpu: ClassVar[bool] = True
    extra: ClassVar[str] = "tensorrt-rtx"

    def prepare(self, model: Model, task: Task, batch_size: int) -> None:
        """Exports the graph, which targets of one scheme share, and asks for the GPU, which a copy cannot."""
        from edgedl.onnx.export import exported

        find_gpu()
        exported(self.graph(model), task, batch_size, self.max_batch is not None)

    def build(self, model: Model, task: Task, folder: Path, batch_size: int) -> Artifact:
        """Writes `model.onnx` and `model.rtx`. Raises `TargetError` with what NVIDIA's parser or builder refuses."""
        import onnx
        import tensorrt_rtx

        from edgedl.onnx import forms as onnx_forms
        from edgedl.onnx.export import export_onnx, naming_operators

        source, engine, graph = folder / "model.onnx", folder / "model.rtx", self.graph(model)
        export_onnx(graph, task, source, batch_size, any_batch=self.max_batch is not None)
        sizes = {name: Range(*found) for name, found in dimensions.ranges(task, self.max_batch, batch_size).items()}
        if model.precision == "int4 weights":
            onnx_forms.pack_for_tensorrt(source)
        with naming_operators(source, graph, task, batch_size):
            made = build_apart(
                tensorrt_rtx, source, engine, self.compute_capabilities, sparse=model.sparse, sizes=sizes
            )
            assert made is not None
        versions = {"onnx": onnx.__version__, "tensorrt-rtx": tensorrt_rtx.__version__}
        gpu, reason = find_gpu(), why_no_gpu()
        if gpu is not None:
            versions["cuda_driver"] = gpu.driver
            if self.compute_capabilities and gpu.compute_capability not in self.compute_capabilities:
                reason = f"the GPU ({gpu}) is not among its compute_capabilities"
        return Artifact(
            file=engine,
            precision=model.precision,
            status="ok" if reason is None else "built",
            reason=reason and f"it cannot run here: {reason}",
            stand_in=source,
            versions=versions,
            built_for=f"{made.built_for}, {describe(tensorrt_rtx)}",
        )

    def open(self, file: Path) -> EngineSession:
        """Raises `ModelFileError` for a file that is no engine of this TensorRT-RTX, `TargetError` without a GPU."""
        import tensorrt_rtx

        return EngineSession(tensorrt_rtx, file, cuda_graph=self.cuda_graph, spin_wait=self.spin_wait)
