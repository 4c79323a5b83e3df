"""Trains the network to repeat its teacher: in its outputs, in inner values, or in how it relates samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from edgedl import plugins
from edgedl.core import Model, Network, Task, UsageError
from edgedl.training import teachers
from edgedl.training.learning import Share, TaughtStep, imitation, told, with_answers
from edgedl.training.teachers import Teacher

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgedl.training.learning import Loss, Tensors

    Paths = list[tuple[str, str]]


class Distill(TaughtStep):
    """Learns from the teacher's outputs and from the labels: `weight` times the former, the rest the latter.

    How far outputs are from a teacher's is the task's to say (`Task.imitate`). `features`, `attention` and
    `relational` weigh further losses (`training/imitation.py`), on `layers`: pairs of modules, the network's own and
    the teacher's; without them, the last of each stage of equal resolution. The teacher is the float network as the
    last `train` step left it, or what lies at a path: a run, a step of one, or a model file, of which only outputs are
    seen. Who learns is the network at hand or, with `student`, another that begins anew: a smaller one of the same
    family, or of any other.

    `sequences`: what the teacher decodes of the train split takes the place of its labels, and its outputs are those
    along these sequences. With `weight = 0` nothing else is learned. Only for tasks that decode sequences. Source:
    Y. Kim and A. Rush, Sequence-Level Knowledge Distillation, EMNLP 2016.
    """

    use: str = "distill"
    teacher: str | None = None
    """A run, a step of one, or a model file, instead of the float network."""
    student: plugins.InnerNetwork | None = None
    epochs: PositiveInt = 5
    lr: PositiveFloat = 5e-4
    weight: Share = 0.7
    sequences: bool = False
    features: NonNegativeFloat = 0.0
    attention: NonNegativeFloat = 0.0
    relational: NonNegativeFloat = 0.0
    layers: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _layers_for_something(self) -> Distill:
        if self.layers and not self.features + self.attention + self.relational:
            raise ValueError("distill: layers are given, but no weight for features, attention or relational")
        return self

    def unsuited(self, task: Task) -> str | None:
        """What is decoded can only be learned where the task says how (`Task.retold`)."""
        if not self.sequences or type(task).retold is not Task.retold:
            return None
        return f"sequences = true, and task {task.label} decodes none to learn from; leave it out"

    def sources(self) -> tuple[Path, ...]:
        """The teacher's files. Raises `UsageError` where they are missing, or cannot show what is asked for."""
        if self.teacher is None:
            return ()
        file = teachers.find(self.teacher)
        if file.name == teachers.WEIGHTS:
            return file, file.with_name("structure.json")
        self._need_outputs_alone(str(file))
        return (file,)

    def network(self, before: Network) -> Network:
        return self.student or before

    def apply(self, model: Model, task: Task) -> Model:
        """Raises `UsageError` without a teacher, with one that does not fit, or if the loss diverges."""
        if why := self.unsuited(task):
            raise UsageError(f"distill: {why}")
        if self.teacher is None and model.teacher is None:
            raise UsageError("distill: there is no teacher; a train step has to come before, or name one")
        if self.teacher is not None:
            teacher = teachers.load(self.teacher, task)
        else:
            assert model.teacher is not None
            teacher = teachers.of_network(model.teacher, task)
        if self.student is not None:
            model = replace(model, net=self.student.built(task).eval())
        _check_outputs(model.net, teacher, task)
        samples = teachers.retold(teacher, task) if self.sequences else None
        learner = model.net
        paths: Paths = []
        if not self.features + self.attention + self.relational:
            loss, samples = self.lesson(teacher.taught, task, samples)
        elif teacher.net is None:
            self._need_outputs_alone(str(self.teacher))
            samples = with_answers(teacher.taught, task, samples)
            loss = self._relating_outputs(teacher, task)
        else:
            learner, loss, paths = self._inside(model.net, task, teacher, teacher.net)
        net, history = self.fit(learner, task, loss, sparse=model.sparse, samples=samples)
        if learner is not model.net:
            net = net.get_submodule("net")
        taught = {"teacher": self.teacher or "the float network", "teacher_score": teacher.score}
        return model.after(self, {"epochs": history, "layers": paths} | taught, net=net)

    def _need_outputs_alone(self, file: str) -> None:
        if self.features or self.attention or self.layers:
            raise UsageError(
                f"distill: of a model file such as {file} only the outputs are seen; features, attention and layers "
                "need a teacher from a run's folder"
            )

    def _relating_outputs(self, teacher: Teacher, task: Task) -> Loss:
        from edgedl.training.imitation import relational_distance

        def total(outputs: Tensors, batch: Tensors) -> torch.Tensor:
            taught = told(teacher.taught, task, batch)
            value = imitation(lambda _: taught, task, self.temperature, self.weight)(outputs, batch)
            for name in task.outputs:
                value = value + self.relational * relational_distance(outputs[name], taught[name])
            return value

        return total

    def _inside(
        self, student: nn.Module, task: Task, teacher: Teacher, net: nn.Module
    ) -> tuple[nn.Module, Loss, Paths]:
        """The student with inner values watched, and the loss on them. Raises `UsageError` where there are none."""
        from edgedl.training import imitation as inner

        batch = _sample(task)
        inputs = tuple(batch[name] for name in task.inputs)
        paths = list(self.layers) or inner.match(student, net, inputs, task)
        pairs = inner.compared(student, net, inputs, paths)
        mapped = [index for index, pair in enumerate(pairs) if pair.has_positions]
        featured = [index for index, pair in enumerate(pairs) if not pair.is_probabilities]
        if self.attention and not mapped:
            raise UsageError("distill: attention needs values with positions, as convolutions have; name layers")
        if (self.features or self.relational) and not featured:
            raise UsageError("distill: layers hold attention probabilities alone, which are no features")

        def total(outputs: Tensors, batch: Tensors) -> torch.Tensor:
            with inner.watching(net, [pair.taught for pair in pairs]) as found:
                taught = teacher.taught(batch)
            wanted = [found[pair.taught] for pair in pairs]
            value = imitation(lambda _: taught, task, self.temperature, self.weight)(outputs, batch)
            for index in featured if self.features else ():
                distance = inner.feature_distance(outputs[f"{inner.PROJECTED}{index}"], wanted[index])
                value = value + self.features / len(featured) * distance
            for index in mapped if self.attention else ():
                kind = inner.probability_distance if pairs[index].is_probabilities else inner.attention_distance
                value = value + self.attention / len(mapped) * kind(outputs[f"{inner.INNER}{index}"], wanted[index])
            if self.relational:  # on the deepest, from which outputs are made
                deepest = featured[-1]
                distance = inner.relational_distance(outputs[f"{inner.INNER}{deepest}"], wanted[deepest])
                value = value + self.relational * distance
            return value

        return inner.Watched(student, task, pairs), total, paths


def _check_outputs(net: nn.Module, teacher: Teacher, task: Task) -> None:
    import torch

    from edgedl.torch_session import named_outputs

    batch = _sample(task)
    taught = teacher.taught(batch)
    with torch.no_grad():
        outputs = named_outputs(net.eval()(*(batch[name] for name in task.inputs)), task)
    for name in task.outputs:
        if taught[name].shape != outputs[name].shape:
            shapes = f"{tuple(taught[name].shape[1:])} for each sample, the network {tuple(outputs[name].shape[1:])}"
            raise UsageError(f"distill: the teacher answers {name} {shapes}")


def _sample(task: Task) -> dict[str, torch.Tensor]:
    import numpy as np
    import torch

    batch = next(task.batches("train", 2))
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
