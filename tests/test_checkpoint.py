"""Work that was ended goes on from what it had come to, to the very same result."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from edgedl import checkpoint
from edgedl.core import Batch, Metric, Model, Split, Step, Task, TensorSpec
from edgedl.steps.adversarial import Adversarial
from edgedl.steps.distill import Distill
from edgedl.steps.prune import Prune
from edgedl.steps.quantize import Quantize
from edgedl.steps.reinforce import Reinforce
from edgedl.steps.sparsify import Sparsify
from edgedl.steps.train import Train
from edgedl.tasks.control import Control
from edgedl.training import loop
from tests.toys import Noise

QUICK = {"epochs": 3, "batch_size": 16, "lr": 1e-2}


class Ended(BaseException):
    """Stands for a kill: nothing in edgedl catches it."""


class Small(nn.Module):
    """Batch norm and dropout: state besides weights, and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Dropout(0.2)
        self.dense = nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.drop(torch.relu(self.norm(self.conv(x)))))


def small() -> Model:
    loop.seed(0)
    net = Small().eval()
    return Model(net=net, teacher=net)


def applied(step: Step, model: Model, task: Task, folder: Path) -> Model:
    """As a run applies it: seeded, and kept in its folder."""
    loop.seed(1)
    run = folder / "recipe/time"
    run.mkdir(parents=True, exist_ok=True)
    with checkpoint.at(run / "checkpoints", folder, "key"):
        return step.apply(model, task)


def after_kills(step: Step, model: Model, task: Task, folder: Path, monkeypatch) -> tuple[Model, int]:
    """What a step makes that is ended whenever it has kept something seven times, and how often it was ended."""
    kept = checkpoint.Course._write
    for kills in range(10):
        times = 0

        def write(course: checkpoint.Course, state: object) -> None:
            nonlocal times
            kept(course, state)
            times += 1
            if times == 7:
                raise Ended

        monkeypatch.setattr(checkpoint.Course, "_write", write)
        try:
            return applied(step, model, task, folder), kills
        except Ended:
            continue
    raise AssertionError("it comes no further")


STEPS = {
    "train": Train(**QUICK),
    "train by sgd": Train(**QUICK, optimizer="sgd", schedule="constant"),
    "distill": Distill(**QUICK),
    "prune": Prune(ratio=0.5, round_to=1, iterations=2, epochs=1, batch_size=16, importance="random"),
    "sparsify": Sparsify(**QUICK, sparsity=0.7),
    "qat, ranges that move": Quantize(method="qat", **QUICK, ranges="moving", calibrator="min-max"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_was_ended_comes_to_the_same_weights(name, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)
    task, model = Noise(), small()
    whole = applied(STEPS[name], model, task, tmp_path / "whole")
    broken, kills = after_kills(STEPS[name], model, task, tmp_path / "broken", monkeypatch)
    assert kills
    assert_same(broken, whole)


class Drawn(Task):
    """Noise, and images to make of it; what is made is the better the more of it is bright."""

    use: str = "tests.test_checkpoint:Drawn"
    inputs: ClassVar = {"noise": TensorSpec((6,))}
    outputs: ClassVar = ("image",)
    metric: ClassVar = Metric(name="brightness", unit="1", higher_is_better=True)

    def arrays(self, split: Split) -> Batch:
        dice = np.random.default_rng(0)
        real = dice.random((48, 1, 8, 8), dtype=np.float32)
        return {"noise": dice.standard_normal((48, 6), dtype=np.float32), "real": real}

    def score(self, outputs: Batch, batch: Batch) -> float:
        return float(outputs["image"].mean())


def policy() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def generator() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))


LOOPS = {
    "reinforce": (Reinforce(epochs=11, episodes=2), Control(), policy),
    "adversarial": (Adversarial(epochs=11, batch_size=16, widths=(4, 8)), Drawn(), generator),
}


@pytest.mark.parametrize("name", LOOPS)
def test_steps_with_loops_of_their_own_go_on_too(name, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)
    loop.seed(0)
    step, task, made = LOOPS[name]
    net = made()
    whole = applied(step, Model(net=net), task, tmp_path / "whole")
    broken, kills = after_kills(step, Model(net=net), task, tmp_path / "broken", monkeypatch)
    assert kills
    assert_same(broken, whole)


def assert_same(one: Model, other: Model) -> None:
    assert one.lineage[-1].metrics == other.lineage[-1].metrics
    ours, theirs = one.net.state_dict(), other.net.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_what_begins_otherwise_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    applied(Train(**QUICK), small(), Noise(), tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    loop.seed(2)  # another random stream
    with checkpoint.at(tmp_path / "recipe/time/checkpoints", tmp_path, "key"):
        assert checkpoint.Course("train", small().net.state_dict()).reached() is None
    loop.seed(1)
    with checkpoint.at(tmp_path / "recipe/time/checkpoints", None, "key"):  # as with --fresh
        assert checkpoint.remembered("what", {}, lambda: 1) == 1
        assert checkpoint.remembered("what", {}, lambda: 2) == 2
    with checkpoint.at(tmp_path / "recipe/time/checkpoints", tmp_path, "key"):
        assert checkpoint.remembered("what", {}, lambda: 3) == 2
    with checkpoint.at(tmp_path / "recipe/time/checkpoints", tmp_path, "another key"):
        assert checkpoint.remembered("what", {}, lambda: 4) == 4


def test_states_are_read_as_they_were_and_damaged_ones_not_at_all(tmp_path):
    state = {
        "nested": {0: [torch.zeros(2, 3, dtype=torch.uint8), (1, 2.5, -math.inf, None, True, "text")], "empty": []},
        "scalar": torch.tensor(0.1),
        "odd": torch.arange(6.0).reshape(2, 3).T,
    }
    file = tmp_path / "one.safetensors"
    checkpoint._write(file, state)
    found = checkpoint._read(file)
    assert repr(found) == repr(state)
    content = file.read_bytes()
    flipped = [bytes([*content[:place], content[place] ^ 1, *content[place + 1 :]]) for place in (-1, -9, 200)]
    for damaged in (b"", content[: len(content) // 2], content[:-1], b"\xff" * 64, *flipped):
        file.write_bytes(damaged)
        assert checkpoint._read(file) is None


def test_a_full_disk_costs_a_state_and_not_the_training(tmp_path, monkeypatch, capsys):
    def full(file: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_write", full)
    assert applied(Train(**QUICK), small(), Noise(), tmp_path).lineage
    assert "a state is not kept: " in capsys.readouterr().err
