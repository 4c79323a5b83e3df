"""Trains the network on the task's own loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from edgedl.core import Model, Step, Task


class Train(Step):
    """Adam (with decoupled weight decay) or SGD with momentum; the weights that validate best are kept."""

    use: str = "train"
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0

    compresses: ClassVar[bool] = False

    def apply(self, model: Model, task: Task) -> Model:
        """Raises `UsageError` if the loss diverges."""
        from edgedl.training import fit

        net, history = fit(
            model.net,
            task,
            task.loss,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer=self.optimizer,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            label="train",
        )
        return model.after(self, {"epochs": history}, net=net)
