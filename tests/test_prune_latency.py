"""Pruning to a size and to a latency: the goal is reached, what is slower is undone, and layers are measured once.

Where a test asks how the search goes, files have made-up times, so that no clock decides it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgedl import measure, plugins, recipe
from edgedl.core import Artifact, Model, ModelFileError, RecipeError, Target, TargetError, UsageError
from edgedl.pruning import latency, latency_goal
from edgedl.pruning.latency import LayerTable
from edgedl.quantize.schemes import AFFINE
from edgedl.report import lines
from edgedl.steps import prune
from edgedl.steps.prune import Prune, num_parameters, sample
from edgedl.training import loop
from tests.toys import Noise

IMAGE, SEQUENCE = Noise(shape=(3, 16, 16)), Noise(shape=(6, 8))
PACED = "tests.test_prune_latency:Paced"


class Paced(Target):
    """A target whose files take `cost_ms` of their network."""

    use: str = PACED
    scheme: ClassVar = AFFINE
    suffixes: ClassVar = (".json",)
    requires: ClassVar = {"build": (), "open": ()}
    extra: ClassVar = "train"
    cost_ms: ClassVar[Callable[[nn.Module, float], float]]
    precisions: ClassVar[set[str]] = set()
    builds_apart: ClassVar[bool] = False  # what is noted above would be lost in a copy

    def build(self, model, task, folder, batch_size) -> Artifact:
        assert batch_size == 1
        Paced.precisions.add(model.precision)
        macs = prune.macs(model.net, sample(task))
        file = folder / "model.json"
        file.write_text(
            json.dumps([Paced.cost_ms(model.net, macs), *map(list, [next(iter(task.inputs.values())).shape])])
        )
        return Artifact(file=file, precision=model.precision)

    def open(self, file: Path):
        return PacedSession(*json.loads(file.read_text()))


class PacedSession:
    def __init__(self, cost_ms, shape):
        self.cost_ms = cost_ms
        self.inputs = {"x0": latency.TensorSpec((1, *shape))}

    def close(self):
        pass


@pytest.fixture
def paced(monkeypatch, tmp_path):
    """Sets what files take."""

    def interleave(runs, bench):
        return {name: [np.full(3, session.cost_ms)] * 5 for name, (session, _) in runs.items()}

    monkeypatch.setattr(measure, "interleave", interleave)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Paced.precisions = set()

    def of(cost_ms):
        monkeypatch.setattr(Paced, "cost_ms", staticmethod(cost_ms), raising=False)

    of(lambda net, macs: 0.01 + macs / 1e6)
    return of


class Last(nn.Module):
    def forward(self, x):
        return x[0][:, -1]


def cnn(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    convs = [
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
    ]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)).eval()


def lstm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.LSTM(8, 32, 2, batch_first=True), Last(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5)
    ).eval()


def pruned(net: nn.Module, task=IMAGE, **fields) -> tuple[nn.Module, dict]:
    loop.seed(0)
    model = Prune(**({"iterations": 3, "epochs": 0, "round_to": 4} | fields)).apply(Model(net=net), task)
    return model.net, json.loads(json.dumps(model.lineage[-1].metrics))


def widths(net: nn.Module) -> dict[str, int]:
    return prune.figures(net, sample(IMAGE), IMAGE)["widths"]


@pytest.mark.parametrize("share", [0.8, 0.4])
def test_a_share_of_the_parameters_is_kept(share):
    for net, task in ((cnn(), IMAGE), (lstm(), SEQUENCE)):
        smaller, metrics = pruned(net, task, size=share, round_to=1)
        full = num_parameters(net)
        assert share - 0.05 < num_parameters(smaller) / full <= share
        strides = [record["parameters"] / full for record in metrics["iterations"]]
        assert strides == sorted(strides, reverse=True)
        assert strides[0] <= 1 - (1 - share) / 3
    with pytest.raises(UsageError, match=r"size = 0\.001 cannot be reached, the least is 0\.\d\d; lower round_to"):
        pruned(cnn(), size=0.001)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
@pytest.mark.parametrize("build", [cnn, lstm])
def test_a_latency_is_reached(paced, build, share, scope):
    net, task = build(), IMAGE if build is cnn else SEQUENCE
    # Not the table's sum of layers, but near enough for it to be of use.
    paced(lambda net, macs: 0.02 + (macs / 1e6) ** 0.8)
    given = Paced.cost_ms(net, prune.macs(net, sample(task)))
    smaller, metrics = pruned(net, task, latency_ms=given * share, target={"use": PACED}, scope=scope, round_to=1)
    takes = Paced.cost_ms(smaller, prune.macs(smaller, sample(task)))
    assert takes == pytest.approx(given * share, rel=0.1)
    assert metrics["latency"] | {"least_ms": 0} == {
        "target": {"use": PACED}, "precision": "fp32", "goal_ms": given * share, "given_ms": given, "least_ms": 0,
        "reached_ms": pytest.approx(takes), "reached": True,
    }  # fmt: skip
    records = [record["latency"] for record in metrics["iterations"]]
    assert records[-1]["measured_ms"] == pytest.approx(takes)
    assert [record["goal_ms"] for record in records] == sorted((record["goal_ms"] for record in records), reverse=True)
    assert not any(record["undone"] for record in records)


def stairs(tile: int) -> Callable[[nn.Module, float], float]:
    """Times of kernels that take what a layer gives in whole tiles."""

    def cost_ms(net: nn.Module, macs: float) -> float:
        total = 0.02
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                total += module.in_channels * -(-module.out_channels // tile) * tile / module.stride[0] ** 2 / 1e3
            elif isinstance(module, nn.Linear):
                total += module.in_features * -(-module.out_features // tile) * tile / 1e5
        return total

    return cost_ms


@pytest.mark.parametrize("share", [0.85, 0.75, 0.65, 0.55, 0.45, 0.35])
@pytest.mark.parametrize("tile", [1, 8, 16])
def test_a_goal_between_two_stairs_is_met(paced, tile, share):
    net = cnn()
    paced(stairs(tile))
    given = stairs(tile)(net, 0)
    smaller, metrics = pruned(net, latency_ms=given * share, target={"use": PACED}, iterations=2, round_to=16)
    takes = stairs(tile)(smaller, 0)
    assert 0.9 * given * share <= takes <= 1.1 * given * share
    assert metrics["latency"]["reached"]
    assert metrics["latency"]["reached_ms"] == pytest.approx(takes)
    last = metrics["iterations"][-1]["latency"]
    if takes > given * share:  # then from below it was nowhere to be had
        assert not any(0.9 <= tried["measured_ms"] / last["goal_ms"] <= 1 for tried in last["tried"])
    assert len(last["tried"]) <= latency_goal.MAX_TRIES
    assert len({json.dumps(tried["removed"], sort_keys=True) for tried in last["tried"]}) == len(last["tried"])


def test_the_file_kept_is_the_nearest_of_those_tried(paced):
    net = cnn()
    rng = np.random.default_rng(0)
    for share in (0.8, 0.6, 0.4):
        noise = {}

        def uneven(net, macs, noise=noise):  # no two widths that are a reliable guide to each other
            return (0.02 + macs / 1e6) * noise.setdefault(macs, rng.uniform(0.6, 1.0) if noise else 1.0)

        paced(uneven)
        _, metrics = pruned(net, latency_ms=share * uneven(net, prune.macs(net, sample(IMAGE))),
                            target={"use": PACED}, iterations=1)  # fmt: skip
        record = metrics["iterations"][0]["latency"]
        ratios = [tried["measured_ms"] / record["goal_ms"] for tried in record["tried"] if not tried["slower"]]
        below = [ratio for ratio in ratios if 0.9 <= ratio <= 1]
        nearest = max(below) if below else min(ratios, key=lambda ratio: abs(np.log(ratio)))
        assert record["measured_ms"] / record["goal_ms"] == pytest.approx(nearest)


def test_a_goal_that_is_missed_is_told(paced):
    net = cnn()
    full = prune.macs(net, sample(IMAGE))
    paced(lambda net, macs: 0.8 + macs / full / 5 if macs > full / 2 else 0.3 + macs / full / 5)
    fields = {"target": {"use": PACED}, "iterations": 2}
    _, metrics = pruned(net, latency_ms=0.6, **fields)
    assert metrics["latency"]["reached"] is False
    assert abs(metrics["latency"]["reached_ms"] / 0.6 - 1) > 0.1
    (line,) = lines.missed_goals({"steps": [{"use": "prune", "metrics": metrics}]})
    assert line.startswith(f"prune missed its goal of 0.600 ms on {PACED}, fp32: the file takes ")
    assert "by more than 10 %" in line
    _, metrics = pruned(net, latency_ms=0.9, **fields)
    assert lines.missed_goals({"steps": [{"use": "prune", "metrics": metrics}]}) == []
    assert lines.missed_goals({"steps": [{"use": "train", "metrics": {}}, {"use": "prune", "metrics": {}}]}) == []


def test_what_was_trained_is_measured_again(paced, monkeypatch):
    """Whether the goal is reached is said of the file that is left, not of what was expected of it."""
    net = cnn()
    monkeypatch.setattr(
        Prune, "fit", lambda self, net, *_, **options: (paced(lambda net, macs: 50.0), (net, [{"loss": 0.0}]))[1]
    )
    paced(lambda net, macs: 0.02 + macs / 1e6)
    given = 0.02 + prune.macs(net, sample(IMAGE)) / 1e6
    _, metrics = pruned(net, latency_ms=given / 2, target={"use": PACED}, iterations=1, epochs=1)
    assert metrics["iterations"][0]["latency"]["measured_ms"] == pytest.approx(given / 2, rel=0.1)
    assert metrics["latency"]["reached_ms"] == pytest.approx(50.0)
    assert metrics["latency"]["reached"] is False


def test_what_is_slower_is_undone_and_recorded(paced, monkeypatch):
    net = cnn()
    full = prune.macs(net, sample(IMAGE))
    paced(lambda net, macs: 1.0 if macs == full else 1.5 - macs / full / 10)
    monkeypatch.setattr(latency_goal, "REACHED", 10.0)  # so that a goal out of reach is approached
    smaller, metrics = pruned(net, latency_ms=0.7, target={"use": PACED})
    assert widths(smaller) == widths(net)
    assert all(torch.equal(value, smaller.state_dict()[name]) for name, value in net.state_dict().items())
    for record in (record["latency"] for record in metrics["iterations"]):
        assert record["tried"]
        assert all(found["slower"] and found["speedup"] < 1 for found in record["tried"])
        assert record["undone"]
        assert record["measured_ms"] is record["speedup"] is None


def test_a_step_that_is_slower_than_the_last_is_undone(paced):
    net = cnn()
    full = prune.macs(net, sample(IMAGE))

    def trap(net: nn.Module, macs: float) -> float:
        return 0.99 if 0.3 * full < macs < 0.62 * full else 0.2 + 0.8 * macs / full

    paced(trap)
    smaller, metrics = pruned(net, latency_ms=0.6, target={"use": PACED}, iterations=2, round_to=8)
    before, seen = 1.0, []
    for record in (record["latency"] for record in metrics["iterations"]):
        for found in record["tried"]:
            seen.append(found["slower"])
            assert found["slower"] == (found["measured_ms"] > before / 0.98)
        before = record["measured_ms"] or before
    assert any(seen)
    assert trap(smaller, prune.macs(smaller, sample(IMAGE))) == pytest.approx(before)


def test_a_goal_that_is_met_changes_nothing(paced):
    net = cnn()
    smaller, metrics = pruned(net, latency_ms=100.0, target={"use": PACED})
    assert widths(smaller) == widths(net)
    assert all(torch.equal(value, smaller.state_dict()[name]) for name, value in net.state_dict().items())
    assert [record["latency"]["tried"] for record in metrics["iterations"]] == [[], [], []]


def test_a_goal_out_of_reach_is_an_error_before_anything_is_trained(paced, monkeypatch):
    monkeypatch.setattr(Prune, "fit", lambda *_: pytest.fail("trained"))
    message = r"latency_ms = 0\.001 cannot be reached .* takes 1\.\d+ ms, and 0\.\d+ ms without .* lower round_to"
    with pytest.raises(UsageError, match=message):
        pruned(cnn(), latency_ms=0.001, target={"use": PACED}, epochs=1)


def test_int8_files_are_measured_where_they_are_asked_for(paced):
    net = cnn(16)
    pruned(net, latency_ms=0.2, target={"use": PACED}, precision="int8")
    assert Paced.precisions == {"int8", "fp32"}  # the latter for the file that does nothing


# The table of layers


def test_layers_are_told_apart_by_all_but_their_widths():
    def signature(net, shape):
        (layer,) = latency.layers(nn.Sequential(net), (torch.randn(2, *shape),))
        return layer.signature, layer.widths

    one, widths = signature(nn.Conv2d(4, 8, 3), (4, 9, 9))
    assert widths == (4, 8)
    assert signature(nn.Conv2d(6, 2, 3), (6, 9, 9)) == (one, (6, 2))
    different = [
        (nn.Conv2d(4, 8, 3), (4, 8, 9)),
        (nn.Conv2d(4, 8, 3, stride=2), (4, 9, 9)),
        (nn.Conv2d(4, 8, 1), (4, 9, 9)),
        (nn.Conv2d(4, 8, 3, bias=False), (4, 9, 9)),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 9, 9)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 9, 9)),
        (nn.ConvTranspose2d(4, 8, 3), (4, 9, 9)),
        (nn.Linear(4, 8), (4,)),
        (nn.Linear(4, 8), (3, 4)),
        (nn.LSTM(4, 8), (3, 4)),
        (nn.GRU(4, 8), (3, 4)),
        (nn.LSTM(4, 8, 2), (3, 4)),
        (nn.LSTM(4, 8, batch_first=True), (3, 4)),
    ]
    assert len({one, *(signature(*case)[0] for case in different)}) == len(different) + 1


@pytest.mark.parametrize(
    ("module", "shape", "widths"),
    [
        (nn.Conv2d(4, 8, 3), (4, 9, 9), (2, 4)),
        (nn.Conv1d(4, 8, 3), (4, 9), (2, 4)),
        (nn.ConvTranspose2d(4, 8, 3, stride=2), (4, 5, 5), (2, 4)),
        (nn.Conv2d(8, 8, 3, groups=8), (8, 9, 9), (2, 2)),
        (nn.Conv2d(8, 16, 3, groups=4), (8, 9, 9), (4, 8)),
        (nn.Linear(4, 8), (3, 4), (2, 4)),
        (nn.LSTM(4, 8, 2, bidirectional=True), (3, 4), (2, 4)),
        (nn.GRU(4, 8, batch_first=True), (3, 4), (2, 4)),
    ],
)
def test_a_layer_alone_has_the_widths_that_are_asked_for(module, shape, widths):
    (layer,) = latency.layers(nn.Sequential(module).eval(), (torch.randn(2, *shape),))
    alone, alone_shape = layer.at(widths)
    assert alone(torch.randn(1, *alone_shape)).shape[0] in (1, shape[0])
    (again,) = latency.layers(alone, (torch.randn(1, *alone_shape),))
    assert (again.widths, again.signature) == (widths, layer.signature)
    assert layer.widths != widths  # it is a copy that has them


class SelfAttention(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=first)

    def forward(self, x):
        x = x if self.attention.batch_first else x.transpose(0, 1)
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("first", [True, False])
def test_attention_alone(first):
    (layer,) = latency.layers(SelfAttention(first).eval(), (torch.randn(2, 5, 24),))
    assert layer.widths == (24, 4)
    alone, shape = layer.at((12, 2))
    assert shape == (5, 12)
    assert alone.eval()(torch.randn(1, *shape)).shape[-1] == 12


def test_the_table_is_exact_where_it_was_measured_and_kept(paced, tmp_path, monkeypatch):
    net, target = cnn(), Paced()
    paced(lambda net, macs: 0.01 + macs / 1e6)
    inputs = sample(IMAGE)
    table = LayerTable(target, "fp32")
    assert table.predict(net, inputs) == 0
    table.measure(net, inputs, prune.prunable(net, inputs)[0])
    for width in (32, 24, 16, 8):  # times that are sums of such terms are found again between the points, too
        smaller = cnn(width)
        assert table.predict(smaller, inputs) == pytest.approx(prune.macs(smaller, inputs) / 1e6, rel=0.01)
    assert table.file.is_relative_to(tmp_path)
    monkeypatch.setattr(latency.Deployment, "add", lambda *_: pytest.fail("measured again"))
    again = LayerTable(target, "fp32")
    again.measure(net, inputs, prune.prunable(net, inputs)[0])
    assert again.predict(net, inputs) == table.predict(net, inputs)
    assert LayerTable(target, "int8").file != table.file
    assert not LayerTable(target, "int8").points
    table.file.write_text("{")
    assert not LayerTable(target, "fp32").points


def test_a_layer_that_the_target_cannot_take_counts_nothing(paced):
    class Picky(Paced):
        def build(self, model, task, folder, batch_size):
            if any(isinstance(module, nn.Linear) for module in model.net.modules()):
                raise ModelFileError("no linear layers")
            return super().build(model, task, folder, batch_size)

    table = LayerTable(Picky(), "fp32")
    table.measure(cnn(), sample(IMAGE), [])
    conv = cnn()[:4]
    assert table.predict(cnn(), sample(IMAGE)) == table.predict(conv, sample(IMAGE)) > 0


@pytest.mark.parametrize("use", ["onnxruntime", "tflite"])
def test_real_files(use, tmp_path, monkeypatch):
    """Whatever the clock says, the record is consistent, and what is not faster is not kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency, "LAYER_BENCH", latency.Bench(min_seconds=0.01, rounds=2))
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )
    monkeypatch.setattr(latency_goal, "NETWORK_BENCH", latency.Bench(min_seconds=0.1, rounds=5))
    monkeypatch.setattr(latency_goal, "REACHED", 1e9)  # so that a goal out of reach is approached
    target = plugins.load("targets", use).model_validate({})
    smaller, metrics = pruned(net.eval(), latency_ms=1e-6, target=target, iterations=1)
    (file,) = (tmp_path / "edgedl" / "latency").iterdir()
    kept = json.loads(file.read_text())
    assert kept["key"]["versions"]
    assert sorted(len(points) for points in kept["layers"].values()) == [3, 3]
    assert all(time > 0 for points in kept["layers"].values() for _, _, time in points)
    assert metrics["latency"]["least_ms"] > 0
    record = metrics["iterations"][0]["latency"]
    for tried in record["tried"]:
        assert tried["measured_ms"] == pytest.approx(metrics["latency"]["given_ms"] / tried["speedup"])
        assert tried["slower"] == (tried["speedup"] < 1)
    faster = [tried for tried in record["tried"] if not tried["slower"]]
    assert record["undone"] == (not faster)
    assert record["tried"][0]["removed"] == {"0": 60}  # all that can go
    kept = min(faster, key=lambda tried: tried["measured_ms"], default={"removed": {"0": 0}})
    assert widths(smaller)["0"] == 64 - kept["removed"]["0"]


