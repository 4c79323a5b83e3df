"""What image classification tasks have in common: one image in, one logit a class out, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from edgedl.classes import Classes
from edgedl.core import Batch, DataError, Split, TensorSpec


class Classification(Classes):
    """Batches hold `image` (N, C, H, W) float32 and `label` (N,) int64; networks answer `logits` (N, classes)."""

    image_shape: ClassVar[tuple[int, int, int]]
    num_classes: ClassVar[int]

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"image": TensorSpec(self.image_shape)}

    def shown(self, batch: Batch, index: int) -> np.ndarray:
        return pixels(batch["image"][index])


def pixels(image: np.ndarray) -> np.ndarray:
    """An image (C, H, W) in [0, 1] as a picture, (H, W, 3) uint8 if it has three channels, else their mean (H, W)."""
    values = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255), np.uint8)


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
