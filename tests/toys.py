"""Small tasks and networks that tests share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from edgedl.core import Batch, Metric, Split, Task, TensorSpec

SEEDS: dict[Split, int] = {"train": 1, "calibration": 1, "validation": 2, "test": 3}


class Noise(Task):
    """Random arrays in, the network's own outputs wanted: for numerics, where nothing is learned."""

    use: str = "noise"
    shape: tuple[int, ...] = (8, 10, 10)
    num_inputs: int = 1
    num_samples: int = 64

    outputs: ClassVar[tuple[str, ...]] = ("y",)
    metric: ClassVar[Metric] = Metric(name="mean magnitude", unit="1", higher_is_better=False)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {f"x{index}": TensorSpec(self.shape) for index in range(self.num_inputs)}

    def arrays(self, split: Split) -> Batch:
        rng = np.random.default_rng(SEEDS[split])
        size = (self.num_samples, *self.shape)
        return {name: rng.standard_normal(size).astype(np.float32) for name in self.inputs}

    def loss(self, outputs, batch):
        return outputs["y"].square().mean()

    def score(self, outputs: Batch, batch: Batch) -> float:
        return float(np.abs(outputs["y"]).mean())


class Residual(nn.Module):
    """A block with a skip connection: an addition of two quantized values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class Places(nn.Module):
    """A dense layer at every place, and a batch norm over all of them, as LeViT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dense(x)
        y: torch.Tensor = self.norm(x.flatten(0, 1)).reshape_as(x)
        return y


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


class Tokens(Noise):
    """Random token numbers in."""

    @property
    def inputs(self):
        return {"x0": TensorSpec(self.shape, "int32")}

    def arrays(self, split):
        return {"x0": np.random.default_rng(3).integers(0, 50, (self.num_samples, *self.shape)).astype(np.int32)}
