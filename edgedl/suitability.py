"""Whether a network suits a task: it is built and tried on two samples before anything expensive starts."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import refusals
from edgedl.core import Network, Task, TensorSpec, UsageError

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]


def why_unsuited(network: Network, task: Task) -> str | None:
    """Why a network that comes with edgedl does not suit such a task; None if it does, or if one is somebody's own.

    Code of one's own may do what it likes, and where it fails the traceback says where. Draws from no random stream.
    Raises `DataError` and `MissingPackage`, as data and network do.
    """
    if not (_is_shipped(network) and _is_shipped(task)):
        return None
    import torch

    batch = next(task.batches("train", 2))
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            _try(network, task, tensors)
        except UsageError as error:
            if type(error) is not UsageError:  # data that is missing says nothing of the network
                raise
            return str(error).removeprefix(f"{network.label}: ")
    return None


def _is_shipped(part: Network | Task) -> bool:
    return type(part).__module__.startswith("edgedl.")


def _try(network: Network, task: Task, batch: Tensors) -> None:
    """Builds the network, runs it and computes the loss. Raises `UsageError`, which says what of it failed."""
    from edgedl import graphs

    try:
        net = network.built(task).eval()
    except AttributeError as error:
        if error.obj is not task:
            raise
        raise UsageError(
            f"it needs a task that has {error.name}, and this one has none, only {_shown(task.inputs)}"
        ) from error
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        if refusals.is_of_memory(error):
            raise UsageError("it is too large for the memory of this machine; take smaller widths") from error
        raise UsageError(f"it is not made for {_shown(task.inputs)}{_torchs(error)}") from error
    graphs.check(net, task)
    outputs = _outputs(net, task, batch)
    _check_classes(outputs, task)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # that is, numbers would be spread over others
            task.loss(outputs, batch)
    except (ValueError, RuntimeError, IndexError, UserWarning) as error:
        shapes = " and ".join(f"{name} {_shape(values.shape[1:])}" for name, values in outputs.items())
        raise UsageError(f"it answers {shapes} for each sample, which the task has no loss for") from error


def _outputs(net: torch.nn.Module, task: Task, batch: Tensors) -> Tensors:
    inputs = [batch[name] for name in task.inputs]
    taken = inspect.signature(net.forward)
    try:
        taken.bind(*inputs)
    except TypeError as error:
        raise UsageError(
            f"it takes {_counted(len(taken.parameters), 'input')}, and the task has {_shown(task.inputs)}"
        ) from error
    try:
        given: Any = net(*inputs)
    except (ValueError, RuntimeError, IndexError) as error:
        raise UsageError(f"it cannot take {_shown(task.inputs)}{_torchs(error)}") from error
    if isinstance(given, Mapping):  # which may hold more than the task's outputs, for the loss to see
        return given
    answers = given if isinstance(given, tuple | list) else (given,)
    if len(answers) != len(task.outputs):
        wanted = f"{len(task.outputs)}, {' and '.join(task.outputs)}"
        raise UsageError(f"it has {_counted(len(answers), 'output')}, and the task wants {wanted}")
    return dict(zip(task.outputs, answers, strict=True))


def _check_classes(outputs: Tensors, task: Task) -> None:
    """A loss may take too many or too few logits for what it is, and train on nonsense."""
    num = next((getattr(task, key) for key in ("num_classes", "num_actions") if hasattr(task, key)), None)
    if num is not None and "logits" in outputs and num not in outputs["logits"].shape[1:]:
        shape = _shape(outputs["logits"].shape[1:])
        raise UsageError(f"it answers logits {shape} for each sample, and the task has {num} to choose from")


def _shown(specs: Mapping[str, TensorSpec]) -> str:
    """Inputs as people read them: "1 input, image (1, 28, 28) float32"."""
    named = [f"{name} {_shape(spec.shape)} {spec.dtype}" for name, spec in specs.items()]
    return f"{_counted(len(named), 'input')}, {' and '.join(named)}"


def _counted(num: int, thing: str) -> str:
    return f"{num} {thing}{'s' * (num != 1)}"


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _torchs(error: Exception) -> str:
    """What PyTorch says of shapes and types, which may lie in a network's settings; Python's own words tell nobody."""
    said = str(error).partition("\n")[0]
    return f" ({said})" if isinstance(error, RuntimeError) and said else ""
