"""`edgedl analyze`: whose the parameters, the products and the time are, and which layers take compression ill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edgedl import analyzing, measure, plugins, recipe
from edgedl import run as runs
from edgedl.analysis import attribution, by_layer, counting
from edgedl.core import Limits, Model, UsageError
from edgedl.report import document, terminal
from edgedl.report.page import write_analysis, write_page
from tests import quick
from tests.test_cli import run_in, the_line
from tests.test_report_page import assert_silent_and_within_the_screen, browser, hostile, shown  # noqa: F401
from tests.toys import Noise

CNN = quick.NETWORKS["cnn"] + quick.REST
QUICK = CNN.replace(', { use = "onnxruntime" }, { use = "tensorrt" }', "")
SEQUENCE = Noise(shape=(6, 8))


class Block(nn.Module):
    """A depthwise-separable block with a skip connection; two lists of them bear the same names in a TFLite file."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv(x))


class Lists(nn.Module):
    """Blocks in two lists of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 3, padding=1)
        self.first, self.second = nn.ModuleList([Block(16), Block(16)]), nn.ModuleList([Block(16)])
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for block in (*self.first, *self.second):
            x = block(x)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Written by hand: its products of activations are nobody's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.take, self.give = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.take(x).chunk(3, dim=-1)
        return self.give((query @ key.transpose(1, 2)).softmax(-1) @ value)


class Sequence(nn.Module):
    """An LSTM, a Transformer layer, attention written by hand, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.attention = Attention()
        self.head = nn.Linear(16, 16)
        self.again = self.head
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(self.layer(self.lstm(x)[0]))
        return self.again(self.head(x * self.scale)).mean(1)


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an analysis of a recipe that has never run."""
    root = tmp_path_factory.mktemp("analysed")
    return analyzing.of_recipe(recipe.parse(CNN, Path("cnn.toml")), CNN, root / "runs", 0.5)


@pytest.fixture
def finished(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(quick.finished_run(tmp_path_factory, "cnn").folder, tmp_path / "runs" / "cnn" / "once"))


def content_of(folder: Path) -> dict[str, Any]:
    content = by_layer.read(folder)
    assert content is not None
    return content


def test_counts_every_product_and_parameter_once():
    net, inputs = Sequence(), (torch.randn(2, 6, 8),)
    layers = {layer.path: layer for layer in counting.layers(net, inputs)}
    steps, width = 6, 16
    assert layers["lstm"].macs == steps * 4 * width * (8 + width)
    assert layers["layer.self_attn"].macs == steps * width * (3 * width + width) + 2 * steps * steps * width
    assert layers["layer.self_attn"].parameters == 4 * (width * width + width)  # with the output projection
    assert layers["attention"].macs == 2 * steps * steps * width
    assert layers["attention"].parameters == 0
    assert layers["head"].macs == 2 * steps * width * width
    assert layers[""].shapes == {"scale": (16,)}
    assert "again" not in layers
    assert sum(layer.macs for layer in layers.values()) == counting.macs(net, inputs)
    assert sum(layer.parameters for layer in layers.values()) == counting.num_parameters(net)


def test_the_report_counts_the_products_of_recurrent_layers():
    net = nn.LSTM(8, 16, batch_first=True)
    found = document.parameters(Model(net=net), SimpleNamespace(task=SEQUENCE))
    assert found == {"count": counting.num_parameters(net), "zeros": 0, "macs": 6 * 4 * 16 * (8 + 16)}


def test_a_recipe_is_trained_and_its_layers_add_up_to_the_whole(analysed):
    content = content_of(analysed)
    layers = {layer["layer"]: layer for layer in content["layers"]}
    assert list(layers) == ["conv1", "conv2", "dense1", "dense2"]
    assert {path: layer["parameters"] for path, layer in layers.items()} == {
        "conv1": 80, "conv2": 1168, "dense1": 784 * 32 + 32, "dense2": 330,
    }  # fmt: skip
    assert {path: layer["macs"] for path, layer in layers.items()} == {
        "conv1": 8 * 9 * 784, "conv2": 16 * 8 * 9 * 196, "dense1": 784 * 32, "dense2": 320,
    }  # fmt: skip
    assert content["parameters"] == sum(layer["parameters"] for layer in layers.values())
    assert content["macs"] == sum(layer["macs"] for layer in layers.values())
    timed = [target for target in content["targets"] if target["time_ms"] is not None]
    assert [target["target"] for target in timed] == ["tflite", "onnxruntime"]
    for target in timed:
        shares = [layer["time_share"][target["target"]] for layer in layers.values()]
        assert None not in shares  # each is an operator of its own
        assert sum(shares) + target["other"]["share"] == pytest.approx(1)
    (untimed,) = (target for target in content["targets"] if target["time_ms"] is None)
    assert untimed["target"] == "tensorrt"
    assert untimed["reason"]


def test_each_layer_is_quantized_and_pruned_alone(analysed):
    content = content_of(analysed)
    layers = {layer["layer"]: layer for layer in content["layers"]}
    together = content["quantization"]["together"]
    assert content["samples"] == 240
    for layer in layers.values():
        # Noise of layers adds up: none alone has more than all.
        assert together["sqnr_db"] - 1 < layer["quantized"]["sqnr_db"] < 100
        assert abs(layer["quantized"]["score"] - content["score"]) < 0.1
    assert layers["conv2"]["pruned"] == {
        "score": layers["conv2"]["pruned"]["score"], "blocks": ["conv2"], "removed": 8, "channels": 16,
    }  # fmt: skip
    assert min(layers[path]["pruned"]["score"] for path in ("conv1", "conv2", "dense1")) < content["score"]
    assert layers["dense2"]["pruned"] is None
    assert layers["dense2"]["not_pruned"] == "the network's outputs depend on its width"


def test_the_table_names_every_layer_and_what_it_lacks(analysed, capsys):
    terminal.print_analysis(content_of(analysed))
    said = capsys.readouterr().out
    for expected in (
        *("conv1", "16×8×3×3", "25,120", "225,792", "other", "all", "26,698", "no times on tensorrt: "),
        "not pruned alone: dense2: the network's outputs depend on its width",
    ):
        assert expected in said


def test_what_was_trained_for_an_analysis_is_not_trained_again(analysed):
    again = analyzing.of_recipe(recipe.parse(QUICK, Path("cnn.toml")), QUICK, analysed.parents[1], 0.25)
    assert str(analysed) in json.loads((again / "steps" / "00-train" / "metrics.json").read_text())["reused"]
    before, after = content_of(analysed), content_of(again)
    assert [layer["quantized"] for layer in after["layers"]] == [layer["quantized"] for layer in before["layers"]]
    assert [layer["pruned"]["removed"] for layer in after["layers"] if layer["pruned"]] == [2, 4, 8]


def test_a_finished_run_gives_its_network_and_its_times(finished):
    analyzing.of_run(finished, 0.5)
    content, report = content_of(finished), runs.read_report(finished)
    assert content["parameters"] == report["parameters"]["float"]["count"]
    assert content["macs"] == report["parameters"]["float"]["macs"]
    assert content["environment"] == report["environment"]
    assert content["score"] == report["steps"][0]["metrics"]["epochs"][-1]["score"]
    for target in content["targets"]:
        (row,) = (
            row for row in report["rows"] if row["target"] == target["target"] and row["variant"] == "float"
        )  # fmt: skip
        if row["operators"]:
            assert target["time_ms"] == pytest.approx(sum(operator["time_ms"] for operator in row["operators"]))
    page = write_page(report, finished).read_text(encoding="utf-8")
    assert 'id="layers"' in page
    assert page == write_analysis(content, finished).read_text(encoding="utf-8")


def test_a_fragile_layer_has_the_worst_noise():
    made = recipe.parse(quick.NETWORKS["mlp"] + quick.REST, Path("mlp.toml"))
    torch.manual_seed(0)
    net = made.model.build(made.task).eval()
    before = by_layer.analyze(net, made, [], {}, 0.5)
    # A corner that is black in every image: the weights for it change nothing but the grid of all the others.
    assert not made.task.arrays("train")["image"][:, 0, 0, 0].any()
    first = next(layer for layer in net.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight[:, 0] *= 1000
    after = by_layer.analyze(net, made, [], {}, 0.5)
    noise = [{layer["layer"]: layer["quantized"]["sqnr_db"] for layer in found["layers"]} for found in (before, after)]
    fragile, *others = noise[1]
    assert noise[1][fragile] < noise[0][fragile] - 20
    assert noise[1][fragile] < min(noise[1][other] for other in others) - 20
    assert after["score"] == before["score"]


@pytest.mark.parametrize("name", ["tflite", "onnxruntime"])
def test_time_goes_to_the_layers_that_took_it(name, tmp_path):
    torch.manual_seed(0)
    net, task = Lists().eval(), Noise()
    target = plugins.load("targets", name).model_validate({})
    artifact = target.build(Model(net=net), task, tmp_path, 1)
    session = target.open(artifact.file)
    operators = [vars(operator) | {"time_ms": 1.0} for operator in session.profile(measure.sample(task, session))]
    inputs = (torch.randn(2, 8, 10, 10),)
    layers = counting.layers(net, inputs)
    if name == "tflite":
        made = attribution.by_paths(counting.macs_of_modules(net, inputs))
    else:
        made = attribution.by_nodes(artifact.file, layers)
    found = attribution.shares(operators, layers, made)
    assert found is not None
    assert sum(found.layers.values()) + found.other == pytest.approx(1)
    # Every layer that multiplies is one operator; to the first of all belongs what turns the input's layout, too.
    counts = {path: round(share * len(operators)) for path, share in found.layers.items()}
    assert counts.keys() == {layer.path for layer in layers if layer.macs}
    assert all(count == 1 for path, count in counts.items() if path != "stem"), counts
    assert counts["stem"] <= 2
    assert not set(found.operators) & set(attribution.WEIGHTED)


def test_a_network_that_cannot_be_quantized_or_cut_says_why():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(10, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(self.dense(x), 1)

    made = SimpleNamespace(task=Noise(shape=(10,)), targets=[plugins.load("targets", "tflite").model_validate({})],
                           limits=Limits(), name="odd")  # fmt: skip
    (layer,) = by_layer.analyze(Odd(), made, [], {}, 0.5)["layers"]
    assert layer["quantized"] is None
    assert "cumsum" in layer["not_quantized"]
    assert layer["pruned"] is None
    assert "outputs depend on its width" in layer["not_pruned"]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_drawn_in_silence_whatever_layers_are_called(shown, analysed, tmp_path, width):  # noqa: F811
    content = hostile(content_of(analysed))
    for layer in content["layers"]:  # keys are names of targets, too
        assert set(layer["time_share"]) == {"tflite", "onnxruntime"}
    for target in content["targets"]:
        target["target"] = next(name for name in ("tflite", "onnxruntime", "tensorrt") if name in target["target"])
    page = write_analysis(content, tmp_path)
    assert page.name == "analysis.html"
    opened = shown(page, width)
    assert_silent_and_within_the_screen(opened, page)
    assert opened.execute_script("return document.querySelectorAll('.plot svg.main-svg').length") >= 3
    assert opened.execute_script("return document.querySelectorAll('main img, main b, svg b').length") == 0


def test_the_command_takes_a_recipe_and_then_its_run(finished, tmp_path):
    done = run_in(tmp_path, "analyze", "cnn", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == content_of(finished)
    (tmp_path / "tiny.toml").write_text(QUICK.replace("epochs = 2", "epochs = 1"))
    done = run_in(tmp_path, "analyze", "tiny.toml", "--ratio", "0.25")
    assert done.returncode == 0, done.stderr
    assert "25 % pruned" in done.stdout
    (page,) = tmp_path.glob("runs/tiny/*/analysis.html")
    assert f"page: {page.relative_to(tmp_path)}" in done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cnn-in8", "no recipe named 'cnn-in8'; did you mean cnn-int8"),
        ("nowhere.toml", "no recipe file nowhere.toml"),
        ("nowhere/at/all", 'no run "nowhere/at/all"'),
        ("/nowhere", 'no run "/nowhere"'),
        (".", "no report.json there"),
    ],
)
def test_what_is_neither_recipe_nor_run_is_told_in_one_line(name, said, tmp_path):
    done = run_in(tmp_path, "analyze", name)
    assert done.returncode == 2
    assert said in the_line(done)
    assert not list(tmp_path.iterdir())


def test_lost_weights_are_named(finished):
    weights = finished / "steps" / "00-train" / "weights.safetensors"
    weights.write_bytes(b"no tensors")
    with pytest.raises(UsageError, match=r"weights\.safetensors: cannot be read as the weights"):
        analyzing.of_run(finished, 0.5)
    shutil.rmtree(weights.parent)
    with pytest.raises(UsageError, match=r"weights\.safetensors: cannot be read as the weights"):
        analyzing.of_run(finished, 0.5)
    (finished / "recipe.toml").unlink()
    with pytest.raises(UsageError, match=r"no recipe file .*recipe\.toml"):
        analyzing.of_run(finished, 0.5)
