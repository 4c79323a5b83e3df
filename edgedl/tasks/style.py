"""Photographs redrawn in the style of another: scikit-learn's two, or a folder and a style image of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat

from edgedl.core import Baseline, Batch, DataError, Exhibit, Metric, MissingPackage, Session, Split, Task, TensorSpec
from edgedl.data import image_files
from edgedl.images import pixels

if TYPE_CHECKING:
    import torch
    from torch import nn

NUM_PARTS: dict[Split, int] = {"train": 512, "validation": 64, "test": 96}
SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
COLUMNS: dict[Split, tuple[float, float]] = {"test": (0, 1 / 3), "train": (1 / 3, 0.75), "validation": (0.75, 1)}
"""Of the photograph, from left to right, as shares of its width: the pagoda is parted in its middle."""
BLOSSOM = (104, 150)
"""Row and column of its middle, in the halved photograph."""
VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 256, 512, 512)
VGG_STYLE, VGG_HALVED = (0, 2, 4, 8), (2, 4, 8)
"""Of VGG-19's convolutions up to conv4_2, from which content is read: where style is read, and before which it halves
the image."""
OWN_WIDTHS, OWN_STYLE, OWN_HALVED = (16, 32, 64), (0, 1, 2), (1, 2)
PUZZLES = 100
"""Batches from which the feature network learns here."""
MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that VGG-19 is trained on."""
TILE = 64
"""Images that are judged at once."""


