"""Networks of one's own: whatever module a person has, as one that takes a task's inputs in order and answers it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import dimensions, plugins, stats
from edgedl.core import Network, Task, TensorSpec, UsageError
from edgedl.own.export import program_of
from edgedl.own.told import class_of, described, explained, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    Named = dict[str, torch.Tensor]

SOURCES = (
    "package.module:name (a factory without arguments, or an nn.Module), a .pt2, .onnx or .keras file, "
    "or a transformers model: its folder or its hub name, org/name"
)
ENDINGS = {".pt2": "exported", ".onnx": "onnx-file", ".keras": "keras-file"}
WEIGHTS_ONLY = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}
SAME_DB = 60.0
"""Float kernels may sum in another order at another size."""
NUM_SAMPLES = 2
"""Samples of a first run; with one alone nobody could tell that a network takes several."""


def network_for(source: str) -> Network:
    """The network behind what is typed on a command line. Raises `UsageError` that lists what there is."""
    path = Path(source)
    if path.suffix in ENDINGS:
        use = ENDINGS[path.suffix]
    elif path.suffix in WEIGHTS_ONLY:
        raise UsageError(
            f"{source}: weights alone, which no network can be made of; give what builds it as package.module:name, "
            "and the file as its weights"
        )
    elif ":" in source:
        use = "module"
    elif path.is_dir() and (path / "config.json").is_file():
        use = "hugging-face"
    elif path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        lacks = " has no config.json;" if path.is_dir() else ""
        raise UsageError(f"{source!r}{lacks} is no network; there are: {SOURCES}")
    else:
        use = "hugging-face"
    network = plugins.load("models", use).model_validate({"source": source})
    assert isinstance(network, Network)
    return network


def adapted(net: nn.Module, task: Task) -> nn.Module:
    """A copy of a module that takes the task's inputs in order and returns a tuple of its outputs; float32, on the CPU.

    Inputs go by keyword where the module's `forward` has parameters of all their names, else by order. Outputs are
    picked by name where it returns all of the task's by name (`outputs_of`), else by order.
    A module that does all that already is itself the copy, so that its layers have the names that people know.
    Of a task that names no outputs, all are. Where dimensions of its inputs may have other sizes, it is tried at some.
    Raises `UsageError` for weights that are no numbers, inputs that it does not take, outputs that it does not have,
    and a `forward` that PyTorch cannot export, or not for other sizes.
    """
    own = _copied(net)
    names = _keywords(own, task)
    inputs = _example(task)
    with explained(own, inputs):
        found = _run(own, inputs, names)
    _check_weights(own)
    picked = _picked(found, task)
    for name, tensor in picked.items():
        if tensor.ndim == 0 or len(tensor) != NUM_SAMPLES:
            raise UsageError(
                f"{class_of(own)}: output {name} for {NUM_SAMPLES} samples has the shape {tuple(tensor.shape)}; "
                "its first dimension has to be that of samples"
            )
    plain = names is None or list(names) == list(inspect.signature(own.forward).parameters)[: len(names)]
    net = (
        own
        if plain and _is_plain(own, inputs, len(picked))
        else _adapter()(own, names, tuple(task.outputs), tuple(picked))
    )
    program = program_of(net, own, inputs, task.dynamic)
    for sizes in dimensions.to_try(task.dynamic):
        _check_size(net, own, program, task, sizes)
    return net


def exported(net: nn.Module, task: Task) -> torch.export.ExportedProgram:
    """What `torch.export` makes of a module that `adapted` made, for any number of samples."""
    return program_of(net, net, _example(task), task.dynamic)


def outputs_of(net: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a module returns for these inputs, by name, in evaluation mode and without gradients.

    Names are the keys of a mapping or the fields of a dataclass or named tuple; one tensor is "output", those of a
    tuple or list are "output_0" and so on, by their place in it. What is no floating tensor is left out.
    Raises `UsageError` where the module does not take them.
    """
    own = _copied(net)
    parameters = _parameters(own)
    names = tuple(inputs) if all(name in parameters for name in inputs) else None
    with explained(own, inputs):
        return _named(_run(own, inputs, names))


