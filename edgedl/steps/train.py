"""Trains the network on the task's own loss; what it leaves is the float reference, and the teacher of later steps."""

from __future__ import annotations

from typing import ClassVar

from edgedl.core import Model, Task
from edgedl.training.learning import LearningStep


class Train(LearningStep):
    """Learns from the labels alone."""

    use: str = "train"

    compresses: ClassVar[bool] = False

    def apply(self, model: Model, task: Task) -> Model:
        """Raises `UsageError` if the loss diverges."""
        net, history = self.fit(model.net, task, task.loss, sparse=model.sparse)
        return model.after(self, {"epochs": history}, net=net)
