"""The forms of a quantized network beside static int8: every one on every target, deployed against simulated."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgedl import ladder, measure, plugins, recipe, stats
from edgedl.core import Artifact, Model, RecipeError, Target, TargetError
from edgedl.quantize.forms import DynamicInterpreter
from edgedl.quantize.schemes import LITERT, ONNXRUNTIME, STATIC_FORMS, Form
from edgedl.quantize.simulate import Quantization
from edgedl.tflite import loops
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.torch_session import TorchSession
from tests.toys import Noise, Tokens

torch.manual_seed(0)  # for the weights of the networks below


class Attention(nn.Module):
    """Norm, dense layers on sequences, a softmax between them: query, key and value share an input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.query, self.key = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.value, self.out = nn.Linear(64, 64), nn.Linear(64, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        weights = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / 8, -1)
        return self.out(weights @ self.value(x))


class Recurrent(nn.Module):
    """An LSTM, whose layers see (steps, samples, values), and a dense layer on its last output."""

    def __init__(self, inputs: int = 8) -> None:
        super().__init__()
        self.lstm, self.dense = nn.LSTM(inputs, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.lstm(x)
        return self.dense(outputs[:, -1])


class Mean(nn.Module):
    """Over all pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


class Branches(nn.Module):
    """Layers side by side on one input, each to an output of its own."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.layers.values())


class BranchNoise(Noise):
    """One input, an output for each branch."""

    branches: tuple[str, ...]

    @property
    def outputs(self):
        return self.branches


class StepByStep(nn.Module):
    """A dense layer behind a transpose: samples are the second dimension, as in recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x.transpose(0, 1)).transpose(0, 1)


class Flattened(nn.Module):
    """A dense layer on the rows of all samples at once, which are not rows behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x.reshape(-1, 16)).reshape(-1, 56)


class Uneven(nn.Module):
    """Dense layers whose weights are far larger in some groups of inputs than in others."""

    def __init__(self, inputs: int, **outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(inputs, size) for name, size in outputs.items()})
        with torch.no_grad():
            for layer in self.layers.values():
                spread = torch.exp(1.5 * torch.randn(len(layer.weight), inputs // 32))
                layer.weight *= spread.repeat_interleave(32, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.layers.values())


IMAGE = (8, 10, 10)
NETWORKS = {
    "image": (
        nn.Sequential(
            *(nn.Conv2d(8, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2, groups=2)),
            *(nn.ReLU6(), nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.BatchNorm2d(64), nn.ReLU6()),
            *(nn.Conv2d(64, 96, 1), nn.ReLU(), nn.Conv2d(96, 64, 1, stride=2), Mean(), nn.Linear(64, 10)),
        ),
        Noise(shape=IMAGE),
    ),
    "sequence": (nn.Sequential(nn.Conv1d(8, 48, 3, padding=1), nn.ReLU(), nn.Conv1d(48, 64, 1)), Noise(shape=(8, 20))),
    "dense": (
        nn.Sequential(nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)),
        Noise(shape=(1024,)),
    ),
    "tokens": (nn.Sequential(nn.Embedding(50, 64), Attention()), Tokens(shape=(7,))),
    "recurrent": (Recurrent(), Noise(shape=(6, 8))),
}
KERNELS = {
    "convolutions": (
        Branches(
            padded=nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()),
            strided=nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False),
            dilated_groups=nn.Conv2d(16, 32, 3, dilation=2, groups=2),
            by_pixel=nn.Conv2d(16, 24, 1),
            by_image=nn.Conv2d(16, 24, 1, stride=2),
            depthwise=nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6()),
            depthwise_strided=nn.Conv2d(16, 16, (5, 3), stride=(2, 1), padding=(2, 0), groups=16, bias=False),
        ),
        (16, 11, 12),
    ),
    "one channel": (
        Branches(a=nn.Conv2d(1, 8, 3, padding=1), b=nn.Conv2d(1, 8, 5, stride=2, bias=False)),
        (1, 11, 12),
    ),
    "sequence": (Branches(a=nn.Conv1d(16, 24, 3, padding=1), b=nn.Conv1d(16, 24, 1)), (16, 20)),
    "dense": (Branches(a=nn.Linear(64, 100), b=nn.Linear(64, 32, bias=False), c=nn.Linear(64, 1)), (64,)),
    "uneven": (Uneven(320, a=33, b=64), (12, 320)),
    "rows": (Branches(a=nn.Linear(64, 100), b=nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU())), (28, 64)),
}
with torch.no_grad():  # batch norms with statistics of their own
    NETWORKS["image"][0].train()(torch.randn(32, *IMAGE))
