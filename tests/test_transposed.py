"""Transposed convolutions: int8 kernels for them on LiteRT, ordinary convolutions where a runtime has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgedl import measure, plugins
from edgedl.core import Model
from edgedl.quantize.simulate import Quantization
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.tflite.transposed import finished
from edgedl.torch_session import TorchSession
from tests.test_quantize_operators import assert_repeats, deployed
from tests.toys import Noise

torch.manual_seed(0)

IMAGE, SEQUENCE = (8, 9, 10), (8, 20)


def generator() -> nn.Sequential:
    """Two doublings with batch norms that don't do nothing, in a network that begins and ends otherwise."""
    layers = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    for inputs, outputs in ((8, 6), (6, 4)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Conv2d(4, 3, 3, padding=1), nn.Tanh())
    with torch.no_grad():
        net.train()(torch.randn(32, *IMAGE))
    return net.eval()


VARIANTS = {
    "generator": (generator(), IMAGE),
    "no bias": (nn.ConvTranspose2d(8, 6, 2, 2, bias=False), IMAGE),
    "one channel, then tanh": (nn.Sequential(nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh()), IMAGE),
    "then ReLU6": (nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU6()), IMAGE),
    "stride 1": (nn.ConvTranspose2d(8, 6, 3, 1, 1), IMAGE),
    "stride 1, dilated": (nn.ConvTranspose2d(8, 6, 3, 1, 1, dilation=2), IMAGE),
    "stride 3": (nn.ConvTranspose2d(8, 6, 3, 3), IMAGE),
    "no padding": (nn.ConvTranspose2d(8, 6, 3, 2), IMAGE),
    "padding that LiteRT doesn't know": (nn.Sequential(nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.ReLU6()), IMAGE),
    "uneven": (nn.ConvTranspose2d(8, 6, (5, 3), (2, 1), (2, 0)), IMAGE),
    "groups": (nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2), IMAGE),
    "sequence": (nn.ConvTranspose1d(8, 4, 4, 2, 1), SEQUENCE),
    "sequence, groups": (nn.ConvTranspose1d(8, 4, 3, 2, 1, 1, groups=4), SEQUENCE),
    "sequence, stride 1": (nn.Sequential(nn.ConvTranspose1d(8, 4, 3, 1, 1), nn.ReLU()), SEQUENCE),
}


def kinds(file: Path) -> list[str]:
    graph = Flatbuffer(file.read_bytes())
    return [graph.kind(operator) for operator in graph.operators]


@pytest.mark.parametrize("variant", VARIANTS)
def test_litert_computes_in_integers_between_one_quantize_and_one_dequantize(variant, tmp_path):
    net, shape = VARIANTS[variant]
    climb = deployed(net, Noise(shape=shape), plugins.load("targets", "tflite")(), tmp_path)
    assert_repeats(climb)
    found = kinds(tmp_path / "model.tflite")
    assert found.count("QUANTIZE") == found.count("DEQUANTIZE") == 1
    assert "REVERSE_V2" not in found


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "stride 1" not in name and "sequence" not in name])
def test_onnxruntime_repeats_the_simulation_in_kernels_of_ordinary_convolutions(variant, tmp_path):
    net, shape = VARIANTS[variant]
    climb = deployed(net, Noise(shape=shape), plugins.load("targets", "onnxruntime")(), tmp_path)
    has_one_stride = variant != "uneven"
    assert_repeats(climb, exactly=has_one_stride)
    assert ("ConvTranspose" in profiled(tmp_path / "model.onnx")) == (not has_one_stride)


def profiled(file: Path) -> set[str]:
    """The kinds of kernels that a file runs on onnxruntime."""
    session = plugins.load("targets", "onnxruntime")().open(file)
    found = {time.kind for time in session.profile(measure.random_inputs(session.inputs))}
    session.close()
    return found


def test_a_layer_that_runs_twice_is_rewritten_twice(tmp_path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ConvTranspose2d(8, 4, 4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).relu() + self.layer(-x)

    climb = deployed(Twice(), Noise(shape=IMAGE), plugins.load("targets", "onnxruntime")(), tmp_path)
    assert_repeats(climb)


@pytest.mark.parametrize("variant", ["generator", "padding that LiteRT doesn't know", "uneven", "groups"])
def test_float_on_litert_is_the_network_in_ordinary_convolutions_where_it_can(variant, tmp_path):
    net, shape = VARIANTS[variant]
    file = float_file(net, shape, tmp_path)
    assert ("TRANSPOSE_CONV" in kinds(file)) == (variant in ("uneven", "groups"))


def test_a_bias_that_a_batch_norm_is_folded_into_becomes_a_vector(tmp_path):
    """XNNPACK leaves operators with others to a slower kernel; made by hand, for few get there as they are."""
    net = nn.Sequential(nn.ConvTranspose2d(8, 6, (4, 2), (2, 1), (1, 0)), nn.BatchNorm2d(6), nn.ReLU())
    graph = Flatbuffer(float_file(net, IMAGE, tmp_path).read_bytes())
    (operator,) = [operator for operator in graph.operators if graph.kind(operator) == "TRANSPOSE_CONV"]
    bias = graph.tensors[operator.inputs[3]]
    bias.shape = [1, 1, 1, 6]
    repaired = Flatbuffer(finished(graph.pack()))
    (operator,) = [operator for operator in repaired.operators if repaired.kind(operator) == "TRANSPOSE_CONV"]
    assert list(repaired.tensors[operator.inputs[3]].shape) == [6]
    assert finished(repaired.pack()) == repaired.pack()


@pytest.mark.parametrize("form", ["int8 weights", "int8 dynamic"])
@pytest.mark.parametrize("variant", ["no bias", "padding that LiteRT doesn't know"])
def test_stored_weights_are_not_turned_around_at_every_inference(variant, form, tmp_path):
    net, shape = VARIANTS[variant]
    task, target = Noise(shape=shape), plugins.load("targets", "tflite")()
    model = Model(net=net.eval(), quantization=Quantization(net, task, forms=(form,)))
    file = target.build(model, task, tmp_path, batch_size=1).file
    graph = Flatbuffer(file.read_bytes())
    takers = [operator for operator in graph.operators if graph.kind(operator) in ("CONV_2D", "TRANSPOSE_CONV")]
    weights = {int(operator.inputs[1]) for operator in takers}
    held = set(graph.dequantized_constants()) | {index for index in weights if graph.constant(graph.tensors[index])}
    assert weights <= held


def float_file(net: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    """The float form on LiteRT, whose answers are the network's."""
    task, target = Noise(shape=shape), plugins.load("targets", "tflite")()
    file = target.build(Model(net=net.eval()), task, folder, batch_size=1).file
    session = target.open(file)
    found, wanted = (measure.evaluate(one, task, "test", 8).outputs["y"] for one in (session, TorchSession(net, task)))
    session.close()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    return file


def test_the_converter_is_left_as_it_was(tmp_path):
    import litert_torch

    net = nn.ConvTranspose2d(8, 6, 4, 2, 1).eval()
    plugins.load("targets", "tflite").model_validate({}).build(Model(net=net), Noise(shape=IMAGE), tmp_path, 1)
    litert_torch.convert(net, (torch.zeros(1, *IMAGE),)).export(str(tmp_path / "own.tflite"))  # a person's own use
    file = Flatbuffer((tmp_path / "own.tflite").read_bytes())
    assert any(file.kind(operator) == "TRANSPOSE_CONV" for operator in file.operators)
