"""TFLite / LiteRT: flatbuffers for phones and small boards, converted by litert-torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveInt

from edgedl.core import Artifact, Model, Target, TargetError, Task
from edgedl.litert import LiteRTSession
from edgedl.quantize.schemes import LITERT, Scheme


class TFLite(Target):
    """`.tflite` files with float inputs and outputs, for the interpreter of ai_edge_litert or tflite_runtime."""

    use: str = "tflite"
    threads: PositiveInt = 1

    scheme: ClassVar[Scheme] = LITERT
    suffixes: ClassVar[tuple[str, ...]] = (".tflite",)
    requires: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "build": ("torch", "litert_torch", "ai_edge_litert"),
        "open": ("ai_edge_litert|tflite_runtime",),
    }
    extra: ClassVar[str] = "tflite"

    def build(self, model: Model, task: Task, folder: Path, batch_size: int) -> Artifact:
        """Writes `model.tflite`. Raises `TargetError` if the converter refuses the graph."""
        from importlib.metadata import version

        import litert_torch

        from edgedl.loops import with_loops
        from edgedl.onnx_export import example_inputs
        from edgedl.recurrent import open_recurrent

        graph = open_recurrent(model.graph(self.scheme))
        file = folder / "model.tflite"
        with _conversion_of_ours(list(task.inputs), list(task.outputs)):
            try:
                converted = litert_torch.convert(graph, example_inputs(task, batch_size))
            except (RuntimeError, ValueError, NotImplementedError) as error:
                raise TargetError(f"litert-torch cannot convert the network: {_first_line(error)}") from error
            content = with_loops(converted.model_content())
        file.write_bytes(content)  # by Python, whose error names a full disk
        versions = {"litert-torch": version("litert-torch"), "ai-edge-litert": version("ai-edge-litert")}
        return Artifact(file=file, precision=model.precision, versions=versions)

    def open(self, file: Path) -> LiteRTSession:
        """Raises `ModelFileError` for a file that the interpreter refuses."""
        return LiteRTSession(file, self.threads)


@contextmanager
def _conversion_of_ours(inputs: list[str], outputs: list[str]) -> Iterator[None]:
    """Makes the converter take the graph's quantization as it stands, and the task's names for inputs and outputs.

    In its default mode litert-torch leaves float kernels between Q/DQ pairs; in the modes that its
    public options reach it makes scales of its own where it finds none, and int8 inputs and outputs.
    The strict mode does neither. No public option reaches it, nor the names, hence the substitution.
    """
    from litert_torch._convert import litert_converter

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

    litert_converter.converter_api_ext = Ours()
    try:
        yield
    finally:
        litert_converter.converter_api_ext = api


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
