"""Networks of a person's own: each kind of source from its file to judged ones, and what is said of wrong ones."""

from __future__ import annotations

import copy
import importlib
import io
import json
import logging
import os
import pickle
import sys
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgedl import pipeline, plugins, recipe, stages
from edgedl.core import ModelFileError, TensorSpec, UsageError
from edgedl.models.exported import Exported
from edgedl.models.hugging_face import HuggingFace
from edgedl.models.module import Module
from edgedl.models.onnx_file import OnnxFile
from edgedl.onnx import operators as onnx_operators
from edgedl.own import networks, weights
from edgedl.run import read_report
from edgedl.tasks.digits import Digits
from tests.toys import Noise

MINE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.drop, self.dense = nn.Dropout(0.1), nn.Linear(8, 10)

    def forward(self, x):
        return self.dense(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x1, unused=None, x0=None):
        assert unused is None
        hidden = torch.relu(self.left(x0)) + torch.tanh(self.right(x1))
        return {"hidden": hidden, "cache": None, "y": self.out(hidden), "best": hidden.argmax(1)}


def wrong_channels():
    return Net(3)


class Branch(Net):
    def forward(self, x):
        if x.sum() > 0:
            x = 2 * x
        return super().forward(x)


class Counted(Net):
    def forward(self, x):
        return super().forward(x.reshape(2, 1, 28, 28))


class Numpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy().clip(0))


class Outside(Net):
    def forward(self, x):
        return super().forward(Numpy.apply(x))


class Two(Net):
    def forward(self, left, right):
        return super().forward(left)


class Whole(Net):
    def forward(self, x):
        return super().forward(x).argmax(1)


class Mean(Net):
    def forward(self, x):
        return super().forward(x).mean()


class Several(Net):
    def forward(self, x):
        return super().forward(x), x


def diverged():
    net = Net()
    net.dense.weight.data[0, 0] = float("nan")
    return net


def script():
    return torch.jit.script(Net())


def fails():
    return [1][3]


def number():
    return 3


def needs(width):
    return width


