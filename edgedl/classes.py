"""What tasks have in common that tell classes apart: one logit a class, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgedl.core import Baseline, Batch, Exhibit, Metric, Task

if TYPE_CHECKING:
    import torch


NUM_EXHIBITS = 6


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
        from edgedl.training.imitation import divergence

        return divergence(outputs["logits"], taught["logits"], temperature)

    def score(self, outputs: Batch, batch: Batch) -> float:
        return float((self.decisions(outputs) == batch["label"]).mean())

    @property
    def baseline(self) -> Baseline | None:
        """Of accuracy alone; tasks with another metric state their own."""
        if self.metric != Classes.metric:
            return None
        counts = np.unique(self.arrays("test")["label"], return_counts=True)[1]
        return Baseline(float(counts.max() / counts.sum()), "always answering the commonest class")

    def decisions(self, outputs: Batch) -> np.ndarray:
        """The class chosen, (N,) int64."""
        return np.asarray(outputs["logits"].argmax(axis=1))

    def class_name(self, label: int) -> str:
        """What people call a class."""
        return str(label)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(map(self.class_name, range(getattr(self, "num_classes", 0))))

    def shown(self, batch: Batch, index: int) -> str | np.ndarray | None:
        """A sample as a person would look at it, text or a picture; None where there is nothing to see."""
        return None

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """Those first of which the files think differently, then those that they take for another class."""
        chosen = {name: np.asarray(self.decisions(outputs)) for name, outputs in answers.items()}
        right = np.stack([decided == batch["label"] for decided in chosen.values()])
        alike = np.all([decided == chosen[next(iter(chosen))] for decided in chosen.values()], axis=0)
        order = np.argsort(np.where(alike, np.where(right[0], 2, 1), 0), kind="stable")
        found = []
        for index in order[:NUM_EXHIBITS]:
            if (sample := self.shown(batch, int(index))) is None:
                return ()
            panels: dict[str, str | np.ndarray] = {
                "input": sample,
                "truth": self.class_name(int(batch["label"][index])),
            }
            for name, decided in chosen.items():
                share = softmax(answers[name]["logits"][index])[decided[index]]
                panels[name] = f"{self.class_name(int(decided[index]))} ({share:.0%})"
            found.append(Exhibit(f"sample {index}: {judged(dict(zip(chosen, right[:, index], strict=True)))}", panels))
        return found


def judged(right: Mapping[str, bool]) -> str:
    """Which of the files are right, in words."""
    if len(set(right.values())) == 1:
        return "all are right" if all(right.values()) else "all are wrong"
    return ", ".join(f"{name} is {'right' if fine else 'wrong'}" for name, fine in right.items())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares of the classes from logits (classes,)."""
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())