for net, _ in NETWORKS.values():
    net.eval()
LEAST_DB = {"int8 dynamic": 34, "int8 weights": 40, "int4 dynamic": 15, "int4 weights": 15, "fp16": 60}
"""Simulated against float: random weights in so few bits."""


def target_of(use: str) -> Target:
    found = plugins.load("targets", use).model_validate({})
    assert isinstance(found, Target)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Callable[[str, str, Form | None], tuple[Model, Artifact]]:
    """Makes a network's file for a target in a form, or in float, once for all tests."""

    @functools.cache
    def build(name: str, use: str, form: Form | None) -> tuple[Model, Artifact]:
        net, task = NETWORKS[name]
        model = Model(net=net, quantization=None if form is None else Quantization(net, task, "auto", forms=(form,)))
        return model, target_of(use).build(model, task, tmp_path_factory.mktemp("file"), batch_size=1)

    return build


def climbed(name: str, use: str, model: Model, artifact: Artifact) -> ladder.Climb:
    """The ladder of a file; onnxruntime stands in for NVIDIA's runtimes."""
    net, task = NETWORKS[name]
    session = target_of("onnxruntime" if use == "tensorrt" else use).open(artifact.stand_in or artifact.file)
    reference = measure.evaluate(TorchSession(net, task), task, "test")
    above = (ladder.rung("float", reference.score, (), task),)
    climb = ladder.climb(model, reference, above, target_of(use), session, task)
    session.close()
    return climb


CASES = [
    (name, use, form)
    for name in NETWORKS
    for use in ("tflite", "onnxruntime", "tensorrt")
    for form in target_of(use).forms
    if form not in STATIC_FORMS and (name not in ("sequence", "recurrent") or form == "int8 dynamic")
]


@pytest.mark.parametrize(("name", "use", "form"), CASES)
def test_the_deployed_file_repeats_the_simulation(name, use, form, built):
    model, artifact = built(name, use, form)
    assert artifact.precision == form
    if use == "tensorrt":
        assert "RTX" in artifact.versions["checked_by"]  # NVIDIA's parser and builder have taken it
    climb = climbed(name, use, model, artifact)
    assert climb.breach is None
    assert climb.quantization_db > LEAST_DB[form]
    if form == "fp16" and use == "tensorrt":  # in half, where every kernel rounds
        assert climb.agreement.sqnr_db > 55
    elif form.endswith("dynamic"):
        assert climb.agreement.sqnr_db > climb.quantization_db + 20
    else:  # the same float32 kernels on the same weights
        assert climb.agreement.sqnr_db > 110