def output_names(network: Network, task: Task) -> tuple[str, ...]:
    """What a network calls all that it returns for the inputs of a task without outputs; see `outputs_of`."""
    net = network.build(task.inner)
    names: tuple[str, ...] = getattr(net, "picked", ()) or tuple(outputs_of(net, _example(task.inner)))
    return names


def digest(net: nn.Module) -> str:
    """What a network computes, for telling whether it is another one: its weights and the code of its classes."""
    import torch

    found = hashlib.sha256(str(net).encode())
    for name, tensor in sorted(net.state_dict().items()):
        found.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for kind in sorted(
        {type(module) for module in net.modules()}, key=lambda kind: (kind.__module__, kind.__qualname__)
    ):
        if kind.__module__.partition(".")[0] not in ("torch", "edgedl"):
            found.update(_source(kind).encode())
    if isinstance(net, torch.fx.GraphModule):
        found.update(net.code.encode())
    return found.hexdigest()


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed into an interpreter
        code = getattr(vars(kind).get("forward"), "__code__", None)
        return "" if code is None else repr((code.co_code, code.co_consts, code.co_names))


def _copied(net: nn.Module) -> nn.Module:
    """In evaluation mode, in float32, on the CPU."""
    import torch

    if isinstance(net, torch.jit.ScriptModule):
        raise UsageError(
            f"{net.original_name} is TorchScript, which PyTorch cannot export; give the nn.Module behind it"
        )
    net = getattr(net, "_orig_mod", net)  # what torch.compile was given
    try:
        own = copy.deepcopy(net)
    except Exception as error:  # whatever a person's attributes raise
        raise UsageError(
            f"{class_of(net)} cannot be copied: {one_line(error)}; keep tensors in parameters and buffers, and files, "
            "locks and results of other modules out of attributes"
        ) from error
    for module in own.modules():
        # Not `eval()`, which some override; a graph of an exported program refuses it.
        module.training = False
    return own.cpu().float()


