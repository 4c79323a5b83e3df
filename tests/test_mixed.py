"""Networks of which a part stays in float: what is left there, what it is worth, and which form of all is kept."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgedl import ladder, measure, pipeline, plugins, recipe, stats
from edgedl.core import Model, Task, UsageError
from edgedl.quantize import mixed, sensitivity
from edgedl.quantize.integer import DEQUANTIZE
from edgedl.quantize.schemes import AFFINE, LITERT, ONNXRUNTIME
from edgedl.quantize.simulate import Quantization
from edgedl.torch_session import TorchSession
from tests.toys import Noise, Residual

TASK = Noise()


class Parts(nn.Module):
    """Three blocks, of which the second has one channel that is a thousand times as loud as the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential()
        self.first.add_module("conv", nn.Conv2d(8, 8, 3, padding=1))
        self.first.add_module("relu", nn.ReLU())
        self.second = Residual(8)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        with torch.no_grad():
            self.second.conv1.weight[0] *= 1000
            self.second.conv2.weight[:, 0] /= 1000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Parts().eval()


@pytest.fixture(scope="module")
def plan(net) -> Quantization:
    return Quantization(net, TASK, "min-max")


class Tokens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).long()


def noise(net: nn.Module, plan: Quantization, task: Task = TASK) -> float:
    """Output SNR in dB over the test split."""
    reference = measure.evaluate(TorchSession(net, task), task, "test").outputs["y"]
    return stats.sqnr_db(reference, plan.simulated(LITERT).evaluated("test").outputs["y"])


def test_blocks_are_the_modules_that_hold_layers(plan):
    assert mixed.parts(plan.simulated(AFFINE).draft) == ["first", "second", "head.2"]


def test_the_loud_block_is_the_most_sensitive(net, plan):
    found = sensitivity.of_parts(plan.simulated(AFFINE), net, TASK)
    assert min(found, key=lambda name: found[name].sqnr_db) == "second"


def test_leaving_it_in_float_pays(net, plan):
    static, in_part = plan.in_form("int8"), plan.in_form("mixed", ["second"])
    assert noise(net, in_part) > noise(net, static) + 10
    assert plan.mixtures(LITERT)[0].blocks == ["second"]


def test_a_network_of_one_block_has_no_mixtures():
    alone = Quantization(nn.Conv2d(8, 4, 1).eval(), TASK, "min-max")
    with pytest.raises(UsageError, match="a single block"):
        alone.mixtures(LITERT)


@pytest.mark.parametrize("use", ["tflite", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("form", ["int8 layers", "mixed"])
def test_the_deployed_file_repeats_the_simulation(form, use, net, plan, tmp_path):
    target = plugins.load("targets", use).model_validate({})
    blocks = ["second"] if form == "mixed" else []
    model = Model(net=net, quantization=plan.in_form(form, blocks))
    artifact = target.build(model, TASK, tmp_path, batch_size=1)
    session = (plugins.stand_in() if artifact.stand_in else target).open(artifact.stand_in or artifact.file)
    reference = measure.evaluate(TorchSession(net, TASK), TASK, "test")
    rungs = (ladder.rung("float", reference.score, (), TASK),)
    climb = ladder.climb(model, reference, rungs, target, session, TASK)
    session.close()
    assert climb.breach is None
    assert climb.agreement.sqnr_db > climb.quantization_db + 20
    assert artifact.precision == form


@pytest.mark.parametrize("use", ["tflite", "onnxruntime", "tensorrt"])
def test_layers_that_int8_harms_have_weights_of_half_precision(use, net, plan, tmp_path):
    target = plugins.load("targets", use).model_validate({})
    files = {}
    for name, plan_of in (("float", None), ("mixed", plan.in_form("mixed", ["first", "second", "head.2"]))):
        (tmp_path / name).mkdir()
        artifact = target.build(Model(net=net, quantization=plan_of), TASK, tmp_path / name, batch_size=1)
        files[name] = artifact.stand_in or artifact.file
    weights = sum(value.numel() for value in net.parameters() if value.ndim > 1)
    assert files["mixed"].stat().st_size < files["float"].stat().st_size - weights
    if use == "tensorrt":  # which computes so, too
        graph = onnx.load(files["mixed"]).graph
        casts = [node.attribute[0].i for node in graph.node if node.op_type == "Cast"]
        assert casts.count(onnx.TensorProto.FLOAT16) == casts.count(onnx.TensorProto.FLOAT) > 0


class WithTokens(nn.Module):
    """Patches of an image, and learned tokens beside them that are much smaller, as those of a ViT can be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.tokens = nn.Conv2d(3, 16, 4, stride=4), nn.Parameter(torch.randn(1, 16, 16) / 20)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.patches(x).flatten(2).transpose(1, 2)
        found = torch.cat([self.tokens.expand(found.shape[0], -1, -1), found], 1)
        return self.head(self.norm(found)).flatten(1)


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
def test_what_is_joined_in_float_stays_off_the_grids_of_its_parts(use, tmp_path):
    """LiteRT's converter would put the tokens on the grid of the patches."""
    net, task = WithTokens().eval(), Noise(shape=(3, 16, 16))
    target = plugins.load("targets", use).model_validate({})
    quantized = Quantization(net, task, "min-max").in_form("int8 layers")
    session = target.open(target.build(Model(net=net, quantization=quantized), task, tmp_path, batch_size=1).file)
    answers = measure.evaluate(session, task, "test").outputs["y"]
    assert stats.sqnr_db(quantized.evaluated(target.scheme, "test").outputs["y"], answers) > 60


def test_layers_keep_tables_in_int8():
    net = nn.Sequential(Tokens(), nn.Embedding(50, 8), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 4)).eval()
    graph = Quantization(net, Noise(shape=(4,)), "min-max").in_form("int8 layers").simulated(LITERT).graph
    (lookup,) = (node for node in graph.graph.nodes if str(node.target) == "aten.embedding.default")
    assert "dequantize" in str(lookup.args[0].target)


def test_layers_keep_what_their_kernels_apply():
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), Residual(8)).eval()  # its value is needed in two places
    graph = Quantization(net, TASK, "min-max").in_form("int8 layers").simulated(LITERT).graph
    first, *_ = (node for node in graph.graph.nodes if str(node.target) == "aten.conv2d.default")
    assert [str(user.target) for user in first.users] == ["quantized_decomposed.quantize_per_tensor.default"]


