"""Parts of a data set: as given, or drawn at random, the same on every machine and for every seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgedl import plugins
from edgedl.core import Batch, DataError, Split

NUM_CALIBRATION = 512
SHARES: dict[Split, tuple[float, float]] = {"train": (0.36, 1.0), "validation": (0.2, 0.36), "test": (0.0, 0.2)}
"""Where each part begins and ends in the shuffled set."""
WHOLE = "all"
"""The name of the only part of a data set that is not divided."""
PARTS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What people call the parts of a data set, in lower case."""
VALIDATION_SHARE = 5
"""One of so many training records validates, where no others are there for it."""


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


def divided(
    arrays: Mapping[str, Batch], sources: Mapping[str, str], named: Mapping[str, str] | None = None
) -> tuple[dict[Split, dict[str, np.ndarray]], str]:
    """Arrays of each split from those of each part, and how they came to be.

    `sources` name the parts in errors; `named` says which part a split is, where its name does not. Raises
    `DataError`.
    """
    given = _given(list(sources), named, next(iter(sources.values())))
    train = arrays[given["train"]]
    source, num = sources[given["train"]], len(next(iter(train.values())))
    if len(set(given.values())) == 1:
        rows = {split: chosen(num, split, source) for split in SHARES}
        rows["calibration"] = chosen(num, "calibration", source)
        how = "at random, the same every time: 64 % to train, 16 % to validate, 20 % to test"
        return {split: {name: values[found] for name, values in train.items()} for split, found in rows.items()}, how
    order = np.argsort(np.random.PCG64(0).random_raw(num), kind="stable")
    how, num_validation = "as given", 0
    if "validation" not in given:
        num_validation = num // VALIDATION_SHARE
        how = f"as given; {num_validation} of the records to train on validate, drawn at random, the same every time"
        if num_validation == 0:
            raise DataError(f"{source}: {num} records are too few to train and validate on")
    learn = order[num_validation:]
    found: dict[Split, dict[str, np.ndarray]] = {
        "train": {name: values[learn] for name, values in train.items()},
        "calibration": {name: values[learn[:NUM_CALIBRATION]] for name, values in train.items()},
        "validation": {name: values[order[:num_validation]] for name, values in train.items()},
        "test": dict(arrays[given["test"]]),
    }
    if "validation" in given:
        found["validation"] = dict(arrays[given["validation"]])
    if given["test"] == given.get("validation", WHOLE):
        raise DataError(f"{source}: validation and test cannot be the same records")
    if PARTS.get(given["test"].lower()) == "validation":
        how += "; what was given to validate is what is tested on"
    return found, how


def _given(names: list[str], named: Mapping[str, str] | None, source: str) -> dict[str, str]:
    """Which part each split is. Without a test part, what is there to validate tests; a single part is all there is."""
    taken = set((named or {}).values())
    given = {PARTS[name.lower()]: name for name in names if name.lower() in PARTS and name not in taken}
    for split, name in (named or {}).items():
        if name not in names:
            raise DataError(f"{source}: splits.{split}: no part {name!r}; {plugins.nearest(name, names)}")
        given[split] = name
    if len(names) == 1 and not named:
        return {"train": names[0], "validation": names[0], "test": names[0]}
    if "test" not in given and "validation" in given:
        given["test"] = given.pop("validation")
    if lacking := [split for split in ("train", "test") if split not in given]:
        raise DataError(
            f'{source}: no part to {lacking[0]} on; it has {", ".join(names)}: say splits = {{ {lacking[0]} = "..." }}'
        )
    return given
