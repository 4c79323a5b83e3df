"""Data sets given from Python: arrays by name, data sets and loaders of PyTorch, Hugging Face's, or a function."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import plugins
from edgedl.core import DataError
from edgedl.data import hub as data_hub
from edgedl.data import images as data_images
from edgedl.data.images import Reading
from edgedl.data.records import Column, Records, check_bytes
from edgedl.data.splits import PARTS, WHOLE

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


def of_given(value: object, how: Reading, source: str = "the data given") -> dict[str, Records]:
    """The parts of what is given from Python, or what the function that is given returns. Raises `DataError`."""
    if callable(value) and not _is_sequence(value):
        value = plugins.called(source, value, error=DataError)
    if not isinstance(value, Mapping):
        return {WHOLE: _part(value, how, source)}
    if not value:
        raise DataError(f"{source}: there is nothing in it")
    if all(str(name).lower() in PARTS or _is_data_set(part) for name, part in value.items()):
        return {str(name): _part(part, how, f"{source}, part {name}") for name, part in value.items()}
    return {WHOLE: of_columns(value, how, source)}


def _part(value: object, how: Reading, source: str) -> Records:
    if _is_hugging_face(value):
        return data_hub.of_data_set(value, how, source)
    if hasattr(value, "columns") and hasattr(value, "to_dict"):  # a table of pandas
        value = {str(name): value[name] for name in value.columns}  # type: ignore[index]
        return of_columns(value, how, source, is_table=True)
    if isinstance(value, Mapping):
        return of_columns(value, how, source)
    if isinstance(value, tuple) and value and all(hasattr(inner, "shape") for inner in value):
        return of_columns(dict(zip(_names(len(value), how), value, strict=True)), how, source)
    if hasattr(value, "shape"):
        return of_columns({_names(1, how)[0]: value}, how, source)
    if not (_is_data_set(value) or _is_sequence(value) or isinstance(value, Iterable)) or isinstance(value, str):
        raise DataError(
            f"{source}: a {type(value).__name__}; it has to be arrays by name, a torch Dataset or DataLoader, "
            "a data set of Hugging Face, or a mapping of train, validation and test to one of these"
        )
    with _seeded():
        columns = plugins.called(source, lambda: _collected(_items(value), how, source), error=DataError)
    return of_columns(columns, how, source)


def of_columns(columns: Mapping[Any, object], how: Reading, source: str, is_table: bool = False) -> Records:
    """Arrays, tensors or lists by name. Raises `DataError`."""
    found: dict[str, Column] = {}
    images: dict[str, tuple[int, ...]] = {}

    def place(record: int) -> str:
        return f"{source}: record {record}"

    for key, given in columns.items():
        name, values = str(key), _array(given)
        if isinstance(values, np.ndarray):
            if values.ndim == 0:
                raise DataError(f"{source}: {name} is a single value; the first axis of every array counts the records")
            found[name] = list(values) if values.dtype == object else values
        elif isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping):
            found[name] = list(values)
        else:
            raise DataError(f"{source}: {name} is a {type(values).__name__}, no array")
        if not isinstance(found[name], np.ndarray) and len(found[name]) and data_images.is_image(found[name][0]):
            pictures = data_images.of_images(found[name], how, place)
            found[name], images[name] = pictures, pictures.shape
    notes = data_images.notes(next(iter(images.values()))) if images else {}
    return Records(found, source, place, images=frozenset(images), notes=notes, is_table=is_table)


def _items(value: Any) -> Iterator[tuple[bool, Any]]:
    """Records, or batches of them, in an order that is the same every time where there is one.

    A loader that shuffles is asked for its data set in order; one that draws in another way is run with fixed seeds.
    """
    if _is_loader(value):
        yield from ((True, batch) for batch in _in_order(value))
    elif hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        yield from ((False, value[index]) for index in range(len(value)))
    else:
        yield from ((False, item) for item in value)


def _in_order(loader: DataLoader[Any]) -> Iterable[Any]:
    from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SubsetRandomSampler

    batched = loader.batch_sampler is not None and type(loader.batch_sampler).__name__ == "BatchSampler"
    if isinstance(loader.dataset, IterableDataset) or not batched:
        return loader
    indices: Any = None
    if isinstance(loader.sampler, SubsetRandomSampler):
        indices = sorted(loader.sampler.indices)
    elif isinstance(loader.sampler, RandomSampler) and not loader.sampler.replacement:
        indices = range(len(loader.dataset))  # type: ignore[arg-type]
    if indices is None:
        return loader
    return DataLoader(loader.dataset, loader.batch_size, sampler=indices, collate_fn=loader.collate_fn)


def _collected(items: Iterator[tuple[bool, Any]], how: Reading, source: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    num_bytes = 0
    for number, (is_batch, item) in enumerate(items):
        what = f"{source}: {'batch' if is_batch else 'item'} {number}"
        named = _named(item, how)
        if not columns:
            columns = {name: [] for name in named}
        if named.keys() != columns.keys():
            raise DataError(f"{what} holds {', '.join(named)}, but the first {', '.join(columns)}")
        lengths = set()
        for name, given in named.items():
            values = _array(given)
            rows = list(values) if is_batch else [values]
            lengths.add(len(rows))
            num_bytes += values.nbytes if isinstance(values, np.ndarray) else 0
            columns[name] += rows
        if len(lengths) > 1:
            raise DataError(f"{what} holds arrays of {' and '.join(map(str, sorted(lengths)))} records")
        check_bytes(num_bytes, what)
    if not columns:
        raise DataError(f"{source}: there are no records in it")
    return columns


def _named(item: Any, how: Reading) -> dict[str, Any]:
    """A record's, or a batch's, values by name: those of a mapping, or a tuple's in order."""
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Mapping):
        return {**_named(item[0], how), how.label or "label": item[1]}
    values = _flat(item)
    return dict(zip(_names(len(values), how), values, strict=True))


def _flat(item: Any) -> list[Any]:
    """(x, y) or ((x, y), z): tuples in order."""
    return [value for inner in item for value in _flat(inner)] if isinstance(item, tuple | list) else [item]


def _names(num: int, how: Reading) -> tuple[str, ...]:
    """Of a tuple the last is the label, as in (x, y), unless all of it are inputs by name."""
    if len(how.inputs) == num or num == 1:
        return how.inputs[:1] if num == 1 and how.inputs else how.inputs if how.inputs else ("input",)
    label = how.label or "label"
    if len(how.inputs) == num - 1:
        return (*how.inputs, label)
    return ("input", label) if num == 2 else (*(f"input_{index}" for index in range(num - 1)), label)


def _array(value: Any) -> Any:
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return value.to_numpy() if hasattr(value, "to_numpy") else value


def _is_hugging_face(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "datasets"


def _is_loader(value: object) -> bool:
    return hasattr(value, "batch_sampler") and hasattr(value, "dataset")


def _is_sequence(value: object) -> bool:
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")


def _is_data_set(value: object) -> bool:
    """Whether this is a whole part rather than one array."""
    is_torch = any("torch.utils.data" in kind.__module__ for kind in type(value).__mro__)
    return is_torch or _is_loader(value) or _is_hugging_face(value) or isinstance(value, Mapping)


@contextmanager
def _seeded() -> Iterator[None]:
    """Draws by chance inside, as augmentations make them, are the same every time; those outside go on as they were."""
    import torch

    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
