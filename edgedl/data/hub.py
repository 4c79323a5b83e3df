"""Data sets of Hugging Face, from the hub, from disk or as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgedl.core import DataError, MissingPackage
from edgedl.data import images as data_images
from edgedl.data.files import of_table
from edgedl.data.images import Reading
from edgedl.data.records import Records
from edgedl.data.splits import WHOLE


def of_data_set(data: Any, how: Reading, source: str) -> Records:
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
            found[name] = data_images.of_images(images, how, place)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: {name} holds what cannot be read as an image: {error}") from error
    notes = data_images.notes(np.shape(found[pictures[0]])) if pictures else {}
    return Records(found, source, place, classes, frozenset(pictures), notes, is_table=True)


def from_hub(name: str, config: str | None, how: Reading) -> dict[str, Records]:
    """The splits of a data set on the Hugging Face hub. Raises `DataError`."""
    datasets = _datasets(name)
    try:
        data = datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"hub:{name}: cannot be had: {reason}") from error
    return {str(part): of_data_set(records, how, f"hub:{name}, {part}") for part, records in data.items()}


def from_disk(folder: Path, how: Reading) -> dict[str, Records]:
    """What `save_to_disk` of Hugging Face's datasets wrote. Raises `DataError`."""
    datasets = _datasets(str(folder))
    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{folder}: cannot be read as a data set of Hugging Face: {error}") from error
    if isinstance(data, datasets.Dataset):
        return {WHOLE: of_data_set(data, how, str(folder))}
    return {str(part): of_data_set(records, how, f"{folder}, {part}") for part, records in data.items()}


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{source}: needs the package datasets: pip install 'edgedl[hub]'") from error
    return datasets
