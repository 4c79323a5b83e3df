"""What libraries write in their own ways, in operators of the table: the same numbers, for any number of samples."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.nn import functional

from edgedl import measure, plugins, stats
from edgedl.core import Model, UsageError
from edgedl.quantize import opening
from edgedl.quantize.operators import OPERATORS
from edgedl.quantize.schemes import AFFINE, LITERT
from edgedl.quantize.simulate import Quantization, export_graph
from tests.test_quantize_operators import assert_repeats, deployed, target_of
from tests.toys import Apply, Noise


class Masked(nn.Module):
    """Attention as libraries write it: masks and positions made anew for every batch."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.masks, self.table = masks, nn.Embedding(20, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.transpose(1, 2)
        positions = torch.ones(tokens.shape[:2]).cumsum(1).long() - 1
        tokens = tokens + self.table(positions)
        mask = torch.ones(tokens.shape[0], 1, 20, 20, dtype=torch.bool)
        mask = mask.tril() if self.masks else mask
        heads = tokens.reshape(-1, 20, 2, 4).transpose(1, 2)
        return functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)


class Grids(nn.Module):
    """A bias looked up by a grid of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
        bias: torch.Tensor = self.table[(rows + columns).flatten()]
        return x + bias.reshape(5, 5)


class Transposed(nn.Module):
    """A dense layer whose weight lies the other way round, and a GELU of powers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(24, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.addmm(self.bias, x, self.weight)
        return 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3.0)))) + x**2


class RootMeanSquare(nn.Module):
    """A norm as libraries write it, and the dense layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.dense = nn.Parameter(torch.rand(20) + 0.5), nn.Linear(20, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inverse = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        y: torch.Tensor = self.dense(self.factor * (x * inverse).to(x.dtype))
        return y


class Heads(nn.Module):
    """Attention in Einstein's notation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.reshape(-1, 20, 2, 4)
        scores = torch.einsum("bqhd,bkhd->bhqk", heads, heads)
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), heads)


