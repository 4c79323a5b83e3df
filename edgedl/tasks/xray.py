"""Whether a radiograph shows a lesion: pictures like radiographs drawn by arithmetic, or a folder for each class."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from edgedl.core import Baseline, Batch, DataError, Metric, Session, Split
from edgedl.data import files as data_files
from edgedl.data import image_files, splits
from edgedl.images import Classification, labelled
from edgedl.synthetic.drawing import Chance, paint, pixel_centres
from edgedl.synthetic.kept import kept

if TYPE_CHECKING:
    import torch

NUM_IMAGES = {"train": 1200, "test": 500}
SEEDS = {"train": 1, "test": 2}
VALIDATION_SHARE = 5
FAINTEST, BRIGHTEST = 0.3, 0.6
"""How much light a lesion adds in its middle."""


class Xray(Classification):
    """One grey image, `size` pixels each way, and two classes, of which the second is what is looked for.

    Without `folder`, 960 / 240 / 500 drawings to train, validate and test on, half of them with a lesion: two lungs
    with ribs and vessels across them, heart, spine and noise, and in one lung a round shadow without an edge. The score
    is the area under the ROC curve, 0.5 by chance. With `folder`, two folders of image files in it, the classes in the
    order of their names; or `train` and `test`, each with these two. With `file`, an .npz file of MedMNIST of two
    classes, such as pneumoniamnist.npz, and its own splits.
    Source of the format: J. Yang et al., MedMNIST v2, 2023.
    """

    use: str = "xray"
    folder: str | None = None
    file: str | None = None
    size: int = Field(default=128, ge=32)
    num_classes: ClassVar[int] = 2
    metric: ClassVar[Metric] = Metric(name="AUROC", unit="fraction", higher_is_better=True)

    @property
    def image_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        return (1, self.size, self.size)

    def class_name(self, label: int) -> str:
        if self.file is not None:
            return str(label)
        if self.folder is None:
            return ("no lesion", "lesion")[label]
        root = Path(self.folder)
        return _classes(root / "test" if _divided(root) else root)[label].name

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 1, size, size) float32 in [0, 1] and `label` (N,) int64. Raises `DataError`."""
        if self.file is not None:
            if self.folder is not None:
                raise DataError("xray: folder and file are both given; only one of them can be read")
            return _of_medmnist(Path(self.file), self.size, split)
        if self.folder is None:
            return labelled("xray", "the drawings", split, partial(_drawn, self.size), VALIDATION_SHARE)
        return labelled("xray", self.folder, split, partial(_read, self.folder, self.size), VALIDATION_SHARE)

    @property
    def baseline(self) -> Baseline:
        return Baseline(0.5, "guessing")

    def score(self, outputs: Batch, batch: Batch) -> float:
        """The area under the ROC curve over the whole split."""
        from torchmetrics.functional.classification import binary_auroc

        return float(binary_auroc(*_ranked(outputs, batch)))

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """The share of lesions found where 95 % of the images without one are told to have none."""
        from torchmetrics.functional.classification import binary_sensitivity_at_specificity

        found, _ = binary_sensitivity_at_specificity(*_ranked(outputs, batch), min_specificity=0.95)
        return {"sensitivity at 95 % specificity": float(found)}


def _ranked(outputs: Batch, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """How much each image looks like the second class, in [0, 1), and what it is."""
    import torch

    # By its sign torchmetrics tells logits from probabilities; a sigmoid of its own would make ties of large ones.
    excess = (outputs["logits"][:, 1] - outputs["logits"][:, 0]).astype(np.float64)
    ranks = np.unique(excess, return_inverse=True)[1] / len(excess)
    return torch.from_numpy(ranks), torch.from_numpy(batch["label"])


@lru_cache(maxsize=4)
def _read(folder: str, size: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, size, size) and labels (N,), uint8, in an order of chance."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it needs a folder of images for each of two classes")
    divided = _divided(root)
    root = root / part if divided else root
    classes = _classes(root)
    if len(classes) != 2:
        names = ", ".join(inner.name for inner in classes) or "none"
        raise DataError(f"{root}: needs a folder of images for each of two classes; there are {names}")
    files = [(file, label) for label, inner in enumerate(classes) for file in image_files.find(inner)]
    if divided:
        order = np.argsort(np.random.PCG64(0).random_raw(len(files)), kind="stable")
    elif part == "test":
        order = splits.chosen(len(files), "test", folder)
    else:
        order = np.concatenate([splits.chosen(len(files), name, folder) for name in ("train", "validation")])
    chosen = [files[index] for index in order]
    labels = np.array([label for _, label in chosen], np.uint8)
    if len(set(labels.tolist())) < 2:
        raise DataError(f"{root}: all {part} images are of class {classes[labels[0]].name}; there are too few")
    return np.concatenate([image_files.picture(file, (1, size, size)) for file, _ in chosen]), labels


