"""Every operator of the table, alone and in random small networks: the deployed int8 file repeats the simulation."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from edgedl import ladder, measure, plugins, stats
from edgedl.core import Model, Target, Task, UnsupportedOperator
from edgedl.nvidia.building import build_engine
from edgedl.quantize.operators import OPERATORS
from edgedl.quantize.schemes import AFFINE, LITERT, SYMMETRIC
from edgedl.quantize.simulate import Quantization, activation_observers, export_graph, prepare, simulate
from edgedl.tflite.flatbuffer import Flatbuffer
from edgedl.torch_session import TorchSession
from tests.toys import Apply, Noise, Residual

torch.manual_seed(0)  # for the weights of the networks below

IMAGE, SEQUENCE, FEATURES = (8, 10, 10), (8, 20), (24,)


def between(*layers: nn.Module, channels: int = 8) -> nn.Sequential:
    """Layers between two convolutions, as they stand in networks: values that come from int8 and go there."""
    return nn.Sequential(nn.Conv2d(8, 8, 1), *layers, nn.Conv2d(channels, 8, 1))


def scores(x: torch.Tensor) -> torch.Tensor:
    """Two matrices a sample, each times itself."""
    heads = x.reshape(-1, 2, 4, 20)
    return torch.matmul(heads, heads.transpose(-2, -1))


# Operator of the table -> a network that is just it, or has it among others, and the shape of its inputs.
ALONE = {
    "aten.conv1d.default": (nn.Conv1d(8, 12, 3, padding="same", dilation=2), SEQUENCE),
    "aten.conv2d.default": (nn.Conv2d(8, 16, 3, stride=2, padding=1), IMAGE),
    "aten.conv2d.padding": (nn.Conv2d(8, 8, 3, padding="same", groups=8), IMAGE),
    "aten.conv_transpose1d.default": (nn.ConvTranspose1d(8, 4, 4, stride=2, padding=1), SEQUENCE),
    "aten.conv_transpose2d.input": (between(nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), nn.ReLU()), IMAGE),
    "aten.linear.default": (nn.Linear(24, 16), FEATURES),
    "aten.embedding.default": (nn.Sequential(Apply(lambda x: (x > 0).long()), nn.Embedding(2, 8)), FEATURES),
    "aten.relu.default": (nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True), nn.ReLU()), IMAGE),
    "aten.hardtanh.default": (nn.Sequential(nn.Conv2d(8, 8, 1), nn.Hardtanh(), nn.ReLU6(inplace=True)), IMAGE),
    "aten.relu6.default": (nn.Sequential(nn.Conv2d(8, 8, 1), Apply(nn.functional.relu6)), IMAGE),
    "aten.clamp.default": (nn.Sequential(nn.Conv2d(8, 8, 1), Apply(lambda x: x.clamp(-0.5, 1))), IMAGE),
    "aten.matmul.default": (Apply(scores), SEQUENCE),
    "aten.bmm.default": (Apply(lambda x: torch.bmm(x, x.transpose(1, 2))), SEQUENCE),
    "aten.mul.Tensor": (Apply(lambda x: x * x.relu() * 0.3), IMAGE),
    "aten.add.Tensor": (Residual(8), IMAGE),
    "aten.sub.Tensor": (Apply(lambda x: x[:, :4] - x[:, 4:]), IMAGE),
    "aten.div.Tensor": (Apply(lambda x: x / (x * x + 1)), IMAGE),
    "aten.maximum.default": (Apply(lambda x: torch.maximum(x[:, :4], x[:, 4:])), IMAGE),
    "aten.minimum.default": (Apply(lambda x: torch.minimum(x[:, :4], x[:, 4:])), IMAGE),
    "aten.mean.dim": (Apply(lambda x: x.mean(dim=(2, 3))), IMAGE),
    "aten.sum.dim_IntList": (Apply(lambda x: x.sum(dim=2)), SEQUENCE),
    "aten.adaptive_avg_pool2d.default": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "aten.neg.default": (Apply(lambda x: -x), IMAGE),
    "aten.sigmoid.default": (between(nn.SiLU()), IMAGE),
    "aten.tanh.default": (between(nn.Tanh()), IMAGE),
    "aten.softmax.int": (between(nn.Softmax(dim=1)), IMAGE),
    "aten.log_softmax.int": (nn.LogSoftmax(dim=1), FEATURES),
    "aten.leaky_relu.default": (between(nn.LeakyReLU(0.2)), IMAGE),
    "aten.prelu.default": (between(nn.PReLU(8)), IMAGE),
    "aten.softplus.default": (between(nn.Softplus()), IMAGE),
    "aten.gelu.default": (between(nn.GELU()), IMAGE),
    "aten.hardswish.default": (between(nn.Hardswish()), IMAGE),
    "aten.hardsigmoid.default": (between(nn.Hardsigmoid()), IMAGE),
    "aten.sqrt.default": (Apply(lambda x: torch.sqrt(x * x + 0.3)), IMAGE),
    "aten.rsqrt.default": (Apply(lambda x: torch.rsqrt(x * x + 0.3)), IMAGE),
    "aten.linalg_vector_norm.default": (Apply(lambda x: x * torch.norm(x, dim=(2, 3), keepdim=True)), IMAGE),
    "aten.layer_norm.default": (nn.LayerNorm(20), SEQUENCE),
    "aten.rms_norm.default": (nn.RMSNorm(20), SEQUENCE),
    "aten.group_norm.default": (between(nn.GroupNorm(2, 8), nn.InstanceNorm2d(8)), IMAGE),
    "aten.max_pool1d.default": (nn.MaxPool1d(2), SEQUENCE),
    "aten.max_pool2d.default": (nn.MaxPool2d(2), IMAGE),
    "aten.amax.default": (Apply(lambda x: x.amax(dim=1)), IMAGE),
    "aten.upsample_nearest1d.vec": (nn.Upsample(scale_factor=2), SEQUENCE),
    "aten.upsample_nearest2d.vec": (between(nn.Upsample(scale_factor=2)), IMAGE),
    "aten.pixel_shuffle.default": (between(nn.PixelShuffle(2), channels=2), IMAGE),
    "aten.reshape.default": (Apply(lambda x: x.view(x.shape[0], 4, -1)), IMAGE),
    "aten.permute.default": (Apply(lambda x: x.permute(0, 2, 3, 1)), IMAGE),
    "aten.transpose.int": (Apply(lambda x: x.transpose(1, 2)), SEQUENCE),
    "aten.squeeze.dim": (Apply(lambda x: x.mean(dim=2, keepdim=True).squeeze(2)), SEQUENCE),
    "aten.squeeze.dims": (Apply(lambda x: x.mean(dim=(2, 3), keepdim=True).squeeze((2, 3))), IMAGE),
    "aten.unsqueeze.default": (Apply(lambda x: x.unsqueeze(1)), SEQUENCE),
    "aten.expand.default": (Apply(lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1)), SEQUENCE),
    "aten.repeat.default": (Apply(lambda x: x.repeat(1, 2, 1)), SEQUENCE),
    "aten.slice.Tensor": (Apply(lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1)), IMAGE),
    "aten.select.int": (Apply(lambda x: torch.stack(x.unbind(1)[::2], dim=1)), SEQUENCE),
    "aten.flip.default": (Apply(lambda x: x.flip(1)), IMAGE),
    "aten.roll.default": (Apply(lambda x: x.roll(1, 2)), SEQUENCE),
    "aten.pad.default": (Apply(lambda x: nn.functional.pad(x, (1, 2, 3, 0))), IMAGE),
    "aten.cat.default": (Apply(lambda x: torch.cat([x, x.relu()], dim=1)), IMAGE),
    "aten.stack.default": (Apply(lambda x: torch.stack([x, x.sigmoid()], dim=1)), SEQUENCE),
}


IN_FLOAT = {"aten.layer_norm.default", "aten.rms_norm.default", "aten.group_norm.default"}
"""Computed in float between two grids: sums in another order may tip a value over."""
if platform.machine() not in ("x86_64", "AMD64"):
    IN_FLOAT.add("aten.softmax.int")  # LiteRT has another kernel there
CLAMPS = {"aten.relu6.default", "aten.hardtanh.default", "aten.clamp.default"}


@functools.cache
def quantized(net: nn.Module, task: Task) -> Model:
    """Calibrated once for all targets, as in a run."""
    return Model(net=net.eval(), quantization=Quantization(net, task, "min-max"))


def deployed(net: nn.Module, task: Task, target: Target, folder: Path, model: Model | None = None) -> ladder.Climb:
    """The ladder of an int8 network on a target."""
    model = model or quantized(net, task)
    artifact = target.build(model, task, folder, batch_size=1)
    session = target.open(artifact.file)
    reference = measure.evaluate(TorchSession(net, task), task, "test")
    climb = ladder.climb(model, reference, (ladder.rung("float", reference.score, (), task),), target, session, task)
    session.close()
    return climb


def assert_repeats(climb: ladder.Climb, exactly: bool = True) -> None:
    """Bit for bit; where runtimes compute in float, up to one step in few of the outputs.

    Outputs that are float, as sums of a last dense layer on onnxruntime, have the last bits of a float32 product.
    """
    if climb.agreement.max_steps is None:
        assert climb.agreement.sqnr_db > 120
    elif exactly:
        assert climb.agreement.max_steps == 0, climb.first_divergence
    else:
        assert climb.agreement.max_steps <= 1, climb.first_divergence
        assert climb.agreement.sqnr_db > climb.quantization_db + 20


def target_of(use: str) -> Target:
    found = plugins.load("targets", use).model_validate({})
    assert isinstance(found, Target)
    return found


def test_every_operator_of_the_table_is_tried():
    assert set(ALONE) == set(OPERATORS)


@pytest.mark.parametrize("name", ALONE)
def test_the_network_contains_the_operator(name):
    net, shape = ALONE[name]
    graph = export_graph(net, Noise(shape=shape))
    assert name in {str(node.target) for node in graph.graph.nodes}


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
@pytest.mark.parametrize("name", ALONE)
def test_alone_bit_for_bit(name, use, tmp_path):
    net, shape = ALONE[name]
    climb = deployed(net, Noise(shape=shape), target_of(use), tmp_path)
    assert_repeats(climb, exactly=name not in IN_FLOAT)
    assert climb.quantization_db > 20  # and the simulation is the network, not some constant


@pytest.mark.parametrize("name", ALONE)
def test_alone_symmetric_passes_nvidias_builder(name, tmp_path):
    import tensorrt_rtx

    net, shape = ALONE[name]
    task = Noise(shape=shape)
    model = quantized(net, task)
    artifact = target_of("tensorrt").build(model, task, tmp_path, batch_size=1)
    assert artifact.stand_in is not None
    assert len(build_engine(tensorrt_rtx, artifact.stand_in)) > 1000
    session = target_of("onnxruntime").open(artifact.stand_in)
    reference = measure.evaluate(TorchSession(net, task), task, "test")
    climb = ladder.climb(
        model, reference, (ladder.rung("float", reference.score, (), task),), target_of("tensorrt"), session, task
    )
    # onnxruntime, which stands in, runs a convolution in float if a clamp parts it from a symmetric grid.
    clamps = any(isinstance(module, Residual | nn.ReLU) for module in net.modules()) or name in CLAMPS
    assert_repeats(climb, exactly=not clamps and name not in IN_FLOAT)


@st.composite
def networks(draw) -> nn.Sequential:
    """Convolutional networks of up to four blocks and a dense head, with random weights and widths."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels, side, layers = 8, 10, []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "norm", "depthwise", "residual", "max"]))
        if kind in ("conv", "norm"):
            width = draw(st.sampled_from([4, 8, 12]))
            layers.append(nn.Conv2d(channels, width, draw(st.sampled_from([1, 3])), padding="same"))
            layers += [nn.BatchNorm2d(width)] if kind == "norm" else []
            layers.append(draw(st.sampled_from([nn.ReLU, nn.ReLU6, nn.Identity]))())
            channels = width
        elif kind == "depthwise":
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
        elif kind == "residual":
            layers.append(Residual(channels))
        elif side >= 4:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    if draw(st.booleans()):
        layers.append(nn.AdaptiveAvgPool2d(1))
        side = 1
    layers += [nn.Flatten(), nn.Linear(channels * side * side, draw(st.sampled_from([3, 10])))]
    net = nn.Sequential(*layers)
    with torch.no_grad():  # batch norms with statistics of their own
        net.train()(torch.randn(32, 8, 10, 10))
    return net.eval()


