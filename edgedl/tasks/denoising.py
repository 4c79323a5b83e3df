"""Clean images from noisy ones: handwritten digits, or the images of a folder, with noise that is always the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat

from edgedl import plugins
from edgedl.core import Baseline, Batch, Exhibit, Metric, Session, Split, Task, TensorSpec
from edgedl.data import image_files, splits
from edgedl.images import pixels

if TYPE_CHECKING:
    import torch

NUM_EXHIBITS = 6
SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}


class Denoising(Task):
    """Networks answer `restored` to `image`, both (N, C, H, W) in [0, 1]; `clean` is what they are to find.

    Without `folder` the images are those of the task `digits`; with it, the image files there, resized to `size`
    pixels each way. The noise, of standard deviation `noise` before it is cut off at black and white, is drawn by the
    split alone.
    """

    use: str = "denoising"
    folder: str | None = None
    size: int = Field(default=28, ge=8)
    colour: Literal["grey", "rgb"] = "grey"
    """What images of a `folder` are read as."""
    noise: NonNegativeFloat = 0.3
    outputs: ClassVar[tuple[str, ...]] = ("restored",)
    metric: ClassVar[Metric] = Metric(name="PSNR", unit="dB", higher_is_better=True)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"image": TensorSpec(self._shape())}

    def arrays(self, split: Split) -> Batch:
        """`image` and `clean` (N, C, H, W) float32 in [0, 1]. Raises `DataError`."""
        if split == "calibration":
            return {name: values[: splits.NUM_CALIBRATION] for name, values in self.arrays("train").items()}
        if self.folder is None:
            digits = plugins.load("tasks", "digits")(use="digits")
            assert isinstance(digits, Task)
            clean = digits.arrays(split)["image"]
        else:
            clean = image_files.of_split(self.folder, split, self._shape())
        return {"image": np.clip(clean + self.noise * _normal(SEEDS[split], clean.shape), 0, 1), "clean": clean}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared error."""
        from torch.nn.functional import mse_loss

        return mse_loss(outputs["restored"], batch["clean"])

    @property
    def baseline(self) -> Baseline:
        batch = self.arrays("test")
        return Baseline(self.score({"restored": batch["image"]}, batch), "leaving the noise as it is")

    def score(self, outputs: Batch, batch: Batch) -> float:
        """The peak signal-to-noise ratio of an image, its mean over all."""
        return float(_psnr(outputs["restored"], batch["clean"]).mean())

    def figures(self, session: Session, outputs: Batch, batch: Batch) -> Mapping[str, float]:
        """The structural similarity of an image to the clean one, its mean over all."""
        from torchmetrics.functional.image import structural_similarity_index_measure

        pair = _tensors(outputs["restored"], batch["clean"])
        return {"SSIM": float(structural_similarity_index_measure(*pair, data_range=(0.0, 1.0)))}

    def exhibits(self, answers: Mapping[str, Batch], batch: Batch) -> Sequence[Exhibit]:
        """Where what was restored is furthest from the clean image, by the last file."""
        ratios = {name: _psnr(outputs["restored"], batch["clean"]).numpy() for name, outputs in answers.items()}
        found = []
        for index in np.argsort(list(ratios.values())[-1], kind="stable")[:NUM_EXHIBITS]:
            images = {"input": batch["image"], "truth": batch["clean"]}
            images |= {name: outputs["restored"] for name, outputs in answers.items()}
            said = ", ".join(f"{name} {values[index]:.1f} dB" for name, values in ratios.items())
            found.append(Exhibit(f"sample {index}: {said}", {name: pixels(v[index]) for name, v in images.items()}))
        return found

    def _shape(self) -> tuple[int, int, int]:
        if self.folder is None:
            return (1, 28, 28)
        return (1 if self.colour == "grey" else 3, self.size, self.size)


def _psnr(restored: np.ndarray, clean: np.ndarray) -> torch.Tensor:
    """The peak signal-to-noise ratio of each image, (N,)."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    pair = _tensors(restored, clean)
    ratios: torch.Tensor = peak_signal_noise_ratio(*pair, data_range=(0.0, 1.0), dim=(1, 2, 3), reduction="none")
    return ratios


def _tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    import torch

    return [torch.from_numpy(np.ascontiguousarray(values)) for values in arrays]


def _normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Nearly normal float32 numbers: sums of twelve uniform ones, from raw bits, whose stream NumPy keeps."""
    bits = np.random.PCG64(seed)
    numbers = np.full(shape, -6.0, np.float32)
    for _ in range(12):
        numbers += (bits.random_raw(shape) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return numbers