class Rows(nn.Module):
    """Dense layers with the inputs first in their weights, as GPT-2 has them: files need the transpose of each."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(48, 48) / 7) for _ in range(num_layers))
        self.bias = nn.Parameter(torch.randn(48))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            x = torch.tanh(torch.addmm(self.bias, x, weight))
        return x


@pytest.mark.parametrize("form", ["int8 weights", None])
def test_weights_that_a_converter_copies_are_not_taken_for_one_another(form, tmp_path):
    net, task = Rows(num_layers=12).eval(), Noise(shape=(48,))
    quantization = None if form is None else Quantization(net, task, "auto", forms=(form,))
    model, target = Model(net=net, quantization=quantization), target_of("tflite")
    session = target.open(target.build(model, task, tmp_path, batch_size=1).file)
    answers = measure.evaluate(session, task, "test").outputs["y"]
    wanted = measure.evaluate(TorchSession(net, task), task, "test").outputs["y"]
    assert stats.sqnr_db(wanted, answers) > 30


GROUPS: tuple[str, Form, int] = ("tflite", "int4 dynamic", 32)
KERNEL_CASES = [
    *((name, use, "int8 dynamic") for name in KERNELS for use in ("tflite", "onnxruntime")),
    *((name, "tflite", "int4 dynamic") for name in ("dense", "rows", "uneven")),
]


@pytest.mark.parametrize(("name", "use", "form"), KERNEL_CASES)
def test_kernels_that_scale_at_run_time_are_repeated_bit_for_bit(name, use, form, tmp_path):
    """What is left between a network's simulation and its file comes from the float operators in between."""
    net, shape = KERNELS[name]
    task = BranchNoise(shape=shape, branches=tuple(net.layers), num_samples=400)
    model = Model(net=net, quantization=Quantization(net.eval(), task, "auto", forms=(form,)))
    target = target_of(use)
    session = target.open(target.build(model, task, tmp_path, batch_size=1).file)
    rng = np.random.default_rng(5)
    size = (task.num_samples, *[1] * len(shape))
    values = task.arrays("test")["x0"] * rng.uniform(0.1, 3, size) + rng.standard_normal(size)  # a range for each
    batch = {"x0": values.astype(np.float32)}
    simulated = model.quantization.simulated(target.scheme).session().run(batch)
    deployed = [session.run({"x0": batch["x0"][i : i + 1]}) for i in range(task.num_samples)]
    session.close()
    for branch in net.layers:
        wanted, found = simulated[branch], np.concatenate([outputs[branch] for outputs in deployed])
        if platform.machine() == "x86_64":
            assert np.array_equal(wanted, found), branch
        else:  # where kernels may lack fused multiply-adds: a code that tips over would cost 50 dB
            assert stats.sqnr_db(wanted, found) > 130, branch


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
def test_a_transposed_convolution_between_dynamic_layers_stays_in_float(use, tmp_path):
    net = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), nn.ReLU()).eval()
    task = Noise()
    model = Model(net=net, quantization=Quantization(net, task, "auto", forms=("int8 dynamic",)))
    target = target_of(use)
    session = target.open(target.build(model, task, tmp_path, batch_size=1).file)
    values = task.arrays("test")["x0"]
    deployed = np.concatenate([session.run({"x0": values[i : i + 1]})["y"] for i in range(len(values))])
    session.close()
    simulated = model.quantization.simulated(target.scheme).session().run({"x0": values})["y"]
    assert stats.sqnr_db(simulated, deployed) > 120


@pytest.mark.parametrize("use", ["tflite", "onnxruntime", "tensorrt"])
def test_files_of_heavy_weights_shrink_as_far_as_their_bits(use, built):
    """4x with 8 bits, nearly 8x with 4, 2x in half precision."""
    size = built("dense", use, None)[1].file.stat().st_size
    for form in set(target_of(use).forms) - set(STATIC_FORMS):
        bits: float = {"int8": 8, "int4": 4, "fp16": 16}[form.split()[0]]
        if form in target_of(use).scheme.grouped:
            bits += 0.5 if use == "tflite" else 1  # a scale for 32 weights, in float16 or in float32
        assert size / built("dense", use, form)[1].file.stat().st_size == pytest.approx(32 / bits, rel=0.1), form


def operators(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(file)).graph.node]


def test_onnx_files_hold_the_operators_of_their_form(built):
    dynamic = operators(built("tokens", "onnxruntime", "int8 dynamic")[1].file)
    assert dynamic.count("MatMulInteger") == 4
    assert dynamic.count("DynamicQuantizeLinear") == 2  # query, key and value share one
    for form, level in (("int4 weights", []), ("int4 dynamic", [4])):  # 4: products of int8 codes
        nodes = onnx.load(str(built("tokens", "onnxruntime", form)[1].file)).graph.node
        levels = [[a.i for a in n.attribute if a.name == "accuracy_level"] for n in nodes if n.op_type == "MatMulNBits"]
        assert levels == [level] * 4
    half = onnx.load(str(built("tokens", "tensorrt", "fp16")[1].file)).graph
    types = {tensor.name: tensor.data_type for tensor in half.initializer}
    products = [node for node in half.node if node.op_type in ("MatMul", "Gemm")]
    weights = [types[name] for node in products for name in node.input if name in types]
    assert weights == [onnx.TensorProto.FLOAT16] * 4
    assert {value.type.tensor_type.elem_type for value in half.output} == {onnx.TensorProto.FLOAT}


