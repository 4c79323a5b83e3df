"""The graphs of a network, each as a model with a task of its own: to answer what the float graph did, when it was run.

So whatever quantizes, exports, and checks a network of one graph does it for each of several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import PrivateAttr

from edgedl import stats
from edgedl.core import Artifact, Batch, Graph, Metric, Model, Split, Target, Task, TensorSpec, UsageError, graphs_of
from edgedl.graph_session import Recorder
from edgedl.torch_session import TorchSession

if TYPE_CHECKING:
    import torch

NUM_SAMPLES, NUM_TOGETHER, NUM_CALLS = 128, 8, 256
"""Samples of a split that are decoded to see what the graphs are given, so many at once, and calls of each that are
kept at most."""
ANSWER = "answered:"
"""Begins the names of a float graph's outputs, beside those of its inputs."""


class GraphTask(Task):
    """To answer what a graph of the float network answered, in decibels, to what it was given in decoding a split."""

    use: str = "graph"
    name: str

    metric: ClassVar[Metric] = Metric("signal-to-noise", "dB", higher_is_better=True)

    _net: torch.nn.Module = PrivateAttr()
    _whole: Task = PrivateAttr()
    _graph: Graph = PrivateAttr()

    @classmethod
    def of(cls, name: str, graph: Graph, net: torch.nn.Module, whole: Task) -> GraphTask:
        """The task of one of the graphs of `net`, which `whole` decodes with."""
        task = cls(name=name)
        task._graph, task._net, task._whole = graph, net, whole
        return task

    @property
    def module(self) -> torch.nn.Module:
        """The graph's, in float."""
        return self._graph.module

    @property
    def outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._graph.outputs

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._graph.inputs

    def arrays(self, split: Split) -> Batch:
        """Inputs by name and, behind `ANSWER`, outputs of calls that are evenly drawn from all of the first samples."""
        return _recorded(self._net, self._whole, split)[self.name]

    def score(self, outputs: Batch, batch: Batch) -> float:
        return min(stats.sqnr_db(batch[ANSWER + name], outputs[name]) for name in self.outputs)


@dataclass(frozen=True)
class Part:
    """One graph of a network."""

    model: Model
    task: Task


def parts(model: Model, task: Task) -> dict[str, Part]:
    """The graphs that a network is exported as, each as a model with its task; none if it is a single one."""
    found = {}
    for name, graph_task in tasks(model.net, task).items():
        plan = model.quantization.graphs[name] if model.quantization else None
        found[name] = Part(replace(model, net=graph_task.module, teacher=None, quantization=plan), graph_task)
    return found


@lru_cache(maxsize=8)
def tasks(net: torch.nn.Module, task: Task) -> Mapping[str, GraphTask]:
    """The task of each graph of a network; none if it is a single one."""
    found = graphs_of(net.eval())
    for graph in found.values():
        graph.module.eval()  # one that was made just now is for training yet
    return {name: GraphTask.of(name, graph, net, task) for name, graph in found.items()}


def check(net: torch.nn.Module, task: Task) -> None:
    """Raises `UsageError` unless the graphs of a network are those that the task decodes with."""
    found = graphs_of(net)
    if set(found) != set(task.graphs):
        wants, has = (" and ".join(names) or "none but the network itself" for names in (task.graphs, found))
        raise UsageError(f"task {task.use} decodes with the graphs {wants}; the model has {has}")


def build(target: Target, model: Model, task: Task, folder: Path, batch_size: int) -> Artifact:
    """Writes a network's files for a target: one into `folder`, or of several graphs each into a folder by its name."""
    of_graphs = parts(model, task)
    if not of_graphs:
        return target.build(model, task, folder, batch_size)
    built = {}
    for name, part in of_graphs.items():
        (folder / name).mkdir()
        built[name] = target.build(part.model, part.task, folder / name, batch_size)
    last = next((artifact for artifact in built.values() if artifact.status != "ok"), built[name])
    files = {name: artifact.file for name, artifact in built.items()}
    rewrites = sum((Counter(artifact.rewrites) for artifact in built.values()), Counter[str]())
    return replace(last, file=folder, stand_in=last.stand_in and folder, graphs=files, rewrites=rewrites)


@lru_cache(maxsize=8)
def _recorded(net: torch.nn.Module, task: Task, split: Split) -> dict[str, Batch]:
    """What each graph was given and answered when the first samples of a split were decoded.

    Of every few samples some calls are kept: all together, with the caches of a language model, can be gigabytes.
    """
    session, draw = TorchSession(net, task), np.random.default_rng(0)
    kept: dict[str, list[Batch]] = {name: [] for name in session.graphs}
    for batch in islice(task.batches(split, NUM_TOGETHER), NUM_SAMPLES // NUM_TOGETHER):
        recorder = Recorder(session)
        task.predict(recorder, batch)
        for name, found in kept.items():
            calls = [given for called, given in recorder.calls if called == name]
            rows = [(call, row) for call in calls for row in range(len(next(iter(call.values()))))]
            chosen = np.sort(draw.permutation(len(rows))[: NUM_CALLS * NUM_TOGETHER // NUM_SAMPLES])
            for call, row in (rows[index] for index in chosen):
                found.append({key: values[row : row + 1].copy() for key, values in call.items()})  # the rest may go
    arrays: dict[str, Batch] = {}
    for name, graph in session.graphs.items():
        if not kept[name]:
            raise UsageError(f"task {task.use} never calls graph {name}: there is nothing to calibrate it with")
        inputs = {key: np.concatenate([given[key] for given in kept[name]]) for key in graph.inputs}
        arrays[name] = inputs | {ANSWER + key: values for key, values in graph.run(inputs).items()}
    return arrays