class Style(Task):
    """Networks answer `styled` to `image`, both (N, 3, size, size) in [0, 1].

    Without `folder`, parts of china.jpg, halved: the left third of the photograph tests, the right quarter validates,
    what is between them trains. The style is that of the image file `style`, else of the blossom of flower.jpg. The
    score is content loss, weighed by `content`, plus style loss: distances between features and between their Gram
    matrices. Their units are what the style image itself loses in content on the images that train, and what these
    lose in style as they are. Features are those of VGG-19 where `vgg` names a file with its weights (torchvision's
    names, .pth or .safetensors), else of a small network that learns here to tell how parts of the photographs are
    turned.
    Sources: J. Johnson, A. Alahi and L. Fei-Fei, Perceptual Losses for Real-Time Style Transfer, 2016; L. Gatys,
    A. Ecker and M. Bethge, A Neural Algorithm of Artistic Style, 2015; S. Gidaris et al., Unsupervised Representation
    Learning by Predicting Image Rotations, 2018.
    """

    use: str = "style"
    folder: str | None = None
    style: str | None = None
    vgg: str | None = None
    size: int = Field(default=64, ge=16, multiple_of=8)
    """Height and width of images, in pixels."""
    content: PositiveFloat = 1.0
    outputs: ClassVar[tuple[str, ...]] = ("styled",)
    metric: ClassVar[Metric] = Metric(name="content and style loss", unit="", higher_is_better=False)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"image": TensorSpec((3, self.size, self.size))}

    def arrays(self, split: Split) -> Batch:
        """`image` (N, 3, size, size) float32 in [0, 1]. Raises `DataError`."""
        if split == "calibration":
            return {name: values[:128] for name, values in self.arrays("train").items()}
        if self.folder is not None:
            return {"image": image_files.of_split(self.folder, split, (3, self.size, self.size))}
        return {"image": _parts(_photograph("china.jpg"), split, self.size)}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The metric itself."""
        judge = _judge(self)
        content, style = judge.losses(outputs["styled"], batch["image"])
        return self.content * content.mean() + style.mean()

    def score(self, outputs: Batch, batch: Batch) -> float:
        content, style = self._losses(outputs, batch)
        return self.content * content + style

    @property
    def baseline(self) -> Baseline:
        batch = self.arrays("test")
        return Baseline(self.score({"styled": batch["image"]}, batch), "leaving the image as it is")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """Both losses by themselves, and how alike outputs and inputs are in structure (SSIM)."""
        content, style = self._losses(outputs, batch)
        return {"content": content, "style": style, "SSIM to the input": _ssim(outputs["styled"], batch["image"])}

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """Before and after, and how alike compressed and float outputs are."""
        (_, first), *others = answers.items()
        style = pixels(_style_image(self.style, self.size))
        shown = []
        for index in range(0, len(batch["image"]), max(1, len(batch["image"]) // 6))[:6]:
            part = slice(index, index + 1)
            said = [
                f"{name}: SSIM to float {_ssim(o['styled'][part], first['styled'][part]):.3f}" for name, o in others
            ]
            panels = {"input": pixels(batch["image"][index]), "style": style}
            panels |= {name: pixels(found["styled"][index]) for name, found in answers.items()}
            shown.append(Exhibit("; ".join(said) or f"image {index}", panels))
        return shown

    def _losses(self, outputs: Batch, batch: Batch) -> tuple[float, float]:
        """Content and style loss, means over all images."""
        import torch

        judge, found = _judge(self), []
        with torch.no_grad():
            for start in range(0, len(batch["image"]), TILE):
                pair = (outputs["styled"], batch["image"])
                parts = [torch.from_numpy(np.ascontiguousarray(values[start : start + TILE])) for values in pair]
                found.append(torch.stack(judge.losses(*parts)))
        content, style = torch.cat(found, 1).double().mean(1).tolist()
        return content, style


class Judge:
    """A feature network, the style's Gram matrices, and what both losses are measured in."""

    def __init__(
        self,
        convolutions: Sequence[nn.Module],
        style_layers: Sequence[int],
        halved: Sequence[int],
        style: torch.Tensor,
        images: torch.Tensor,
    ) -> None:
        import torch

        self.convolutions, self.style_layers, self.halved = convolutions, style_layers, halved
        self.middle, self.scale = (torch.tensor(values)[:, None, None] for values in (MEANS, DEVIATIONS))
        self.units = (torch.tensor(1.0), torch.tensor(1.0))
        with torch.no_grad():
            self.wanted = [gram(features) for features in self.features(style)[:-1]]
            height, width = images.shape[2:]
            content, _ = self.losses(style[:, :, :height, :width].expand_as(images), images)
            _, unchanged = self.losses(images, images)
        self.units = content.mean(), unchanged.mean()

    def losses(self, styled: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Content and style loss of each image, (N,)."""
        import torch

        *found, content = self.features(styled)
        with torch.no_grad():
            kept = self.features(images)[-1]
        away = (content - kept).square().mean((1, 2, 3))
        grams = [
            (gram(features) - wanted).square().sum((1, 2)) / wanted.square().sum((1, 2))
            for features, wanted in zip(found, self.wanted, strict=True)
        ]
        return away / self.units[0], sum(grams[1:], start=grams[0]) / self.units[1]

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """What the style layers see, and then what the last one sees."""
        from torch.nn.functional import max_pool2d, relu

        x, found = (images - self.middle) / self.scale, []
        for index, convolution in enumerate(self.convolutions):
            x = relu(convolution(max_pool2d(x, 2) if index in self.halved else x))
            if index in self.style_layers:
                found.append(x)
        return [*found, x]


def gram(features: torch.Tensor) -> torch.Tensor:
    """How much channels (N, C, H, W) are there together: (N, C, C)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


@lru_cache(maxsize=2)
def _judge(task: Style) -> Judge:
    """The same each time."""
    import torch

    images = torch.from_numpy(task.arrays("train")["image"])
    style = torch.from_numpy(_style_image(task.style, task.size))[None]
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        if task.vgg is not None:
            return Judge(_vgg(task.vgg), VGG_STYLE, VGG_HALVED, style, images[:128])
        convolutions = _convolutions(OWN_WIDTHS)
        tiles = style.reshape(3, 2, task.size, 2, task.size).permute(1, 3, 0, 2, 4).flatten(0, 1)
        _learn(convolutions, torch.cat([images, tiles.repeat(len(images) // 8, 1, 1, 1)]))
    return Judge(convolutions, OWN_STYLE, OWN_HALVED, style, images[:128])


def _convolutions(widths: Sequence[int]) -> list[nn.Module]:
    from torch import nn

    return [nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise([3, *widths])]


def _learn(convolutions: Sequence[nn.Module], images: torch.Tensor) -> None:
    """Teaches convolutions to tell how images are turned: what they look at for that serves as features."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    layers: list[nn.Module] = []
    for convolution in convolutions:
        layers += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * OWN_WIDTHS[-1], 4))
    rule = torch.optim.Adam(net.parameters(), lr=2e-3)
    middle, scale = (torch.tensor(values)[:, None, None] for values in (MEANS, DEVIATIONS))
    for _ in range(PUZZLES):
        turns = torch.randint(4, (32,))
        chosen = images[torch.randint(len(images), (32,))]
        turned = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(chosen, turns, strict=True)])
        rule.zero_grad()
        cross_entropy(net((turned - middle) / scale), turns).backward()  # type: ignore[no-untyped-call]
        rule.step()
    net.requires_grad_(False)


def _vgg(name: str) -> list[nn.Module]:
    """The convolutions of VGG-19 from a file of its weights. Raises `DataError`."""
    import torch

    file = Path(name)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(file)
        else:
            weights = torch.load(file, weights_only=True)
    except Exception as error:  # each format has errors of its own
        raise DataError(f"{file}: cannot be read as weights of VGG-19: {error}") from error
    convolutions, place = _convolutions(VGG_WIDTHS), 0
    for index, convolution in enumerate(convolutions):
        place += (2 if index else 0) + (index in VGG_HALVED)  # activations and poolings are numbered, too
        for part, parameter in convolution.named_parameters():
            key = f"features.{place}.{part}"
            if key not in weights or weights[key].shape != parameter.shape:
                found = tuple(weights[key].shape) if key in weights else "nothing"
                raise DataError(f"{file}: {key} should be {tuple(parameter.shape)} as in VGG-19, but there is {found}")
            parameter.data = weights[key].float()
        convolution.requires_grad_(False)
    return convolutions


@lru_cache(maxsize=2)
def _photograph(name: str) -> np.ndarray:
    """One of scikit-learn's, halved: (3, H, W) float32 in [0, 1]."""
    try:
        from sklearn.datasets import load_sample_image

        image = load_sample_image(name)
    except ImportError as error:
        raise MissingPackage("task style needs scikit-learn and pillow: pip install 'edgedl[train,hub]'") from error
    height, width = (side // 2 * 2 for side in image.shape[:2])
    quarters = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.asarray(quarters.mean((1, 3)).transpose(2, 0, 1) / 255, np.float32)


@lru_cache(maxsize=4)
def _style_image(file: str | None, size: int) -> np.ndarray:
    """(3, H, W) float32 in [0, 1]; a file's is resized to twice `size`."""
    if file is not None:
        return image_files.picture(Path(file), (3, 2 * size, 2 * size)).astype(np.float32) / 255
    top, left = (middle - size for middle in BLOSSOM)
    return _photograph("flower.jpg")[:, top : top + 2 * size, left : left + 2 * size]


def _parts(photograph: np.ndarray, split: Split, size: int) -> np.ndarray:
    """Parts (N, 3, size, size) of a photograph, half of them mirrored."""
    rng, width = np.random.default_rng(SEEDS[split]), photograph.shape[2]
    low, high = (round(share * width) for share in COLUMNS[split])
    if min(photograph.shape[1], high - low) < size:
        raise DataError(f"china.jpg: its {split} part is {high - low} pixels wide, less than size = {size}")
    parts = []
    for _ in range(NUM_PARTS[split]):
        top, left = rng.integers(photograph.shape[1] - size + 1), low + rng.integers(high - low - size + 1)
        part = photograph[:, top : top + size, left : left + size]
        parts.append(part[:, :, ::-1] if rng.random() < 0.5 else part)
    return np.stack(parts)


def _ssim(one: np.ndarray, other: np.ndarray) -> float:
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    images = [torch.from_numpy(np.ascontiguousarray(values)) for values in (one, other)]
    return float(structural_similarity_index_measure(images[0], images[1], data_range=1.0))