def grouped(net: nn.Module, task: Noise, use: str, form: Form, size: int, folder: Path) -> tuple[Model, Path]:
    """A network and its file with 4-bit weights that have a scale for each `size` inputs."""
    model = Model(net=net, quantization=Quantization(net.eval(), task, "auto", forms=(form,), group_size=size))
    return model, target_of(use).build(model, task, folder, batch_size=1).file


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
def test_groups_keep_weights_that_differ_in_size(use, tmp_path):
    """A larger group, or a whole row, serves the largest of its weights alone. 320 is no multiple of 128."""
    net, task, target = Uneven(320, y=64).eval(), Noise(shape=(320,)), target_of(use)
    wanted = measure.evaluate(TorchSession(net, task), task, "test").outputs["y"]
    found = {}
    for size in (32, 64, 128) if use == "tflite" else (16, 32, 64):
        model, file = grouped(net, task, use, "int4 dynamic", size, tmp_path)
        session = target.open(file)
        outputs = measure.evaluate(session, task, "test").outputs["y"]
        session.close()
        simulated = model.quantization.simulated(target.scheme).evaluated("test").outputs["y"]
        assert stats.sqnr_db(simulated, outputs) > 110
        found[size] = stats.sqnr_db(wanted, outputs)
    assert found[32] > found[64] + 1
    assert use != "tflite" or found[64] > found[128] + 1


def test_tflite_files_with_groups_are_of_a_version_that_old_interpreters_refuse(tmp_path):
    """They would ignore the scales and answer nonsense."""
    _, file = grouped(nn.Sequential(nn.Linear(96, 8), nn.Linear(8, 4)), Noise(shape=(96,)), *GROUPS, tmp_path)
    graph = Flatbuffer(file.read_bytes())
    first, second = graph.operators
    versions = [graph.model.operatorCodes[operator.opcodeIndex].version for operator in graph.operators]
    groups = graph.groups(graph.tensors[first.inputs[1]])
    assert versions[0] == 13 > versions[1]
    assert (groups.blockSize, graph.shape(groups.scales), graph.type_name(groups.scales)) == (32, (8, 3), "FLOAT16")
    assert graph.groups(graph.tensors[second.inputs[1]]) is None  # 8 inputs are no group


def test_groups_of_whole_rows_have_four_bits_in_onnx_files(tmp_path):
    net, task = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), Noise(shape=(64,))
    for form in ("int4 weights", "int4 dynamic"):
        _, file = grouped(net, task, "onnxruntime", form, 64, tmp_path)
        assert operators(file) == ["MatMulNBits", "Relu", "MatMulNBits"]
    # NVIDIA's parser and builder take the same.
    _, file = grouped(net, task, "tensorrt", "int4 weights", 64, tmp_path)
    stand_in = next(file.parent.glob("*.onnx"))
    held = [tensor.data_type for tensor in onnx.load(str(stand_in)).graph.initializer]
    assert held.count(onnx.TensorProto.INT4) == 2


def test_groups_stay_in_loops(tmp_path, monkeypatch):
    """Loops have tensors of their own, and so their weights' scales."""
    monkeypatch.setattr(loops, "MIN_REPETITIONS", 6)  # a file of few steps is converted quickly
    net, task = Recurrent(64), Noise(shape=(10, 64), num_samples=4)
    model, file = grouped(net, task, *GROUPS, tmp_path)
    graph = Flatbuffer(file.read_bytes())
    assert "WHILE" in map(graph.kind, graph.operators)
    session, batch = target_of("tflite").open(file), {"x0": task.arrays("test")["x0"][:1]}
    simulated = model.quantization.simulated(LITERT).session().run(batch)["y"]
    assert stats.sqnr_db(simulated, session.run(batch)["y"]) > 60
    assert len(session.activations(batch)) > 10 * 10  # of an unrolled copy
    session.close()


def test_groups_too_small_for_a_fast_kernel_are_an_error(tmp_path):
    with pytest.raises(TargetError, match="tflite has no fast kernel for groups of 16; set group_size to 32 or more"):
        grouped(nn.Linear(64, 8), Noise(shape=(64,)), "tflite", "int4 dynamic", 16, tmp_path)


def test_dynamic_tflite_files_use_hybrid_kernels_where_they_are_fast(built):
    _, artifact = built("image", "tflite", "int8 dynamic")
    graph = Flatbuffer(artifact.file.read_bytes())
    types = graph.schema.TensorType
    weights = [
        (kind, graph.tensors[operator.inputs[1]].type)
        for operator in graph.operators
        if "CONV" in (kind := graph.kind(operator))
    ]
    convolution, depthwise = ("CONV_2D", types.INT8), ("DEPTHWISE_CONV_2D", types.FLOAT32)
    assert weights == [convolution, convolution, depthwise, convolution, convolution]
    assert len(graph.dequantized_constants()) == 1


