"""A recipe for a person's own network and data: what `edgedl.compress` and `edgedl compress --model` make of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from edgedl import plugins
from edgedl import recipe as recipes
from edgedl.core import Batch, MissingPackage, Network, Part, RecipeError, Task, UsageError
from edgedl.recipe import Recipe

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import nn

    from edgedl.tasks.data import Data

TARGETS = ("tflite", "onnxruntime")
"""Where nothing else is asked for: what phones and small boards run."""
Metric: TypeAlias = "str | Callable[[Batch, Batch], float]"
"""The name of one, or (outputs, batch) -> score: the larger, the better."""
OF_IMAGES = ("size", "channels", "mean", "std", "layout", "uint8_input", "channels_last")
"""What can be said of images: keys of the task data."""
PartLike: TypeAlias = "Part | Mapping[str, Any] | str"
"""A part, a table as in a recipe's file, or the name alone."""


def make(
    model: nn.Module | PartLike | Path,
    data: Any,
    *,
    weights: str | None = None,
    task: PartLike | None = None,
    label: str | None = None,
    metric: Metric | None = None,
    images: Mapping[str, Any] | None = None,
    steps: Sequence[PartLike],
    targets: Sequence[PartLike],
    limits: BaseModel | Mapping[str, Any] | None = None,
    bench: BaseModel | Mapping[str, Any] | None = None,
    name: str | None = None,
    seed: int = 0,
    max_batch: int | None = None,
    dynamic: Sequence[str] = (),
) -> tuple[Recipe, str]:
    """The recipe and its text, which holds all but what was given from Python. Raises `UsageError`."""
    if not plugins.installed("torch"):
        raise MissingPackage(f"a network of one's own needs torch: {plugins.pip_line('train')}")
    try:
        network = _network(model)
        if weights is not None:
            network = _with_weights(network, weights)
        learned = _task(data, task, label, metric, images or {}, dynamic, network)
        text = recipes.dumps(
            {
                "name": name or _name_of(network),
                "seed": seed,
                "task": _table(learned),
                "model": _table(network),
                "steps": [_table(step) for step in steps],
                "targets": [_batched(_table(target), max_batch) for target in targets],
                "limits": _settings(limits),
                "bench": _settings(bench),
            }
        )
        read = recipes.parse(text, Path("recipe"))
    except RecipeError as error:  # there is no such file, and so no line
        raise UsageError(re.sub(r"^recipe:\d+: ", "", str(error))) from error
    # What was read has the fields, but not the module and the arrays.
    return read.model_copy(update={"task": learned, "model": network}), text


def _network(model: nn.Module | PartLike | Path) -> Network:
    from edgedl.models.given import Given
    from edgedl.own import networks

    if isinstance(model, Network):
        return model
    if isinstance(model, Mapping):
        return cast("Network", recipes.part("models", "model", model))
    if isinstance(model, str) and model in plugins.names("models"):
        return cast("Network", recipes.part("models", "model", {"use": model}))
    if isinstance(model, str | Path):
        return networks.network_for(str(model))
    if not hasattr(model, "state_dict"):
        kind = type(model).__name__
        raise UsageError(f'model is a {kind}: give a torch.nn.Module, "package.module:name" or a model file')
    return Given.of(cast("nn.Module", model))


def _with_weights(network: Network, weights: str) -> Network:
    if "weights" not in type(network).model_fields:
        raise UsageError(f"a network that is {network.label} has its weights: leave out {weights}")
    return network.model_copy(update={"weights": weights})


def _task(
    data: Any,
    task: PartLike | None,
    label: str | None,
    metric: Metric | None,
    images: Mapping[str, Any],
    dynamic: Sequence[str],
    network: Network,
) -> Task:
    from edgedl.own import networks
    from edgedl.tasks.data import Data

    if task is not None:
        if data is not None or label is not None or metric is not None or images or dynamic:
            raise UsageError(
                "data, label, metric, images and dynamic say what to judge by, and so does task: give one of them"
            )
        table = {"use": task} if isinstance(task, str) else task
        return (
            task
            if isinstance(task, Task)
            else cast("Task", recipes.part("tasks", "task", cast("Mapping[str, Any]", table)))
        )
    if data is None:
        raise UsageError("there is no data: give data, such as (inputs, labels) or a folder, or a task")
    named = metric if metric is None or isinstance(metric, str) else _named(metric)
    if strays := [key for key in images if key not in OF_IMAGES]:
        raise UsageError(f"images has no {strays[0]}; {plugins.nearest(strays[0], OF_IMAGES)}")
    source = str(data) if isinstance(data, str | Path) else None
    told = {"label": label, "metric": named, "source": source, "dynamic": list(dynamic) or None, **images}
    told = {key: value for key, value in told.items() if value is not None}
    made = cast("Data", recipes.part("tasks", "task", {"use": "data"} | told))
    if "source" not in told:
        made = Data.of(data, **told)
    if not made.has_labels:
        made = made.model_copy(update={"teacher": network})
    names = networks.output_names(network, made.model_copy(update={"output_names": ()}))
    return made.model_copy(update={"output_names": names})


def _named(function: Callable[..., Any]) -> str:
    """What a recipe calls a function that was given. Raises `UsageError` for one that cannot be found by a name."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module is None or getattr(sys.modules.get(module), name, None) is not function:
        raise UsageError(
            f"metric is {name or type(function).__name__}, which no name leads to: "
            "give a function that is defined at the top level of a module or a notebook"
        )
    return f"{module}:{name}"


def _name_of(network: Network) -> str:
    """Of the run's folder: the last word of the file, the module or the class that the network is from."""
    said = str(getattr(network, "source", "") or getattr(network, "kind", "") or network.label)
    said = re.sub(r"\.(pt2|onnx|keras)$", "", said.rstrip("/").partition(":")[0])
    last = re.split(r"[./\\]", said)[-1]
    return re.sub(r"[^\w-]+", "-", last).strip("-").lower() or "model"


def _table(part: PartLike) -> dict[str, Any]:
    """A part as in a recipe's file: what is as it is by default is left out."""
    if isinstance(part, str):
        return {"use": part}
    if not isinstance(part, Part):
        return dict(part)
    table = part.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    for name, field in type(part).model_fields.items():  # a part inside has a name, too
        if isinstance(inner := getattr(part, name), Part):
            table[field.alias or name] = _table(inner)
    return {"use": part.use} | table


def _batched(target: dict[str, Any], max_batch: int | None) -> dict[str, Any]:
    return target if max_batch is None else {"max_batch": max_batch} | target


def _settings(given: BaseModel | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if given is None or isinstance(given, Mapping):
        return dict(given) if given else None
    return given.model_dump(mode="json", exclude_defaults=True) or None
