"""MNIST: from the four IDX files in a folder, or from the Hugging Face hub by name."""

from __future__ import annotations

import gzip
import struct
import zlib
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from edgedl.core import Batch, DataError, Split
from edgedl.data.labelled_images import labelled_images
from edgedl.images import Classification, labelled

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
VALIDATION_SHARE = 12
"""One training image in twelve is held out for validation: 5,000 of 60,000."""
MAX_FILE_BYTES = 1 << 26
"""More than a file of 60,000 images holds; no compressed one makes more of it than this."""


class MNIST(Classification):
    """60,000 training images, of which the last twelfth validates, and 10,000 test images, 1x28x28 in [0, 1].

    `folder` holds the IDX files, plain or gzipped; without it, `hub` names a data set (or a local
    folder of one) with the columns `image` and `label` for Hugging Face `datasets`.
    Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits.
    """

    use: str = "mnist"
    folder: str | None = None
    hub: str = Field(default="ylecun/mnist", min_length=1)
    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    num_classes: ClassVar[int] = 10

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 1, 28, 28) float32 in [0, 1] and `label` (N,) int64. Raises `DataError`."""
        read = partial(_from_hub, self.hub) if self.folder is None else partial(_from_folder, self.folder)
        return labelled("mnist", self.folder or self.hub, split, read, VALIDATION_SHARE)


@lru_cache(maxsize=4)
def _from_folder(folder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    images = _read_idx(Path(folder), FILES[part][0], num_dimensions=3)
    labels = _read_idx(Path(folder), FILES[part][1], num_dimensions=1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{folder}/{FILES[part][0]}: images are {images.shape[1:]}, not 28x28")
    if len(labels) != len(images):
        raise DataError(f"{folder}/{FILES[part][1]}: {len(labels)} labels for {len(images)} images in {FILES[part][0]}")
    if len(labels) and labels.max() > 9:
        record = int(labels.argmax())
        raise DataError(f"{folder}/{FILES[part][1]}: record {record} has label {labels[record]}, above 9")
    return images, labels


def _read_idx(folder: Path, name: str, num_dimensions: int) -> np.ndarray:
    """An IDX file: a big-endian header of type and dimensions, then bytes (format: yann.lecun.com/exdb/mnist)."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; the four MNIST files have to be there")
    file = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if file is None:
        raise DataError(f"{folder}: no {name} or {name}.gz; put the four MNIST files there")
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{file}: holds more than {MAX_FILE_BYTES} bytes, more than any file of MNIST")
    magic = bytes((0, 0, 8, num_dimensions))
    if content[:4] != magic:
        raise DataError(f"{file}: begins with {content[:4].hex() or 'nothing'}, not with {magic.hex()} as {name} does")
    header = 4 + 4 * num_dimensions
    if len(content) < header:
        raise DataError(f"{file}: ends inside its header")
    shape = struct.unpack(f">{num_dimensions}I", content[4:header])
    if len(content) - header != prod(shape):
        raise DataError(f"{file}: {len(content) - header} bytes of data, but the header says {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


@lru_cache(maxsize=4)
def _from_hub(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    return labelled_images(
        "mnist",
        name,
        part,
        columns=("image",),
        shape=(28, 28),
        num_classes=10,
        instead="put the four IDX files (train-images-idx3-ubyte, ...) into a folder",
    )