@pytest.mark.parametrize(
    ("module", "shape", "widths", "precision"),
    [(nn.Conv2d(16, 16, 3), (16, 9, 9), (16, 4), "int8"), (nn.LSTM(4, 8, batch_first=True), (3, 4), (4, 2), "fp32")],
)
def test_a_narrow_layer_alone_runs_on_tflite(module, shape, widths, precision):
    (layer,) = latency.layers(nn.Sequential(module).eval(), (torch.randn(2, *shape),))
    alone, alone_shape = layer.at(widths)
    target = plugins.load("targets", "tflite").model_validate({})
    with latency.Deployment(target, precision) as deployed:
        session, batch = deployed.add(alone, latency.Shapes(shape=alone_shape))
        (output,) = session.run(batch).values()
    assert output.any()


# In a recipe

RECIPE = """
task = { use = "digits" }
model = { use = "cnn" }
targets = [ { use = "tflite" } ]
steps = [
  { use = "train" },
  { use = "prune", STEP },
]
"""


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ('latency_ms = 0.5, target = { use = "tflit" }',
         r"r\.toml:7: steps\[1\]\.target\.use: no targets .* mean tflite"),
        ('latency_ms = 0.5, target = { use = "tflite", thread = 2 }',
         r"r\.toml:7: steps\[1\]\.target\.thread: unknown key; did you mean threads"),
        ('latency_ms = 0.5, target = { use = "tflite", threads = 0 }',
         r"r\.toml:7: steps\[1\]\.target\.threads: .*, not 0"),
        ('latency_ms = 0.5, target = "tflite"', r'r\.toml:7: steps\[1\]\.target: needs a table with use = "\.\.\."'),
        ("latency_ms = 0.5", r"r\.toml:7: steps\[1\]: latency_ms needs the target"),
        ('latency_ms = 0, target = { use = "tflite" }',
         r"r\.toml:7: steps\[1\]\.latency_ms: .* greater than 0, not 0"),
        ('size = 0.5, target = { use = "tflite" }',
         r"r\.toml:7: steps\[1\]: target and precision belong to latency_ms"),
        ("size = 0.5, macs = 0.5", r"r\.toml:7: steps\[1\]: prune needs one goal"),
        ("size = 50", r"r\.toml:7: steps\[1\]\.size: .* less than 1, not 50"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_named_where_they_are(step, message):
    with pytest.raises(RecipeError, match=message):
        recipe.parse(RECIPE.replace("STEP", step), Path("r.toml"))


def test_a_recipe_with_a_latency():
    text = RECIPE.replace("STEP", 'latency_ms = 0.5, target = { use = "onnxruntime", threads = 2 }, precision = "int8"')
    read = recipe.parse(text, Path("r.toml"))
    assert read.steps[1].model_dump()["target"] == {"use": "onnxruntime", "threads": 2, "max_batch": None}
    assert [target.use for target in read.needed_targets] == ["tflite", "onnxruntime"]
    with pytest.raises(ValidationError):
        Prune(latency_ms=0.5, target={"use": "tflite"}, precision="int4")


class Crashing(Paced):
    """A target whose converter crashes."""

    use: str = "tests.test_prune_latency:Crashing"
    builds_apart: ClassVar[bool] = True

    def build(self, model, task, folder, batch_size) -> Artifact:
        print("last words", flush=True)
        ctypes.string_at(0)
        raise AssertionError("it has crashed")


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux are processes copied")
def test_a_converter_that_crashes_is_told_in_a_line_and_a_layer_that_does_is_not_measured(paced):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    step = Prune(latency_ms=0.001, target=Crashing())
    with pytest.raises(TargetError, match=r"the converter of target .*Crashing crashed: .* SIGSEGV; .* last words"):
        step.apply(Model(net=net, teacher=net), IMAGE)
    blocks, _ = prune.prunable(net, sample(IMAGE))
    table = LayerTable(Crashing(), "fp32")
    table.measure(net, sample(IMAGE), blocks)
    assert table.predict(net, sample(IMAGE)) == 0
