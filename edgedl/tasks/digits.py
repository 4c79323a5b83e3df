"""Handwritten digits that ship with scikit-learn: 1,797 real 8x8 images, resized to 1x28x28."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np

from edgedl.core import Batch, DataError, Split
from edgedl.images import Classification

SPLITS: dict[Split, slice] = {
    "train": slice(0, 1197),
    "calibration": slice(0, 256),  # inside train: calibration must never see what is scored
    "validation": slice(1197, 1437),
    "test": slice(1437, 1797),
}


class Digits(Classification):
    """1,197 / 240 / 360 images to train, validate and test on; the split is fixed whatever the recipe's seed.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, as packaged by scikit-learn.
    """

    use: str = "digits"
    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    num_classes: ClassVar[int] = 10

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 1, 28, 28) float32 in [0, 1] and `label` (N,) int64."""
        images, labels = _digits()
        return {"image": images[SPLITS[split]], "label": labels[SPLITS[split]]}


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from scipy.ndimage import zoom
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError("task digits needs scikit-learn: pip install 'edgedl[train]'") from error
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    small = (data.images[order] / 16).astype(np.float32)
    large = zoom(small, (1, 28 / 8, 28 / 8), order=1, grid_mode=True, mode="nearest")
    return np.ascontiguousarray(large[:, None].astype(np.float32)), data.target[order].astype(np.int64)
