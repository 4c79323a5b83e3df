"""Transposed convolutions: int8 kernels for them on LiteRT, ordinary convolutions where a runtime has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgedl import measure, plugins
from edgedl.core import Model
from edgedl.flatbuffer import Flatbuffer
from edgedl.torch_session import TorchSession
from edgedl.transposed import finished
from tests.test_quantize_operators import deployed
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
    "sequence": (nn.ConvTranspose1d(8, 4, 4, 2, 1), SEQUENCE),
    "sequence, stride 1": (nn.Sequential(nn.ConvTranspose1d(8, 4, 3, 1, 1), nn.ReLU()), SEQUENCE),
}


def kinds(file: Path) -> list[str]:
    graph = Flatbuffer(file.read_bytes())
    return [graph.kind(operator) for operator in graph.operators]


@pytest.mark.parametrize("variant", VARIANTS)
def test_litert_computes_in_integers_between_one_quantize_and_one_dequantize(variant, tmp_path):
    net, shape = VARIANTS[variant]
    climb = deployed(net, Noise(shape=shape), plugins.load("targets", "tflite")(), tmp_path)
    assert climb.agreement.max_steps == 0, climb.first_divergence
    found = kinds(tmp_path / "model.tflite")
    assert found.count("QUANTIZE") == found.count("DEQUANTIZE") == 1
    assert "REVERSE_V2" not in found


def test_biases_that_batch_norms_are_folded_into_are_vectors_in_float(tmp_path):
    net, shape = VARIANTS["generator"]
    graph = Flatbuffer(float_file(net, shape, tmp_path).read_bytes())
    places = {"CONV_2D": 2, "TRANSPOSE_CONV": 3}
    biases = [
        graph.tensors[operator.inputs[places[graph.kind(operator)]]]
        for operator in graph.operators
        if graph.kind(operator) in places
    ]
    assert len(biases) == 4
    assert all(len(bias.shape) == 1 for bias in biases)


def float_file(net: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    """The float form on LiteRT, whose answers are the network's."""
    task, target = Noise(shape=shape), plugins.load("targets", "tflite")()
    file = target.build(Model(net=net.eval()), task, folder, batch_size=1).file
    session = target.open(file)
    found, wanted = (measure.evaluate(one, task, "test", 8).outputs["y"] for one in (session, TorchSession(net, task)))
    session.close()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    return file
