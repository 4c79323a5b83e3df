"""Padding before int8 convolutions on TFLite: no transpositions around it, and none where "same" says as much."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from edgedl import stats
from edgedl.core import Model
from edgedl.measure import evaluate
from edgedl.quantize.simulate import Quantization
from edgedl.targets.tflite import TFLite
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.torch_session import TorchSession
from tests.toys import Noise

TASK = Noise(shape=(4, 9, 12))


def net(first: tuple[int, ...], second: tuple[int, ...], stride: int, depthwise: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ZeroPad2d(first),
        nn.Conv2d(4, 8, 3, stride),
        nn.ReLU(),
        nn.ZeroPad2d(second),
        nn.Conv2d(8, 8, 3, 2, groups=8 if depthwise else 1),
    ).eval()


def built(module: nn.Module, folder: Path) -> tuple[Counter[str], float]:
    """How often each operator is in the int8 file, and the file's answers against its simulation, in dB."""
    plan = Quantization(module, TASK, "min-max")
    artifact = TFLite().build(Model(net=module, quantization=plan), TASK, folder, 1)
    graph = Flatbuffer(artifact.file.read_bytes())
    session = TFLite().open(artifact.file)
    deployed = evaluate(session, TASK, "test").outputs["y"]
    session.close()
    simulated = plan.evaluated(TFLite.scheme, "test").outputs["y"]
    return Counter(map(graph.kind, graph.operators)), stats.sqnr_db(simulated, deployed)


@pytest.mark.parametrize("depthwise", [False, True])
def test_convolutions_pad_themselves_where_same_is_what_is_padded(depthwise, tmp_path):
    """As networks from TensorFlow do: one row more at the end than at the start."""
    # 9 x 12 -> 9 x 12 -> 5 x 6: at stride 2, rows want one on both sides, and columns one at the end.
    kinds, agreement = built(net((1, 1, 1, 1), (0, 1, 1, 1), 1, depthwise), tmp_path)
    assert kinds["PAD"] == 0
    assert kinds["TRANSPOSE"] == 2  # of the network's input and output alone
    assert agreement > 120


def test_other_paddings_stay_without_transpositions_around_them(tmp_path):
    kinds, agreement = built(net((2, 0, 2, 0), (3, 1, 0, 2), 1, True), tmp_path)
    assert kinds["PAD"] == 2
    assert kinds["TRANSPOSE"] == 2
    assert agreement > 120


def test_what_others_take_too_stays_as_it_is(tmp_path):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(4, 4, size) for size in (1, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            padded = nn.functional.pad(self.first(x), (0, 2, 0, 2))
            return self.second(padded) + self.third(padded)

    torch.manual_seed(1)
    _, agreement = built(Shared().eval(), tmp_path)
    assert agreement > 120


@pytest.mark.parametrize("pooling", [nn.AvgPool2d(64, ceil_mode=True), nn.AvgPool2d((9, 12))], ids=["larger", "equal"])
def test_a_window_that_holds_the_whole_image_is_a_mean_in_float_too(pooling, tmp_path):
    """The converter would fill the image up to the size of a larger window."""
    module = nn.Sequential(pooling, nn.Flatten()).eval()
    artifact = TFLite().build(Model(net=module), TASK, tmp_path, 1)
    graph = Flatbuffer(artifact.file.read_bytes())
    kinds = set(map(graph.kind, graph.operators))
    assert "MEAN" in kinds
    assert not kinds & {"PAD", "AVERAGE_POOL_2D"}
    session, expected = TFLite().open(artifact.file), evaluate(TorchSession(module, TASK), TASK, "test").outputs["y"]
    deployed = evaluate(session, TASK, "test").outputs["y"]
    session.close()
    assert stats.sqnr_db(expected, deployed) > 120


def test_other_windows_stay_what_they_are_in_float(tmp_path):
    artifact = TFLite().build(Model(net=nn.AvgPool2d(3).eval()), TASK, tmp_path, 1)
    graph = Flatbuffer(artifact.file.read_bytes())
    assert "AVERAGE_POOL_2D" in map(graph.kind, graph.operators)