built = Net()
"""


class Pairs(Noise):
    """Two inputs."""

    use: str = "tests.test_own_models:Pairs"
    shape: tuple[int, ...] = (12,)
    num_inputs: int = 2


class Tokens(Noise):
    """Whole numbers."""

    use: str = "tests.test_own_models:Tokens"
    outputs: ClassVar[tuple[str, ...]] = ("y",)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"input_ids": TensorSpec((12,), "int32")}

    def arrays(self, split):
        drawn = np.random.default_rng(len(split))
        return {"input_ids": drawn.integers(0, 30, (self.num_samples, 12), np.int32)}


class LastChannels(Digits):
    """Images as Keras takes them."""

    use: str = "tests.test_own_models:LastChannels"

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"image": TensorSpec((28, 28, 1))}

    def arrays(self, split):
        arrays = super().arrays(split)
        return arrays | {"image": np.ascontiguousarray(arrays["image"].transpose(0, 2, 3, 1))}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The module `mine_of_tests`, and the current folder."""
    (tmp_path / "mine_of_tests.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("mine_of_tests")
    del sys.modules["mine_of_tests"]


def trained(net: nn.Module) -> nn.Module:
    """With statistics of its own."""
    torch.manual_seed(0)
    net.train()
    with torch.no_grad():
        net(torch.rand(32, 1, 28, 28))
    return net.eval()


def export(net: nn.Module, file: Path, num_samples: int | None = None) -> None:
    dynamic = None if num_samples else ({0: torch.export.Dim.DYNAMIC},)
    x = torch.zeros(num_samples or 2, 1, 28, 28)
    torch.export.save(torch.export.export(net.eval(), (x,), dynamic_shapes=dynamic), file)


def onnx_model(nodes, constants, shape=("n", 1, 28, 28), answer=("n", 1, 28, 28), outputs=("y",)) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, answer) for name in outputs]
    given = [helper.make_tensor_value_info("x:0", TensorProto.FLOAT, shape)]
    stored = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "made by hand", given, values, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def as_tensorflow_writes_it(file: Path) -> None:
    """Padded on one side, biases behind products, shapes computed from the number of samples, layouts exchanged."""
    drawn = np.random.default_rng(0)

    def weight(*shape):
        return (drawn.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    node = helper.make_node
    nodes = [
        node("Conv", ["x:0", "w1", "b1"], ["c1"], "block/conv", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Clip", ["c1", "zero", "six"], ["a1"], "block/relu6"),
        node("Conv", ["a1", "w2"], ["c2"], "block/depthwise", group=8, pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c2", "scale", "shift", "mean", "var"], ["n2"], "block/norm"),
        node("Relu", ["n2"], ["a2"]),
        node("AveragePool", ["a2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", ["p2"], ["t2"], perm=[0, 2, 3, 1]),
        node("Shape", ["t2"], ["s"]),
        node("Gather", ["s", "first"], ["batch"]),
        node("Unsqueeze", ["batch", "axis"], ["batches"]),
        node("Concat", ["batches", "rest"], ["target"], axis=0),
        node("Reshape", ["t2", "target"], ["flat"]),
        node("MatMul", ["flat", "w3"], ["m3"], "dense/MatMul"),
        node("Add", ["b3", "m3"], ["y"], "dense/BiasAdd"),
    ]
    constants = {
        "w1": weight(8, 1, 3, 3), "b1": weight(8), "w2": weight(8, 1, 3, 3), "w3": weight(8 * 49, 10), "b3": weight(10),
        "scale": np.full(8, 1.5, np.float32), "shift": weight(8), "mean": weight(8), "var": np.full(8, 0.5, np.float32),
        "zero": np.float32(0), "six": np.float32(6), "first": np.int64(0), "axis": np.array([0]),
        "rest": np.array([8 * 49]),
    }  # fmt: skip
    onnx.save(onnx_model(nodes, constants, answer=("n", 10)), file)


INT8 = '{ use = "quantize", method = "ptq", calibrator = "min-max", corrections = [] },'


def judged(text: str, root: Path, steps: str = INT8) -> dict:
    """The report of a run on two targets, whose files agree with the simulation."""
    text += f"""
steps = [ {{ use = "train", epochs = 1 }}, {steps} ]
targets = [ {{ use = "tflite" }}, {{ use = "onnxruntime" }} ]
limits = {{ score_drop = 100.0, slower = "allow", unlearned = "allow" }}
bench = {{ min_seconds = 0.01, rounds = 2 }}
"""
    report = read_report(pipeline.compress(recipe.parse(text, Path("own.toml")), text, root).folder)
    wanted = [("ok", None)] * (4 if steps else 2)
    assert [(row["status"], row["reason"]) for row in report["rows"]] == wanted, report["rows"]
    for entry in report["ladder"]:
        agreement = entry["agreement"]["sqnr_db"]
        assert agreement > (100 if entry["variant"] == "float" else entry["quantization"]["sqnr_db"] + 20)
    return report


@pytest.mark.usefixtures("mine")
def test_a_network_of_two_inputs_that_answers_by_name(tmp_path):
    judged(
        'task = { use = "tests.test_own_models:Pairs" }\nmodel = { use = "module", source = "mine_of_tests:Pair" }',
        tmp_path,
    )


def test_an_exported_program_is_trained_pruned_and_quantized(mine, tmp_path):
    export(trained(mine.Net()), tmp_path / "net.pt2")
    prune = '{ use = "prune", ratio = 0.5, iterations = 1, epochs = 1, round_to = 2 }, ' + INT8
    report = judged(
        f'task = {{ use = "digits" }}\nmodel = {{ use = "exported", source = "{tmp_path}/net.pt2" }}', tmp_path, prune
    )
    assert report["parameters"]["compressed"]["count"] < 0.7 * report["parameters"]["float"]["count"]


def test_an_onnx_file_of_another_framework(tmp_path):
    as_tensorflow_writes_it(tmp_path / "net.onnx")
    judged(f'task = {{ use = "digits" }}\nmodel = {{ use = "onnx-file", source = "{tmp_path}/net.onnx" }}', tmp_path)


def test_a_classifier_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=28, patch_size=7, num_channels=1, num_labels=10, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    judged(f'task = {{ use = "digits" }}\nmodel = {{ use = "hugging-face", source = "{tmp_path}/vit" }}', tmp_path, "")


def test_a_keras_model(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")  # read when Keras is imported
    keras = pytest.importorskip("keras")
    from keras import layers

    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(8, 3, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.MaxPooling2D(),
            layers.Dropout(0.2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )
    net.save(tmp_path / "net.keras")
    task_line = 'task = { use = "tests.test_own_models:LastChannels" }'
    report = judged(f'{task_line}\nmodel = {{ use = "keras-file", source = "{tmp_path}/net.keras" }}', tmp_path)
    assert report["parameters"]["float"]["count"] == 8 * 9 + 8 + 8 * 9 + 8 + 80 + 10  # without those of the batch norm
    task = LastChannels()
    image = task.arrays("test")["image"][:5]
    read = plugins.load("models", "keras-file")(source=str(tmp_path / "net.keras")).build(task)
    np.testing.assert_allclose(read(torch.from_numpy(image)).detach(), net(image).detach(), atol=1e-5)
    (tmp_path / "cut.keras").write_bytes((tmp_path / "net.keras").read_bytes()[:500])
    with pytest.raises(ModelFileError, match=r"cut\.keras: Keras cannot read it"):
        plugins.load("models", "keras-file")(source=str(tmp_path / "cut.keras")).build(task)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UsageError, match=r"Keras runs on jax already; set KERAS_BACKEND=torch"):
        plugins.load("models", "keras-file")(source=str(tmp_path / "net.keras")).build(task)


def test_a_module_stays_as_it_was_and_keeps_its_layers_names(mine):
    before, mode = copy.deepcopy(mine.built.state_dict()), mine.built.training
    net = Module(source="mine_of_tests:built").build(Digits())
    assert type(net) is mine.Net
    with torch.no_grad():
        net.dense.weight.zero_()
    assert mine.built.training is mode
    assert all(torch.equal(before[name], value) for name, value in mine.built.state_dict().items())


def test_what_a_module_returns_has_names(mine):
    inputs = {name: torch.rand(3, 12) for name in ("x0", "x1")}
    assert {name: tuple(value.shape) for name, value in networks.outputs_of(mine.Pair(), inputs).items()} == {
        "hidden": (3, 16),
        "y": (3, 4),
    }
    image = {"x": torch.rand(3, 1, 28, 28)}
    assert list(networks.outputs_of(mine.Net(), image)) == ["output"]
    assert list(networks.outputs_of(mine.Several(), image)) == ["output_0", "output_1"]
    assert networks.outputs_of(mine.Whole(), image) == {}


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("mine_of_tests:wrong_channels",
         r"not take image \(2, 1, 28, 28\) float32: .*\[8, 3, 3, 3\].* in layer conv, Conv2d\(3"),
        ("mine_of_tests:Branch", r"depends on values of tensors.*mine_of_tests\.py:\d+: if x\.sum\(\) > 0:"),
        ("mine_of_tests:Counted", r"takes the number of samples for a fixed one"),
        ("mine_of_tests:Outside", r"computes outside PyTorch, in numpy.*mine_of_tests\.py:\d+: .*numpy\(\)"),
        ("mine_of_tests:Two", r"Two\.forward takes left, right, and task digits has image"),
        ("mine_of_tests:Whole", r"returns a int64 tensor, and no floating tensor for logits"),
        ("mine_of_tests:Mean", r"output output for 2 samples has the shape \(\)"),
        ("mine_of_tests:Several", r"returns output_0, output_1, and task digits wants logits"),
        ("mine_of_tests:diverged", r"parameter dense\.weight \(10, 8\): 1 of 80 values are not finite"),
        ("mine_of_tests:script", r"Net is TorchScript"),
        ("mine_of_tests:fails", r"your code raised IndexError: list index out of range\n.*in fails"),
        ("mine_of_tests:number", r"gives a int, and no torch\.nn\.Module"),
        ("mine_of_tests:needs", r"has to do without arguments: missing a required argument: 'width'"),
        ("mine_of_tests:Ney", r"module mine_of_tests has no Ney; did you mean Net"),
        ("mine_of_test:Net", r"cannot import mine_of_test: No module named 'mine_of_test'; is it on the Python path"),
        ("mine_of_tests", r"'mine_of_tests' names nothing; write package\.module:name"),
    ],
)  # fmt: skip
def test_wrong_modules_are_told_in_a_line(source, said):
    with pytest.raises(UsageError, match=said) as caught:
        Module(source=source).build(Digits())
    assert "\n" not in str(caught.value) or "your code raised" in str(caught.value)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


def bombed(given: Path, file: Path, change) -> None:
    """A copy of an archive whose members a function changes."""
    with zipfile.ZipFile(given) as before, zipfile.ZipFile(file, "w") as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))


def test_weights_are_read_and_pickles_that_run_code_are_not(mine, tmp_path):
    from safetensors.torch import save_file

    net, state = mine.Net(), mine.Net().state_dict()
    torch.save(state, "plain.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, "nested.ckpt")
    save_file(state, "plain.safetensors")
    for file in ("plain.pt", "nested.ckpt", "plain.safetensors"):
        loaded = Module(source="mine_of_tests:Net", weights=file).build(Digits())
        assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())
    torch.save(mine.Net(), "whole.pt")
    assert isinstance(weights.loaded(net, "whole.pt", unpickle=True), mine.Net)
    torch.save({"weights": Bomb()}, "bomb.pt")
    Path("bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    Path("cut.pt").write_bytes(Path("plain.pt").read_bytes()[:2000])
    Path("cut.safetensors").write_bytes(Path("plain.safetensors").read_bytes()[:200])
    torch.save({"epoch": 3}, "empty.pt")
    torch.save({**state, "conv.weight": torch.zeros(8, 3, 3, 3)}, "shape.pt")
    torch.save({name.replace("dense", "dence"): value for name, value in state.items()}, "names.pt")
    for file, said in {
        "bomb.pt": r"bomb\.pt: holds more than tensors \(posix\.system\).*unpickle = true",
        "bomb.pkl": r"bomb\.pkl: no checkpoint that PyTorch wrote",
        "whole.pt": r"holds more than tensors \(mine_of_tests\.Net\)",
        "cut.pt": r"cut\.pt: no readable checkpoint, truncated perhaps",
        "cut.safetensors": r"no readable safetensors file",
        "empty.pt": r"holds a dict with the keys epoch, and no state dict",
        "shape.pt": r"conv\.weight \(8, 3, 3, 3\) in the file and \(8, 1, 3, 3\) in the network",
        "names.pt": r"it lacks dense\.weight, dense\.bias \(did you mean dence\.weight.*has no dence\.weight",
        "none.pt": r"none\.pt: no such file of weights",
    }.items():
        with pytest.raises(UsageError, match=said):
            weights.loaded(net, file)
    assert not Path("exploded").exists()


def test_programs_are_read_without_running_what_they_hold(mine, tmp_path):
    net = trained(mine.Net())
    export(net, tmp_path / "net.pt2")
    export(net, tmp_path / "one.pt2", num_samples=1)
    read = Exported(source="net.pt2").build(Digits())
    x = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(read(x), net(x))
    assert isinstance(read.norm, nn.BatchNorm2d)
    read.train()
    assert not torch.equal(read(x), read(x))  # its dropout drops again
    assert Exported(source="one.pt2").build(Digits())(x).shape == (5, 10)  # nothing in it says how many
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)

    def unpickles(name, content):
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return buffer.getvalue() if "/weight_" in name else content

    def evaluates(name, content):
        given = json.loads(content) if name.endswith("model.json") else None
        return content if given is None else json.dumps(given | {"extra": {"expr_str": "__import__('os').system('x')"}})

    def guards(name, content):
        given = json.loads(content) if name.endswith("model.json") else None
        code = "__import__('os').system('touch exploded')"
        return content if given is None else json.dumps(given | {"guards_code": [code]})

    bombed(tmp_path / "net.pt2", tmp_path / "pickles.pt2", unpickles)
    bombed(tmp_path / "net.pt2", tmp_path / "evaluates.pt2", evaluates)
    bombed(tmp_path / "net.pt2", tmp_path / "guards.pt2", guards)
    bombed(tmp_path / "net.pt2", tmp_path / "objects.pt2", lambda name, content: content)
    with zipfile.ZipFile(tmp_path / "objects.pt2", "a") as archive:
        archive.writestr("net/data/constants/opaque_obj_0", pickle.dumps(Bomb()))
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "net.pt2").read_bytes()[:3000])
    for file, said in {
        "pickles.pt2": "holds more than tensors",
        "evaluates.pt2": "holds code where the size of a tensor should be",
        "objects.pt2": r"holds an object of a class of its own \(opaque_obj_0\)",
        "cut.pt2": r"cut\.pt2: no \.pt2 file of torch\.export\.save, or a truncated one",
        "none.pt2": r"none\.pt2: no such file",
    }.items():
        with pytest.raises(ModelFileError, match=said):
            Exported(source=file).build(Digits())
    Exported(source="guards.pt2").build(Digits())
    assert not Path("exploded").exists()


