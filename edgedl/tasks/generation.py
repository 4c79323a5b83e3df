"""Images out of noise: handwritten digits, or images like those of a folder, judged by the distance of Fréchet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from edgedl import plugins
from edgedl.core import Baseline, Batch, Exhibit, Metric, Split, Task, TensorSpec
from edgedl.data import image_files
from edgedl.images import pixels

if TYPE_CHECKING:
    import torch
    from torch import nn

SEEDS: dict[Split, int] = {"train": 1, "calibration": 1, "validation": 2, "test": 3}
NUM_IMAGES: dict[Split, int] = {"train": 2048, "calibration": 512, "validation": 720, "test": 1440}
"""To be made of each split's noise."""
NUM_FEATURES, JUDGE_STEPS = 32, 400
"""Of the classifier that judges: what its last layer sees, and how long it trains."""


class Generation(Task):
    """Networks answer `image` (N, C, H, W) in [0, 1] to `noise` (N, numbers), drawn from a normal distribution.

    `real` (N, C, H, W) are images of the same split, again and again. The score is the Fréchet distance between what
    images and real ones look like to a classifier that is trained here, once a process: of digits or, with `folder`,
    whose images have no classes, of how they are turned.
    Sources: M. Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017; S. Gidaris et al., Unsupervised
    Representation Learning by Predicting Image Rotations, 2018.
    """

    use: str = "generation"
    folder: str | None = None
    size: int = Field(default=28, ge=8)
    """Height and width of images, in pixels."""
    colour: Literal["grey", "rgb"] = "grey"
    """What images of a `folder` are read as."""
    noise: PositiveInt = 64
    outputs: ClassVar[tuple[str, ...]] = ("image",)
    metric: ClassVar[Metric] = Metric(name="Fréchet distance", unit="", higher_is_better=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        if self.folder is None:
            return (1, 28, 28)
        return (1 if self.colour == "grey" else 3, self.size, self.size)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"noise": TensorSpec((self.noise,))}

    def arrays(self, split: Split) -> Batch:
        """`noise` (N, numbers) and `real` (N, C, H, W), float32. Raises `DataError`."""
        num, real = NUM_IMAGES[split], self._real(split)[0]
        noise = np.random.default_rng(SEEDS[split]).standard_normal((num, self.noise)).astype(np.float32)
        return {"noise": noise, "real": real[np.arange(num) % len(real)]}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """How far means and covariances of the classifier's features are from real ones; step `adversarial` is better.

        Source: Y. Li, K. Swersky and R. Zemel, Generative Moment Matching Networks, 2015.
        """
        judge = _judge(self)
        made, real = judge[:-1](outputs["image"]), judge[:-1](batch["real"])
        means = (made.mean(0) - real.mean(0)).square().sum()
        distance: torch.Tensor = means + (made.T.cov() - real.T.cov()).square().sum().sqrt()
        return distance

    def score(self, outputs: Batch, batch: Batch) -> float:
        return frechet(self._features(outputs["image"]), self._features(batch["real"]))

    @property
    def baseline(self) -> Baseline:
        """Of images whose pixels are drawn each by itself, with the mean and deviation that they have in training."""
        real, batch = self._real("train")[0], self.arrays("test")
        drawn = np.random.default_rng(0).standard_normal(batch["real"].shape) * real.std(0) + real.mean(0)
        images = np.clip(drawn, 0, 1).astype(np.float32)
        return Baseline(self.score({"image": images}, batch), "drawing each pixel by itself")

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """The first images, sixteen at a time, float and compressed from the same noise."""
        first, *others = (self._features(found["image"]) for found in answers.values())
        apart = "".join(
            f"; {name}: {frechet(first, other):.2f} from float"
            for name, other in zip([*answers][1:], others, strict=True)
        )
        shown = []
        for start in range(0, min(32, len(batch["noise"])), 16):
            panels = {"truth": _sheet(batch["real"][start : start + 16])}
            panels |= {name: _sheet(found["image"][start : start + 16]) for name, found in answers.items()}
            shown.append(Exhibit(f"images {start + 1} to {start + 16} beside real ones{apart}", panels))
        return shown

    def _real(self, split: Split) -> tuple[np.ndarray, np.ndarray | None]:
        """Images (N, C, H, W) in [0, 1] and, of digits, their labels."""
        if self.folder is not None:
            return image_files.of_split(self.folder, split, self.image_shape), None
        digits = plugins.load("tasks", "digits")(use="digits")
        assert isinstance(digits, Task)
        found = digits.arrays(split)
        return found["image"], found["label"]

    def _features(self, images: np.ndarray) -> np.ndarray:
        """What the classifier's last layer sees, (N, 32) float64."""
        import torch

        with torch.no_grad():
            features = _judge(self)[:-1](torch.from_numpy(np.ascontiguousarray(images)))
        return np.asarray(features.numpy(), np.float64)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of Fréchet between the normal distributions of two sets of features (N, F)."""
    spreads = [np.cov(features, rowvar=False) for features in (one, other)]
    roots = np.sqrt(np.clip(np.linalg.eigvals(spreads[0] @ spreads[1]).real, 0, None))
    away = np.square(one.mean(0) - other.mean(0)).sum()
    return float(away + np.trace(spreads[0]) + np.trace(spreads[1]) - 2 * roots.sum())


def _sheet(images: np.ndarray, across: int = 4) -> np.ndarray:
    """Images (N, C, H, W) in rows of four, as one picture."""
    missing = -len(images) % across
    images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
    num, channels, height, width = images.shape
    rows = images.reshape(num // across, across, channels, height, width).transpose(2, 0, 3, 1, 4)
    return pixels(rows.reshape(channels, -1, across * width))


@lru_cache(maxsize=2)
def _judge(task: Generation) -> nn.Sequential:
    """A classifier of real training images, the same each time; all but its last layer give features."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    found, labels = task._real("train")
    images = torch.from_numpy(np.ascontiguousarray(found))
    channels, height, width = task.image_shape
    flat = 32 * -(-height // 4) * -(-width // 4)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        judge = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(flat, NUM_FEATURES), nn.ReLU(), nn.Linear(NUM_FEATURES, 10 if labels is not None else 4)),
        )
        rule = torch.optim.Adam(judge.parameters(), lr=2e-3)
        for _ in range(JUDGE_STEPS):
            chosen = torch.randint(len(images), (64,))
            batch = images[chosen]
            if labels is None:
                wanted = torch.randint(4, (64,))
                batch = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(batch, wanted, strict=True)])
            else:
                wanted = torch.from_numpy(labels)[chosen]
            rule.zero_grad()
            cross_entropy(judge(batch), wanted).backward()  # type: ignore[no-untyped-call]
            rule.step()
    return judge.eval().requires_grad_(False)
