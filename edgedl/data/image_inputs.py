"""Images among a network's inputs: which way they lie, and what is done to their pixels, here or in the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedl.core import DataError, Split

Arrays = Mapping[Split, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Treatment:
    """What is to be done to images."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels_last: bool = False
    """How images lie in arrays, and how the network takes them."""
    uint8_input: bool = False
    """Whether files take them as uint8, and put them between 0 and 1 themselves."""
    channels_last_input: bool = False
    """Whether files take them with their channels last, of a network that takes them first."""

    @property
    def files_channels_last(self) -> bool:
        return self.channels_last or self.channels_last_input

    @property
    def normalizes(self) -> bool:
        """Whether arrays of uint8 are images, too."""
        return bool(self.mean or self.std or self.uint8_input)


def lay(divided: Arrays, name: str, wanted: Treatment, decoded: bool) -> None:
    """Puts channels where files have them. Decoded images are channels-first, arrays as they were said to lie."""
    if wanted.files_channels_last and (decoded or not wanted.channels_last):
        for arrays in divided.values():
            arrays[name] = np.ascontiguousarray(arrays[name].transpose(0, 2, 3, 1))


def normalize(divided: Arrays, name: str, wanted: Treatment, source: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean and deviation of each channel (C,) that the network was trained with.

    They are taken off pixels in [0, 1], unless files are to do that.
    """
    axis = 3 if wanted.files_channels_last else 1
    num = divided["train"][name].shape[axis]
    for key, values in (("mean", wanted.mean), ("std", wanted.std)):
        if len(values) not in (0, 1, num):
            raise DataError(
                f"{source}: {key} has {len(values)} values, but {name} has {num} channels; is layout right?"
            )
    mean = np.broadcast_to(np.array(wanted.mean or (0.0,), np.float32), num)
    deviation = np.broadcast_to(np.array(wanted.std or (1.0,), np.float32), num)
    shape = [1, 1, 1, 1]
    shape[axis] = num
    if not wanted.uint8_input:
        for arrays in divided.values():
            scaled = arrays[name].astype(np.float32) / 255
            arrays[name] = np.ascontiguousarray((scaled - mean.reshape(shape)) / deviation.reshape(shape))
    return mean, deviation


def contract(mean: np.ndarray, deviation: np.ndarray, uint8_input: bool) -> dict[str, Any]:
    """What becomes of pixels, as JSON: what an application has to do, or need not, since the file does."""
    steps = {"scale": 1 / 255, "mean": mean.tolist(), "std": deviation.tolist()}
    if uint8_input:
        return {"range": "0 to 255: the file itself makes 0 to 1 of it, then (x - mean) / std", "in_file": steps}
    return {"range": "0 to 255 becomes 0 to 1, then (x - mean) / std of each channel", **steps}