@lru_cache(maxsize=4)
def _of_medmnist(file: Path, size: int, split: Split) -> Batch:
    part = {"validation": "val", "calibration": "train"}.get(split, split)
    keys = f"{part}_images", f"{part}_labels"
    arrays = data_files.arrays(file, keys)
    if lacking := [key for key in keys if key not in arrays]:
        raise DataError(f"{file}: no array {lacking[0]}; files of MedMNIST have images and labels of each split")
    images, labels = (arrays[key] for key in keys)
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != (len(images), 1):
        raise DataError(
            f"{file}: {keys[0]} is {images.dtype} {images.shape} and {keys[1]} {labels.shape}; "
            "grey images (N, H, W) uint8 and labels (N, 1) are needed"
        )
    if len(images) == 0 or set(np.unique(labels)) != {0, 1}:
        raise DataError(f"{file}: {keys[1]} has the labels {np.unique(labels).tolist()}; 0 and 1 are needed, and both")
    num = 512 if split == "calibration" else len(images)
    resized = np.stack([image_files.resized(image, (size, size)) for image in images[:num]])
    return {"image": resized[:, None].astype(np.float32) / 255, "label": labels[:num, 0].astype(np.int64)}


def _divided(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "test").is_dir()


def _classes(root: Path) -> list[Path]:
    return sorted(inner for inner in root.iterdir() if inner.is_dir())


@lru_cache(maxsize=2)
def _drawn(size: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    return _chests(NUM_IMAGES[part], size, SEEDS[part])


@kept
def _chests(num: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, size, size) uint8 and labels (N,), every other one with a lesion."""
    chance, (x, y) = Chance(seed), pixel_centres(size)
    labels = np.arange(num, dtype=np.uint8) % 2

    def number(low: float, high: float) -> np.ndarray:
        return chance(low, high, num, 1, 1)

    def disc(canvas: np.ndarray, u: np.ndarray, v: np.ndarray, value: np.ndarray) -> np.ndarray:
        return paint(canvas, "disc", 1.0, u, v, np.full_like(value, 0.1), value[:, None])

    canvas = np.broadcast_to(number(0.5, 0.65)[:, None], (num, 1, size, size)).copy()
    lungs = np.zeros((num, size, size), np.float32)
    side = np.where(number(-1, 1) < 0, np.float32(-1), np.float32(1))
    for sign in (-1, 1):
        u = (x - sign * number(0.42, 0.48)) / number(0.32, 0.38)
        v = (y - number(-0.05, 0.05)) / number(0.7, 0.8)
        lungs += disc(canvas, u, v, number(0.15, 0.3))
    image = canvas[:, 0]
    first, gap, bend = number(-0.8, -0.7), number(0.2, 0.24), number(0.2, 0.5)
    for index in range(7):
        away = np.abs(y - first - index * gap - bend * x * x) / number(0.03, 0.05)
        image += np.clip(1 - away, 0, 1) * number(0.06, 0.16)
    for _ in range(10):  # vessels: thin and bright, as small as a lesion one way
        lean, wide, long = number(-1, 1), number(0.01, 0.02), number(0.05, 0.2)
        right, down = x - number(-0.7, 0.7), y - number(-0.6, 0.6)
        across, along = (right - lean * down) / wide, (down + lean * right) / long
        image += np.clip(1 - across * across - along * along, 0, 1) * lungs * number(0.05, 0.25)
    image += np.clip(1 - np.abs(x - number(-0.03, 0.03)) / 0.12, 0, 1) * number(0.15, 0.3)  # the spine
    disc(
        canvas, (x - number(0.05, 0.2)) / number(0.3, 0.4), (y - number(0.25, 0.4)) / number(0.3, 0.4), number(0.6, 0.8)
    )
    radius = number(0.07, 0.13)
    u, v = (x - side * number(0.38, 0.62)) / radius, (y - number(-0.55, 0.4)) / radius
    blob = np.square(np.clip(1 - u * u - v * v, 0, 1))
    image += blob * number(FAINTEST, BRIGHTEST) * labels[:, None, None]
    image *= number(0.8, 1.2)
    image += chance(-0.08, 0.08, *image.shape)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), labels