@given(net=networks(), use=st.sampled_from(["tflite", "onnxruntime"]))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_random_networks_bit_for_bit(net, use, tmp_path_factory):
    climb = deployed(net, Noise(shape=IMAGE), target_of(use), tmp_path_factory.mktemp("net"))
    assert_repeats(climb)


@pytest.mark.parametrize("zero_point", [0, 3])
@pytest.mark.parametrize("shape", [(8, 20), (3, 8, 20)], ids=["one matrix", "several"])
@pytest.mark.parametrize("step", [2.0**-3, 1.999**-3])
def test_products_of_matrices_go_to_kernels_that_round_apart(step, shape, zero_point, tmp_path):
    """On grids that put results exactly between two codes, where XNNPACK takes a zero point of 0 and no other."""
    net, task = Apply(lambda a, b: torch.matmul(a.transpose(-2, -1), b)), Noise(shape=shape, num_inputs=2)
    prepared, _ = prepare(export_graph(net.eval(), task), AFFINE, trained=True)
    chosen = [(2.0**-5, -4), (2.0**-5, zero_point), (step, 5)]
    grids = dict(zip(activation_observers(prepared), chosen, strict=True))
    model = Model(net=net, quantization=Quantization(net, task, grids={"affine": grids}))
    for use in ("tflite", "onnxruntime"):
        assert_repeats(deployed(net, task, target_of(use), tmp_path, model))


