"""Where data of one's own comes from, told by its name: a file, a folder, the Hugging Face hub, or a function."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgedl import data_files, image_files, plugins
from edgedl.core import DataError
from edgedl.data_files import PARTS, WHOLE
from edgedl.data_given import Reading, from_disk, from_hub, image_notes, of_given, of_images
from edgedl.records import Column, Records

HUB = "hub:"


def read(source: str, config: str | None, how: Reading) -> dict[str, Records]:
    """The parts of a data set. Raises `DataError`, or `UsageError` for a function that cannot be imported."""
    if source.startswith(HUB):
        return from_hub(source.removeprefix(HUB), config, how)
    path = Path(source)
    if path.is_dir():
        return of_folder(path, how)
    if not path.exists() and ":" in source and "/" not in source:
        return of_given(plugins.function(source), how, source)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return data_files.read(path)


def of_folder(folder: Path, how: Reading) -> dict[str, Records]:
    """A folder that `save_to_disk` made, of files train, validation and test, or of images. Raises `DataError`."""
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return from_disk(folder, how)
    files = [file for file in sorted(folder.iterdir()) if data_files.is_part(file)]
    if files:
        parts = {PARTS[file.stem.lower()]: file for file in files}
        if len(parts) < len(files):
            raise DataError(f"{folder}: two files are the same part: {', '.join(file.name for file in files)}")
        return {name: data_files.whole(file) for name, file in parts.items()}
    inner = _folders(folder)
    divided = [part for part in inner if part.name.lower() in PARTS]
    if not any(part.name.lower() in ("train", "training") for part in divided):
        return {WHOLE: _images(folder, how, None)}
    train = next(part for part in divided if PARTS[part.name.lower()] == "train")
    classes = tuple(entry.name for entry in _folders(train))
    return {part.name: _images(part, how, classes) for part in divided}


def _images(folder: Path, how: Reading, classes: tuple[str, ...] | None) -> Records:
    """Image files with a folder for each class, or without any. `classes` are those of the part to train on."""
    inner = _folders(folder)
    names = tuple(entry.name for entry in inner) if classes is None else classes
    if not inner:
        files, labels = image_files.find(folder), None
    else:
        if len(names) < 2:
            raise DataError(f"{folder}: needs a folder of images for each of two classes at least; there is {names[0]}")
        if strays := [entry for entry in inner if entry.name not in names]:
            hint = plugins.nearest(strays[0].name, names)
            raise DataError(f"{strays[0]}: no class of that name among those to train on; {hint}")
        found = [(file, names.index(entry.name)) for entry in inner for file in image_files.find(entry)]
        files, labels = [file for file, _ in found], np.array([label for _, label in found], np.int64)
    images = of_images(files, how, lambda index: str(files[index]))
    columns: dict[str, Column] = {"image": images}
    named = {}
    if labels is not None:
        label = how.label or "label"
        columns[label], named = labels, {label: names}
    return Records(
        columns, str(folder), lambda index: str(files[index]), named, frozenset(["image"]), image_notes(images.shape)
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
