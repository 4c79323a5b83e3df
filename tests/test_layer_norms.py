"""Layer norms on TFLite: the same numbers by fewer operators."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgedl import stats
from edgedl.core import Model
from edgedl.measure import evaluate
from edgedl.targets.tflite import TFLite
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.tflite.layer_norms import layer_norm
from tests.toys import Noise

TASK = Noise(shape=(6, 128), num_samples=16)
LITERT = TFLite()


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_it_is_a_layer_norm(shape, affine):
    torch.manual_seed(0)
    norm = nn.LayerNorm(shape, eps=0.1, elementwise_affine=affine).double()
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64) + 3
    torch.testing.assert_close(layer_norm(x, shape, norm.weight, norm.bias, norm.eps), norm(x))


def test_files_answer_as_the_network_by_few_operators(tmp_path):
    torch.manual_seed(0)
    norm = nn.LayerNorm(128)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    net = nn.Sequential(nn.Linear(128, 128), norm, nn.Linear(128, 2)).eval()
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
