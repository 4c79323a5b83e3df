"""What is compressed: six trained networks of different kinds, on data that needs no download."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import PositiveInt
from torch import nn
from torch.nn import functional

from edgedl import plugins
from edgedl.core import Batch, Metric, Model, Network, Part, Split, Target, Task, TensorSpec
from edgedl.images import Classification
from edgedl.measure import evaluate
from edgedl.models.cnn import CNN
from edgedl.models.mobilenet import MobileNet
from edgedl.models.resnet import ResNet
from edgedl.onnx.export import example_inputs
from edgedl.steps.train import Train
from edgedl.tasks.digits import Digits
from edgedl.tasks.scenes import Scenes
from edgedl.torch_session import TorchSession
from edgedl.training import loop

FLOAT_FILES = {"tflite": "float.tflite", "onnxruntime": "float.onnx"}
CONVERTED = "converted.tflite"
"""What litert-torch makes of a network by itself, for a tool that starts from a .tflite file."""
BATCH_SIZE = 1


class DigitRows(Classification):
    """The digits read row by row from the top: `rows` (N, 28, 28) float32, a sequence of 28 vectors of 28 pixels."""

    use: str = "digit-rows"
    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    num_classes: ClassVar[int] = 10

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"rows": TensorSpec((28, 28))}

    def arrays(self, split: Split) -> Batch:
        digits = Digits().arrays(split)
        return {"rows": digits["image"][:, 0], "label": digits["label"]}


class DigitImages(Task):
    """The digits, to be drawn again from what a narrow network keeps of them."""

    use: str = "digit-images"
    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    outputs: ClassVar[tuple[str, ...]] = ("drawn",)
    metric: ClassVar[Metric] = Metric(name="mean squared error", unit="1", higher_is_better=False)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"image": TensorSpec(self.image_shape)}

    def arrays(self, split: Split) -> Batch:
        return {"image": Digits().arrays(split)["image"]}

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared error of the pixels."""
        return functional.mse_loss(outputs["drawn"], batch["image"])

    def score(self, outputs: Batch, batch: Batch) -> float:
        return float(np.square(outputs["drawn"] - batch["image"], dtype=np.float64).mean())


class LSTM(Network):
    """One LSTM over the rows, then a dense layer on its last hidden state."""

    use: str = "lstm"
    hidden: PositiveInt = 64

    def build(self, task: Task) -> nn.Module:
        """A module (N, 28, 28) float32 -> logits (N, 10)."""
        return _LastState(28, self.hidden, 10)


class _LastState(nn.Module):
    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.dense = nn.Linear(hidden, classes)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(rows)
        logits: torch.Tensor = self.dense(states[:, -1])
        return logits


class Transformer(Network):
    """Rows as tokens, learned positions, encoder blocks with the norm in front, the mean of all tokens."""

    use: str = "transformer"
    width: PositiveInt = 64
    heads: PositiveInt = 4
    blocks: PositiveInt = 2

    def build(self, task: Task) -> nn.Module:
        """A module (N, 28, 28) float32 -> logits (N, 10)."""
        return _Encoder(self.width, self.heads, self.blocks)


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 28, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, 10)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.blocks(self.embed(rows) + self.positions))
        logits: torch.Tensor = self.dense(tokens.mean(dim=1))
        return logits