@pytest.mark.parametrize("form", [None, "int8 dynamic", "fp16"])
def test_tflite_files_name_tensors_by_the_paths_of_modules(form, built):
    _, artifact = built("image", "tflite", form)
    graph = Flatbuffer(artifact.file.read_bytes())
    layers = {
        path
        for operator in graph.operators
        if "CONV" in graph.kind(operator)
        for path in graph.name(operator).rpartition(";")[0].split(";")
    }
    paths = {name for name, _ in NETWORKS["image"][0].named_modules()}
    assert len(layers) >= 5
    assert layers - {""} <= paths


def test_packing_writes_equal_vectors_once_and_loses_nothing(built):
    _, artifact = built("recurrent", "tflite", "int8 dynamic")
    original, changed = (Flatbuffer(artifact.file.read_bytes()) for _ in range(2))
    packed = original.pack()
    for index, tensor in enumerate(changed.tensors):  # now every grid is another
        if tensor.quantization is not None and tensor.quantization.zeroPoint is not None:
            tensor.quantization.zeroPoint = tensor.quantization.zeroPoint + index
    again = Flatbuffer(packed)
    assert len(packed) < len(changed.pack())
    assert [again.form(index) for index in range(len(again.tensors))] == [
        original.form(index) for index in range(len(original.tensors))
    ]
    assert [*map(again.constant, again.tensors)] == [*map(original.constant, original.tensors)]
    assert [*map(again.kind, again.operators)] == [*map(original.kind, original.operators)]


