"""Inputs of int64, which networks of texts take, in files that have int32 there; weights that two layers share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgedl import measure
from edgedl import recipe as recipes
from edgedl.core import Batch, Model, Split, TargetError, TensorSpec
from edgedl.run import Run, load_weights
from edgedl.targets.tflite import TFLite
from tests.toys import Noise

RECIPE = """
name = "tied"
task = { use = "digits" }
model = { use = "mlp" }
steps = [{ use = "train" }]
targets = [{ use = "tflite" }]
"""


class Words(Noise):
    """Places in a table of 20."""

    use: str = "words"

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"words": TensorSpec((6,), "int64")}

    def arrays(self, split: Split) -> Batch:
        return {"words": np.random.default_rng(0).integers(0, 20, (self.num_samples, 6))}


def test_a_tflite_file_takes_int64_where_it_has_int32(tmp_path: Path):
    net = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(24, 3)).eval()
    task, target = Words(num_samples=8), TFLite(threads=1)
    artifact = target.build(Model(net=net), task, tmp_path, 1)
    session = target.open(artifact.file)
    assert session.inputs["words"].dtype == "int32"
    measure.check_fits(artifact.file, session, task)
    scored = measure.evaluate(session, task, "test")
    with torch.no_grad():
        wanted = net(torch.from_numpy(task.arrays("test")["words"]))
    np.testing.assert_allclose(scored.outputs["y"], wanted, atol=1e-5)
    assert measure.sample(task, session)["words"].dtype == np.int32  # what is timed needs no narrowing
    with pytest.raises(TargetError, match="input words holds numbers that the file's int32 cannot"):
        session.run({"words": np.full((1, 6), 2**32)})


def test_tied_weights_are_kept_and_come_back(tmp_path: Path):
    recipe = recipes.parse(RECIPE, Path("tied.toml"))
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    run = Run.create(recipe, RECIPE, tmp_path)
    run.save_step(0, Model(net=net).after(recipe.steps[0], {}), "key")
    (file,) = run.folder.rglob("weights.safetensors")
    other = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    other[2].weight = other[0].weight
    load_weights(other, file)
    assert other[2].weight is other[0].weight
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.state_dict().items())