class _Block(nn.Module):
    """After A. Vaswani et al., Attention Is All You Need, 2017, with the norms in front: (N, T, C) -> (N, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        query, key, value = (self._split(layer(normed)) for layer in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        summed: torch.Tensor = x + self.narrow(functional.gelu(self.wide(self.norm2(x))))
        return summed

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class Generator(Network):
    """An encoder down to `latent` numbers, and a generator of transposed convolutions that draws the image from them.

    The generator is DCGAN's (A. Radford et al., Unsupervised Representation Learning with Deep Convolutional GANs,
    2016), small.
    """

    use: str = "generator"
    latent: PositiveInt = 16

    def build(self, task: Task) -> nn.Module:
        """A module (N, 1, 28, 28) float32 in [0, 1] -> the same."""
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, self.latent),
            nn.Linear(self.latent, 64 * 7 * 7),
            nn.ReLU(),
            nn.Unflatten(1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1),
            nn.Sigmoid(),
        )


@dataclass(frozen=True)
class Subject:
    """A network, what it learns, and for how long."""

    task: Task
    network: Network
    train: Train

    @property
    def configuration(self) -> dict[str, object]:
        parts: dict[str, Part] = {"task": self.task, "network": self.network, "train": self.train}
        return {name: part.model_dump(mode="json") for name, part in parts.items()}


SUBJECTS = {
    "cnn": Subject(Digits(), CNN(), Train(epochs=10)),
    "resnet": Subject(Scenes(), ResNet(), Train(epochs=6, batch_size=64, lr=3e-3)),
    "mobilenet": Subject(Scenes(), MobileNet(), Train(epochs=6, batch_size=64, lr=3e-3)),
    "lstm": Subject(DigitRows(), LSTM(), Train(epochs=20, lr=3e-3)),
    "transformer": Subject(DigitRows(), Transformer(), Train(epochs=20)),
    "generator": Subject(DigitImages(), Generator(), Train(epochs=20, lr=3e-3)),
}


def prepare(name: str, seed: int, folder: Path) -> Path:
    """Trains a subject, once, and writes what every peer gets; returns the folder.

    weights.safetensors, the float files, converted.tflite, float.pt2 (the exported PyTorch program), calibration.npz
    (the task's calibration split, inputs alone) and source.json, which is written last and holds the configuration.
    """
    from safetensors.torch import save_file

    subject = SUBJECTS[name]
    about = folder / "source.json"
    kept = json.loads(about.read_text()) if about.exists() else {}
    if (kept.get("name"), kept.get("configuration")) == (name, subject.configuration):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    about.unlink(missing_ok=True)
    loop.seed(seed)
    net = subject.train.apply(Model(net=subject.network.build(subject.task)), subject.task).net
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / "weights.safetensors")
    save_calibration(subject.task, folder / "calibration.npz")
    warm_up()
    seconds = {use: _export(use, net, subject.task, folder / name) for use, name in FLOAT_FILES.items()}
    seconds["converted"] = convert(net, subject.task, folder / CONVERTED)
    seconds["pt2"] = _export_program(net, subject.task, folder / "float.pt2")
    facts = {"name": name, "configuration": subject.configuration, "seed": seed, "export_seconds": seconds}
    about.write_text(json.dumps(facts, indent=1) + "\n")
    return folder


def load(subject: Subject, folder: Path) -> nn.Module:
    """The trained network of a prepared folder."""
    from safetensors.torch import load_file

    net = subject.network.build(subject.task)
    net.load_state_dict(load_file(folder / "weights.safetensors"))
    return net.eval()


def reference(subject: Subject, folder: Path) -> tuple[Batch, float]:
    """Outputs and score of the float network in PyTorch over the whole test split."""
    scored = evaluate(TorchSession(load(subject, folder), subject.task), subject.task, "test")
    return scored.outputs, scored.score


def warm_up() -> None:
    """Exports a layer to both runtimes: torch and its exporters build tables once in a process, as if imported."""
    import litert_torch

    net, inputs = nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)
    torch.onnx.export(net, inputs, dynamo=True, verbose=False)
    litert_torch.convert(net, inputs)


def _export(use: str, net: nn.Module, task: Task, file: Path) -> float:
    """Writes the float file of a runtime as edgedl does; returns the seconds that it took."""
    start = time.perf_counter()
    target = plugins.load("targets", use).model_validate({})
    assert isinstance(target, Target)
    artifact = target.build(Model(net=net), task, file.parent, BATCH_SIZE)
    seconds = time.perf_counter() - start
    artifact.file.replace(file)
    return seconds


def save_calibration(task: Task, file: Path) -> None:
    """Writes the inputs of the calibration split, by name."""
    arrays = task.arrays("calibration")
    calibration: dict[str, Any] = {name: arrays[name] for name in task.inputs}
    np.savez(file, **calibration)


def convert(net: nn.Module, task: Task, file: Path) -> float:
    """Writes the .tflite file that litert-torch makes by itself; returns the seconds that it took."""
    import litert_torch

    start = time.perf_counter()
    litert_torch.convert(net.eval(), example_inputs(task, BATCH_SIZE)).export(str(file))
    return time.perf_counter() - start


def _export_program(net: nn.Module, task: Task, file: Path) -> float:
    start = time.perf_counter()
    program = torch.export.export(net.eval(), example_inputs(task, BATCH_SIZE))
    torch.export.save(program, file)
    return time.perf_counter() - start
