"""What `edgedl init` writes: a commented recipe, a small network that fits the data, and data if there is none."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgedl import files
from edgedl import recipe as recipes
from edgedl.core import TensorSpec, UsageError
from edgedl.tasks.data import Data

RECIPE, MODEL, DATA = "recipe.toml", "my_model.py", "my_data.py"
WIDTH = 32

MADE_UP = '''"""The data: put your own in place of what is made up here."""

import numpy as np


def arrays():
    """Arrays by name, a sample a row: what the network takes, and `label`, what it is to learn.

    A mapping of "train", "validation" and "test" to such arrays keeps the splits that you have.
    """
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 1000)
    image = generator.normal(0, 0.4, (1000, 1, 16, 16)).astype(np.float32)
    for index, corner in enumerate(label):  # each class has a bright corner
        row, column = divmod(int(corner), 2)
        image[index, 0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
    return {"image": image, "label": label}
'''

NETWORK = '''"""The network: any torch.nn.Module will do, whose forward takes the data's arrays by their names."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
{layers}

    def forward(self, {names}):
{forward}


def build():
    """What the recipe calls; load weights of your own here, or name their file in the recipe."""
    return Net()
'''

TEXT = """# Made by edgedl init; edgedl recipes schema describes every key.
{name}
description = "My own network on my own data."
seed = 0

# Where the data is and what it is judged by (accuracy, rmse, mae, r2, auroc, miou, or "package.module:function").
# Images: size, mean and std; uint8_input = true and channels_last = true for files that take them as cameras give them.
# Inputs whose size may vary: dynamic = ["tokens.1=length:4-128"] is dimension 1 of the input tokens.
{task}

# What builds the network. Weights that you have: weights = "my_weights.safetensors".
model = {{ use = "module", source = "my_model:build" }}

# In this order. A network that comes trained needs no train step.
steps = [
  {{ use = "train", epochs = 10 }},
{steps}]

# What to make files for: edgedl targets lists all.
{targets}

# How much the score may fall, and whether a file that is slower than float may ship ("allow" or "refuse").
limits = {{ score_drop = 0.01, slower = "refuse" }}
bench = {{ batch_size = 1, min_seconds = 3 }}
"""


def write(
    folder: Path,
    data: str | None = None,
    label: str | None = None,
    precision: str = "int8",
    prune: float = 0.0,
    targets: Sequence[str] = ("tflite", "onnxruntime"),
) -> list[Path]:
    """Writes the files and returns them. Raises `UsageError` where one is there already, or for data that is wrong."""
    contents = {RECIPE: "", MODEL: "", **({DATA: MADE_UP} if data is None else {})}
    if taken := [str(folder / name) for name in contents if (folder / name).exists()]:
        raise UsageError(f"{' and '.join(taken)} would be overwritten; choose another folder")
    source = os.path.relpath(data, folder) if data is not None and Path(data).exists() else data
    table = {"use": "data", "source": source or "my_data:arrays", "label": label}
    steps = [{"use": "prune", "ratio": prune}] if prune else []
    contents[RECIPE] = TEXT.format(
        name=recipes.dumps({"name": folder.resolve().name or RECIPE}).strip(),
        task=recipes.dumps({"task": table}).strip(),
        steps="".join(f"  {recipes.value(step)},\n" for step in [*steps, {"use": "quantize", "precision": precision}]),
        targets=recipes.dumps({"targets": [{"use": name} for name in targets]}).strip(),
    )
    recipes.parse(contents[RECIPE], folder / RECIPE)
    contents[MODEL] = _network(*_shapes(data, label))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        files.write_text(folder / name, content)
    return [folder / name for name in contents]


def _shapes(data: str | None, label: str | None) -> tuple[Mapping[str, TensorSpec], int]:
    """What the network takes, and how many numbers it is to answer."""
    if data is None:
        return {"image": TensorSpec((1, 16, 16))}, 4
    task = Data.model_validate({"source": data, "label": label})
    if not task.has_labels:
        raise UsageError(f"{data}: what is to be learned? Name the array or column with --label")
    return task.inputs, task.num_classes


def _network(inputs: Mapping[str, TensorSpec], num_outputs: int) -> str:
    """Convolutions for one image, an embedding for one row of tokens, and dense layers for anything else."""
    layers: list[str]
    if len(inputs) == 1:
        ((name, spec),) = inputs.items()
        if len(spec.shape) == 3:
            layers = [
                f"self.features = nn.Sequential(nn.Conv2d({spec.shape[0]}, {WIDTH}, 3, padding=1), nn.ReLU(), "
                "nn.MaxPool2d(2),",
                f"                              nn.Conv2d({WIDTH}, {2 * WIDTH}, 3, padding=1), nn.ReLU())",
                f"self.head = nn.Linear({2 * WIDTH}, {num_outputs})",
            ]
            return _filled(layers, inputs, [f"return self.head(self.features({name}).mean((2, 3)))"])
        if spec.dtype.startswith("int"):
            layers = [
                f"self.embedding = nn.Embedding(1000, {WIDTH})  # at least as many as there are tokens",
                f"self.head = nn.Linear({WIDTH}, {num_outputs})",
            ]
            return _filled(layers, inputs, [f"return self.head(self.embedding({name}).mean(1))"])
    width = sum(math.prod(spec.shape) for spec in inputs.values())
    layers = [
        f"self.hidden = nn.Linear({width}, {2 * WIDTH})",
        f"self.head = nn.Linear({2 * WIDTH}, {num_outputs})",
    ]
    flat = ", ".join(f"{name}.flatten(1).float()" for name in inputs)
    forward = [f"everything = torch.cat([{flat}], 1)", "return self.head(torch.relu(self.hidden(everything)))"]
    return _filled(layers, inputs, forward)


def _filled(layers: Sequence[str], inputs: Mapping[str, TensorSpec], forward: Sequence[str]) -> str:
    def indented(lines: Sequence[str]) -> str:
        return "\n".join(f"        {line}" for line in lines)

    said = [f"# {name}: (N, {', '.join(map(str, spec.shape))}) {spec.dtype}" for name, spec in inputs.items()]
    return NETWORK.format(layers=indented(layers), names=", ".join(inputs), forward=indented([*said, *forward]))
