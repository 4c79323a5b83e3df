"""Parts of a data set that comes in one piece: drawn at random, the same on every machine and for every seed."""

from __future__ import annotations

import numpy as np

from edgedl.core import DataError, Split

NUM_CALIBRATION = 512
SHARES: dict[Split, tuple[float, float]] = {"train": (0.36, 1.0), "validation": (0.2, 0.36), "test": (0.0, 0.2)}
"""Where each part begins and ends in the shuffled set."""


def chosen(num_samples: int, split: Split, source: str) -> np.ndarray:
    """Indices (n,) of the samples of a split, shuffled; raises `DataError`, which names `source`, if there are none.

    Calibration takes the first of those that train: it must never see what is scored.
    """
    low, high = SHARES["train" if split == "calibration" else split]
    order = np.argsort(np.random.PCG64(0).random_raw(num_samples), kind="stable")
    found = order[round(low * num_samples) : round(high * num_samples)]
    if len(found) == 0:
        raise DataError(f"{source}: {num_samples} samples are too few to train, validate and test on: no {split} split")
    return found[:NUM_CALIBRATION] if split == "calibration" else found
