"""What tasks have in common that tell classes apart: one logit a class, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgedl.core import Batch, Metric, Task

if TYPE_CHECKING:
    import torch


class Classes(Task):
    """Batches hold `label` (N,) int64 beside the inputs; networks answer `logits` (N, classes)."""

    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    metric: ClassVar[Metric] = Metric(name="accuracy", unit="fraction", higher_is_better=True)

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs["logits"], batch["label"])

    def imitate(
        self,
        outputs: Mapping[str, torch.Tensor],
        taught: Mapping[str, torch.Tensor],
        temperature: float,
        batch: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Divergence of the softened class probabilities."""
        from edgedl.imitation import divergence

        return divergence(outputs["logits"], taught["logits"], temperature)

    def score(self, outputs: Batch, batch: Batch) -> float:
        return float((self.decisions(outputs) == batch["label"]).mean())

    def decisions(self, outputs: Batch) -> np.ndarray:
        """The class chosen, (N,) int64."""
        return np.asarray(outputs["logits"].argmax(axis=1))
