"""TFLite / LiteRT: flatbuffers for phones and small boards, converted by litert-torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import PositiveInt

from edgedl import dimensions, stats
from edgedl.core import Artifact, Model, ModelFileError, Target, TargetError, Task
from edgedl.quantize.schemes import LITERT, STATIC_FORMS, Form, Scheme
from edgedl.tflite.litert import LiteRTSession

if TYPE_CHECKING:
    import torch


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

        import torch

        from edgedl.onnx.export import example_inputs
        from edgedl.quantize import mixed
        from edgedl.quantize.decompositions import mean_of_whole
        from edgedl.quantize.recurrent import open_recurrent
        from edgedl.tflite import layer_norms
        from edgedl.tflite.any_batch import foreign_prime, with_any_batch
        from edgedl.tflite.converter import convert
        from edgedl.tflite.loops import with_loops
        from edgedl.tflite.model_metadata import with_metadata
        from edgedl.tflite.transposed import finished
        from edgedl.torch_tables import keep_tables

        keep_tables()
        graph = open_recurrent(self.graph(model))
        if model.precision in STATIC_FORMS:
            graph = mixed.fenced(cast("torch.fx.GraphModule", graph))
        file = folder / "model.tflite"
        names = tuple(task.inputs), tuple(task.outputs)
        # The converter fills an image up to the size of a window that is larger, EfficientNet's of 1280 pixels, say.
        pools = {torch.ops.aten.avg_pool2d: mean_of_whole}
        made_of = {**layer_norms.DECOMPOSITIONS, **pools, **_transposed(model.precision)}
        any_batch, notes = self.max_batch is not None, dimensions.kept(task, ONE_FREE)

        def converted(inputs: tuple[torch.Tensor, ...]) -> tuple[bytes, Mapping[str, int]]:
            stored, rewrites = _stored(convert(graph, inputs, names, made_of), model.precision)
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
        from edgedl.tflite.converter import first_line

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
            return None, dimensions.kept(task, first_line(error))
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
    from edgedl.tflite.converter import failed

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
        raise TargetError(f"litert-torch cannot convert {failed(error, [])}") from error
    return found


def _try_batches(session: LiteRTSession, task: Task) -> None:
    """Raises `TargetError` where the answers to three samples are not those to each alone."""
    import numpy as np

    from edgedl.tflite.converter import first_line

    samples = {name: task.arrays("test")[name][:NUM_TRIED] for name in task.inputs}
    try:
        together = session.run(samples)
        alone = [session.run({name: one[row : row + 1] for name, one in samples.items()}) for row in range(NUM_TRIED)]
    except (RuntimeError, ValueError) as error:
        raise TargetError(f"max_batch: the file takes one number of samples only: {first_line(error)}") from error
    for name, values in together.items():
        single = np.concatenate([answers[name] for answers in alone])
        if single.shape != values.shape or stats.sqnr_db(single, values) < SAME_DB:
            raise TargetError(
                f"max_batch: output {name} for {NUM_TRIED} samples is not what each gives alone; "
                "leave max_batch out for this target"
            )


def _stored(content: bytes, precision: str) -> tuple[bytes, Mapping[str, int]]:
    """A converted file with its weights as a form wants them, and what was rewritten in it."""
    from edgedl.quantize.mixed import FENCE
    from edgedl.tflite import forms
    from edgedl.tflite.flatbuffer import Flatbuffer
    from edgedl.tflite.paddings import pad_by_convolutions
    from edgedl.tflite.wide_kernels import narrow

    graph, rewrites = Flatbuffer(content), dict[str, int]()
    if precision.startswith("int4"):
        forms.pack_four_bits(graph)
    if precision.endswith("dynamic"):
        forms.scale_at_run_time(graph)
    if precision == "fp16" or precision in STATIC_FORMS:
        forms.store_in_half(graph)
    if precision in STATIC_FORMS:
        forms.drop_fences(graph, FENCE)
        pad_by_convolutions(graph)
        if num_in_float := forms.compute_in_float(graph, ("GELU", "HARD_SWISH", "SQRT", "RSQRT")):
            rewrites["GELUs, hard swishes and roots computed in float between int8 values"] = num_in_float
    forms.share_scales(graph)
    num_narrowed = narrow(graph)
    if num_narrowed:
        rewrites["wide depthwise kernels made sums of narrower ones"] = num_narrowed
    if not forms.dequantize_images(graph) and not num_narrowed and precision == "fp32":
        return content, rewrites
    graph.drop_unused()
    return graph.pack(), rewrites


def _transposed(precision: str) -> Mapping[Any, Callable[..., Any]]:
    """What the converter makes of transposed convolutions: of any padding, and in float fast ones."""
    from edgedl.quantize.sub_pixel import decompositions, divides

    if precision in STATIC_FORMS:  # the int8 kernel is fast, and what is not for it is opened by now
        return decompositions(lambda weight, stride: True)
    if precision in ("fp32", "fp16"):
        return decompositions(lambda weight, stride: False)
    # The weight is computed from codes, which cannot be filled up.
    return decompositions(lambda weight, stride: not divides(weight, stride))
