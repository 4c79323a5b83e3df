"""What an exported ONNX file holds besides the network."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from edgedl.onnx_export import LAYER_NOTE, export_onnx
from edgedl.quantize.schemes import ONNXRUNTIME
from edgedl.quantize.simulate import simulate
from tests.toys import Noise


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
def test_a_file_says_which_layer_made_a_node_and_nothing_of_the_machine(quantized, tmp_path):
    task = Noise(shape=(3, 8, 8))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    graph = simulate(net, task, ONNXRUNTIME, "min-max").graph if quantized else net
    file = tmp_path / "model.onnx"
    export_onnx(graph, task, file, batch_size=1)
    model = onnx.load(file)
    onnx.checker.check_model(model)
    notes = {(node.op_type, note.key) for node in model.graph.node for note in node.metadata_props}
    assert {kind for kind, _ in notes} >= {"Conv", "Gemm"}
    assert {key for _, key in notes} == {LAYER_NOTE}
    content = file.read_bytes()
    assert torch.__file__.rpartition("/")[0].encode() not in content
    assert b".py" not in content