def test_attention_to_one_place_gives_the_values_there(tmp_path):
    net = Apply(lambda x: nn.functional.scaled_dot_product_attention(x, x, 2 * x)).eval()
    for use in ("tflite", "onnxruntime"):
        assert_repeats(deployed(net, Noise(shape=(4, 1, 8)), target_of(use), tmp_path))
    net = Apply(lambda x: 0.3 * x[:, :1].softmax(1)).eval()
    for use in ("tflite", "onnxruntime"):
        assert_repeats(deployed(net, Noise(shape=FEATURES), target_of(use), tmp_path))


TIES = {
    "aten.mean.dim": (Apply(lambda x: torch.cat([x[:, :1], x.mean(1, keepdim=True)], 1).flip(1)), (64, 32)),
    "aten.adaptive_avg_pool2d.default": (
        Apply(lambda x: torch.cat([x[:, :, :1, :1], nn.functional.adaptive_avg_pool2d(x, 1)], 2).flip(2)),
        (32, 8, 8),
    ),
    "aten.softmax.int": (Apply(lambda x: (5 * x).softmax(-1).transpose(1, 2)), (64, 64)),
}
"""What is joined has one grid, so that means of so many codes lie between two codes; shares of a softmax, by chance."""


@pytest.mark.parametrize("name", TIES)
def test_means_and_softmaxes_between_two_codes_are_rounded_as_litert_does(name, tmp_path):
    torch.manual_seed(0)
    net, shape = TIES[name]
    assert_repeats(deployed(net, Noise(shape=shape), target_of("tflite"), tmp_path), exactly=name not in IN_FLOAT)


