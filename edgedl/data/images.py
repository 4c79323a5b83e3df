"""Images of a data set as arrays of one size: from a folder for each class, or as Pillow has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import plugins
from edgedl.core import DataError
from edgedl.data import image_files
from edgedl.data.records import Column, Records, check_bytes

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Reading:
    """What has to be known of the data before it is read."""

    inputs: tuple[str, ...] = ()
    """Names for the parts of a tuple, such as (x, y)."""
    label: str | None = None
    size: tuple[int, int] | None = None
    """Of all images, (height, width); without it they have to be of one size."""
    channels: int = 3


def of_images(images: Iterable[Image | Path], how: Reading, place: Callable[[int], str]) -> np.ndarray:
    """Images of Pillow or image files as (N, C, H, W) uint8. Raises `DataError` where one differs in size."""
    found: list[np.ndarray] = []
    size = how.size
    for index, given in enumerate(images):
        if isinstance(given, Path):
            image = image_files.decoded(given)
        elif is_image(given):
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
        check_bytes(len(found) * found[0].size * 4, place(index))  # as float32 later on
    return np.stack(found) if found else np.zeros((0, how.channels, 1, 1), np.uint8)


def notes(shape: tuple[int, ...]) -> dict[str, Any]:
    """How images of (N, C, H, W) were made so, for whoever has to do the same."""
    return {
        "size": list(shape[2:]),
        "resize": "bilinear, as Pillow does, to this size; the aspect is not kept",
        "channels": "grey" if shape[1] == 1 else "RGB",
    }


def is_image(value: object) -> bool:
    """Whether this is an image of Pillow."""
    return any(kind.__module__ == "PIL.Image" for kind in type(value).__mro__)


def of_folder(folder: Path, how: Reading, classes: tuple[str, ...] | None) -> Records:
    """Image files with a folder for each class, or without any. `classes` are those of the part to train on."""
    inner = folders(folder)
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
        columns, str(folder), lambda index: str(files[index]), named, frozenset(["image"]), notes(images.shape)
    )


def folders(folder: Path) -> list[Path]:
    """Those in a folder that are not hidden, by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
