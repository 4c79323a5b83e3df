"""Dimensions of inputs, beside that of samples, which files may take in several sizes: read, and tried at some."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from edgedl import plugins
from edgedl.core import BATCH, Batch, DataError, Dimension, Task, TensorSpec

Dynamic: TypeAlias = Mapping[str, Mapping[int, Dimension]]
"""By input and axis, of which 0 is that of samples."""
SPELLED = re.compile(r"(?P<input>.+)\.(?P<axis>\d+)=(?P<name>[A-Za-z_]\w*)(:(?P<least>\d+)-(?P<most>\d+))?", re.ASCII)


def spelled(said: str) -> re.Match[str]:
    """The parts of "tokens.1=length:1-128", of which the range may be missing. Raises `ValueError`."""
    found = SPELLED.fullmatch(said)
    if found is None:
        raise ValueError(f"{said!r} names no dimension of an input, such as tokens.1=length or tokens.1=length:1-128")
    return found


def read(said: Sequence[str], inputs: Mapping[str, TensorSpec], where: str) -> Dynamic:
    """The dimensions that a recipe names, such as "tokens.1=length:1-128", of inputs without that of samples.

    One that is of several inputs has its range at one of them; without any it is from 2 to the size of the data,
    since a size of 1 is a special case in many an operator and kernel.
    Raises `DataError`.
    """
    ranges: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}
    names: dict[str, dict[int, str]] = {}
    for text in said:
        found, place = spelled(text), f"{where}: dynamic: {text}"
        name, axis, dimension = found["input"], int(found["axis"]), found["name"]
        if name not in inputs:
            raise DataError(f"{place}: no input {name!r}; {plugins.nearest(name, inputs)}")
        shape = inputs[name].shape
        if not 1 <= axis <= len(shape):
            others = f"the others of {name} are 1 to {len(shape)}" if shape else f"{name} has no other"
            raise DataError(f"{place}: dimension 0 is that of samples, which max_batch is for; {others}")
        size = shape[axis - 1]
        if dimension == BATCH:
            raise DataError(f"{place}: {BATCH} is what the dimension of samples is called; take another name")
        if size == 1:
            raise DataError(f"{place}: it is 1 in the data, which tells nothing of larger sizes")
        if sizes.setdefault(dimension, size) != size:
            raise DataError(f"{place}: {dimension} is {size} here and {sizes[dimension]} elsewhere in the data")
        if found["least"] is not None:
            given = int(found["least"]), int(found["most"])
            if ranges.setdefault(dimension, given) != given:
                raise DataError(f"{place}: {dimension} has two ranges; say one")
            if not 1 <= given[0] <= size <= given[1]:
                raise DataError(f"{place}: the range has to hold {size}, the size in the data, and begin at 1 or above")
        names.setdefault(name, {})[axis] = dimension
    known = {}
    for dimension, size in sizes.items():
        least, most = ranges.get(dimension, (2, size))
        known[dimension] = Dimension(dimension, least, size, most)
    return {name: {axis: known[dimension] for axis, dimension in axes.items()} for name, axes in names.items()}


def by_name(dynamic: Dynamic) -> dict[str, Dimension]:
    """Every dimension once."""
    return {dimension.name: dimension for axes in dynamic.values() for dimension in axes.values()}


def ranges(task: Task, max_batch: int | None, batch_size: int) -> dict[str, tuple[int, int, int]]:
    """The least, the usual and the largest size of everything that has a name in an ONNX file of the task."""
    found = {name: (one.least, one.size, one.most) for name, one in by_name(task.dynamic).items()}
    return ({BATCH: (1, batch_size, max_batch)} if max_batch else {}) | found


def to_try(dynamic: Dynamic) -> list[dict[str, int]]:
    """Sizes of all dimensions by name, other than those of the data: the least, the most, both in turn, and between.

    What is between has every factor that the others have in common: networks that halve and double need it.
    """
    dimensions = list(by_name(dynamic).values())
    least, most = ({found.name: getattr(found, end) for found in dimensions} for end in ("least", "most"))
    mixed = {found.name: (found.least, found.most)[index % 2] for index, found in enumerate(dimensions)}
    tried = [least, most, mixed, {found.name: _between(found) for found in dimensions}]
    own = {found.name: found.size for found in dimensions}
    return [sizes for index, sizes in enumerate(tried) if sizes != own and sizes not in tried[:index]]


def elsewhere(dynamic: Dynamic) -> dict[str, int]:
    """A size of every dimension that is not the data's, where it may have any other."""
    return {name: one.most if one.most != one.size else one.least for name, one in by_name(dynamic).items()}


def _between(dimension: Dimension) -> int:
    step = math.gcd(dimension.least, dimension.size, dimension.most)
    sizes = [size for size in range(dimension.least + step, dimension.most, step) if size != dimension.size]
    return sizes[len(sizes) // 2] if sizes else dimension.least


def resized(batch: Batch, task: Task, sizes: Mapping[str, int]) -> Batch:
    """The task's inputs with dimensions of these sizes: cut off, or from their beginning once more."""
    found = {}
    for name in task.inputs:
        values = batch[name]
        for axis, dimension in task.dynamic.get(name, {}).items():
            values = np.take(values, range(sizes[dimension.name]), axis, mode="wrap")
        found[name] = np.ascontiguousarray(values)
    return found


def shape(spec: TensorSpec, axes: Mapping[int, Dimension], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """That of an input, without samples, at these sizes."""
    return tuple(sizes[axes[axis].name] if axis in axes else size for axis, size in enumerate(spec.shape, 1))


def kept(task: Task, why: str) -> tuple[str, ...]:
    """The note of a file that takes the data's sizes alone; none where that is all that was asked for."""
    named = {name: one.size for name, one in by_name(task.dynamic).items()}
    return (f"it takes {in_words(named)} alone, the size of the data: {why}",) if named else ()


def in_words(sizes: Mapping[str, int]) -> str:
    """ "length 12, width 3"."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
