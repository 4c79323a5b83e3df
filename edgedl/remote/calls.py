"""Calls of a graph that are kept, and written into a file: of each, what has changed since the one before it.

A language model is given its caches with every character, and one column in them is new: written out, a test split of
such calls is gigabytes. Only numpy is needed here: devices read such files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgedl.sessions import UsageError

WHOLE = -1
"""In place of how many elements have changed: all are given."""
MOST_CHANGED = 1 / 2
"""Share of elements up to which places and values take less room than all values."""


class Calls:
    """What a graph is given, call by call: the same inputs, in the same shapes and types of 1 to 8 bytes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.inputs = {name: _Input() for name in names}

    def append(self, given: Mapping[str, np.ndarray]) -> None:
        """Raises `UsageError` for arrays of another shape or type than before."""
        for name, kept in self.inputs.items():
            try:
                kept.append(given[name])
            except ValueError as error:
                raise UsageError(f"{name} is given as {error}: a device is sent calls that are alike") from error

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for values in zip(*self.inputs.values(), strict=True):
            yield dict(zip(self.inputs, values, strict=True))

    @property
    def num_bytes(self) -> int:
        """Of what is kept."""
        return sum(kept.num_bytes for kept in self.inputs.values())

    def save(self, folder: Path) -> str:
        """Writes a file that is named after its content, and returns the name: equal calls have one file.

        Arrays lie in order, since names of inputs are a person's own and may be any.
        """
        arrays = [array for kept in self.inputs.values() for array in kept.arrays()]
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        name = f"calls-{digest.hexdigest()[:16]}.npz"
        if not (folder / name).exists():
            np.savez(folder / name, *arrays)
        return name


def read(file: Path, names: Sequence[str]) -> Calls:
    """The calls in a file, of the inputs with these names."""
    calls = Calls(names)
    with np.load(file) as found:
        arrays = iter(list(found.values()))
    for kept in calls.inputs.values():
        kept.set(next(arrays), next(arrays), next(arrays), next(arrays))
    return calls


class _Input:
    """The arrays of one input."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.counts: list[int] = []
        self.places: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.num_bytes = 0
        self._last: np.ndarray | None = None

    def append(self, values: np.ndarray) -> None:
        given = np.array(values).reshape(-1)  # a copy: whoever gives it may go on in the same array
        if self._last is None:
            self.shape = values.shape
        elif (self.shape, self._last.dtype) != (values.shape, values.dtype):
            raise ValueError(f"{self._last.dtype} {self.shape} and as {values.dtype} {values.shape}")
        changed = _changed(self._last, given)
        if changed is None or len(changed) > MOST_CHANGED * len(given):
            self.counts.append(WHOLE)
            self.places.append(np.empty(0, np.int32))
            self.values.append(given)
        else:
            self.counts.append(len(changed))
            self.places.append(changed.astype(np.int32))
            self.values.append(given[changed])
        self.num_bytes += self.places[-1].nbytes + self.values[-1].nbytes
        self._last = given

    def __iter__(self) -> Iterator[np.ndarray]:
        now = np.empty(0)
        for count, places, values in zip(self.counts, self.places, self.values, strict=True):
            now = np.array(values if count == WHOLE else now)
            if count != WHOLE:
                now[places] = values
            yield now.reshape(self.shape)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Shape, number of changes in each call, and the places and values of all changes, one behind the other."""
        places, values = np.concatenate(self.places), np.concatenate(self.values)
        return np.array(self.shape, np.int64), np.array(self.counts, np.int64), places, values

    def set(self, shape: np.ndarray, counts: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
        """Takes what `arrays` gave."""
        self.shape, self.counts = tuple(shape.tolist()), counts.tolist()
        size = int(np.prod(shape))
        self.places = np.split(places, np.cumsum(np.maximum(counts, 0))[:-1])
        self.values = np.split(values, np.cumsum(np.where(counts == WHOLE, size, counts))[:-1])


def _changed(before: np.ndarray | None, now: np.ndarray) -> np.ndarray | None:
    """The places whose bits are others; None where nothing was before."""
    if before is None:
        return None
    bits = f"u{now.itemsize}"
    return np.flatnonzero(before.view(bits) != now.view(bits))