@pytest.mark.parametrize("size", [3, 4])
def test_pooling_to_several_places_is_no_mean_of_the_whole(size, tmp_path):
    """On ten places these windows overlap, or are of several sizes."""
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(size), nn.Conv2d(8, 8, 1)).eval()
    assert_repeats(deployed(net, Noise(shape=IMAGE), target_of("tflite"), tmp_path))


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
def test_a_mean_over_one_value_is_that_value(use, tmp_path):
    """As squeeze-and-excitation has where an image has become one place: its scales would turn codes over."""
    net = nn.Sequential(
        nn.Conv2d(8, 8, 10), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), Apply(lambda x: x.mean((2, 3)))
    )
    task = Noise(shape=IMAGE)
    targets = {str(node.target) for node in export_graph(net.eval(), task).graph.nodes}
    assert not targets & {"aten.mean.dim", "aten.adaptive_avg_pool2d.default"}
    assert_repeats(deployed(net, task, target_of(use), tmp_path))


NO_INT8 = {
    "GELU": nn.GELU(),
    "HARD_SWISH": nn.Hardswish(),
    "SQRT": Apply(lambda x: torch.sqrt(x * x + 0.3)),
    "RSQRT": Apply(lambda x: torch.rsqrt(x * x + 0.3)),
}


@pytest.mark.parametrize("kind", NO_INT8)
def test_what_xnnpack_has_no_int8_kernel_for_is_computed_in_float(kind, tmp_path):
    task = Noise(shape=IMAGE)
    artifact = target_of("tflite").build(quantized(between(NO_INT8[kind]), task), task, tmp_path, batch_size=1)
    graph = Flatbuffer.read(artifact.file)
    assert graph is not None
    types = {graph.kind(operator): graph.tensors[operator.outputs[0]].type for operator in graph.operators}
    assert types[kind] == graph.schema.TensorType.FLOAT32
    assert types["CONV_2D"] == graph.schema.TensorType.INT8


