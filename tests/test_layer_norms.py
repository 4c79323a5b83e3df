"""Layer norms on TFLite: the same numbers by fewer operators, and float layers that take float values as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgedl import stats
from edgedl.core import Model
from edgedl.measure import evaluate
from edgedl.quantize.integer import DEQUANTIZE
from edgedl.quantize.simulate import Quantization
from edgedl.targets.onnxruntime import OnnxRuntime
from edgedl.targets.tflite import TFLite
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.tflite.layer_norms import layer_norm
from tests.toys import Noise

TASK = Noise(shape=(6, 128), num_samples=16)
LITERT, ORT = TFLite(), OnnxRuntime()


@pytest.fixture
def net() -> nn.Module:
    """Its last layer is small enough to compute in float."""
    torch.manual_seed(0)
    rows = [nn.Linear(128, 128), nn.LayerNorm(128), nn.Linear(128, 2)]
    nn.init.normal_(rows[1].weight), nn.init.normal_(rows[1].bias)
    return nn.Sequential(*rows).eval()


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_it_is_a_layer_norm(shape, affine):
    torch.manual_seed(0)
    norm = nn.LayerNorm(shape, eps=0.1, elementwise_affine=affine).double()
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64) + 3
    torch.testing.assert_close(layer_norm(x, shape, norm.weight, norm.bias, norm.eps), norm(x))


def test_files_answer_as_the_network_by_few_operators(net, tmp_path):
    file = LITERT.build(Model(net=net), TASK, tmp_path, 1).file
    graph = Flatbuffer(file.read_bytes())
    found = [graph.kind(operator) for operator in graph.operators if graph.name(operator).startswith("1;")]
    assert sorted(set(found) - {"RESHAPE"}) == ["ADD", "MEAN", "MUL", "RSQRT", "SUB"]
    assert len(found) <= 10  # two of which are weight and bias
    session = LITERT.open(file)
    deployed = evaluate(session, TASK, "test").outputs["y"]
    session.close()
    with torch.no_grad():
        assert stats.sqnr_db(net(torch.from_numpy(TASK.arrays("test")["x0"])).numpy(), deployed) > 120


@pytest.mark.parametrize(
    ("target", "form", "on_a_grid"),
    [(LITERT, "int8 layers", False), (LITERT, "int8", True), (ORT, "int8 layers", True)],
)
def test_a_last_layer_in_float_takes_float_values_as_they_are(net, target, form, on_a_grid, tmp_path):
    plan = Quantization(net, TASK, "min-max").in_form(form)
    *_, last = (node for node in plan.simulated(target.scheme).graph.graph.nodes if "linear" in str(node.target))
    assert (last.args[0].target == DEQUANTIZE) == on_a_grid
    session = target.open(target.build(Model(net=net, quantization=plan), TASK, tmp_path, 1).file)
    deployed = evaluate(session, TASK, "test").outputs["y"]
    session.close()
    assert stats.sqnr_db(plan.evaluated(target.scheme, "test").outputs["y"], deployed) > 100