def _parameters(net: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(net.forward).parameters


def _keywords(net: nn.Module, task: Task) -> tuple[str, ...] | None:
    """The names by which to give it the inputs; None where it takes them by order."""
    parameters, inputs = _parameters(net), tuple(task.inputs)
    if all(name in parameters and parameters[name].kind is not parameters[name].POSITIONAL_ONLY for name in inputs):
        given: dict[str, None] = dict.fromkeys(inputs)
        names: tuple[str, ...] | None = inputs
    else:
        given, names = {}, None
    try:
        inspect.signature(net.forward).bind(*(() if names else inputs), **given)
    except TypeError as error:
        wanted = [
            f"{parameter.name}{'' if parameter.default is parameter.empty else ' (optional)'}"
            for parameter in parameters.values()
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        ]
        raise UsageError(
            f"{class_of(net)}.forward takes {', '.join(wanted) or 'nothing'}, and task {task.label} has "
            f"{', '.join(inputs)}: {error}"
        ) from error
    return names


def _example(task: Task, sizes: Mapping[str, int] | None = None) -> dict[str, torch.Tensor]:
    """A few samples in the shapes and types of the inputs, or at other sizes: small numbers, zeros for whole ones."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def tensor(name: str, spec: TensorSpec) -> torch.Tensor:
        dtype = getattr(torch, spec.dtype)
        axes = task.dynamic.get(name, {}) if sizes else {}
        shape = (NUM_SAMPLES, *dimensions.shape(spec, axes, sizes or {}))
        if dtype.is_floating_point:
            return torch.rand(shape, generator=generator).to(dtype)
        return torch.zeros(shape, dtype=dtype)

    return {name: tensor(name, spec) for name, spec in task.inputs.items()}


def _run(net: nn.Module, inputs: Mapping[str, torch.Tensor], names: tuple[str, ...] | None) -> Any:
    import torch

    with torch.no_grad():
        return net(*inputs.values()) if names is None else net(**{name: inputs[name] for name in names})


def _named(result: Any) -> Named:
    """See `outputs_of`."""
    import torch

    if isinstance(result, torch.Tensor):
        return {"output": result} if result.is_floating_point() else {}
    if isinstance(result, Mapping):
        values = {str(key): value for key, value in result.items()}
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    elif hasattr(result, "_fields"):
        values = dict(zip(result._fields, result, strict=True))
    elif isinstance(result, tuple | list):
        values = {f"output_{index}": value for index, value in enumerate(result)}
        floating = _floating(values)
        return dict(zip(["output"], floating.values(), strict=True)) if len(floating) == 1 else floating
    else:
        return {}
    return _floating(values)


def _floating(values: Mapping[str, Any]) -> Named:
    import torch

    return {
        name: value for name, value in values.items() if isinstance(value, torch.Tensor) and value.is_floating_point()
    }


def _picked(result: Any, task: Task) -> Named:
    """The task's outputs, under the names that the module has for them, in the task's order."""
    found, wanted = _named(result), tuple(task.outputs)
    if not found:
        raise UsageError(f"the network returns {described(result)}, and no floating tensor for {', '.join(wanted)}")
    if not wanted:
        return found
    if all(name in found for name in wanted):
        return {name: found[name] for name in wanted}
    if len(found) != len(wanted):
        raise UsageError(
            f"the network returns {', '.join(found)}, and task {task.label} wants {', '.join(wanted)}: "
            "the names have to be the same, or there have to be as many"
        )
    return found


def _is_plain(net: nn.Module, inputs: Mapping[str, torch.Tensor], num_outputs: int) -> bool:
    """Whether a module answers as it stands: one tensor, or a tuple of the outputs and nothing else."""
    import torch

    if hasattr(net, "graphs"):  # of its own, which has nothing to do with those that edgedl exports
        return False
    result = _run(net, inputs, None)
    if isinstance(result, torch.Tensor):
        return True
    return type(result) is tuple and len(result) == num_outputs == len(_named(result))


@cache
def _adapter() -> type[nn.Module]:
    """The class of the module around one that is given, made when the first is: this file does not import torch."""
    from torch import nn

    class Adapter(nn.Module):
        """Inputs in order -> a tuple of outputs in order."""

        def __init__(
            self, net: nn.Module, inputs: tuple[str, ...] | None, outputs: tuple[str, ...], picked: tuple[str, ...]
        ) -> None:
            super().__init__()
            self.net, self.inputs, self.outputs, self.picked = net, inputs, outputs, picked

        def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            by_name = {} if self.inputs is None else dict(zip(self.inputs, given, strict=True))
            found = _named(self.net(**by_name) if by_name else self.net(*given))
            return tuple(found[name] for name in self.picked)

    return Adapter


def _check_weights(net: nn.Module) -> None:
    """Raises `UsageError` for parameters that are not finite, and statistics that are no numbers."""
    for kind, tensors in (("parameter", net.named_parameters()), ("buffer", net.named_buffers())):
        for name, tensor in tensors:
            if not tensor.is_floating_point():
                continue
            bad = tensor.isnan() if kind == "buffer" else ~tensor.isfinite()  # masks hold infinities
            if bad.any():
                raise UsageError(
                    f"{class_of(net)}: {kind} {name} {tuple(tensor.shape)}: {int(bad.sum())} of {bad.numel()} values "
                    "are not finite; training must have diverged, or the file is damaged"
                )


def _check_size(
    net: nn.Module, own: nn.Module, program: torch.export.ExportedProgram, task: Task, sizes: Mapping[str, int]
) -> None:
    """Raises `UsageError` where a module does not take its inputs at these sizes, or its export answers otherwise."""
    inputs, words = _example(task, sizes), dimensions.in_words(sizes)
    with explained(own, inputs, f", at {words}: say in dynamic which sizes it takes, such as length:8-64"):
        wanted = list(_named(_run(net, inputs, None)).values())
    try:
        found = list(_named(_run(program.module(check_guards=False), inputs, None)).values())
    except Exception as error:  # whatever an operator says of a size that is fixed in it
        raise UsageError(f"{class_of(own)}: exported, it does not run at {words}: {one_line(error)}") from error
    for one, other in zip(wanted, found, strict=True):
        if one.shape != other.shape or stats.sqnr_db(one.numpy(), other.numpy()) < SAME_DB:
            raise UsageError(
                f"{class_of(own)}: exported, it answers otherwise at {words} than by itself, so that its forward must "
                "keep a size that is not computed from its inputs; mend that, or leave it out of dynamic"
            )
