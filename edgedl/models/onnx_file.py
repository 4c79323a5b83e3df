"""An ONNX file, whichever framework wrote it, as layers of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import plugins, stats
from edgedl.core import MissingPackage, ModelFileError, Network, Task, TensorSpec, UsageError
from edgedl.own import networks

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

LEAST_DB = 80.0
"""What rounding in another order leaves between two float32 networks is 30 dB below that and more."""


class OnnxFile(Network):
    """`source` is an .onnx file in float; its layers can be trained, pruned and quantized.

    Before anything is done with them, their outputs are held against those of the file in onnxruntime.
    """

    use: str = "onnx-file"
    source: str

    def build(self, task: Task) -> nn.Module:
        """Raises `ModelFileError` for a file that cannot be read, has other operators, or answers otherwise."""
        for package in ("onnx", "onnxruntime"):
            if not plugins.installed(package):
                raise MissingPackage(f"model onnx-file needs {package}: {plugins.pip_line('onnx')}")
        from edgedl.onnx import reader as onnx_reader

        model = _read(Path(self.source))
        specs = _specs(model)
        names = _matched(specs, task, self.source)
        examples = {name: _examples(task.inputs[wanted], specs[name]) for name, wanted in names.items()}
        fixed = {spec.shape[0] for spec in specs.values() if spec.shape and spec.shape[0] > 0}
        net = onnx_reader.read(model, self.source, examples, max(fixed, default=None))
        _compare(net, model, self.source, examples, max(fixed, default=None))
        return networks.adapted(net, task)


def _read(file: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    if not file.is_file():
        raise ModelFileError(f"{file}: no such file")
    try:
        model = onnx.load(file)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{file}: no ONNX file, or a truncated one: {said}") from error
    return model


def _specs(model: onnx.ModelProto) -> dict[str, TensorSpec]:
    """What the file takes; a size that it leaves open is 0."""
    import onnx

    constants = {constant.name for constant in model.graph.initializer}
    specs = {}
    for value in model.graph.input:
        if value.name not in constants:
            tensor = value.type.tensor_type
            shape = tuple(dim.dim_value for dim in tensor.shape.dim)
            specs[value.name] = TensorSpec(shape, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    return specs


def _matched(specs: Mapping[str, TensorSpec], task: Task, source: str) -> dict[str, str]:
    """The task's input for each of the file's, by name or by order."""
    wanted = list(task.inputs)
    if len(specs) != len(wanted):
        raise UsageError(f"{source} takes {', '.join(specs)}, and task {task.label} has {', '.join(wanted)}")
    by_name = all(name in specs for name in wanted)
    matched = {name: name if by_name else other for name, other in zip(specs, wanted, strict=True)}
    for name, other in matched.items():
        given, taken = task.inputs[other].shape, specs[name].shape[1:]
        if len(given) != len(taken) or any(size not in (0, one) for size, one in zip(taken, given, strict=True)):
            raise UsageError(
                f"{source} takes {name} {_shown(taken)} a sample, and task {task.label} has {other} {_shown(given)}"
            )
    return matched


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(str(size or '?') for size in shape)})"


def _examples(spec: TensorSpec, taken: TensorSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """The same samples twice, of which the second time there are more."""
    import torch

    from edgedl.onnx.builder import NUM_FIRST, NUM_SECOND

    dtype = getattr(torch, spec.dtype)
    shape, generator = (NUM_SECOND, *spec.shape), torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        values = torch.randn(shape, generator=generator).to(dtype)
    else:
        values = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return values[:NUM_FIRST], values


def _compare(
    net: nn.Module,
    model: onnx.ModelProto,
    source: str,
    examples: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    fixed: int | None,
) -> None:
    """Raises `ModelFileError` where the network answers otherwise than its file."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise ModelFileError(f"{source}: onnxruntime does not take it: {' '.join(str(error).split())[:200]}") from error
    types = {value.name: value.type for value in session.get_inputs()}
    samples = {name: _as(pair[1], types[name]) for name, pair in examples.items()}
    with torch.no_grad():
        found = net(*(pair[1] for pair in examples.values()))
    found = found if isinstance(found, dict) else {model.graph.output[0].name: found}
    count = len(next(iter(samples.values())))
    pieces = []
    for start in range(0, count, fixed or count):
        piece = {name: np.resize(values[start:], (fixed, *values.shape[1:])) if fixed else values
                 for name, values in samples.items()}  # fmt: skip
        try:
            pieces.append(session.run(list(found), piece))
        except Exception as error:  # as above
            said = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{source}: onnxruntime does not run it: {said}") from error
    for index, name in enumerate(found):
        wanted = np.concatenate([piece[index] for piece in pieces])[:count]
        answered = found[name].numpy()
        if wanted.shape != answered.shape:
            raise ModelFileError(
                f"{source}: output {name} is {answered.shape} as read, and {wanted.shape} in onnxruntime"
            )
        noise = stats.sqnr_db(wanted, answered)
        if wanted.dtype.kind == "f" and noise < LEAST_DB:
            raise ModelFileError(
                f"{source}: output {name} as read is {noise:.0f} dB from what onnxruntime makes of the file, and not "
                f"{LEAST_DB:.0f}; edgedl does not read this network right"
            )


def _as(values: torch.Tensor, kind: str) -> np.ndarray:
    """In the type that the file takes."""
    names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
    plain: Any = kind.removeprefix("tensor(").removesuffix(")")
    return values.numpy().astype(names.get(kind, plain))
