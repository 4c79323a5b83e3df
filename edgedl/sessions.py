"""Errors, and an exported file that is opened: what a device needs of the nouns; only numpy is needed here.

EdgedlError                  what a person can mend; shown as one line, without a traceback
├── UsageError               exit status 2: wrong arguments, names, files or data
│   ├── RecipeError          a recipe's file, table, key and the nearest valid one
│   ├── DataError            a data set that is missing or malformed
│   ├── ModelFileError       a model file that cannot be read, or is not what its name says
│   └── MissingPackage       an extra that is not installed, with the pip line
├── UnsupportedOperator      operators that a scheme cannot take, with the layer's path and the line of code
└── TargetError              building or running for one target failed; the run goes on with the others
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import numpy as np

Batch: TypeAlias = Mapping[str, np.ndarray]
"""Named arrays, each (N, ...): a task's inputs and labels, or a session's inputs or outputs."""

BATCH = "batch"
"""What the dimension is called in an ONNX file that may have any number of samples."""
SIZES = "edgedl.sizes"
"""Under which an ONNX file notes at which sizes its named dimensions are to be measured, as JSON."""


def num_samples(batch: Batch) -> int:
    """N."""
    return len(next(iter(batch.values())))


def in_batches(arrays: Batch, size: int) -> Iterator[Batch]:
    """The samples in order, `size` at a time; the last may be fewer."""
    for start in range(0, num_samples(arrays), size):
        yield {name: values[start : start + size] for name, values in arrays.items()}


class EdgedlError(Exception):
    """What a person can mend; the message says what was wrong, where, and what to do."""

    exit_status: ClassVar[int] = 1


class UsageError(EdgedlError):
    """Wrong arguments, names, files or data; nothing has been done yet."""

    exit_status = 2


class RecipeError(UsageError):
    """A recipe that cannot be read; the message names file, line, table and key."""


class DataError(UsageError):
    """A data set that is missing or malformed; the message names the file."""


class ModelFileError(UsageError):
    """A model file that is missing, truncated, or not of the format that its name says."""


class MissingPackage(UsageError):
    """A package that is not installed; the message holds the pip line that installs it."""


class UnsupportedOperator(EdgedlError):
    """Operators that have no int8 form; the message names each, with the module and the line that made it."""

    def __init__(self, operators: Sequence[str]) -> None:
        them = "it" if len(operators) == 1 else "them"
        super().__init__(
            f"no int8 form for {'; for '.join(operators)}; replace {them}, or keep {them} in float: "
            'limits = { float_ops = "allow" }'
        )


class TargetError(EdgedlError):
    """Building or running a file for one target failed."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a named tensor. A task's shape is without the batch dimension, a session's is with it.

    Dimensions that are `free` may have other sizes, too: `shape` then has the one that is measured.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    free: tuple[int, ...] = ()

    def __str__(self) -> str:
        sizes = [f"any, such as {size}" if axis in self.free else str(size) for axis, size in enumerate(self.shape)]
        return f"{self.dtype} ({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


@dataclass(frozen=True)
class OperatorTime:
    """Time of one operator of an exported file in one run."""

    name: str
    kind: str
    time_ms: float


@dataclass(frozen=True)
class Activation:
    """An intermediate value of a network: `values` are real numbers, `scale` is the int8 step or None for float.

    `layer` is a module path on the simulated side, the tensor's name in an exported file.
    """

    layer: str
    values: np.ndarray
    scale: float | None


class Session(Protocol):
    """An exported file, loaded: named arrays in, named arrays out, the device finished on return."""

    @property
    def runtime(self) -> str:
        """Name and version of what runs the file."""
        ...

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """With the batch dimension, in the file's order."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def graphs(self) -> Mapping[str, Session]:
        """The sessions of single graphs, where a network is several; else none."""
        ...

    def run(self, batch: Batch) -> Batch:
        """One inference; arrays must have the shapes and dtypes of `inputs`."""
        ...

    def profile(self, batch: Batch) -> Sequence[OperatorTime]:
        """Time per operator in execution order, over several runs; empty where the runtime gives none."""
        ...

    def activations(self, batch: Batch) -> Sequence[Activation]:
        """Intermediate values of the deployed file in execution order; empty where the runtime shows none."""
        ...

    def close(self) -> None: ...
