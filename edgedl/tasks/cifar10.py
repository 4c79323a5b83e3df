"""CIFAR-10: from its binary or Python files, extracted or still in their archive, or from the Hugging Face hub."""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import tarfile
import zlib
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from edgedl.core import Batch, DataError, Split
from edgedl.data.labelled_images import labelled_images
from edgedl.images import Classification, labelled

FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
"""Of the Python version; those of the binary version end in .bin."""
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VALIDATION_SHARE = 10
"""One training image in ten is held out for validation: 5,000 of 50,000."""
NUM_VALUES = 3 * 32 * 32
MAX_FILE_BYTES = 1 << 26
"""Twice what a file of 10,000 images holds; no archive makes more of it than this."""
GLOBALS = ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")
"""All that the pickles of CIFAR-10 ask for."""
MALFORMED = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, TypeError,
             ValueError)  # fmt: skip
"""What reading a pickle raises if it is none, or holds something else."""


class Cifar10(Classification):
    """50,000 training images, of which the last tenth validates, and 10,000 test images, 3x32x32 in [0, 1].

    `folder` holds the files of the binary or the Python version (of both, the binary ones are read), or the
    .tar.gz archive of either, or is that archive; without it, `hub` names a data set (or a local folder
    of one) with the columns `img` or `image`, and `label`, for Hugging Face `datasets`.
    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    use: str = "cifar10"
    folder: str | None = None
    hub: str = Field(default="uoft-cs/cifar10", min_length=1)
    image_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    num_classes: ClassVar[int] = 10

    def class_name(self, label: int) -> str:
        return CLASSES[label]

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 3, 32, 32) float32 in [0, 1] and `label` (N,) int64. Raises `DataError`."""
        read = partial(_from_hub, self.hub) if self.folder is None else partial(_from_folder, self.folder)
        return labelled("cifar10", self.folder or self.hub, split, read, VALIDATION_SHARE)


@lru_cache(maxsize=4)
def _from_hub(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    instead = f"put the files of CIFAR-10 (data_batch_1.bin, ...) or {ARCHIVES[0]} into a folder"
    images, labels = labelled_images(
        "cifar10", name, part, columns=("img", "image"), shape=(32, 32, 3), num_classes=10, instead=instead
    )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


@lru_cache(maxsize=4)
def _from_folder(folder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,), uint8."""
    read = [
        _binary(file, content) if file.endswith(".bin") else _pickled(file, content)
        for file, content in _contents(Path(folder), FILES[part])
    ]
    images, labels = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    return images.reshape(-1, 3, 32, 32), labels


def _contents(folder: Path, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """What each file holds, with its path for messages; an archive's members are named behind it."""
    if folder.is_file():
        return _members(folder, names)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; the files of CIFAR-10 or an archive of them have to be there")
    for place in (folder, *(folder / inner for inner in FOLDERS)):
        for suffix in (".bin", ""):
            files = [place / (name + suffix) for name in names]
            if any(file.is_file() for file in files):
                return [(str(file), _read(file)) for file in files]
    for archive in (folder / name for name in ARCHIVES):
        if archive.is_file():
            return _members(archive, names)
    raise DataError(f"{folder}: no {names[0]}.bin, {names[0]} or {' or '.join(ARCHIVES)}; put the files or one there")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def _members(archive: Path, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Read in memory and by their last name alone: where a member says it belongs does not matter."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                if name.removesuffix(".bin") not in names or not member.isfile():
                    continue
                if name in found:
                    raise DataError(f"{archive}: {name} is in it twice")
                if member.size > MAX_FILE_BYTES:
                    raise DataError(f"{archive}: {name} has {member.size} bytes, more than any file of CIFAR-10")
                stream = members.extractfile(member)
                assert stream is not None  # as it is for whatever is no file
                found[name] = stream.read()
            while unzipped.read(1 << 20):  # to the end, where the checksum is
                pass
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{archive}: cannot be read: {error}") from error
    suffix = ".bin" if any(name.endswith(".bin") for name in found) else ""
    wanted = [name + suffix for name in names]
    if lacking := [name for name in wanted if name not in found]:
        raise DataError(f"{archive}: no {', '.join(lacking)} in it")
    return [(f"{archive}/{name}", found[name]) for name in wanted]


def _binary(file: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label and the red, green and blue values of an image, row by row, a byte each."""
    num_records, rest = divmod(len(content), 1 + NUM_VALUES)
    if rest:
        raise DataError(f"{file}: ends inside record {num_records}, after {rest} of {1 + NUM_VALUES} bytes")
    records = np.frombuffer(content, np.uint8).reshape(num_records, 1 + NUM_VALUES)
    return records[:, 1:], _checked(file, records[:, 0].tolist())


def _pickled(file: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A dict that Python 2 pickled: `data` is an array (N, 3072) uint8, `labels` a list."""
    try:
        # The unpickler makes room for whatever number a value is stored under.
        for opcode, number, _ in pickletools.genops(content):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (number or 0) > len(content):
                raise ValueError(f"a value is stored under {number}")
        batch = _Unpickler(file, content).load()
        data, labels = batch[b"data"], batch[b"labels"]
        _, shape, kind, by_columns, values = data.state
        if type(labels) is not list or kind.args[0] != b"u1" or shape != (len(labels), NUM_VALUES):
            raise ValueError(f"data is no array of {NUM_VALUES} bytes for each of the {len(labels)} labels")
        images = np.frombuffer(values, np.uint8).reshape(shape, order="F" if by_columns else "C")
        return images, _checked(file, labels)
    except MALFORMED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file}: no pickle of CIFAR-10: {reason}") from error


class _Unpickler(pickle.Unpickler):
    """Rebuilds dicts, lists, numbers and strings, and runs nothing: what a file calls by name is only noted down."""

    def __init__(self, file: str, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in GLOBALS:
            asked = repr(f"{module}.{name}")
            raise DataError(f"{self.file}: asks for {asked}, which no file of CIFAR-10 does; nothing of it was run")
        return _Call


class _Call:
    """Stands where NumPy would be called: it keeps what it is given."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _checked(file: str, labels: list[int]) -> np.ndarray:
    """Labels (N,) uint8."""
    if not labels:
        raise DataError(f"{file}: holds no images")
    for record, label in enumerate(labels):
        if type(label) is not int or not 0 <= label <= 9:
            said = label if type(label) is int else f"of type {type(label).__name__}"
            raise DataError(f"{file}: record {record} has a label {said}, not from 0 to 9")
    return np.array(labels, np.uint8)