def test_two_inputs_and_shared_values(tmp_path):
    net = Apply(lambda a, b: torch.relu(a + b) + a)
    for use in ("tflite", "onnxruntime"):
        climb = deployed(net, Noise(shape=IMAGE, num_inputs=2), target_of(use), tmp_path)
        assert_repeats(climb)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(6, 6).tril() > 0, torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1) > 0, -torch.inf)],
    ids=["of booleans", "of minus infinity"],
)
def test_what_attention_masks_stays_masked(mask):
    net = Apply(lambda x: nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)).eval()
    task = Noise(shape=(6, 8))
    reference = measure.evaluate(TorchSession(net, task), task, "test").outputs["y"]
    assert stats.sqnr_db(reference, simulate(net, task, AFFINE, "min-max").evaluated("test").outputs["y"]) > 25


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
def test_a_mask_may_depend_on_inputs(tmp_path, use):
    """As that of padded sentences does."""
    attention = nn.functional.scaled_dot_product_attention
    net = Apply(lambda x, given: attention(x, x, x, attn_mask=(given[:, :, 0] > -1)[:, None])).eval()
    climb = deployed(net, Noise(shape=(6, 8), num_inputs=2), target_of(use), tmp_path)
    assert_repeats(climb, exactly=False)  # softmax
    assert climb.quantization_db > 25


def test_random_numbers_are_no_constants():
    net = Apply(lambda x: x + torch.rand(20)).eval()
    with pytest.raises(UnsupportedOperator, match=r"aten\.rand\.default"):
        simulate(net, Noise(shape=SEQUENCE), AFFINE)


def test_an_unlisted_operator_is_an_error_that_names_it_and_its_layer():
    net = nn.Sequential()
    net.add_module("body", nn.Conv2d(8, 8, 1))
    net.add_module("strange", Apply(torch.erf))
    with pytest.raises(UnsupportedOperator, match=r"aten\.erf\.default.*strange"):
        simulate(net.eval(), Noise(shape=IMAGE), AFFINE)


class Steered(nn.Module):
    """A dense layer whose weight is an input, or is made of its own parameters."""

    def __init__(self, given: bool) -> None:
        super().__init__()
        self.given, self.first, self.table = given, nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.first(x).relu(), weight[0] if self.given else self.table.tanh())


@pytest.mark.parametrize("scheme", [AFFINE, LITERT], ids=lambda scheme: scheme.name)
def test_a_weight_that_depends_on_inputs_is_refused(scheme):
    task = Noise(shape=(8, 8), num_inputs=2)
    with pytest.raises(UnsupportedOperator, match=r"aten\.linear\.default with a weight that depends on inputs, made"):
        simulate(Steered(given=True).eval(), task, scheme)
    assert simulate(Steered(given=False).eval(), task, scheme).evaluated("test").score > 0


@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC], ids=lambda scheme: scheme.name)
def test_the_given_network_is_left_as_it_was(scheme):
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    simulate(net, Noise(shape=IMAGE), scheme)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC], ids=lambda scheme: scheme.name)
def test_symmetric_zero_points_are_zero_and_grids_are_recorded(scheme):
    simulation = simulate(nn.Conv2d(8, 8, 3).eval(), Noise(shape=IMAGE), scheme, "min-max")
    grids = simulation.grids()
    assert len(grids) == 2
    if scheme is SYMMETRIC:
        assert all(grid["zero_point"] == 0 for grid in grids)
    else:
        assert any(grid["zero_point"] != 0 for grid in grids)


class Products(nn.Module):
    """Attention with keys and values of their own, a product with what no activation is negative of, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2), -1) @ self.value(x)
        return (attended @ torch.relu(self.key(x)).transpose(1, 2)).mean(1)


def test_right_sides_of_products_have_their_zero_in_the_middle():
    torch.manual_seed(0)
    net = Products().eval()
    graph = simulate(net, Noise(shape=(12, 16)), AFFINE, "min-max").graph
    products = [node for node in graph.graph.nodes if str(node.target) == "aten.matmul.default"]
    zeros = [[side.args[2] for side in node.args] for node in products]
    assert [right for _, right in zeros] == [0, 0, -128]  # behind a ReLU all codes are for positive numbers
    assert zeros[0][0] != 0
