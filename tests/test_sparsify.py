"""Sparsity: how many weights go and which, and that they stay zero through learning, reuse, and in int8 files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgedl import pipeline, recipe
from edgedl.core import Model, RecipeError, Step, UsageError
from edgedl.models.cnn import CNN
from edgedl.quantize.simulate import Quantization, export_graph
from edgedl.report import lines
from edgedl.report.page import write_page
from edgedl.run import read_report
from edgedl.steps.distill import Distill
from edgedl.steps.sparsify import Sparsify, two_of_four
from edgedl.steps.train import Train
from edgedl.tasks.digits import Digits
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.training import loop, sparsity
from tests.test_quantize_operators import target_of
from tests.toys import Noise

QUICK = {"epochs": 2, "batch_size": 128, "lr": 2e-3}


class Mixed(nn.Module):
    """A recurrent layer over looked-up rows: sparse are the former's matrices alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.norm = nn.Embedding(7, 8), nn.LayerNorm((3, 8))
        self.cell, self.dense = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner, _ = self.cell(self.norm(self.rows(x)))
        return self.dense(inner[:, -1])


def cnn() -> nn.Module:
    loop.seed(0)
    return CNN(widths=(8, 16), hidden=32).build(Digits())


def sparse_model(**fields) -> Model:
    loop.seed(1)
    net = cnn()
    return Sparsify(**QUICK | fields).apply(Model(net=net, teacher=net), Digits())


@pytest.fixture(scope="module")
def unstructured() -> Model:
    return sparse_model(sparsity=0.8)


@pytest.fixture(scope="module")
def two_four() -> Model:
    return sparse_model(pattern="2:4")


def are_two_of_four(values: np.ndarray, axis: int) -> bool:
    fours = np.moveaxis(values, axis, -1).reshape(-1, 4)
    return bool(((fours != 0).sum(axis=1) <= 2).all())


# How many and which


@pytest.mark.parametrize("start", [0.0, 0.2])
def test_the_share_rises_by_the_cubic_schedule_and_no_weight_comes_back(start):
    net = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 10))
    gone = {}
    if start:
        gone = {"0.weight": torch.arange(2000).reshape(40, 50) < 2400 * start}
    step = Sparsify(sparsity=0.9, ramp=0.5, epochs=8)
    rise = step._rising(dict(gone), sparsity.weights(net))
    before = gone
    for epochs_done in (0.5, 1, 2, 3, 4, 5, 8):
        for value in sparsity.weights(net).values():
            value.add_(0.01)  # as an optimizer's step that would bring them back
        rise(net, epochs_done)
        done = min(epochs_done / 4, 1)
        wanted = 0.9 + (start - 0.9) * (1 - done) ** 3
        assert sparsity.num_zeros(net) == round(wanted * 2400)
        assert sparsity.num_lost(before, net) == 0
        before = sparsity.zeros(net)


def test_the_smallest_go_of_all_or_of_each_layer():
    net = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 10))
    with torch.no_grad():
        net[0].weight.copy_(torch.randperm(200).reshape(10, 20) + 1.0)
        net[1].weight.copy_(-(torch.randperm(100).reshape(10, 10) + 1001.0))
    for scope, first, second in (("global", 150, 0), ("local", 100, 50)):
        probe = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 10))
        probe.load_state_dict(net.state_dict())
        Sparsify(sparsity=0.5, scope=scope)._rising({}, sparsity.weights(probe))(probe, 10)
        assert torch.equal(probe[0].weight == 0, net[0].weight <= first)
        assert torch.equal(probe[1].weight == 0, net[1].weight >= -1000 - second)


