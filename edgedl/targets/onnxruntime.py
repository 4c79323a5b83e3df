"""onnxruntime on the CPU: ONNX files with Q/DQ nodes, which it fuses to its int8 kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt

from edgedl.core import Artifact, Model, Target, TargetError, Task
from edgedl.onnx.session import OnnxRuntimeSession
from edgedl.quantize.schemes import ONNXRUNTIME, STATIC_FORMS, Form, Scheme


class OnnxRuntime(Target):
    """ONNX files for onnxruntime's CPU provider."""

    use: str = "onnxruntime"
    threads: PositiveInt = 1
    """Of the runtime."""
    max_batch: PositiveInt | None = None
    """With any, files take batches of any size."""

    scheme: ClassVar[Scheme] = ONNXRUNTIME
    forms: ClassVar[tuple[Form, ...]] = (
        *("int8", "int8 layers", "mixed", "int8 dynamic", "int8 weights"),
        *("int4 dynamic", "int4 weights", "fp16"),
    )
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    requires: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "build": ("torch", "onnx", "onnxscript", "onnxruntime"),
        "open": ("onnxruntime",),
    }
    extra: ClassVar[str] = "onnx"

    def refusal(self, form: Form, group_size: int | None = None) -> str | None:
        """As for any target, and where samples of a batch would change each other's answers."""
        if form.endswith("dynamic") and self.max_batch:
            return f"onnxruntime scales a whole batch at once, so max_batch cannot be had with form {form!r}"
        return super().refusal(form, group_size)

    def prepare(self, model: Model, task: Task, batch_size: int) -> None:
        """Exports the graph, which targets of one scheme share."""
        from edgedl.onnx.export import exported

        exported(self.graph(model), task, batch_size, self.max_batch is not None)

    def build(self, model: Model, task: Task, folder: Path, batch_size: int) -> Artifact:
        """Writes `model.onnx`."""
        import onnx
        import onnxruntime

        from edgedl.onnx.export import export_onnx

        file = folder / "model.onnx"
        if model.precision.endswith("dynamic") and batch_size > 1:
            # What a sample gives would depend on those beside it.
            raise TargetError(
                f"onnxruntime scales a whole batch at once; for {model.precision} set bench.batch_size to 1"
            )
        export_onnx(self.graph(model), task, file, batch_size, any_batch=self.max_batch is not None)
        _store(file, model.precision)
        versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
        return Artifact(file=file, precision=model.precision, versions=versions)

    def open(self, file: Path) -> OnnxRuntimeSession:
        """Raises `ModelFileError` for a file that onnxruntime refuses."""
        return OnnxRuntimeSession(file, self.threads)


class StandIn(OnnxRuntime):
    """Runs the ONNX file of an engine that cannot run here as it is written, which is how NVIDIA's builders take it."""

    def open(self, file: Path) -> OnnxRuntimeSession:
        """Raises `ModelFileError` for a file that onnxruntime refuses."""
        return OnnxRuntimeSession(file, self.threads, as_written=True)


def _store(file: Path, precision: str) -> None:
    """Gives an exported file what a form says in operators of onnxruntime's."""
    from edgedl.onnx import forms as onnx_forms

    if precision in STATIC_FORMS:
        onnx_forms.use_unsigned_activations(file)
        onnx_forms.take_pixels_as_codes(file)
    if precision.startswith("int4"):
        onnx_forms.pack_for_onnxruntime(file, run_time_scales=precision == "int4 dynamic")
    if precision.endswith("dynamic"):
        onnx_forms.scale_at_run_time(file)
    if precision in ("int8 dynamic", "int8 weights"):
        onnx_forms.pack_recurrent(file, run_time_scales=precision == "int8 dynamic")
    if precision in ("int8 dynamic", "int8 weights", "int4 dynamic", "int4 weights"):
        onnx_forms.store_in_eight_bits(file)
    if precision in ("fp16", "mixed"):
        onnx_forms.store_in_half(file)