@pytest.mark.parametrize(
    ("use", "form", "on_a_grid"),
    [("tflite", "int8 layers", False), ("tflite", "int8", True), ("onnxruntime", "int8 layers", True)],
)
def test_a_last_layer_in_float_takes_float_values_as_they_are(use, form, on_a_grid, tmp_path):
    """If its runtime computes a small one in float kernels, and what it takes is computed in float."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 128), nn.LayerNorm(128), nn.Linear(128, 2)).eval()
    task, target = Noise(shape=(6, 128), num_samples=16), plugins.load("targets", use).model_validate({})
    plan = Quantization(net, task, "min-max").in_form(form)
    *_, last = (node for node in plan.simulated(target.scheme).graph.graph.nodes if "linear" in str(node.target))
    assert (last.args[0].target == DEQUANTIZE) == on_a_grid
    session = target.open(target.build(Model(net=net, quantization=plan), task, tmp_path, 1).file)
    deployed = measure.evaluate(session, task, "test").outputs["y"]
    session.close()
    assert stats.sqnr_db(plan.evaluated(target.scheme, "test").outputs["y"], deployed) > 100


def test_what_is_left_in_float_has_no_grids(plan):
    graph = plan.in_form("mixed", ["first", "second", "head.2"]).simulated(ONNXRUNTIME).graph
    assert not [node for node in graph.graph.nodes if node.op == "call_function" and "quantize" in str(node.target)]


RECIPE = """
task = { use = "digits" }
model = { use = "mlp", widths = [32, 16] }
steps = [ { use = "train", epochs = 3, lr = 3e-3 }, { use = "quantize", corrections = [], calibrator = "min-max" } ]
targets = [ { use = "onnxruntime" } ]
limits = { score_drop = LIMIT, slower = "allow" }
bench = { min_seconds = 0.05 }
"""


def report_of(text: str, root: Path) -> dict:
    run = pipeline.compress(recipe.parse(text, root / "forms.toml"), text, root / "runs")
    return json.loads(run.report.read_text())


def test_every_form_is_tried_and_the_fastest_kept(tmp_path):
    report = report_of(RECIPE.replace("LIMIT", "1.0"), tmp_path)
    rows = {row["variant"]: row for row in report["rows"]}
    assert set(rows) == {"float", "int8", "int8-dynamic", "int8-weights", "int8-layers"}  # no mixture: static holds
    (verdict,) = report["verdicts"]
    tried = {name: row["latency_ms"]["median"] for name, row in rows.items() if name != "float"}
    fast = [name for name, latency in tried.items() if latency <= 1.05 * min(tried.values())]
    smallest = min(rows[name]["size_bytes"] for name in fast)
    small = [name for name in fast if rows[name]["size_bytes"] <= 1.1 * smallest]
    assert verdict["ship"] == min(small, key=tried.__getitem__) == report["rows"][-1]["variant"]
    assert all(row["validation_score"] is not None for row in report["rows"])


@pytest.mark.parametrize(("methods", "tried"), [('["ptq", "weight-only"]', {"int8", "int8-weights"}),
                                               ('["dynamic", "ptq"]', {"int8"})])  # fmt: skip
def test_where_no_form_can_be_timed_the_first_of_the_recipe_is_best(methods, tried, tmp_path):
    text = RECIPE.replace("LIMIT", "1.0").replace("onnxruntime", "tensorrt").replace("epochs = 3", "epochs = 1")
    text = text.replace('"mlp", widths = [32, 16]', '"cnn", widths = [8, 8], hidden = 16')
    report = report_of(text.replace('"quantize"', f'"quantize", method = {methods}'), tmp_path)
    *_, last = rows = report["rows"]
    if last["latency_ms"] is not None:
        pytest.skip("there is a GPU")
    assert {row["variant"] for row in rows} == {"float", *tried}
    assert last["variant"] == "int8"
    assert report["verdicts"][0]["why"].startswith("int8: ")
    assert all((row["validation_score"] is not None) == (len(tried) > 1) for row in rows)


def test_mixtures_are_tried_where_static_loses_too_much(tmp_path):
    text = RECIPE.replace("LIMIT", "0.0").replace("corrections = []", "weight_bits = 4, corrections = []")
    report = report_of(text, tmp_path)
    (row,) = (row for row in report["rows"] if row["variant"] == "mixed-1")
    assert len(row["in_float"]) == 1


def test_a_form_that_cannot_be_had_is_no_failure_where_another_can(tmp_path):
    text = RECIPE.replace("LIMIT", "1.0").replace("min_seconds = 0.05", "min_seconds = 0.05, batch_size = 2")
    rows = {row["variant"]: row for row in report_of(text, tmp_path)["rows"]}
    assert rows["int8-dynamic"]["status"] == "refused"  # it scales whole batches at once there
    assert "batch_size" in rows["int8-dynamic"]["reason"]
    assert rows["int8"]["status"] == "ok"
