"""The ladder on really broken exporters: caught, named by layer, and not shipped."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgedl import gate, ladder, measure
from edgedl.core import Activation, Limits, Model
from edgedl.quantize.simulate import Quantization
from edgedl.targets.onnxruntime import OnnxRuntime
from edgedl.targets.tflite import TFLite
from edgedl.torch_session import TorchSession
from tests.toys import Noise

TASK = Noise(shape=(3, 12, 12))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "stem": nn.Conv2d(3, 8, 3, padding=1),
        "stem_relu": nn.ReLU(),
        "body": nn.Conv2d(8, 16, 3, padding=1),
        "body_relu": nn.ReLU(),
        "flatten": nn.Flatten(),
        "head": nn.Linear(16 * 144, 10),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net.eval()


class DoubledScale(OnnxRuntime):
    """An exporter with a bug: the scale behind `body` is twice what it should be where it is dequantized."""

    def build(self, model, task, folder, batch_size):
        artifact = super().build(model, task, folder, batch_size)
        content = onnx.load(str(artifact.file))
        edit_body(content, lambda scale: scale * 2)
        onnx.save(content, str(artifact.file))
        return artifact


class SwappedChannels(OnnxRuntime):
    """An exporter with a bug: the first two output channels of `body` have changed places."""

    def build(self, model, task, folder, batch_size):
        artifact = super().build(model, task, folder, batch_size)
        content = onnx.load(str(artifact.file))
        for index, initializer in enumerate(content.graph.initializer):
            values = numpy_helper.to_array(initializer).copy()
            if values.shape[:2] == (16, 8):
                values[[0, 1]] = values[[1, 0]]
                content.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, initializer.name))
        onnx.save(content, str(artifact.file))
        return artifact


def edit_body(content: onnx.ModelProto, change) -> None:
    """Changes the activation scale behind the second convolution, in its QuantizeLinear alone."""
    convolutions = [node for node in content.graph.node if node.op_type == "Conv"]
    follower = convolutions[1].output[0]
    quantize = next(
        node for node in content.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == follower
    )
    scale = next(item for item in content.graph.initializer if item.name == quantize.input[1])
    changed = numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(scale))), "changed_scale")
    content.graph.initializer.append(changed)
    quantize.input[1] = "changed_scale"


def climbed(net: nn.Module, target, folder, quantized: bool = True) -> ladder.Climb:
    model = Model(net=net, quantization=Quantization(net, TASK, "min-max") if quantized else None)
    artifact = target.build(model, TASK, folder, 1)
    reference = measure.evaluate(TorchSession(net, TASK), TASK, "test")
    above = (ladder.rung("float", reference.score, (), TASK),)
    return ladder.climb(model, reference, above, target, target.open(artifact.file), TASK)


def candidate(variant: str, climb: ladder.Climb) -> gate.Candidate:
    return gate.Candidate(variant, 1000, climb, speedup=None)


@pytest.mark.parametrize("broken", [DoubledScale, SwappedChannels])
def test_a_broken_exporter_is_caught_named_and_not_shipped(net, broken, tmp_path):
    climb = climbed(net, broken(), tmp_path)
    assert climb.breach is not None
    assert climb.first_divergence is not None
    assert climb.first_divergence.layer.startswith("body")
    assert "layer body" in climb.breach
    sound = climbed(net, OnnxRuntime(), tmp_path, quantized=False)
    limits = Limits(score_drop=1e9)  # the score alone would let it pass
    verdict = gate.judge(
        candidate("float", sound), [candidate("compressed", climb)], {}, limits, TASK.metric, "here", None
    )
    assert verdict.ship == "float"
    assert "layer body" in verdict.refused["compressed"]


def test_a_broken_float_exporter_is_caught_too(net, tmp_path):
    climb = climbed(net, SwappedChannels(), tmp_path, quantized=False)
    assert climb.breach is not None
    assert climb.first_divergence.layer.startswith("body")
    verdict = gate.judge(candidate("float", climb), [], {}, Limits(), TASK.metric, "here", None)
    assert verdict.ship == "none"


@pytest.mark.parametrize("target", [OnnxRuntime(), TFLite()], ids=lambda target: target.use)
def test_a_sound_exporter_passes_in_float_and_int8(net, target, tmp_path):
    for quantized in (False, True):
        climb = climbed(net, target, tmp_path, quantized)
        assert climb.breach is None
        assert climb.first_divergence is None
    assert [rung.name for rung in climb.rungs] == ["float", "simulated", "deployed"]
    if target.scheme.float_outputs == "sums":  # the last layer's sums as they are, to the last bit of a float32 product
        assert climb.agreement.sqnr_db > 120
    else:
        assert climb.agreement.max_steps == 0
        assert climb.agreement.sqnr_db == 240


@pytest.mark.parametrize("target", [OnnxRuntime(), TFLite()], ids=lambda target: target.use)
def test_every_layer_is_found_inside_the_deployed_file(net, target, tmp_path):
    """The search that names a layer really sees them all: none of the simulated values is missing in the file."""
    from edgedl.quantize.simulate import activations

    model = Model(net=net, quantization=Quantization(net, TASK, "min-max"))
    session = target.open(target.build(model, TASK, tmp_path, 1).file)
    batch = measure.sample(TASK, session)
    simulated = activations(model.graph(target.scheme), list(batch.values()))
    quantized = {"stem", "body"} if target.scheme.float_outputs == "sums" else {"stem", "body", "head"}
    assert quantized <= {value.layer.split("_")[0] for value in simulated}
    assert ladder.first_divergence(simulated, session.activations(batch), 60) is None
    for index, value in enumerate(simulated):
        shifted = [*simulated[:index], Activation("here", -value.values - 1, value.scale), *simulated[index + 1 :]]
        assert ladder.first_divergence(shifted, session.activations(batch), 60).layer == "here"


class Played(Noise):
    """Says beside the outputs what came of them, which differs from call to call."""

    use: str = "played"

    def predict(self, session, batch):
        return {**super().predict(session, batch), "return": np.random.default_rng().random(len(batch["x0"]))}


def test_what_comes_of_outputs_is_not_compared(net, tmp_path):
    task = Played(shape=(3, 12, 12))
    model, target = Model(net=net), OnnxRuntime()
    source = measure.evaluate(TorchSession(net, task), task, "test")
    session = target.open(target.build(model, task, tmp_path, 1).file)
    found = ladder.climb(model, source, (), target, session, task)
    assert found.agreement.sqnr_db > 100
    assert found.breach is None
    assert (found.deployed.outputs["return"] != source.outputs["return"]).all()


def test_a_value_in_another_order_is_found_and_one_that_differs_is_named():
    """Converters merge transpositions: what lies between two may stand in a file in an order of its own."""
    values = np.random.default_rng(0).integers(-100, 100, (4, 5, 6)).astype(np.float32)
    simulated = [Activation("attention", values, 1.0)]
    turned = [Activation("t", np.random.default_rng(1).normal(size=120), None), Activation("u", values.T, 1.0)]
    assert ladder.first_divergence(simulated, turned, 60) is None
    one_off = [Activation("u", (values + (values == values.max())).T, 1.0)]
    found = ladder.first_divergence(simulated, one_off, 60)
    assert found is not None
    assert (found.layer, found.max_steps, found.deployed_tensor) == ("attention", 1, "u")


def test_a_value_without_a_tensor_of_its_own_is_no_divergence_where_a_later_one_is():
    rng = np.random.default_rng(0)
    joined, normed = rng.integers(-100, 100, (2, 40)).astype(np.float32)
    simulated = [Activation("join", joined, 1.0), Activation("norm", normed, 1.0)]
    deployed = [Activation("t", rng.normal(size=40), None), Activation("u", normed + (normed == normed.max()), 1.0)]
    found = ladder.first_divergence(simulated, deployed, 60, outputs_agree=True)
    assert found is not None
    assert (found.layer, found.max_steps, found.deployed_tensor) == ("norm", 1, "u")
    for outputs_agree, seen in ((False, deployed), (True, [deployed[0], Activation("u", normed, 1.0)])):
        found = ladder.first_divergence(simulated, seen, 60, outputs_agree=outputs_agree)
        assert found is not None
        assert found.layer == "join"
