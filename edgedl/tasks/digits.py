"""Handwritten digits that ship with scikit-learn: 1,797 real 8x8 images, resized to 1x28x28."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
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
NEEDS = "task digits needs scikit-learn: pip install 'edgedl[train]'"


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
    except ModuleNotFoundError as error:
        raise DataError(NEEDS) from error
    table = _table()
    table = table[np.random.default_rng(0).permutation(len(table))]
    small = (table[:, :-1].reshape(-1, 8, 8) / 16).astype(np.float32)
    large = zoom(small, (1, 28 / 8, 28 / 8), order=1, grid_mode=True, mode="nearest")
    return np.ascontiguousarray(large[:, None].astype(np.float32)), table[:, -1].astype(np.int64)


def _table() -> np.ndarray:
    """A row an image: 64 pixels from 0 to 16, and the label.

    From scikit-learn's file: importing the library to read it takes longer than training on it.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(NEEDS)
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        return np.loadtxt(file, delimiter=",")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: scikit-learn's digits cannot be read: {error}") from error
