"""Data sets given from Python: arrays by name, data sets and loaders of PyTorch, Hugging Face's, or a function."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import image_files
from edgedl.core import DataError, EdgedlError
from edgedl.data_files import PARTS, WHOLE, of_table
from edgedl.records import MAX_BYTES, Column, Records

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Reading:
    """What has to be known of the data before it is read."""

    inputs: tuple[str, ...] = ()
    """Names for the parts of a tuple, such as (x, y)."""
    label: str | None = None
    size: tuple[int, int] | None = None
    """Of all images, (height, width); without it they have to be of one size."""
    channels: int = 3


def of_given(value: object, how: Reading, source: str = "the data given") -> dict[str, Records]:
    """The parts of what is given from Python, or what the function that is given returns. Raises `DataError`."""
    if callable(value) and not _is_sequence(value):
        value = called(value, source)
    if not isinstance(value, Mapping):
        return {WHOLE: _part(value, how, source)}
    if not value:
        raise DataError(f"{source}: there is nothing in it")
    if all(str(name).lower() in PARTS or _is_data_set(part) for name, part in value.items()):
        return {str(name): _part(part, how, f"{source}, part {name}") for name, part in value.items()}
    return {WHOLE: of_columns(value, how, source)}


def called(function: Callable[[], object], source: str) -> object:
    """What a person's function returns. Raises `DataError` with the place where it failed."""
    try:
        return function()
    except EdgedlError:
        raise
    except Exception as error:  # it is anybody's code
        raise DataError(_failure(source, error)) from error


def _failure(source: str, error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{source}: failed in {last.filename}:{last.lineno}: {type(error).__name__}: {' '.join(str(error).split())}"


def _part(value: object, how: Reading, source: str) -> Records:
    if _is_hugging_face(value):
        return of_hugging_face(value, how, source)
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
        try:
            return of_columns(_collected(_items(value), how, source), how, source)
        except EdgedlError:
            raise
        except Exception as error:  # it is anybody's code
            raise DataError(_failure(source, error)) from error


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
        if not isinstance(found[name], np.ndarray) and len(found[name]) and _is_image(found[name][0]):
            pictures = of_images(found[name], how, place)
            found[name], images[name] = pictures, pictures.shape
    notes = image_notes(next(iter(images.values()))) if images else {}
    return Records(found, source, place, images=frozenset(images), notes=notes, is_table=is_table)


def of_images(images: Iterable[Image | Path], how: Reading, place: Callable[[int], str]) -> np.ndarray:
    """Images of Pillow or image files as (N, C, H, W) uint8. Raises `DataError` where one differs in size."""
    found: list[np.ndarray] = []
    size = how.size
    for index, given in enumerate(images):
        if isinstance(given, Path):
            image = image_files.decoded(given)
        elif _is_image(given):
            image = given
        else:
            raise DataError(f"{place(index)}: a {type(given).__name__}, no image")
        size = size or (image.height, image.width)
        if how.size is None and (image.height, image.width) != size:
            raise DataError(
                f"{place(index)}: {image.width}x{image.height} pixels, but the first image has {size[1]}x{size[0]}; "
                f"say to what all are resized: size = [{size[0]}, {size[1]}]"
            )
        try:
            found.append(image_files.fitted(image, (how.channels, *size)))
        except (OSError, ValueError) as error:
            raise DataError(f"{place(index)}: cannot be read as an image: {error}") from error
        _check_bytes(len(found) * found[0].size * 4, place(index))  # as float32 later on
    return np.stack(found) if found else np.zeros((0, how.channels, 1, 1), np.uint8)


def image_notes(shape: tuple[int, ...]) -> dict[str, Any]:
    """How images of (N, C, H, W) were made so, for whoever has to do the same."""
    return {
        "size": list(shape[2:]),
        "resize": "bilinear, as Pillow does, to this size; the aspect is not kept",
        "channels": "grey" if shape[1] == 1 else "RGB",
    }


def of_hugging_face(data: Any, how: Reading, source: str) -> Records:
    """A `datasets.Dataset`: its images, classes, numbers and lists; what is none of these is left out."""
    import datasets

    if not isinstance(data, datasets.Dataset):
        raise DataError(f"{source}: a {type(data).__name__}, which comes in a stream; take it without streaming")
    kinds = {name: type(feature) for name, feature in data.features.items()}
    pictures = [name for name, kind in kinds.items() if kind is datasets.Image]
    plain = [name for name, kind in kinds.items() if kind not in (datasets.Image, datasets.Audio)]
    found = dict(of_table(data.select_columns(plain).with_format("arrow")[:])) if plain else {}
    classes = {
        name: tuple(feature.names) for name, feature in data.features.items() if kinds[name] is datasets.ClassLabel
    }

    def place(record: int) -> str:
        return f"{source}: record {record}"

    try:
        for name in pictures:
            images = (row[name] for row in data.select_columns([name]).with_format(None))
            found[name] = of_images(images, how, place)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: {name} holds what cannot be read as an image: {error}") from error
    notes = image_notes(np.shape(found[pictures[0]])) if pictures else {}
    return Records(found, source, place, classes, frozenset(pictures), notes, is_table=True)


def from_hub(name: str, config: str | None, how: Reading) -> dict[str, Records]:
    """The splits of a data set on the Hugging Face hub. Raises `DataError`."""
    datasets = _datasets(name)
    try:
        data = datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"hub:{name}: cannot be had: {reason}") from error
    return {str(part): of_hugging_face(records, how, f"hub:{name}, {part}") for part, records in data.items()}


def from_disk(folder: Path, how: Reading) -> dict[str, Records]:
    """What `save_to_disk` of Hugging Face's datasets wrote. Raises `DataError`."""
    datasets = _datasets(str(folder))
    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{folder}: cannot be read as a data set of Hugging Face: {error}") from error
    if isinstance(data, datasets.Dataset):
        return {WHOLE: of_hugging_face(data, how, str(folder))}
    return {str(part): of_hugging_face(records, how, f"{folder}, {part}") for part, records in data.items()}


def _datasets(source: str) -> Any:
    from edgedl.core import MissingPackage

    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{source}: needs the package datasets: pip install 'edgedl[hub]'") from error
    return datasets


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
        _check_bytes(num_bytes, what)
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


def _check_bytes(num: int, place: str) -> None:
    if num > MAX_BYTES:
        raise DataError(
            f"{place}: up to here the data takes more than {MAX_BYTES >> 30} GiB, and all of it is held in memory; "
            "give a part of it, or smaller images by size"
        )


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


def _is_image(value: object) -> bool:
    return any(kind.__module__ == "PIL.Image" for kind in type(value).__mro__)


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
