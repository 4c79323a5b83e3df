"""How likely images are: handwritten digits, or those of a folder, to a network that draws them from a short code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from edgedl import plugins
from edgedl.core import Baseline, Batch, Exhibit, Metric, Session, Split, Task, TensorSpec
from edgedl.data import image_files
from edgedl.images import pixels

if TYPE_CHECKING:
    import torch

SEEDS: dict[Split, int] = {"train": 1, "calibration": 1, "validation": 2, "test": 3}
SPREAD_OF_1 = math.log(math.e - 1)
"""What softplus makes 1 of."""
BLACKEST = 1e-4
"""No pixel is surer than that; else a single wrong one would cost any number of nats."""


class Variational(Task):
    """Networks answer `restored` (N, C, H, W) in [0, 1], `mean` and `spread` (N, Z) to `image` and `noise` (N, Z).

    The code is drawn by mean + softplus(spread) · noise. The noise is an input, so that a file says the same twice: it
    is fixed for each image; a network may draw its own while it trains. The score is the evidence lower bound in nats
    an image: cross-entropy of the pixels, taken as probabilities, and the divergence of the code from a normal
    distribution, both negative; the very image of a test digit, if it cost no code, would have -252.4. With `folder`,
    images of one's own, resized to `size`.
    Source: D. Kingma and M. Welling, Auto-Encoding Variational Bayes, 2014.
    """

    use: str = "variational"
    folder: str | None = None
    size: int = Field(default=28, ge=8)
    colour: Literal["grey", "rgb"] = "grey"
    """What images of a `folder` are read as."""
    code: PositiveInt = 16
    """How many numbers an image is put into."""
    outputs: ClassVar[tuple[str, ...]] = ("restored", "mean", "spread")
    metric: ClassVar[Metric] = Metric(name="ELBO", unit="nats", higher_is_better=True)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"image": TensorSpec(self._shape()), "noise": TensorSpec((self.code,))}

    def arrays(self, split: Split) -> Batch:
        """`image` (N, C, H, W) in [0, 1] and `noise` (N, Z), float32. Raises `DataError`."""
        if self.folder is None:
            digits = plugins.load("tasks", "digits")(use="digits")
            assert isinstance(digits, Task)
            images = digits.arrays(split)["image"]
        else:
            images = image_files.of_split(self.folder, split, self._shape())
        noise = np.random.default_rng(SEEDS[split]).standard_normal((len(images), self.code))
        return {"image": images, "noise": noise.astype(np.float32)}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The bound itself, negative, a mean over images."""
        from torch.nn.functional import binary_cross_entropy, softplus

        drawn = outputs["restored"].clamp(BLACKEST, 1 - BLACKEST)
        pixels = binary_cross_entropy(drawn, batch["image"], reduction="sum") / len(drawn)
        mean, deviation = outputs["mean"], softplus(outputs["spread"])
        code = 0.5 * (mean.square() + deviation.square() - 1) - deviation.clamp(min=BLACKEST).log()
        return pixels + code.sum(1).mean()

    def score(self, outputs: Batch, batch: Batch) -> float:
        return -float((self._pixels(outputs, batch) + self._code(outputs)).mean())

    @property
    def baseline(self) -> Baseline:
        """Of the mean image, whose code has mean 0 and deviation 1 whatever is seen, and so costs nothing."""
        batch, mean = self.arrays("test"), self.arrays("train")["image"].mean(0)
        code = np.zeros_like(batch["noise"])
        always = {"restored": np.broadcast_to(mean, batch["image"].shape), "mean": code, "spread": code + SPREAD_OF_1}
        return Baseline(self.score(always, batch), "always drawing the mean image")

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """The two parts of the bound, in nats: what pixels cost, and what the code holds."""
        return {
            "cross-entropy": float(self._pixels(outputs, batch).mean()),
            "divergence": float(self._code(outputs).mean()),
        }

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """Images of which the float network says most and least, and some in between."""
        bounds = {name: -self._pixels(found, batch) - self._code(found) for name, found in answers.items()}
        order = np.argsort(next(iter(bounds.values())), kind="stable")
        shown = []
        for index in order[np.linspace(0, len(order) - 1, min(6, len(order))).astype(int)]:
            panels = {"input": pixels(batch["image"][index])}
            panels |= {name: pixels(found["restored"][index]) for name, found in answers.items()}
            said = ", ".join(f"{name} {values[index]:.1f}" for name, values in bounds.items())
            shown.append(Exhibit(f"ELBO: {said} nats", panels))
        return shown

    def _pixels(self, outputs: Batch, batch: Batch) -> np.ndarray:
        """Cross-entropy of each image, (N,) float64 nats."""
        drawn = np.clip(outputs["restored"].astype(np.float64), BLACKEST, 1 - BLACKEST)
        costs = -(batch["image"] * np.log(drawn) + (1 - batch["image"]) * np.log1p(-drawn))
        return np.asarray(costs.sum((1, 2, 3)))

    def _code(self, outputs: Batch) -> np.ndarray:
        """Divergence of each image's code from a normal distribution, (N,) float64 nats."""
        mean, deviation = outputs["mean"].astype(np.float64), np.logaddexp(0, outputs["spread"].astype(np.float64))
        costs = 0.5 * (mean**2 + deviation**2 - 1) - np.log(np.maximum(deviation, BLACKEST))
        return np.asarray(costs.sum(1))

    def _shape(self) -> tuple[int, int, int]:
        if self.folder is None:
            return (1, 28, 28)
        return (1 if self.colour == "grey" else 3, self.size, self.size)
