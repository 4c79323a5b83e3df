"""From records to decisions: what is given to the file is what the task itself gives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedl.core import Task, TensorSpec
from edgedl.probes import end_to_end
from edgedl.report import answered
from edgedl.tasks.data import Data
from edgedl.tasks.digits import Digits


class Listening:
    """Keeps what it is given."""

    graphs: Mapping[str, Any] = {}

    def __init__(self, task: Task, batch_size: int) -> None:
        self.task, self.inputs, self.given = task, task.input_specs(batch_size), []
        self.outputs = {"logits": TensorSpec((batch_size, 10))}

    def run(self, batch):
        self.given.append({name: np.array(values) for name, values in batch.items()})
        size = len(next(iter(batch.values())))
        return {name: np.zeros((size, 10), np.float32) for name in self.task.outputs or ("logits",)}


def given_as_arrays(task: Task, batch_size: int = 2) -> dict[str, Any]:
    """What `measured` says, after a look at what the file was given."""
    session = Listening(task, batch_size)
    found = end_to_end.measured(session, task, seconds=0.0, rounds=4)
    arrays = task.arrays("test")
    for index, batch in enumerate(session.given):
        for name in task.inputs:
            values = batch[name]
            assert (values.dtype, values.flags["C_CONTIGUOUS"]) == (arrays[name].dtype, True)
            wanted = arrays[name][index * batch_size : (index + 1) * batch_size]
            np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)
    assert len(session.given) == 5  # one of them to warm up
    assert found["latency_ms"]["runs"] == 4
    assert sum(found["parts_ms"].values()) > 0
    (line,) = answered.lines({"end_to_end": found})
    assert all(part in line for part in ("prepare", "run", "decide"))
    return found["prepared"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    from PIL import Image

    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for index in range(60):
        part = folder / ("cat", "dog")[index % 2]
        part.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(part / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "pixels between 0 and 1, mean and deviation of each channel, channels-first of (H, W, C)"),
        ({"mean": (0.5, 0.4, 0.3), "std": (0.2,)}, "pixels between 0 and 1, mean and deviation"),
        ({"layout": "channels-last", "mean": (0.5,)}, "channels-last of (H, W, C)"),
        ({"uint8_input": True, "std": (0.2,)}, "channels-first of (H, W, C)"),
    ],
)
def test_pixels_become_what_the_network_was_trained_with(pictures, fields, said):
    prepared = given_as_arrays(Data(source=str(pictures), **fields))
    assert prepared["image"].startswith(said) or said in prepared["image"]
    assert ("between" in prepared["image"]) == ("uint8_input" not in fields)


@pytest.mark.parametrize("standardize", [True, False])
def test_columns_become_one_input(tmp_path, standardize):
    rows = [f"{index},{index / 3},7,{('yes', 'no')[index % 2]}" for index in range(80)]
    (tmp_path / "own.csv").write_text("\n".join(["age,size,same,answer", *rows]))
    prepared = given_as_arrays(Data(source=str(tmp_path / "own.csv"), label="answer", standardize=standardize))
    assert ("deviation" in prepared["features"]) == standardize


def test_a_task_that_prepares_nothing_gives_its_arrays():
    assert given_as_arrays(Digits()) == {"image": "as it is"}
