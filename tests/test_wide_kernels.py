"""Depthwise convolutions of many taps on TFLite: sums of narrower ones, which XNNPACK has kernels for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgedl import stats
from edgedl.core import Model
from edgedl.measure import evaluate
from edgedl.quantize.simulate import Quantization
from edgedl.targets.tflite import TFLite
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.tflite.wide_kernels import MOST_TAPS, tiles
from tests.toys import Noise

ONE = TFLite()
TASK = Noise(shape=(8, 11, 12), num_samples=16)
WIDE = {
    "7 x 7": nn.Conv2d(8, 8, 7, padding=3, groups=8),
    "7 x 7, every other place": nn.Conv2d(8, 8, 7, stride=2, padding=3, groups=8),
    "9 x 3, with one padding more than it keeps": nn.Conv2d(8, 8, (9, 3), padding=(2, 2), groups=8, bias=False),
    "6 x 6, spread": nn.Conv2d(8, 8, 6, dilation=2, padding=1, groups=8),
}


def network(wide: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), wide, nn.ReLU6(), nn.Conv2d(8, 4, 1)).eval()


def answered(model: Model, folder: Path, target: TFLite = ONE, task: Noise = TASK) -> np.ndarray:
    """By the file, in which no depthwise kernel has too many taps."""
    artifact = target.build(model, task, folder, 1)
    graph = Flatbuffer(artifact.file.read_bytes())
    weights = [int(made.inputs[1]) for made in graph.operators if graph.kind(made) == "DEPTHWISE_CONV_2D"]
    assert len(weights) > 1
    made = [graph.tensors[operator.outputs[0]].name for operator in graph.operators if "narrow" in graph.name(operator)]
    assert len(set(made)) == len(made) > 1
    assert all(np.prod(graph.shape(weight)[1:3]) <= MOST_TAPS for weight in weights)
    assert artifact.rewrites == {"wide depthwise kernels made sums of narrower ones": 1}
    session = target.open(artifact.file)
    outputs = evaluate(session, task, "test").outputs["y"]
    session.close()
    return outputs


@given(st.integers(1, 40), st.integers(1, 40))
def test_every_tap_is_in_one_tile(height, width):
    seen = np.zeros((height, width), int)
    for tile in tiles(height, width):
        assert tile.height * tile.width <= MOST_TAPS
        seen[tile.row : tile.row + tile.height, tile.column : tile.column + tile.width] += 1
    assert (seen == 1).all()
    assert (len(tiles(height, width)) == 1) == (height * width <= MOST_TAPS)


@pytest.mark.parametrize("name", WIDE)
def test_float_files_answer_as_the_network_does(name, tmp_path):
    net = network(WIDE[name])
    with torch.no_grad():
        wanted = net(torch.from_numpy(TASK.arrays("test")["x0"])).numpy()
    assert stats.sqnr_db(wanted, answered(Model(net=net), tmp_path)) > 120


@pytest.mark.parametrize(
    ("name", "form"),
    [("7 x 7", "int8"), ("7 x 7", "int8 dynamic"), ("7 x 7", "fp16"), ("6 x 6, spread", "int8")],
)
def test_compressed_files_repeat_their_simulation(name, form, tmp_path):
    net = network(WIDE[name])
    plan = Quantization(net, TASK, "min-max").in_form(form)
    deployed = answered(Model(net=net, quantization=plan), tmp_path)
    assert np.array_equal(plan.evaluated(TFLite.scheme, "test").outputs["y"], deployed)


@pytest.mark.parametrize("form", ["int8", "int8 dynamic"])
def test_long_kernels_of_sequences_too(form, tmp_path):
    """As speech has them: 31 taps see 31 frames."""
    torch.manual_seed(0)
    task = Noise(shape=(8, 40), num_samples=16)
    net = nn.Sequential(nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 8, 31, padding=15, groups=8), nn.Conv1d(8, 4, 1))
    plan = Quantization(net.eval(), task, "min-max").in_form(form)
    deployed = answered(Model(net=net, quantization=plan), tmp_path, task=task)
    assert stats.sqnr_db(plan.evaluated(TFLite.scheme, "test").outputs["y"], deployed) > 120


def test_files_for_any_batch_have_narrow_kernels_too(tmp_path):
    net = network(WIDE["7 x 7"])
    answers = answered(Model(net=net), tmp_path, TFLite(max_batch=4))
    with torch.no_grad():
        wanted = net(torch.from_numpy(TASK.arrays("test")["x0"])).numpy()
    assert stats.sqnr_db(wanted, answers) > 120


def test_a_kernel_of_25_taps_stays_as_it_is(tmp_path):
    net = network(nn.Conv2d(8, 8, 5, padding=2, groups=8))
    artifact = TFLite().build(Model(net=net), TASK, tmp_path, 1)
    kinds = [graph.kind(made) for graph in [Flatbuffer(artifact.file.read_bytes())] for made in graph.operators]
    assert kinds.count("DEPTHWISE_CONV_2D") == 1
    assert "SLICE" not in kinds
