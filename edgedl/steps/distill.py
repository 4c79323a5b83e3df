"""Trains the network to repeat its teacher, the float network as the last `train` step left it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from edgedl.core import Model, Task, UsageError
from edgedl.learning import LearningStep

if TYPE_CHECKING:
    import torch


class Distill(LearningStep):
    """Learns from the teacher's outputs and from the labels: `weight` times the former, the rest the latter.

    How far outputs are from a teacher's is the task's to say (`Task.imitate`). Source: G. Hinton,
    O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, 2015.
    """

    use: str = "distill"
    epochs: PositiveInt = 5
    lr: PositiveFloat = 5e-4
    temperature: PositiveFloat = 4.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.7

    def apply(self, model: Model, task: Task) -> Model:
        """Raises `UsageError` without a teacher, or if the loss diverges."""
        import torch

        from edgedl.torch_session import named_outputs

        if model.teacher is None:
            raise UsageError("distill: there is no teacher; a train step has to come before")
        teacher = model.teacher.eval()

        def loss(outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            with torch.no_grad():
                taught = named_outputs(teacher(*(batch[name] for name in task.inputs)), task)
            imitation = task.imitate(outputs, taught, self.temperature)
            return self.weight * imitation + (1 - self.weight) * task.loss(outputs, batch)

        net, history = self.fit(model.net, task, loss, sparse=model.sparse)
        return model.after(self, {"epochs": history}, net=net)