def test_the_given_share_is_zero_after_training_and_nothing_else_changed_shape(unstructured):
    net = unstructured.net
    weights = [name for name in net.state_dict() if name.endswith("weight")]
    total = sum(net.state_dict()[name].numel() for name in weights)
    assert sparsity.num_zeros(net) == round(0.8 * total)
    assert unstructured.sparse
    assert unstructured.lineage[-1].metrics["zeros"].keys() == set(weights)
    assert {name: value.shape for name, value in net.state_dict().items()} == {
        name: value.shape for name, value in cnn().state_dict().items()
    }
    assert sparsity.num_zeros(unstructured.teacher) == 0  # the given network is left as it was


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (nn.Linear(16, 6), 1),
        (nn.Conv2d(8, 6, 3), 1),
        (nn.Conv1d(16, 8, 3, groups=2), 1),
        (nn.ConvTranspose2d(8, 6, 3), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_two_largest_of_four_are_kept_along_the_inputs(layer, axis):
    sparse, whole = two_of_four(layer)
    before, after = (net.weight.detach().movedim(axis, -1).reshape(-1, 4).abs() for net in (layer, sparse))
    assert whole == {}
    assert ((after > 0).sum(dim=1) == 2).all()
    largest = before.sort(dim=1).values[:, 2:].sum(dim=1)
    torch.testing.assert_close(after.sum(dim=1), largest)


def test_recurrent_and_dense_layers_are_sparse_and_what_is_looked_up_is_not():
    sparse, whole = two_of_four(Mixed())
    assert sparsity.zeros(sparse).keys() == {"cell.weight_ih_l0", "cell.weight_hh_l0", "dense.weight"}
    assert whole == {}


def test_layers_without_inputs_in_fours_stay_whole_and_are_named(two_four):
    assert two_four.lineage[-1].metrics["left_whole"] == {"conv1.weight": "its 1 inputs are no multiple of four"}
    assert "conv1.weight" not in sparsity.zeros(two_four.net)
    with pytest.raises(UsageError, match=r"no layer has inputs in fours: weight: its 6 inputs"):
        Sparsify(pattern="2:4").apply(Model(net=nn.Linear(6, 4)), Noise(shape=(6,)))


def test_a_network_without_weights_cannot_be_sparse():
    with pytest.raises(UsageError, match="no layer that multiplies"):
        Sparsify(sparsity=0.5).apply(Model(net=nn.Flatten()), Noise())


# That they stay zero


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("step", [Train, Distill])
def test_later_steps_that_learn_keep_every_zero(two_four, unstructured, step, optimizer):
    for model in (two_four, unstructured):
        later = step(**QUICK | {"epochs": 1}, weight_decay=0.1, optimizer=optimizer).apply(model, Digits())
        assert later.sparse
        assert sparsity.num_lost(sparsity.zeros(model.net), later.net) == 0
        changed = (model.net.dense1.weight != later.net.dense1.weight)[model.net.dense1.weight != 0]
        assert changed.float().mean() > 0.9


def test_without_the_models_word_learning_brings_zeros_back(two_four):
    net, _ = Train(**QUICK | {"epochs": 1}).fit(two_four.net, Digits(), Digits().loss)
    assert sparsity.num_lost(sparsity.zeros(two_four.net), net) > 1000


def test_a_sparser_network_keeps_the_zeros_it_had(unstructured):
    sparser = Sparsify(sparsity=0.9, **QUICK).apply(unstructured, Digits())
    assert sparsity.num_lost(sparsity.zeros(unstructured.net), sparser.net) == 0
    assert sparsity.num_zeros(sparser.net) > sparsity.num_zeros(unstructured.net)
    with pytest.raises(UsageError, match=r"sparsity = 0.5 is asked for, but 0.80 of the weights are zero already"):
        Sparsify(sparsity=0.5, **QUICK).apply(unstructured, Digits())


def test_the_graph_that_is_quantized_has_the_same_zeros_under_the_same_names(two_four):
    wanted, found = sparsity.zeros(two_four.net), sparsity.zeros(export_graph(two_four.net, Digits()))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def int8_weights_of_tflite(file: Path) -> list[np.ndarray]:
    """Outputs first and inputs last, as convolutions and dense layers have them there."""
    graph = Flatbuffer(file.read_bytes())
    return [
        np.frombuffer(data, np.int8).reshape(tensor.shape)
        for tensor in graph.tensors
        if tensor.type == graph.schema.TensorType.INT8 and (data := graph.constant(tensor)) and len(tensor.shape) > 1
    ]


def int8_weights_of_onnx(file: Path) -> list[np.ndarray]:
    """Outputs first, inputs second; transposed where the file multiplies from the left."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    arrays = [numpy_helper.to_array(value) for value in graph.initializer]
    arrays += [numpy_helper.to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant"]
    return [value for value in arrays if value.dtype == np.int8 and value.ndim > 1]


@pytest.mark.parametrize(("use", "read", "axis"), [("tflite", int8_weights_of_tflite, -1),
                                                   ("onnxruntime", int8_weights_of_onnx, 1)])  # fmt: skip
def test_int8_files_are_as_sparse_as_the_network(unstructured, two_four, use, read, axis, tmp_path):
    for model, folder in ((unstructured, tmp_path / "unstructured"), (two_four, tmp_path / "two-four")):
        folder.mkdir()
        quantized = Model(net=model.net, quantization=Quantization(model.net, Digits(), "min-max"))
        weights = read(target_of(use).build(quantized, Digits(), folder, 1).file)
        assert sorted(value.size for value in weights) == sorted(
            value.numel() for value in sparsity.weights(model.net).values()
        )
        # What is small against a channel's largest weight becomes zero in int8, too.
        assert sum(int((value == 0).sum()) for value in weights) >= sparsity.num_zeros(model.net)
        if model is two_four:
            inner = [value for value in weights if value.size != model.net.conv1.weight.numel()]
            assert len(inner) == 3
            assert all(are_two_of_four(value, axis) for value in inner)


# In a recipe and in a run

RECIPE = """
task = { use = "digits" }
model = { use = "cnn", widths = [8, 16], hidden = 32 }
steps = [
  { use = "train", epochs = 2, lr = 3e-3 },
  { use = "sparsify", sparsity = 0.75, epochs = 2 },
  { use = "distill", epochs = 1 },
]
targets = [ { use = "onnxruntime" } ]
limits = { score_drop = 0.2, slower = "allow" }
bench = { min_seconds = 0.1, rounds = 5 }
"""


def compress(root: Path, text: str = RECIPE) -> dict:
    parsed = recipe.parse(text, root / "sparse.toml")
    folder = pipeline.compress(parsed, text, root).folder
    return read_report(folder) | {"folder": folder}


def test_a_run_says_what_zeros_gain_and_steps_taken_from_it_keep_them(tmp_path):
    from safetensors.numpy import load_file

    report = compress(tmp_path)
    zeros = round(0.75 * (8 * 9 + 16 * 8 * 9 + 784 * 32 + 320))
    assert report["parameters"]["float"]["zeros"] == 0
    assert report["parameters"]["compressed"]["zeros"] == zeros
    reference, sparse = report["rows"]
    assert sparse["size_bytes"] == pytest.approx(reference["size_bytes"], rel=0.02)
    assert sparse["gzip_bytes"] < 0.5 * reference["gzip_bytes"]
    said = lines.sparsity(report)
    assert "75 % of compressed" in said
    assert f"{sparse['gzip_bytes'] / 1e3:.1f} kB (float {reference['gzip_bytes'] / 1e3:.1f} kB)" in said
    assert "Zero weights: 75 % of compressed" in write_page(report, report["folder"]).read_text()

    again = compress(tmp_path, RECIPE.replace("epochs = 1 }", "epochs = 2, lr = 1e-2 }"))
    assert "reused" in again["steps"][1]["metrics"]
    assert "reused" not in again["steps"][2]["metrics"]
    weights = [
        load_file(again["folder"] / f"steps/{name}/weights.safetensors") for name in ("01-sparsify", "02-distill")
    ]
    before, after = (weight["dense1.weight"] for weight in weights)
    assert (after[before == 0] == 0).all()
    assert (after[before != 0] != before[before != 0]).mean() > 0.5  # where images are black nothing changes
    assert again["parameters"]["compressed"]["zeros"] == zeros


def test_a_report_without_zeros_says_nothing_of_them():
    report = {"parameters": {"float": {"count": 10, "macs": 5}, "compressed": {"count": 10, "zeros": 0}}, "rows": []}
    assert lines.sparsity(report) is None


def test_pruning_channels_afterwards_is_an_error_of_order():
    text = RECIPE.replace('{ use = "distill", epochs = 1 }', '{ use = "distill" }, { use = "prune", ratio = 0.5 }')
    with pytest.raises(
        RecipeError, match=r"own.toml:\d+: steps\[3\]: prune removes channels and has to stand before sparsify"
    ):
        recipe.parse(text, Path("own.toml"))
    before = RECIPE.replace('{ use = "sparsify"', '{ use = "prune", ratio = 0.5 }, { use = "sparsify"')
    assert [step.use for step in recipe.parse(before, Path("own.toml")).steps][1:3] == ["prune", "sparsify"]


def test_it_comes_before_quantization():
    text = RECIPE.replace('{ use = "sparsify"', '{ use = "quantize" }, { use = "sparsify"')
    with pytest.raises(
        RecipeError, match=r"own.toml:\d+: steps\[2\]: sparsify changes weights and has to stand before quantize"
    ):
        recipe.parse(text, Path("own.toml"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "needs sparsity, the share"),
        ({"pattern": "2:4", "sparsity": 0.5}, "leave sparsity out"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.5, "ramp": 0}, "greater than 0"),
    ],
)
def test_its_keys_are_checked(fields, said):
    with pytest.raises(ValidationError, match=said):
        Sparsify(**fields)


class Fill(Step):
    """Knows nothing of zeros."""

    use: str = "fill"

    def apply(self, model, task):
        net = cnn()
        with torch.no_grad():
            net.dense2.weight.fill_(0.1)
        return model.after(self, {}, net=net)


def test_a_step_that_does_not_keep_the_zeros_is_found_out(tmp_path):
    parsed = recipe.parse(RECIPE.replace(', { use = "distill", epochs = 1 }', ""), tmp_path / "own.toml")
    filled = parsed.model_copy(update={"steps": (*parsed.steps[:2], Fill())})
    with pytest.raises(UsageError, match=r"step fill undid the sparsity of the network: \d+ weights"):
        pipeline.compress(filled, RECIPE, tmp_path)
