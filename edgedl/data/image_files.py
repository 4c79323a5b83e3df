"""Images from folders: found, decoded and brought to one size; whatever is none is named."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgedl.core import DataError, MissingPackage, Split
from edgedl.data import splits

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find(folder: Path) -> list[Path]:
    """The image files in a folder, by name. Raises `DataError` if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; images have to be there")
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise DataError(f"{folder}: no images in it (files that end in {', '.join(SUFFIXES)})")
    return found


def of_split(folder: str, split: Split, shape: tuple[int, int, int]) -> np.ndarray:
    """The images of a folder that belong to a split, (N, C, H, W) float32 in [0, 1]. Raises `DataError`."""
    files = find(Path(folder))
    return _pictures(tuple(files[index] for index in splits.chosen(len(files), split, folder)), shape)


def picture(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An image as (C, H, W) uint8, grey or RGB; other sizes are resized to it. Raises `DataError`."""
    return fitted(decoded(file), shape)


def fitted(image: Image, shape: tuple[int, int, int]) -> np.ndarray:
    """A decoded image as (C, H, W) uint8, as `picture` does."""
    channels, height, width = shape
    if image.mode.startswith("I"):  # 16 bits, as radiographs have; Pillow would cut them off at 255
        image = _from_array((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), resample=2)  # bilinear
    return np.asarray(image, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def mask(file: Path, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """The class of each pixel, (H, W) uint8, from a grey image or one with a palette. Raises `DataError`."""
    image = decoded(file)
    if image.mode not in ("1", "L", "P"):
        raise DataError(f"{file}: a mask needs one number a pixel, its class, but this image has {image.mode}")
    if image.size != size[::-1]:
        image = image.resize(size[::-1], resample=0)  # nearest: there is nothing between two classes
    labels = np.asarray(image).astype(np.uint8)
    if labels.max() >= num_classes:
        row, column = np.unravel_index(labels.argmax(), labels.shape)
        raise DataError(
            f"{file}: the pixel in row {row}, column {column} has class {labels.max()}, "
            f"but classes go from 0 to {num_classes - 1}"
        )
    return labels


@lru_cache(maxsize=8)
def _pictures(files: tuple[Path, ...], shape: tuple[int, int, int]) -> np.ndarray:
    return np.stack([picture(file, shape) for file in files]).astype(np.float32) / 255


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A grey image (H, W) uint8 at another size, (height, width), between pixels by straight lines."""
    return values if values.shape == size else np.asarray(_from_array(values).resize(size[::-1], resample=2))


def _from_array(values: np.ndarray) -> Image:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingPackage("resizing images needs pillow: pip install 'edgedl[hub]'") from error
    return Image.fromarray(values)


def decoded(file: Path) -> Image:
    """An image file as Pillow has it. Raises `DataError`."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingPackage("reading images needs pillow: pip install 'edgedl[hub]'") from error
    try:
        with Image.open(file) as image:
            image.load()
            return image.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read as an image: {error}") from error
