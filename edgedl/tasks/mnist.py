"""MNIST: from the four IDX files in a folder, or from the Hugging Face hub by name."""

from __future__ import annotations

import gzip
import struct
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgedl.core import Batch, DataError, Split
from edgedl.images import Classification

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
VALIDATION_SHARE = 12
"""One training image in twelve is held out for validation: 5,000 of 60,000."""


class MNIST(Classification):
    """60,000 training images, of which the last twelfth validates, and 10,000 test images, 1x28x28 in [0, 1].

    `folder` holds the IDX files, plain or gzipped; without it, `hub` names a data set (or a local
    folder of one) with the columns `image` and `label` for Hugging Face `datasets`.
    Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits.
    """

    use: str = "mnist"
    folder: str | None = None
    hub: str = "ylecun/mnist"
    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    num_classes: ClassVar[int] = 10

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 1, 28, 28) float32 in [0, 1] and `label` (N,) int64. Raises `DataError`."""
        part = "test" if split == "test" else "train"
        images, labels = _from_folder(self.folder, part) if self.folder else _from_hub(self.hub, part)
        if split != "test":
            num_train = len(images) - len(images) // VALIDATION_SHARE
            chosen = {
                "train": slice(0, num_train),
                "calibration": slice(0, min(512, num_train)),
                "validation": slice(num_train, None),
            }[split]
            images, labels = images[chosen], labels[chosen]
        if len(images) == 0:
            raise DataError(f"mnist: the {split} split of {self.folder or self.hub} is empty")
        return {"image": images[:, None].astype(np.float32) / 255, "label": labels.astype(np.int64)}


@lru_cache(maxsize=4)
def _from_folder(folder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (_read_idx(Path(folder), name) for name in FILES[part])
    if images.shape[1:] != (28, 28):
        raise DataError(f"{folder}/{FILES[part][0]}: images are {images.shape[1:]}, not 28x28")
    if labels.shape != (len(images),):
        raise DataError(f"{folder}: {len(images)} images but {labels.shape} labels in the {part} files")
    if len(labels) and labels.max() > 9:
        record = int(labels.argmax())
        raise DataError(f"{folder}/{FILES[part][1]}: record {record} has label {labels[record]}, above 9")
    return images, labels


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file: a big-endian header of type and dimensions, then bytes (format: yann.lecun.com/exdb/mnist)."""
    file = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if file is None:
        raise DataError(f"{folder}: no {name} or {name}.gz; put the four MNIST files there")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{file}: no IDX file of bytes (its header is {content[:4].hex() or 'empty'})")
    num_dimensions = content[3]
    header = 4 + 4 * num_dimensions
    if len(content) < header:
        raise DataError(f"{file}: ends inside its header")
    shape = struct.unpack(f">{num_dimensions}I", content[4:header])
    expected = int(np.prod(shape, dtype=np.int64))
    if len(content) - header != expected:
        raise DataError(f"{file}: {len(content) - header} bytes of data, but the header says {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


@lru_cache(maxsize=4)
def _from_hub(hub: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError("mnist: without `folder`, the data comes through Hugging Face: pip install datasets") from error
    try:
        data = datasets.load_dataset(hub, split=part)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"mnist: {hub} cannot be had from the hub ({reason}). Without a network, put the four IDX files "
            '(train-images-idx3-ubyte, ...) into a folder and say task = { use = "mnist", folder = "..." }'
        ) from error
    images = np.stack([np.asarray(image.convert("L"), dtype=np.uint8) for image in data["image"]])
    return images, np.asarray(data["label"], dtype=np.uint8)
