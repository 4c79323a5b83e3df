"""What image classification tasks have in common: one image in, one logit a class out, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgedl.core import Batch, DataError, Metric, Split, Task, TensorSpec

if TYPE_CHECKING:
    import torch


class Classification(Task):
    """Batches hold `image` (N, C, H, W) float32 and `label` (N,) int64; networks answer `logits` (N, classes)."""

    image_shape: ClassVar[tuple[int, int, int]]
    num_classes: ClassVar[int]
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    metric: ClassVar[Metric] = Metric(name="accuracy", unit="fraction", higher_is_better=True)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"image": TensorSpec(self.image_shape)}

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


def labelled(
    name: str, source: str, split: Split, read: Callable[[str], tuple[np.ndarray, np.ndarray]], validation_share: int
) -> Batch:
    """`image` (N, C, H, W) in [0, 1] and `label` (N,) of a split. Raises `DataError` if it is empty.

    `read` gives all images and labels of "train" or "test", uint8; those of one channel may be (N, H, W). The last of
    `validation_share` equal parts of "train" validates. Calibration takes the first 512 of those that train: it must
    never see what is scored.
    """
    images, labels = read("test" if split == "test" else "train")
    num_train = len(images) - len(images) // validation_share
    slices: dict[Split, slice] = {
        "train": slice(0, num_train),
        "calibration": slice(0, min(512, num_train)),
        "validation": slice(num_train, None),
        "test": slice(None),
    }
    images, labels = images[slices[split]], labels[slices[split]]
    if len(images) == 0:
        raise DataError(f"{name}: the {split} split of {source} is empty")
    images = images[:, None] if images.ndim == 3 else images
    return {"image": images.astype(np.float32) / 255, "label": labels.astype(np.int64)}
