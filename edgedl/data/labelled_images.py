"""Labelled images from the Hugging Face hub by name, for the tasks that also read them from files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgedl.core import DataError


def labelled_images(
    task: str, hub: str, split: str, *, columns: Sequence[str], shape: tuple[int, ...], num_classes: int, instead: str
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, *shape) uint8, channels last if any, and labels (N,) uint8 of one split.

    `hub` names a data set or a local folder of one; its images are in the first of `columns` that it
    has, its labels in `label`. `shape` is (H, W) for grey images, (H, W, 3) for colour.
    Raises `DataError`, which says `instead` where the hub cannot be reached.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            f"{task}: without `folder`, the data comes from the Hugging Face hub: pip install 'edgedl[hub]'"
        ) from error
    try:
        data = datasets.load_dataset(hub, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{task}: {hub} cannot be had from the hub ({reason}). Without a network, {instead} "
            f'and say task = {{ use = "{task}", folder = "..." }}'
        ) from error
    column = next((name for name in columns if isinstance(data.features.get(name), datasets.Image)), None)
    if column is None or "label" not in data.features:
        wanted = f"a column {' or '.join(columns)} of images and a column label"
        raise DataError(f"{task}: {hub} needs {wanted}; it has {data.features}")
    height, width = shape[:2]
    images: list[np.ndarray] = []
    labels: list[int] = []
    try:
        for row in data:
            image, label = row[column], row["label"]
            if image is None or image.size != (width, height) or label not in range(num_classes):
                raise ValueError(f"image {image and image.size}, label {label!r}")
            images.append(np.asarray(image.convert("L" if len(shape) == 2 else "RGB"), dtype=np.uint8))
            labels.append(label)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{task}: record {len(images)} of {hub}, split {split}, is no {width}x{height} image with a label "
            f"from 0 to {num_classes - 1}: {error}"
        ) from error
    return np.array(images, dtype=np.uint8).reshape(-1, *shape), np.array(labels, dtype=np.uint8)
