"""What all steps that learn have in common: how long, how fast, by which rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from edgedl import progress
from edgedl.core import Batch, Step, Task

if TYPE_CHECKING:
    import torch

    from edgedl.training.sparsity import AfterStep

    Tensors = Mapping[str, torch.Tensor]
    Loss = Callable[[Tensors, Tensors], torch.Tensor]
    Taught = Callable[[Tensors], Tensors]

Share = Annotated[float, Field(ge=0, le=1)]

TOLD = "told:"
"""What stands before an output's name where a batch holds a teacher's answer."""
MAX_TOLD_BYTES = 2**30
ASKED_AT_ONCE = 64


class LearningStep(Step):
    """Adam (with decoupled weight decay) or SGD with momentum; the weights that validate best are kept."""

    epochs: PositiveInt = 10
    """How often it goes over the training split."""
    batch_size: PositiveInt = 32
    """Samples of one step of training."""
    lr: PositiveFloat = 1e-3
    """The learning rate to begin with."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """`adam` with decoupled weight decay, or `sgd` with momentum 0.9."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on: down to 0 along a `cosine`, or `constant`."""
    weight_decay: NonNegativeFloat = 0.0
    """How fast weights shrink by themselves."""

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
        from edgedl.training import loop

        return loop.fit(
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


class TaughtStep(LearningStep):
    """A step that learns from the labels and, for the share `weight` of the loss, from a teacher's outputs.

    `temperature` softens probabilities. Source: G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
    """

    temperature: PositiveFloat = 4.0
    """What logits are divided by before a teacher's are compared with the network's: above 1, less likely classes count
    more."""
    weight: Share = 0.0
    """The share of the loss that is the teacher's; the rest is the task's own."""

    def lesson(self, taught: Taught, task: Task, samples: Batch | None = None) -> tuple[Loss, Batch | None]:
        """Loss and samples for `fit`; `taught` answers a batch: `edgedl.training.teachers.answers_of(net, task)`."""
        if not self.weight:  # nothing is asked of the teacher
            return task.loss, samples
        loss = imitation(lambda batch: told(taught, task, batch), task, self.temperature, self.weight)
        return loss, with_answers(taught, task, samples)


def imitation(taught: Taught, task: Task, temperature: float, weight: float) -> Loss:
    """A loss for `fit`: `weight` times the distance to what `taught` answers a batch, the rest the task's own."""

    def loss(outputs: Tensors, batch: Tensors) -> torch.Tensor:
        distance = task.imitate(outputs, taught(batch), temperature, batch)
        return weight * distance + (1 - weight) * task.loss(outputs, batch)

    return loss


def with_answers(taught: Taught, task: Task, samples: Batch | None = None) -> Batch | None:
    """Samples, those of the train split unless others are given, with a teacher's answers under `TOLD` and their names.

    It is asked once and not in every epoch, unless it has more to say than `MAX_TOLD_BYTES`: then they stay as given.
    """
    import numpy as np
    import torch

    arrays = task.arrays("train") if samples is None else samples
    num_samples = len(next(iter(arrays.values())))
    found: dict[str, list[np.ndarray]] = {name: [] for name in task.outputs}
    with progress.stage("teacher's answers", num_samples) as advance:
        for start in range(0, num_samples, ASKED_AT_ONCE):
            part = {name: values[start : start + ASKED_AT_ONCE] for name, values in arrays.items()}
            answers = taught({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in part.items()})
            num_bytes = sum(answer.numel() * answer.element_size() for answer in answers.values())
            if num_bytes / min(ASKED_AT_ONCE, num_samples - start) * num_samples > MAX_TOLD_BYTES:
                return samples
            for name, values in found.items():
                values.append(answers[name].numpy())
            advance(len(values[-1]))
    return {**arrays, **{TOLD + name: np.concatenate(values) for name, values in found.items()}}


def told(taught: Taught, task: Task, batch: Tensors) -> Tensors:
    """What a teacher answers to a batch: as it stands there, or asked now."""
    known = {name: batch[TOLD + name] for name in task.outputs if TOLD + name in batch}
    return known or taught(batch)
