"""Dense layers and embeddings whose outputs share a scale: deployed against simulated, and what files save by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgedl import ladder, measure, plugins, recipe
from edgedl.core import Model, RecipeError, Target
from edgedl.quantize.integer import QUANTIZE_WEIGHT
from edgedl.quantize.schemes import LITERT
from edgedl.quantize.simulate import Quantization
from edgedl.steps.quantize import Quantize
from edgedl.tasks.digits import Digits
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.torch_session import TorchSession
from tests.toys import Noise, Tokens

torch.manual_seed(0)  # for the weights of the networks below


NETWORKS = {
    "image": (
        nn.Sequential(
            *(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 24), nn.ReLU()),
            *(nn.Linear(24, 400), nn.ReLU(), nn.Linear(400, 10)),
        ).eval(),
        Noise(shape=(8, 6, 6)),
    ),
    "tokens": (
        nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 300, bias=False), nn.ReLU(), nn.Linear(300, 32)).eval(),
        Tokens(shape=(7,)),
    ),
}


def target_of(use: str) -> Target:
    found = plugins.load("targets", use).model_validate({})
    assert isinstance(found, Target)
    return found


def scales_of(graph: torch.fx.GraphModule) -> dict[str, list[int]]:
    """How many different scales each weight has, of how many, by what it is the weight of."""
    found: dict[str, list[int]] = {}
    for node in graph.graph.nodes:
        if node.target == QUANTIZE_WEIGHT:
            scales = getattr(graph, str(node.args[1].target))
            (dequantize,) = node.users
            for user in dequantize.users:
                found[str(user.target)] = [len(scales.unique()), len(scales)]
    return found


CASES = [
    (name, use, form)
    for name in NETWORKS
    for use in ("tflite", "onnxruntime", "tensorrt-rtx")
    for form in ("int8", "int8 dynamic", "int8 weights")
    if form in target_of(use).forms
]


@pytest.mark.parametrize(("name", "use", "form"), CASES)
def test_files_repeat_the_simulation_with_one_scale(name, use, form, tmp_path):
    net, task = NETWORKS[name]
    plan = Quantization(net, task, "min-max", (), forms=(form,), granularity="tensor")
    model, target = Model(net=net, quantization=plan), target_of(use)
    kinds = scales_of(model.graph(target.scheme))
    assert kinds["aten.linear.default"][0] == 1 < kinds["aten.linear.default"][1]
    if name == "image":
        assert kinds["aten.conv2d.default"] == [32, 32]

    artifact = target.build(model, task, tmp_path, 1)
    session = target_of("onnxruntime" if artifact.stand_in else use).open(artifact.stand_in or artifact.file)
    reference = measure.evaluate(TorchSession(net, task), task, "test")
    above = (ladder.rung("float", reference.score, (), task),)
    climb = ladder.climb(model, reference, above, target, session, task)
    session.close()
    assert climb.breach is None
    assert climb.quantization_db > 25


@pytest.mark.parametrize(("form", "bytes_each"), [("int8", 16), ("int8 weights", 4)])
def test_tflite_files_hold_a_scale_once(form, bytes_each, tmp_path):
    net, task = NETWORKS["image"]
    sizes = {}
    for granularity in ("channel", "tensor"):
        plan = Quantization(net, task, "min-max", (), forms=(form,), granularity=granularity)
        (folder := tmp_path / granularity).mkdir()
        artifact = target_of("tflite").build(Model(net=net, quantization=plan), task, folder, 1)
        sizes[granularity] = artifact.size_bytes
    graph = Flatbuffer(artifact.file.read_bytes())
    weights = {tensor.shape[0]: len(tensor.quantization.scale) for tensor in graph.tensors
               if tensor.type == graph.schema.TensorType.INT8 and graph.constant(tensor)}  # fmt: skip
    assert {weights[outputs] for outputs in (24, 400, 10)} == {1}
    assert sizes["channel"] - sizes["tensor"] > 400 * bytes_each


def test_corrections_leave_one_scale_one():
    net, task = NETWORKS["image"]
    plan = Quantization(net, task, "min-max", ("adaround", "re-estimation", "headroom"), granularity="tensor")
    kinds = scales_of(plan.simulated(LITERT).graph)
    assert kinds["aten.linear.default"][0] == 1
    assert kinds["aten.conv2d.default"][0] == 32


def test_a_network_is_trained_for_one_scale():
    task = Digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, 10)).eval()
    step = Quantize(method="qat", granularity="tensor", calibrator="min-max", corrections=(), epochs=1, lr=1e-3)
    model = step.apply(Model(net=net), task)
    assert scales_of(model.graph(LITERT))["aten.linear.default"][0] == 1


@pytest.mark.parametrize(
    "step",
    ['precision = "int4", granularity = "tensor"', 'precision = "fp16", granularity = "tensor"', 'granularity = "row"'],
)
def test_what_has_no_such_scales_is_refused(step):
    text = f'task = {{ use = "digits" }}\nmodel = {{ use = "mlp" }}\nsteps = [{{ use = "quantize", {step} }}]\n'
    with pytest.raises(RecipeError, match="granularity"):
        recipe.parse(text + 'targets = [{ use = "tflite" }]\n', Path("own.toml"))
