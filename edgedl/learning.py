"""What all steps that learn have in common: how long, how fast, by which rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from edgedl.core import Batch, Step, Task

if TYPE_CHECKING:
    import torch

    from edgedl.sparsity import AfterStep

    Tensors = Mapping[str, torch.Tensor]
    Loss = Callable[[Tensors, Tensors], torch.Tensor]


class LearningStep(Step):
    """Adam (with decoupled weight decay) or SGD with momentum; the weights that validate best are kept."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0

    def fit(
        self,
        net: torch.nn.Module,
        task: Task,
        loss: Loss,
        sparse: bool = False,
        after_step: AfterStep | None = None,
        choose_from: int = 1,
        samples: Batch | None = None,
    ) -> tuple[torch.nn.Module, list[dict[str, float]]]:
        """A trained copy of `net`, and loss and validation score of each epoch. Raises `UsageError` if it diverges.

        `sparse` is the model's: weights that are zero stay zero. `samples` take the place of the train split.
        """
        from edgedl import training

        return training.fit(
            net,
            task,
            loss,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer=self.optimizer,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            label=self.label,
            sparse=sparse,
            after_step=after_step,
            choose_from=choose_from,
            samples=samples,
        )


def imitation(taught: Callable[[Tensors], Tensors], task: Task, temperature: float, weight: float) -> Loss:
    """A loss for `fit`: `weight` times the distance to a teacher's outputs, the rest the task's own.

    `taught` answers a batch as the teacher does: `edgedl.teachers.answers_of(net, task)`.
    """
    if not weight:  # nothing is asked of the teacher
        return task.loss

    def loss(outputs: Tensors, batch: Tensors) -> torch.Tensor:
        distance = task.imitate(outputs, taught(batch), temperature, batch)
        return weight * distance + (1 - weight) * task.loss(outputs, batch)

    return loss