def test_what_is_stored_in_half_is_all_weights_and_biases(built):
    _, artifact = built("dense", "tflite", "fp16")
    graph = Flatbuffer(artifact.file.read_bytes())
    held = [graph.tensors[operator.inputs[0]] for operator in graph.dequantized_constants().values()]
    assert {tensor.type for tensor in held} == {graph.schema.TensorType.FLOAT16}
    # All but the last bias of ten numbers, of which a cast would take more.
    assert sorted(len(graph.constant(tensor)) // 2 for tensor in held) == [32, 128, 320, 4096, 131072]


@pytest.mark.parametrize("scheme", [LITERT, ONNXRUNTIME], ids=["tflite", "onnxruntime"])
@pytest.mark.parametrize(
    ("net", "task"),
    [NETWORKS["dense"], (StepByStep(), Noise(shape=(7, 16))), (Flattened(), Noise(shape=(7, 16)))],
    ids=["dense", "transposed", "flattened"],
)
def test_the_scale_of_a_row_does_not_depend_on_other_samples(net, task, scheme):
    session = Quantization(net, task, "auto", forms=("int8 dynamic",)).simulated(scheme).session()
    values = task.arrays("test")["x0"][:4]
    alone = session.run({"x0": values[:1]})["y"]
    values[1:] *= 100
    assert np.array_equal(session.run({"x0": values})["y"][:1], alone)


def test_samples_behind_a_transpose_are_scaled_one_by_one_in_one_run():
    """A run for each would take as many times as long."""
    counted = {}
    for net in (StepByStep(), Flattened()):
        plan = Quantization(net, Noise(shape=(7, 16)), "auto", forms=("int8 dynamic",))
        counted[type(net)] = DynamicInterpreter(plan.simulated(ONNXRUNTIME).graph, ONNXRUNTIME).one_by_one
    assert counted == {StepByStep: False, Flattened: True}


@pytest.mark.parametrize("values", [np.zeros, np.ones], ids=["zeros", "ones"])
@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
def test_inputs_without_a_range(use, values, built):
    model, artifact = built("dense", use, "int8 dynamic")
    batch = {"x0": values((1, 1024), np.float32)}
    session = target_of(use).open(artifact.file)
    simulated = model.quantization.simulated(target_of(use).scheme).session().run(batch)["y"]
    assert stats.sqnr_db(simulated, session.run(batch)["y"]) > 100
    session.close()


def test_profiles_and_activations_leave_out_constants(built):
    _, artifact = built("dense", "tflite", "fp16")
    session = target_of("tflite").open(artifact.file)
    batch = {"x0": np.ones((1, 1024), np.float32)}
    assert [time.kind for time in session.profile(batch)] == ["FULLY_CONNECTED"] * 3
    assert [value.values.size for value in session.activations(batch)] == [128, 32, 10]
    session.close()


def test_runtimes_share_the_static_graph():
    net, task = NETWORKS["dense"]
    plan = Quantization(net, task, "min-max")
    assert plan.simulated(LITERT).draft is plan.simulated(ONNXRUNTIME).draft
    assert len(plan.calibrated) == 1
    dynamic = Quantization(net, task, "auto", forms=("int8 dynamic",))
    assert dynamic.simulated(LITERT) is not dynamic.simulated(ONNXRUNTIME)


def test_a_target_without_the_form_is_an_error_that_names_both(built):
    with pytest.raises(TargetError, match=r"tensorrt has no form 'int8 dynamic'"):
        built("dense", "tensorrt", "int8 dynamic")


def test_four_bits_without_a_layer_for_them_is_an_error(built):
    with pytest.raises(TargetError, match="no linear layer"):
        built("sequence", "tflite", "int4 weights")


def test_onnxruntime_scales_single_samples_only(tmp_path):
    net, task = NETWORKS["dense"]
    model = Model(net=net, quantization=Quantization(net, task, "auto", forms=("int8 dynamic",)))
    with pytest.raises(TargetError, match="for int8 dynamic set bench"):
        target_of("onnxruntime").build(model, task, tmp_path, batch_size=2)


RECIPE = """
task = {{ use = "digits" }}
model = {{ use = "mlp" }}
steps = [ {{ use = "quantize", {step} }} ]
targets = [ {{ use = "tflite" }}, {{ use = "{target}" }} ]
"""


@pytest.mark.parametrize(
    ("step", "target", "said"),
    [
        ('precision = "int4", method = "ptq"', "onnxruntime", "int4 has no method 'ptq'"),
        ('precision = "fp16", method = "dynamic"', "onnxruntime", "fp16 has no method 'dynamic'"),
        ('method = "dynamic", calibrator = "mse"', "onnxruntime", "has no calibrator"),
        ('method = "weight-only", group_size = 64', "onnxruntime", "has no group_size"),
        ('method = "dynamic"', "tensorrt", "tensorrt has no form 'int8 dynamic'"),
        ('method = "dynamik"', "onnxruntime", "no method named 'dynamik'; did you mean dynamic?"),
        ("method = 1", "onnxruntime", "no method named 1; there are: auto, qat, ptq, dynamic, weight-only"),
        ("method = []", "onnxruntime", "needs a method, or several to try"),
        ('method = ["ptq", "qat"]', "onnxruntime", '"qat" stands alone; several to try are out of ptq, dynamic'),
        ('method = ["ptq", "dynamic"], group_size = 64', "onnxruntime", "has no group_size; its keys are: calibrator"),
        ('precision = "int4", method = ["dynamic", "ptq"]', "onnxruntime", "int4 has no method 'ptq'"),
        ('precision = "int4", method = "dynamic"', "tensorrt", "tensorrt has no form 'int4 dynamic'"),
        ('precision = "int4", method = "dynamic", group_size = 16', "onnxruntime", "no fast kernel for groups of 16"),
    ],
)
def test_recipes_refuse_what_makes_no_sense(step, target, said):
    with pytest.raises(RecipeError, match=said):
        recipe.parse(RECIPE.format(step=step, target=target), Path("r.toml"))


@pytest.mark.parametrize(
    ("step", "form"),
    [
        ('method = "ptq"', "int8"),
        ('method = "dynamic"', "int8 dynamic"),
        ('method = "weight-only"', "int8 weights"),
        ('method = ["weight-only"]', "int8 weights"),
        ('precision = "int4", method = "weight-only", group_size = 64', "int4 weights"),
        ('precision = "fp16"', "fp16"),
    ],
)
def test_recipes_name_the_form(step, form):
    text = RECIPE.format(step=step, target="onnxruntime")
    found = recipe.parse(text, Path("r.toml"))
    assert found.steps[0].form == form
    model = found.steps[0].apply(Model(net=nn.Linear(4, 4)), found.task)
    assert model.precision == form


def test_recipes_can_name_several_methods_if_a_target_has_one_of_them():
    text = RECIPE.format(step='method = ["dynamic", "ptq", "dynamic"], calibrator = "mse"', target="tensorrt")
    found = recipe.parse(text, Path("r.toml"))
    assert found.steps[0].form is None
    assert found.steps[0].apply(Model(net=nn.Linear(4, 4)), found.task).quantization.forms == ("int8 dynamic", "int8")