class Place(nn.Module):
    """Attention to a single place, and what it attends with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.reshape(-1, 2, 1, 4)
        scores = (heads @ heads.transpose(-2, -1)).softmax(-1)
        return scores @ heads + scores


torch.manual_seed(0)
NETWORKS = {
    "a mask that masks": (Masked(masks=True), (8, 20)),
    "a mask that masks nothing": (Masked(masks=False), (8, 20)),
    "a grid of positions": (Grids(), (8, 5, 5)),
    "a transposed dense layer": (Transposed(), (24,)),
    "a norm by steps": (RootMeanSquare(), (8, 20)),
    "Einstein's notation": (Heads(), (8, 20)),
    "attention to one place": (Place(), (8,)),
    "padding by itself": (nn.Sequential(nn.ZeroPad2d((2, 2, 1, 1)), nn.Conv2d(8, 4, 3, padding=1)), (8, 10, 10)),
    "padding on one side": (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 4, 3, stride=2)), (8, 10, 10)),
    "padding with ones": (nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(8, 4, 3)), (8, 10, 10)),
    "means without padding": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), (8, 10, 10)),
    "a window over all": (nn.AvgPool2d(64, ceil_mode=True), (8, 10, 10)),
    "windows of one size": (nn.AdaptiveAvgPool2d((5, 2)), (8, 10, 10)),
    "a Mish": (nn.Mish(), (8, 20)),
    "a log-sigmoid": (nn.LogSigmoid(), (8, 20)),
    "a GLU": (nn.GLU(1), (8, 20)),
    "magnitudes": (Apply(lambda x: x.abs() - x.amin(1, keepdim=True)), (8, 20)),
    "an inverse": (Apply(lambda x: (x * x + 1).reciprocal()), (8, 20)),
    "one bound": (Apply(lambda x: x.clamp_min(0.5)), (8, 20)),
    "rounding up to what fits": (nn.AvgPool2d(2, ceil_mode=True), (8, 10, 10)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rewritten_network_computes_the_same_in_operators_of_the_table(name):
    net, shape = NETWORKS[name]
    graph = export_graph(net.eval(), Noise(shape=shape))
    torch.manual_seed(0)
    for num_samples in (1, 5):
        x = torch.randn(num_samples, *shape)
        with torch.no_grad():
            (found,) = [graph(x)] if isinstance(graph(x), torch.Tensor) else graph(x)
            torch.testing.assert_close(found, net(x), rtol=1e-4, atol=1e-4)  # float32 sums in another order
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert set(targets) - {"aten.sym_size.int"} <= set(OPERATORS)
    if name == "a norm by steps":  # the steps between are no values of the graph
        assert targets == ["aten.rms_norm.default", "aten.linear.default"]
    if name == "padding by itself":
        assert "aten.pad.default" not in targets
    if name == "a mask that masks nothing":
        assert targets.count("aten.add.Tensor") == 1  # that of positions alone


DEPLOYED = ["windows of one size", "a Mish", "a log-sigmoid", "a GLU", "magnitudes", "an inverse", "one bound"]


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
@pytest.mark.parametrize("name", DEPLOYED)
def test_its_deployed_form_repeats_the_simulation(name, use, tmp_path):
    net, shape = NETWORKS[name]
    assert_repeats(deployed(net, Noise(shape=shape), target_of(use), tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a Mish", {"Mish opened into softplus, tanh and product": 1}),
        ("magnitudes", {"absolute value opened into maximum and sign": 1,
                        "minimum over a dimension opened into maximum and signs": 1}),
        ("windows of one size", {"adaptive pooling made a depthwise convolution": 1}),
        ("rounding up to what fits", {"average pooling made a depthwise convolution": 1}),
        ("a transposed dense layer", {"power opened into products": 2}),
        ("a grid of positions", {}),
    ],
)  # fmt: skip
def test_what_was_rewritten_is_told(name, words):
    net, shape = NETWORKS[name]
    simulation = Quantization(net.eval(), Noise(shape=shape), "min-max").simulated(AFFINE)
    assert simulation.rewrites() == words


def test_adaptive_pooling_into_unequal_windows_is_left_as_it_is():
    graph = export_graph(nn.AdaptiveAvgPool2d(3).eval(), Noise(shape=(8, 10, 10)))
    assert "aten.adaptive_avg_pool2d.default" in [str(node.target) for node in graph.graph.nodes]


def test_a_mean_whose_window_hangs_over_the_edge_is_left_as_it_is():
    graph = export_graph(nn.AvgPool2d(3, ceil_mode=True).eval(), Noise(shape=(8, 10, 10)))
    assert "aten.avg_pool2d.default" in [str(node.target) for node in graph.graph.nodes]


class Foresight(nn.Module):
    """Causal attention that has learned to score what is masked higher than anything else, by as much as `reach`."""

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ahead = torch.linspace(0, 2 * self.reach, 8)[:, None].expand(8, 4)
        return functional.scaled_dot_product_attention(torch.ones_like(x), x + ahead, x, is_causal=True, scale=1 / 8)


@pytest.mark.parametrize("reach", [1.0, 40.0, 100.0])
def test_a_mask_is_as_strong_as_the_scores_it_has_to_hide(reach):
    net = Foresight(reach).eval()
    graph = export_graph(net, Noise(shape=(8, 4)))
    x = torch.randn(16, 8, 4)
    assert stats.sqnr_db(net(x).numpy(), graph(x).numpy()) > 60


def test_scores_that_no_mask_hides_are_told_of():
    with pytest.raises(UsageError, match=r"answers otherwise: .*, or score masked places 256 above others\?"):
        export_graph(Foresight(800.0).eval(), Noise(shape=(8, 4)))


def test_a_network_whose_graph_answers_otherwise_is_refused():
    calls: list[int] = []
    net = Apply(lambda x: x * (1 + len(calls)) + (calls.append(1) or 0))
    with pytest.raises(UsageError, match=r"answers otherwise: -?\d.* dB.*remember earlier samples\?"):
        export_graph(net.eval(), Noise(shape=(4,)))


class Flattening(nn.Module):
    """A dense layer over places as libraries write it that have the inputs first in its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(24, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.addmm(self.bias, x.view(-1, 24), self.weight).view(*x.shape[:-1], 8)
        return torch.relu(places).mean(1)


def test_a_dense_layer_over_places_has_its_activation_in_its_kernel(tmp_path):
    net, task = Flattening().eval(), Noise(shape=(6, 24))
    graph = export_graph(net, task)
    assert "aten.reshape.default" not in {str(node.target) for node in graph.graph.nodes}
    x = torch.randn(3, 6, 24)
    torch.testing.assert_close(graph(x), net(x), atol=1e-5, rtol=1e-4)
    target = plugins.load("targets", "tflite").model_validate({})
    quantized = Quantization(net, task, "min-max")
    session = target.open(target.build(Model(net=net, quantization=quantized), task, tmp_path, batch_size=1).file)
    answers = measure.evaluate(session, task, "test").outputs["y"]
    assert stats.sqnr_db(quantized.evaluated(LITERT, "test").outputs["y"], answers) > 100


def places_flattened(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, 1)[:, :4].unflatten(0, (-1, 8))


PLAIN: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolutions": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (3, 8, 8),
    ),
    "transposed": (nn.Sequential(nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 2, 2, bias=False)), (16,)),
    "in place": (
        nn.Sequential(nn.Linear(6, 4), nn.ReLU6(inplace=True), nn.Linear(4, 4), Apply(lambda x: x.add_(1).relu_())),
        (6,),
    ),
    "in place where others look": (nn.Sequential(nn.Linear(6, 4), Apply(lambda x: x + x.relu_())), (6,)),
    "flat already": (nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Dropout(0.5), nn.Tanh()), (6,)),
    "views": (Apply(lambda x: torch.relu(x.view(x.shape[0], 4, 6)).reshape(-1, 24)), (2, 12)),
    "an LSTM": (nn.Sequential(nn.LSTM(4, 3, batch_first=True), Apply(lambda found: found[0][:, -1])), (5, 4)),
}
OTHERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "in place of another type": (nn.Sequential(nn.Linear(6, 4), Apply(lambda x: x.add_(x.double()))), (6,)),
    "in place of what is shared": (nn.Sequential(nn.Linear(6, 4), Apply(lambda x: x + x[:, 1:].relu_().sum())), (6,)),
    "attention": (Masked(True), (8, 20)),
    "batch and places in one dimension": (Apply(places_flattened), (8, 6)),
    "poolings into several windows": (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), (3, 8, 8)),
    "groups": (nn.ConvTranspose2d(4, 4, 2, groups=2), (4, 3, 3)),
    "a batch norm in training": (nn.BatchNorm1d(6, track_running_stats=False), (6,)),
}


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_a_network_is_traced_again_only_where_something_has_to_be_opened(name, monkeypatch):
    traced = []
    again = ExportedProgram.run_decompositions
    monkeypatch.setattr(ExportedProgram, "run_decompositions", lambda *given: [traced.append(name), again(*given)][1])
    net, shape = (PLAIN | OTHERS)[name]
    net, task = copy.deepcopy(net).eval(), Noise(shape=shape)
    found = export_graph(net, task)
    assert bool(traced) == (name in OTHERS)
    monkeypatch.setattr(opening, "_is_plain", lambda *_: False)
    traced_twice = export_graph(net, task)
    assert operators(found) == operators(traced_twice)
    inputs = torch.randn(3, *shape)
    assert torch.equal(found(inputs), traced_twice(inputs))


def operators(graph: GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function" and "sym_" not in node.name]
