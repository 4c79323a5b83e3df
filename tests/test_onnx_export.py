"""What an exported ONNX file holds besides the network."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgedl import plugins
from edgedl.core import Model, TargetError
from edgedl.measure import evaluate
from edgedl.onnx.export import LAYER_NOTE, export_onnx
from edgedl.quantize.schemes import ONNXRUNTIME
from edgedl.quantize.simulate import simulate
from edgedl.targets.onnxruntime import OnnxRuntime
from edgedl.targets.tensorrt_rtx import TensorRTRTX
from edgedl.torch_session import TorchSession
from tests.toys import Apply, Noise


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


def test_attention_in_windows_is_exported_though_its_views_fit_another_layout(tmp_path):
    from transformers import SwinConfig, SwinModel

    task = Noise(shape=(3, 16, 16), num_samples=2)
    config = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[2], num_heads=[2], window_size=2)
    net = Pooled(SwinModel(config)).eval()
    file = tmp_path / "model.onnx"
    export_onnx(net, task, file, batch_size=1)
    x = task.arrays("test")["x0"][:1]
    (found,) = onnxruntime.InferenceSession(file).run(None, {"x0": x})
    with torch.no_grad():
        np.testing.assert_allclose(found, net(torch.from_numpy(x)), atol=1e-5)


class Pooled(nn.Module):
    """What a network of `transformers` answers in short."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).pooler_output


class Angles(nn.Module):
    """Answers by an operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_what_the_exporter_says_is_one_line(tmp_path):
    said = r"exporter cannot translate operator aten\.special_bessel_j0\.default, made by .*: No ONNX function found"
    with pytest.raises(TargetError, match=said) as raised:
        export_onnx(Angles().eval(), Noise(shape=(8,)), tmp_path / "model.onnx", batch_size=1)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("told", [None, 0.0], ids=["by-default", "explicit"])
def test_zeros_before_a_max_pooling_stay_zeros(told, tmp_path):
    """onnxruntime lets the pooling pad instead, with minus infinity, if it finds a zero, told or not."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 1)
    padded = Apply(lambda x: nn.functional.pad(x - 9, (1, 1, 1, 1), value=told))
    task, net = Noise(), nn.Sequential(conv, padded, nn.MaxPool2d(3, 2)).eval()
    wanted = evaluate(TorchSession(net, task), task, "test").outputs["y"]
    assert (wanted == 0).any()
    session = OnnxRuntime().open(OnnxRuntime().build(Model(net=net), task, tmp_path, 1).file)
    np.testing.assert_allclose(evaluate(session, task, "test").outputs["y"], wanted, atol=1e-5)
    session.close()
    (tmp_path / "engine").mkdir()
    assert TensorRTRTX().build(Model(net=net), task, tmp_path / "engine", 1).status in ("built", "ok")


def test_quantized_networks_with_global_poolings_are_traced_once(tmp_path, monkeypatch):
    """What torch.onnx cannot translate, as such poolings, would make it trace the whole graph again."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    graph = simulate(net, Noise(), ONNXRUNTIME, "min-max").graph
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    export_onnx(graph, Noise(), tmp_path / "int8.onnx", batch_size=1)
    assert "ReduceMean" in [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]


def test_an_engines_file_is_run_with_every_change_of_grid_that_it_has(tmp_path):
    value = onnx.helper.make_tensor_value_info
    wanted = given = np.linspace(-6, 6, 64, dtype=np.float32)[None]
    nodes, constants, last = [], [onnx.numpy_helper.from_array(np.int8(0), "zero")], "x"
    for scale in np.array([0.1, 0.25, 0.07], np.float32):
        name = f"by_{len(nodes)}"
        constants.append(onnx.numpy_helper.from_array(scale, name))
        nodes.append(onnx.helper.make_node("QuantizeLinear", [last, name, "zero"], [f"{name}_codes"]))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [f"{name}_codes", name, "zero"], [f"{name}_real"]))
        wanted, last = np.clip(np.rint(wanted / scale), -128, 127) * scale, f"{name}_real"
    float_ = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "grids", [value("x", float_, [1, 64])], [value(last, float_, [1, 64])], constants
    )
    file = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), file)
    np.testing.assert_allclose(plugins.stand_in().open(file).run({"x": given})[last], wanted, atol=1e-6)
