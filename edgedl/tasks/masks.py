"""The class of every pixel: balls, boxes and tents drawn by arithmetic, or images and masks of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, Split, Task, TensorSpec
from edgedl.data import image_files, splits
from edgedl.images import pixels
from edgedl.synthetic.drawing import Chance, Shape, paint, pixel_centres

if TYPE_CHECKING:
    import torch

NUM_IMAGES: dict[Split, int] = {"train": 1200, "validation": 200, "test": 400}
SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
NUM_CALIBRATION = 200
NUM_EXHIBITS = 6
COLOURS = np.array([(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167)])
"""Okabe and Ito's, which the colour-blind can tell apart, of the classes from 1 on."""
NUM_THINGS = 4
"""In each image; what is drawn later hides what is behind it."""
THINGS: dict[int, tuple[Shape, float]] = {1: ("disc", 1.0), 2: ("block", 1.0), 3: ("block", 0.0)}
"""Ball, box and tent by their class; 0 is the ground behind them."""


class Masks(Task):
    """Networks answer `logits` (N, classes, H, W) to `image` (N, C, H, W) in [0, 1]; `label` is (N, H, W).

    Without `folder`, 1,200 / 200 / 400 drawings to train, validate and test on: things of three shapes, one behind
    another, in front of a darker, shaded ground with bars and noise. Colours do not tell one thing from another. With
    `folder`, the images in its `images` and, under the same names, their masks in its `masks`: grey or palette images
    whose values are classes. All are resized to `size`.
    """

    use: str = "masks"
    folder: str | None = None
    size: int = Field(default=48, ge=16)
    classes: int = Field(default=1 + len(THINGS), ge=2, le=256)
    """How many, the background among them."""
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    metric: ClassVar[Metric] = Metric(name="mean IoU", unit="fraction", higher_is_better=True)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, self.size, self.size)

    @property
    def num_classes(self) -> int:
        return self.classes

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"image": TensorSpec(self.image_shape)}

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 3, H, W) float32 in [0, 1] and `label` (N, H, W) int64. Raises `DataError`."""
        if self.folder is not None:
            images, labels = _read(self.folder, split, self.size, self.classes)
        else:
            images, labels = _drawn("train" if split == "calibration" else split, self.size)
            if split == "calibration":
                images, labels = images[:NUM_CALIBRATION], labels[:NUM_CALIBRATION]
        return {"image": images.astype(np.float32) / 255, "label": labels.astype(np.int64)}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy of all pixels."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs["logits"], batch["label"])

    def score(self, outputs: Batch, batch: Batch) -> float:
        """Intersection over union of each class over the whole split, its mean over the classes that are there."""
        return self._iou(self.decisions(outputs), batch["label"])

    @property
    def baseline(self) -> Baseline:
        labels = self.arrays("test")["label"]
        commonest = np.bincount(labels.ravel()).argmax()
        return Baseline(self._iou(np.full_like(labels, commonest), labels), "always answering the commonest class")

    def decisions(self, outputs: Batch) -> np.ndarray:
        """The class of each pixel, (N, H, W) int64."""
        return np.asarray(outputs["logits"].argmax(axis=1))

    def _iou(self, found: np.ndarray, wanted: np.ndarray) -> float:
        import torch
        from torchmetrics.functional.classification import multiclass_jaccard_index

        pair = (torch.from_numpy(found), torch.from_numpy(wanted))
        return float(multiclass_jaccard_index(*pair, self.num_classes, average="macro"))

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """Where the last file has most pixels wrong; classes as colours over the image."""
        found = {name: self.decisions(outputs) for name, outputs in answers.items()}
        right = {name: (classes == batch["label"]).mean(axis=(1, 2)) for name, classes in found.items()}
        exhibits = []
        for index in np.argsort(list(right.values())[-1], kind="stable")[:NUM_EXHIBITS]:
            image = pixels(batch["image"][index])
            classes = {"truth": batch["label"], **found}
            said = ", ".join(f"{name} {values[index]:.1%}" for name, values in right.items())
            panels = {name: _coloured(image, labels[index]) for name, labels in classes.items()}
            exhibits.append(Exhibit(f"sample {index}: right pixels: {said}", {"input": image, **panels}))
        return exhibits


def _coloured(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image in grey, and over it the colours of all classes but the first, which is the ground."""
    grey = image.mean(axis=2, keepdims=True) * np.ones(3)
    colours = COLOURS[(labels - 1) % len(COLOURS)]
    return np.asarray(np.where((labels > 0)[..., None], 0.4 * grey + 0.6 * colours, grey), np.uint8)


@lru_cache(maxsize=4)
def _read(folder: str, split: Split, size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, H, W) and classes (N, H, W), uint8."""
    files, masks = (image_files.find(Path(folder) / name) for name in ("images", "masks"))
    mask_of = {file.stem: file for file in masks}
    if lacking := [file for file in files if file.stem not in mask_of]:
        raise DataError(f"{lacking[0]}: no mask of that name in {Path(folder) / 'masks'}")
    some = [files[index] for index in splits.chosen(len(files), split, folder)]
    images = [image_files.picture(file, (3, size, size)) for file in some]
    labels = [image_files.mask(mask_of[file.stem], (size, size), num_classes) for file in some]
    return np.stack(images), np.stack(labels)


@lru_cache(maxsize=len(SEEDS))
def _drawn(split: Split, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, size, size) and classes (N, size, size), uint8."""
    num, chance, (x, y) = NUM_IMAGES[split], Chance(SEEDS[split]), pixel_centres(size)

    def number(low: float, high: float) -> np.ndarray:
        return chance(low, high, num, 1, 1)

    def colour(low: float, high: float) -> np.ndarray:
        return chance(low, high, num, 3, 1, 1)

    shade = x * number(-0.2, 0.2) + y * number(-0.2, 0.2)
    canvas = np.broadcast_to(colour(0, 0.4), (num, 3, size, size)) + shade[:, None]
    labels = np.zeros((num, size, size), np.uint8)
    for width, height in ((0.06, 2.0), (2.0, 0.06)):  # bars across the ground, which are none of the things
        u, v = (x - number(-1, 1)) / width, (y - number(-1, 1)) / height
        paint(canvas, "block", 1.0, u, v, np.full_like(number(0, 1), 0.06), colour(0, 1))
    for _ in range(NUM_THINGS):
        kind, half = chance(0, len(THINGS), num, 1, 1), number(0.2, 0.5)
        stretch, lean = number(0.8, 1.25), number(-0.3, 0.3)
        right, down, paints = x - number(-0.8, 0.8), y - number(-0.8, 0.8), colour(0.4, 1)
        u, v = (right + lean * down) / (half * stretch), (down - lean * right) / (half / stretch)
        for label, (shape, taper) in THINGS.items():
            mine = ((kind >= label - 1) & (kind < label))[:, 0, 0]
            part = canvas[mine]
            cover = paint(part, shape, taper, u[mine], v[mine], half[mine] * 0.8, paints[mine])
            canvas[mine] = part
            labels[mine] = np.where(cover > 0.5, np.uint8(label), labels[mine])
    canvas += chance(-0.08, 0.08, *canvas.shape)
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8), labels