class Many(nn.Module):
    """Much of what exporters write."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.group, self.slope = (
            nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
            nn.GroupNorm(2, 4),
            nn.PReLU(4),
        )
        self.mixed, self.lstm = nn.Linear(4, 12), nn.LSTM(4, 6, batch_first=True, bidirectional=True)
        self.norm, self.scale = nn.LayerNorm(12), nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.slope(self.group(self.up(x * self.scale + 0.5)))
        y = nn.functional.avg_pool2d(nn.functional.max_pool2d(y, 3, 2, 1), 2)
        y = nn.functional.interpolate(y, scale_factor=2, mode="nearest")
        n = y.shape[0]
        tokens = y.view(n, 4, -1).transpose(1, 2)
        q, k, v = self.mixed(tokens).chunk(3, -1)
        attended = torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v
        states = self.norm(self.lstm(attended)[0])
        best = torch.where(states > 0, states, states.square() * 0.1).amax(1)
        return torch.cat([nn.functional.gelu(best), tokens.mean(1)[:, 1:3]], 1)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("num_samples", [None, 1])
def test_an_onnx_file_is_read_as_it_was_written(tmp_path, dynamo, num_samples):
    torch.manual_seed(0)
    net, x, file = Many().eval(), torch.randn(num_samples or 2, 8, 4, 4), tmp_path / "net.onnx"
    logging.disable(logging.WARNING)
    if dynamo:
        dynamic = None if num_samples else ({0: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(net, (x,), file, dynamo=True, dynamic_shapes=dynamic, verbose=False, external_data=False)
    else:
        axes = None if num_samples else {"x": {0: "n"}}
        torch.onnx.export(net, (x,), str(file), dynamo=False, input_names=["x"], dynamic_axes=axes)
    logging.disable(logging.NOTSET)
    read = OnnxFile(source=str(file)).build(Noise(shape=(8, 4, 4)))
    x = torch.randn(5, 8, 4, 4)
    torch.testing.assert_close(read(x), net(x), atol=1e-5, rtol=1e-4)
    kinds = {type(module) for module in read.modules()}
    assert {nn.ConvTranspose2d, nn.Linear, nn.LSTM, nn.LayerNorm, nn.PReLU} <= kinds


def test_wrong_onnx_files_are_told_in_a_line(tmp_path, monkeypatch):
    node, source = helper.make_node, tmp_path / "net.onnx"

    def refused(said, *nodes, task=None, **given):
        onnx.save(onnx_model(list(nodes), given.pop("constants", {}), **given), source)
        with pytest.raises(UsageError, match=said) as caught:
            OnnxFile(source=str(source)).build(task or Digits())
        assert "\n" not in str(caught.value)

    refused(
        r"operator Det of node volume is not among those that edgedl reads",
        node("Det", ["x:0"], ["y"], "volume"),
        answer=("n", 1),
    )
    refused(
        r"takes x:0 \(3, 8, 8\) a sample, and task digits has image \(1, 28, 28\)",
        node("Relu", ["x:0"], ["y"]),
        shape=("n", 3, 8, 8),
    )
    scale = {"scale": np.float32(0.1), "zero": np.int8(0)}
    quantize = node("QuantizeLinear", ["x:0", "scale", "zero"], ["q"])
    refused(r"is quantized already", quantize, node("DequantizeLinear", ["q", "scale", "zero"], ["y"]), constants=scale)
    monkeypatch.setitem(onnx_operators.FUNCTIONS, "Sin", torch.cos)
    refused(r"output y as read is -?\d+ dB from what onnxruntime makes of the file", node("Sin", ["x:0"], ["y"]))
    source.write_bytes(source.read_bytes()[:60])
    with pytest.raises(ModelFileError, match=r"net\.onnx: no ONNX file, or a truncated one"):
        OnnxFile(source=str(source)).build(Digits())
    with pytest.raises(ModelFileError, match=r"gone\.onnx: no such file"):
        OnnxFile(source="gone.onnx").build(Digits())


def test_models_of_transformers_that_cannot_be_had_are_told_in_a_line(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ModelFileError, match=r"no folder with a config\.json"):
        HuggingFace(source=str(tmp_path)).build(Tokens())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ModelFileError, match=r"nobody/nothing: no such folder, and the hub does not give it: no connection$"
    ):
        HuggingFace(source="nobody/nothing").build(Tokens())
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(vocab_size=30, max_position_embeddings=12, **sizes)).save_pretrained(
        tmp_path
    )
    with pytest.raises(UsageError, match=r"has no class BertModell; did you mean BertModel"):
        HuggingFace(source=str(tmp_path), architecture="BertModell").build(Tokens())
    with pytest.raises(UsageError, match=r"returns last_hidden_state, pooler_output, and task Tokens wants y"):
        HuggingFace(source=str(tmp_path)).build(Tokens())
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelFileError, match=r"cannot be read: "):
        HuggingFace(source=str(tmp_path)).build(Tokens())


def test_a_source_says_of_what_kind_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    found = {
        source: networks.network_for(source).use
        for source in ("a.b:c", "n.pt2", "n.onnx", "n.keras", "bert", "org/name")
    }
    assert list(found.values()) == ["module", "exported", "onnx-file", "keras-file", "hugging-face", "hugging-face"]
    for source, said in {
        "n.pt": r"weights alone",
        "empty": r"has no config\.json; is no network",
        "nothing": r"'nothing' is no network; there are: package\.module:name",
        "/no/such": r"is no network",
    }.items():
        with pytest.raises(UsageError, match=said):
            networks.network_for(source)


def test_a_step_begins_anew_where_the_network_behind_its_name_has_changed(mine):
    parsed = recipe.parse(
        textwrap.dedent("""
        task = { use = "digits" }
        model = { use = "module", source = "mine_of_tests:built" }
        steps = [ { use = "train" } ]
        targets = [ { use = "onnxruntime" } ]
        """),
        Path("own.toml"),
    )
    first = networks.digest(mine.built)
    assert first == networks.digest(copy.deepcopy(mine.built))
    with torch.no_grad():
        mine.built.conv.bias.add_(1)
    assert stages.stage_key(parsed, 0, first) != stages.stage_key(parsed, 0, networks.digest(mine.built))
