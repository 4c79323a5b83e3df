"""Teachers: the network at hand, that of another run, or any model file that a target opens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgedl import measure, plugins, progress, suitability
from edgedl.core import Batch, DataError, Network, Session, Split, Task, UsageError, in_batches, num_samples
from edgedl.pruning import structure

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]
    Taught = Callable[[Tensors], dict[str, torch.Tensor]]

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Teacher:
    """What answers a batch; `net` is None where only its outputs can be seen."""

    taught: Taught
    """A batch of the task -> the outputs by name, without gradients."""
    net: torch.nn.Module | None
    session: Session
    """What decodes, where the task's answers take several calls."""
    score: float
    """On validation data."""


def answers_of(net: torch.nn.Module, task: Task) -> Taught:
    """What a network, in evaluation mode from here on, answers to batches."""
    import torch

    from edgedl.torch_session import named_outputs

    net = net.eval()

    def taught(batch: Tensors) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return named_outputs(net(*(batch[name] for name in task.inputs)), task)

    return taught


def answers_over(network: Network, task: Task, arrays: Mapping[Split, Batch]) -> dict[Split, Batch]:
    """What a network answers to the inputs of every split. Raises `DataError` where that is no finite number."""
    import torch

    from edgedl.torch_session import TorchSession

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of one without weights, the first ones: the same every time
        session = TorchSession(network.built(task), task)
    size, found = measure.batch_size(session), dict[Split, Batch]()
    for split, whole in arrays.items():
        answers = [session.run(batch) for batch in in_batches(whole, size)]
        found[split] = {name: np.concatenate([part[name] for part in answers]) for name in task.outputs}
        for name, values in found[split].items():
            if not np.isfinite(values).all():
                raise DataError(f"task {task.use}: the teacher answers NaN or infinity in {name}, on the {split} split")
    return found


def of_network(net: torch.nn.Module, task: Task) -> Teacher:
    """A network that can be looked into."""
    from edgedl.torch_session import TorchSession

    session = TorchSession(net, task)
    return Teacher(answers_of(net, task), net, session, measure.evaluate(session, task, "validation").score)


def retold(teacher: Teacher, task: Task) -> Batch:
    """The train split with what the teacher says, decoded as the task does, for labels."""
    size, arrays = measure.batch_size(teacher.session), task.arrays("train")
    num_batches = -(-num_samples(arrays) // size)
    with progress.stage("teacher's sequences", num_batches) as advance:

        def counted() -> Iterator[Batch]:
            for batch in in_batches(arrays, size):
                yield batch
                advance(1)

        return task.retold(measure.answers(teacher.session, task, counted()), arrays)


def of_session(session: Session, task: Task) -> Teacher:
    """A file, run in batches of its own size."""
    import torch

    size = measure.batch_size(session)

    def taught(batch: Tensors) -> dict[str, torch.Tensor]:
        arrays = {name: values.numpy() for name, values in batch.items()}
        answers = measure.answers(session, task, in_batches(arrays, size))
        return {name: torch.from_numpy(np.ascontiguousarray(answers[name])) for name in task.outputs}

    return Teacher(taught, None, session, measure.evaluate(session, task, "validation").score)


def load(name: str, task: Task) -> Teacher:
    """The teacher behind a path (see `find`). Raises `UsageError` where it does not fit the task."""
    file = find(name)
    if file.name != WEIGHTS:
        session = plugins.target_for(file, threads=1).open(file)
        measure.check_fits(file, session, task)
        return of_session(session, task)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    structure.check_whole(file.parent)
    learned = "another task"
    try:
        made = json.loads(file.with_name("structure.json").read_text(encoding="utf-8"))
        learned = f"task {made['task']['use']}"
        network = plugins.load("models", made["model"]["use"]).model_validate_json(json.dumps(made["model"]))
        assert isinstance(network, Network)
        if why := suitability.why_unsuited(network, task):
            raise UsageError(f"model {network.label}: {why}")
        net = network.built(task)
        structure.reshape(net, made["shapes"])
        net.load_state_dict(load_file(file))
    except (UsageError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"{file}: a network of {learned} that does not fit task {task.use}: {said}") from error
    return of_network(net, task)


def find(name: str) -> Path:
    """The weights or the model file behind a path; both can be opened here. Raises `UsageError`.

    A path is a model file, the folder of a step, that of a run (its last step that learned), or that of a recipe's
    runs (the latest that finished).
    """
    given = Path(name)
    if given.is_file() and given.name != WEIGHTS:
        plugins.target_for(given, threads=1)
        return given
    if given.is_file() or (given / WEIGHTS).is_file():
        found = [given if given.is_file() else given / WEIGHTS]
    else:
        runs = [given] if (given / "steps").is_dir() else sorted(file.parent for file in given.glob("*/report.json"))
        found = sorted(runs[-1].glob(f"steps/*/{WEIGHTS}")) if runs else []
    if not found:
        what = "there are no weights in it" if given.exists() else "no such file or folder"
        raise UsageError(
            f"teacher {name}: {what}; name the folder of a run, of one of its steps or of a recipe's runs, "
            "or a model file"
        )
    if not found[-1].with_name("structure.json").is_file():
        raise UsageError(f"teacher {found[-1]}: there is no structure.json beside it, which says what network it is of")
    return found[-1]
